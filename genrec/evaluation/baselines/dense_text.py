"""Search by the cosine of text vectors."""

from __future__ import annotations

import numpy as np

from genrec.errors import UserError


class DenseText:
    """Cosine between a query's vector and the items' vectors."""

    item_vectors: np.ndarray | None = None  # (n_items, d) float32, unit length

    def fit(self, item_vectors: np.ndarray) -> DenseText:
        """``item_vectors`` (n_items, d) in item id order; any length."""
        self.item_vectors = _unit(item_vectors)
        return self

    def score(self, query_vectors: np.ndarray) -> np.ndarray:
        """(B, n_items) float32 cosines of ``query_vectors`` (B, d); 0 where a vector is zero."""
        if self.item_vectors is None:
            raise UserError("DenseText has not been fitted; call fit(item_vectors) first")
        if query_vectors.ndim != 2 or query_vectors.shape[1] != self.item_vectors.shape[1]:
            raise UserError(
                f"query vectors have shape {query_vectors.shape}; expected (B, {self.item_vectors.shape[1]}) as the "
                "items'"
            )
        return _unit(query_vectors) @ self.item_vectors.T


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
