"""EASE^R: a linear model of each item by all others, in closed form (Steck, arXiv 1905.03375)."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch

from genrec.data.histories import Histories
from genrec.errors import UserError
from genrec.retrieval.history_model import HistoryModel, recency

MAX_ITEMS = 20_000  # its matrix is dense: 1.6 GB, and minutes of one core, at so many items


class EASE(HistoryModel):
    """``B = I - P / diag(P)`` with ``P = (X^T X + regularisation I)^-1`` and X the users' items."""

    SPACE = {"decay": (1.0, 0.9, 0.8, 0.6), "regularisation": (500.0, 100.0, 30.0, 1000.0)}
    LARGE_SPACE = SPACE | {"regularisation": (500.0, 100.0)}  # each value inverts the matrix anew

    def __init__(self, regularisation: float = 200.0, decay: float = 1.0, max_history: int = 500):
        super().__init__(decay, max_history)
        self.regularisation = regularisation

    def fit(self, train: Histories, n_items: int, times: np.ndarray | None = None) -> Self:
        """Invert the item-item matrix."""
        if n_items > MAX_ITEMS:
            raise UserError(f"EASE^R inverts a dense matrix; {n_items} items are more than {MAX_ITEMS}")
        had = recency(train.last_n(self.max_history), n_items, 1.0)
        gram = torch.from_numpy((had.T @ had).toarray())
        gram.diagonal().add_(self.regularisation)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        # It comes column by column. A matrix is the other way round in NumPy and SciPy, which would turn it over
        # for each product; the inverse is symmetric, so that its transpose is the same in the order they want.
        inverse = inverse if inverse.is_contiguous() else inverse.mT
        inverse /= -inverse.diagonal().clone()
        self.matrix = inverse.fill_diagonal_(0).numpy()
        return self
