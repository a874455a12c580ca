"""The most popular items for everyone."""

from __future__ import annotations

import numpy as np

from genrec.data.histories import Histories
from genrec.errors import UserError


class Popularity:
    """Scores an item by its number of training events, whoever asks."""

    counts: np.ndarray | None = None  # (n_items,) float32

    def fit(self, train: Histories, n_items: int) -> Popularity:
        self.counts = train.to_csr(n_items).sum(axis=0).A1.astype(np.float32)
        return self

    def score(self, histories: Histories) -> np.ndarray:
        """(B, n_items) float32."""
        if self.counts is None:
            raise UserError("Popularity has not been fitted; call fit(train, n_items) first")
        return np.tile(self.counts, (len(histories), 1))
