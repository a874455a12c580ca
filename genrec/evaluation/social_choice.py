"""One order of models from many measures: several data sets, kinds of request and metrics vote.

A mean over metrics lets the metric with the largest spread decide, and means over data sets of different difficulty say
little. Here every (data set, kind of request, metric) is a voter that only orders the models, and the orders are
aggregated: Borda's count, which approximates the Kemeny consensus, as Colombo et al. propose for benchmarks ("What are
the best systems?", NeurIPS 2022), beside Copeland's count of won pairwise majorities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genrec.errors import UserError

_DRAWS = 200


@dataclass(frozen=True)
class Electorate:
    """What one kind of request of one data set says: ``values`` (models, metrics, N), one per request."""

    name: str
    values: np.ndarray


@dataclass(frozen=True)
class Standing:
    """A model's result.

    ``borda``: mean fraction of rivals that it beats, over voters; ``wins`` and ``losses`` of pairwise majorities of the
    voters; ``first``: fraction of bootstrap draws over requests in which its Borda count is the highest.
    """

    model: str
    borda: float
    wins: int
    losses: int
    first: float


def standings(models: Sequence[str], electorates: Sequence[Electorate], seed: int = 0) -> list[Standing]:
    """The models, best first. ``UserError`` where fewer than two models were measured by the same voters."""
    if len(models) < 2 or not electorates:
        raise UserError("compare --rank: fewer than two models were measured by every run")
    votes = np.concatenate([one.values.mean(2) for one in electorates], axis=1)  # (models, voters)
    beaten = _beaten(votes)
    majority = np.sign(votes[:, None] - votes[None]).sum(2)
    rng = np.random.default_rng(seed)
    draws = np.concatenate([_resampled(one.values, rng) for one in electorates], axis=2)  # (draws, models, voters)
    leaders = np.array([_beaten(draw).mean(1).argmax() for draw in draws])
    table = [
        Standing(
            model,
            float(beaten[row].mean()),
            int((majority[row] > 0).sum()),
            int((majority[row] < 0).sum()),
            float((leaders == row).mean()),
        )
        for row, model in enumerate(models)
    ]
    return sorted(table, key=lambda one: -one.borda)


def _beaten(votes: np.ndarray) -> np.ndarray:
    """Fraction of rivals (models, voters) that each model beats; a tie counts half."""
    better = np.sign(votes[:, None] - votes[None])
    return (better.sum(1) / max(len(votes) - 1, 1) + 1) / 2


def _resampled(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means (draws, models, metrics) of ``values`` (models, metrics, N) over resampled requests, the same for all."""
    n = values.shape[2]
    weights = rng.multinomial(n, np.full(n, 1 / n), size=_DRAWS) / n
    return np.einsum("dn,mkn->dmk", weights, values)
