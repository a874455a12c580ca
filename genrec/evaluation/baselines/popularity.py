"""The most popular items for everyone."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from genrec.data.histories import Histories
from genrec.errors import UserError

DAY = 86_400


class Popularity:
    """Scores an item by its number of training events; with ``half_life`` (days) recent events count more."""

    SPACE: ClassVar[dict[str, tuple[Any, ...]]] = {"half_life": (None, 365.0, 90.0, 30.0, 10.0, 3.0, 1.0)}
    counts: np.ndarray | None = None  # (n_items,) float32

    def __init__(self, half_life: float | None = None):
        self.half_life = half_life

    def fit(self, train: Histories, n_items: int, times: np.ndarray | None = None) -> Self:
        """Count; ``times`` (n_events,) in seconds are needed with a half-life."""
        weights = None
        if self.half_life is not None:
            assert times is not None
            age = (times.max(initial=0) - times) / DAY
            weights = 0.5 ** (age / self.half_life)
        self.counts = np.bincount(train.items, weights, minlength=n_items).astype(np.float32)
        return self

    def score(self, histories: Histories) -> np.ndarray:
        """(B, n_items) float32."""
        if self.counts is None:
            raise UserError("Popularity has not been fitted; call fit(train, n_items) first")
        return np.tile(self.counts, (len(histories), 1))
