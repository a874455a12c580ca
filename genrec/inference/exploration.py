"""Exploration: some slots of a list are drawn, so that the log also holds what the model would not have put there.

The chance of each item to stand in its slot is part of the answer. Logged with the impression, it lets the next reward
model and the acceptance gate weigh impressions by one over it (``genrec/preference/propensities.py``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from genrec.errors import UserError

POOL = 50  # items are drawn from so many of the best; the slots behind them are not explored


@dataclass(frozen=True)
class Exploration:
    """A slot is drawn with probability ``share``, by a softmax of the scores over ``temperature``.

    All else equal the same ``seed`` gives the same list, until the history changes: pages fit together.
    """

    share: float = 0.1
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"exploration: the share must lie between 0 and 1, is {self.share}")
        if not self.temperature > 0:
            raise UserError(f"exploration: the temperature must be above 0, is {self.temperature}")


def explored(
    scores: np.ndarray, length: int, exploration: Exploration, request: bytes
) -> tuple[np.ndarray, np.ndarray]:
    """A new order of a list with ``scores`` (n,): indices (m,), m <= ``length``, and the propensity (m,) of each.

    A slot that is not drawn holds the first item of the list that is left. The propensity is the chance of the item in
    its slot, given the slots before. ``request`` identifies the request: draws follow from it and the seed.
    """
    digest = hashlib.sha256(exploration.seed.to_bytes(8, "big", signed=True) + request).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    n, slots = min(len(scores), POOL), min(len(scores), length)
    pool = scores[:n].astype(np.float64) / exploration.temperature
    weights = np.exp(pool - pool.max(initial=-np.inf))
    order, propensities = np.arange(slots), np.ones(slots)
    left = np.arange(n)
    for slot, (coin, draw) in enumerate(generator.random((min(slots, n), 2))):
        chances = weights[left] / weights[left].sum()
        drawn = min(int(np.searchsorted(np.cumsum(chances), draw, side="right")), len(left) - 1)
        column = drawn if coin < exploration.share else 0
        order[slot] = left[column]
        propensities[slot] = exploration.share * chances[column] + (1 - exploration.share) * (column == 0)
        left = np.delete(left, column)
    return order, propensities
