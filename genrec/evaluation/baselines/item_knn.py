"""Item-based nearest neighbours (Deshpande & Karypis 2004)."""

from __future__ import annotations

from typing import Self

import numpy as np
import scipy.sparse as sp

from genrec.data.histories import Histories
from genrec.errors import UserError
from genrec.retrieval.history_model import HistoryModel, recency

_BLOCK = 2048  # items whose similarities to all others are held at once


class ItemKNN(HistoryModel):
    """Cosine over users, the k nearest items of each item, scores summed over the history.

    ``sim(i, j) = |users of both| / (sqrt(|users of i| |users of j|) + shrinkage)``; ``shrinkage`` pulls pairs with few
    users down. ``max_history``: only that many newest events of a user are read, as the work is their square.
    """

    SPACE = {"decay": (1.0, 0.9, 0.8, 0.6, 0.4), "shrinkage": (0.0, 3.0, 30.0, 100.0, 300.0), "k": (20, 50, 100, 300)}

    def __init__(self, k: int = 100, shrinkage: float = 10.0, max_history: int = 500, decay: float = 1.0):
        super().__init__(decay, max_history)
        if k < 1 or shrinkage < 0:
            raise UserError(f"ItemKNN got k={k}, shrinkage={shrinkage}; expected >= 1 and >= 0")
        self.k, self.shrinkage = k, shrinkage

    def fit(self, train: Histories, n_items: int, times: np.ndarray | None = None) -> Self:
        """Keep the ``k`` nearest items of each item."""
        had = recency(train.last_n(self.max_history), n_items, 1.0)  # (users, items)
        root = np.sqrt(np.asarray(had.sum(axis=0)).ravel())
        by_item = had.T.tocsr()
        blocks = [self._neighbours(by_item, had, root, start) for start in range(0, n_items, _BLOCK)]
        self.matrix = sp.vstack(blocks, format="csr") if blocks else sp.csr_matrix(np.zeros((0, 0), np.float32))
        return self

    def _neighbours(self, by_item: sp.csr_matrix, had: sp.csr_matrix, root: np.ndarray, start: int) -> sp.csr_matrix:
        """(block, n_items): the k largest similarities of each of the items from ``start`` on."""
        shared = (by_item[start : start + _BLOCK] @ had).tocoo()
        rows, columns = shared.row.astype(np.int64), shared.col.astype(np.int64)
        values = shared.data / (root[rows + start] * root[columns] + self.shrinkage)
        other = rows + start != columns  # an item is not its own neighbour
        rows, columns, values = rows[other], columns[other], values[other]
        order = np.lexsort((columns, -values, rows))  # by item, nearest first, lower id first among equals
        rows, columns, values = rows[order], columns[order], values[order]
        starts = np.searchsorted(rows, np.arange(shared.shape[0]))
        near = np.arange(len(rows)) - starts[rows] < self.k
        return sp.csr_matrix((values[near].astype(np.float32), (rows[near], columns[near])), shape=shared.shape)
