"""Implicit alternating least squares (Hu, Koren & Volinsky 2008); users are folded in from their histories."""

from __future__ import annotations

from typing import Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from genrec.data.histories import Histories
from genrec.errors import UserError
from genrec.retrieval.history_model import HistoryModel, recency

_CELLS = 1 << 23  # numbers of a temporary table held at once


class ImplicitALS(HistoryModel):
    """Factors of users and items that reproduce who had what; an event's confidence is ``1 + alpha * decay ** age``.

    While fitting, all events count alike; ``decay`` is for the history of a request.
    """

    SPACE = {
        "decay": (0.9, 0.95, 0.8, 0.6),
        "alpha": (10.0, 3.0, 30.0, 100.0),
        "regularisation": (10.0, 1.0, 30.0, 100.0),
        "factors": (64, 128),
    }
    items: Tensor | None = None  # (n_items, factors)
    gram: Tensor  # (factors, factors) what every user's equations share

    def __init__(
        self,
        factors: int = 64,
        alpha: float = 10.0,
        regularisation: float = 10.0,
        decay: float = 1.0,
        iterations: int = 8,
        max_history: int = 500,
        seed: int = 0,
    ):
        super().__init__(decay, max_history)
        self.factors, self.alpha, self.regularisation = factors, alpha, regularisation
        self.iterations, self.seed = iterations, seed

    def fit(self, train: Histories, n_items: int, times: np.ndarray | None = None) -> Self:
        """Alternate between users and items."""
        had = recency(train.last_n(self.max_history), n_items, 1.0)
        by_item = had.T.tocsr()
        generator = torch.Generator().manual_seed(self.seed)
        self.items = torch.randn(n_items, self.factors, generator=generator) / self.factors**0.5
        for _ in range(self.iterations):
            users = self._solve(had, self.items, self._common(self.items))
            self.items = self._solve(by_item, users, self._common(users))
        return self.with_items(self.items)

    def with_items(self, items: Tensor) -> Self:
        """Take ``items`` (n_items, factors) as fitted."""
        self.items, self.gram = items, self._common(items.double())
        return self

    def score(self, histories: Histories) -> np.ndarray:
        """(B, n_items) float32."""
        users = self.users(histories)
        assert self.items is not None
        return (users @ self.items.T).numpy()

    def users(self, histories: Histories) -> Tensor:
        """Factors (B, factors) float32 of users by their histories; zero without one.

        Solved in double precision: a request's factors do not depend on those beside it in a batch.
        """
        if self.items is None:
            raise UserError("ImplicitALS has not been fitted; call fit(train, n_items) first")
        recent, n_items = histories.last_n(self.max_history), len(self.items)
        # Items that were added since have no factors.
        weights = recency(recent, max(n_items, int(recent.items.max(initial=-1)) + 1), self.decay)[:, :n_items]
        return self._solve(weights, self.items, self.gram).float()

    def _common(self, other: Tensor) -> Tensor:
        return other.T @ other + self.regularisation * torch.eye(other.shape[1], dtype=other.dtype)

    def _solve(self, weights: sp.csr_matrix, other: Tensor, common: Tensor) -> Tensor:
        """The factors (n, factors) of the rows of ``weights`` (n, m), given those of its columns (m, factors).

        ``common`` (factors, factors): the ``_common`` of all columns, in the precision of the solution.
        """
        counts = np.diff(weights.indptr)
        solution = torch.zeros(weights.shape[0], other.shape[1], dtype=common.dtype)
        order = np.argsort(counts, kind="stable")
        order = order[counts[order] > 0]
        begin = 0
        while begin < len(order):
            size = max(1, _CELLS // (other.shape[1] * max(int(counts[order[begin]]), other.shape[1])))
            rows = order[begin : begin + size]
            while len(rows) > 1 and len(rows) * int(counts[rows[-1]]) * other.shape[1] > 2 * _CELLS:
                rows = rows[: len(rows) // 2]
            begin += len(rows)
            column = np.arange(int(counts[rows].max()))
            live = column < counts[rows][:, None]
            index = np.where(live, weights.indptr[:-1][rows][:, None] + column, 0)
            confidence = torch.from_numpy(np.where(live, self.alpha * weights.data[index], 0)).to(common.dtype)
            columns = torch.from_numpy(weights.indices[index].astype(np.int64))
            vectors = other[columns].to(common.dtype)  # (rows, columns, factors)
            matrix = common + (vectors * confidence[..., None]).transpose(1, 2) @ vectors
            preference = torch.from_numpy(live).to(common.dtype) + confidence
            solution[torch.from_numpy(rows)] = torch.cholesky_solve(
                (preference[:, None] @ vectors).transpose(1, 2), torch.linalg.cholesky(matrix)
            )[..., 0]
        return solution
