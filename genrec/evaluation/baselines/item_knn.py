"""Item-based nearest neighbours (Deshpande & Karypis 2004)."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from genrec.data.histories import Histories
from genrec.errors import UserError

_BLOCK = 2048  # items whose similarities to all others are held at once


class ItemKNN:
    """Cosine over users, the k nearest items of each item, scores summed over the history.

    ``sim(i, j) = |users of both| / (sqrt(|users of i| |users of j|) + shrinkage)``; ``shrinkage`` pulls pairs seen
    by few users down. ``max_history``: only that many newest events of a user are read, as the work is their square.
    """

    def __init__(self, k: int = 100, shrinkage: float = 10.0, max_history: int = 500):
        if k < 1 or shrinkage < 0 or max_history < 1:
            raise UserError(
                f"ItemKNN got k={k}, shrinkage={shrinkage}, max_history={max_history}; expected >= 1, >= 0 and >= 1"
            )
        self.k, self.shrinkage, self.max_history = k, shrinkage, max_history
        self.similarity: sp.csr_matrix | None = None  # (n_items, n_items): row i holds the neighbours of item i

    def fit(self, train: Histories, n_items: int) -> ItemKNN:
        had = _binary(train.last_n(self.max_history), n_items)  # (users, items)
        root = np.sqrt(np.asarray(had.sum(axis=0)).ravel())
        by_item = had.T.tocsr()
        blocks = [self._neighbours(by_item, had, root, start) for start in range(0, n_items, _BLOCK)]
        self.similarity = sp.vstack(blocks, format="csr") if blocks else sp.csr_matrix((0, 0), dtype=np.float32)
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

    def score(self, histories: Histories) -> np.ndarray:
        """(B, n_items) float32."""
        if self.similarity is None:
            raise UserError("ItemKNN has not been fitted; call fit(train, n_items) first")
        return (_binary(histories, self.similarity.shape[0]) @ self.similarity).toarray()


def _binary(histories: Histories, n_items: int) -> sp.csr_matrix:
    """(B, n_items) float32: 1 where the history holds the item, however often."""
    matrix = histories.to_csr(n_items)
    matrix.data[:] = 1
    return matrix
