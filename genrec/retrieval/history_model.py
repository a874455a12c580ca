"""Baselines of one shape: a history, its events weighed by recency, times an item-item matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
import scipy.sparse as sp

from genrec.data.histories import Histories
from genrec.errors import UserError


class HistoryModel(ABC):
    """``score = h S``: history h weighs an item ``decay ** age`` of its newest event, S (n_items, n_items) is fitted.

    ``SPACE`` lists the values that a search on validation tries for each argument; see ``search.tuned``.
    ``LARGE_SPACE``: the same for large catalogues, None where it does not depend on the size.
    """

    SPACE: ClassVar[dict[str, tuple[Any, ...]]] = {}
    LARGE_SPACE: ClassVar[dict[str, tuple[Any, ...]] | None] = None
    matrix: sp.csr_matrix | np.ndarray | None = None

    def __init__(self, decay: float = 1.0, max_history: int = 500):
        if not 0 < decay <= 1 or max_history < 1:
            name = type(self).__name__
            raise UserError(
                f"{name} got decay={decay}, max_history={max_history}; expected 0 < decay <= 1 and 1 or more"
            )
        self.decay, self.max_history = decay, max_history

    @abstractmethod
    def fit(self, train: Histories, n_items: int, times: np.ndarray | None = None) -> Self:
        """Fit on one history per user; ``times`` (n_events,) seconds, for models that read them."""

    def score(self, histories: Histories) -> np.ndarray:
        """(B, n_items) float32."""
        if self.matrix is None:
            raise UserError(f"{type(self).__name__} has not been fitted; call fit(train, n_items) first")
        weights = recency(histories, self.matrix.shape[0], self.decay)
        return np.asarray(
            weights @ self.matrix if isinstance(self.matrix, np.ndarray) else (weights @ self.matrix).toarray()
        )


def recency(histories: Histories, n_items: int, decay: float) -> sp.csr_matrix:
    """(B, n_items) float32: ``decay ** age`` of the newest event of each item of a history; 1 for all with decay 1."""
    ages = histories.ages
    order = np.lexsort((ages, histories.items, histories.rows))
    rows, items = histories.rows[order], histories.items[order]
    newest = np.ones(len(order), bool)
    newest[1:] = (rows[1:] != rows[:-1]) | (items[1:] != items[:-1])
    weights = (decay ** ages[order][newest].astype(np.float64)).astype(np.float32)
    return sp.csr_matrix((weights, (rows[newest], items[newest])), shape=(len(histories), n_items))
