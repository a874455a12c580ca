"""The quantized space: text and co-consumption vectors, the latter predicted from text for items without events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import TruncatedSVD

from genrec.data.histories import Histories
from genrec.errors import UserError

BEHAVIOUR_DIM = 128
POPULAR = 1 << 18  # items that the decomposition of larger catalogues reads: those with most users
RIDGE = 1.0  # of the regression from text to co-consumption; a tenth or ten times it change nothing on Amazon Beauty


class BehaviourSpace:
    """Unit vectors of who was consumed with whom, from training events only; zero for an unseen item.

    They are the right singular vectors of the users' normalised histories. Above ``POPULAR`` items the decomposition
    is that of the most popular ones, whose left vectors then give every item its own: memory holds one row per user.
    """

    def __init__(self, train: Histories, n_items: int, seed: int):
        had = train.to_csr(n_items)
        had.data[:] = 1
        seen = np.asarray(had.sum(axis=0)).ravel()
        degree = np.sqrt(np.maximum(seen, 1))
        width = np.sqrt(np.maximum(np.asarray(had.sum(axis=1)).ravel(), 1))
        # the stubs of scipy take a product with an array for dense
        had = had.multiply(1 / degree[None, :]).multiply(1 / width[:, None]).tocsr()  # type: ignore[attr-defined]
        had = had.astype(np.float32)
        rank = min(BEHAVIOUR_DIM, min(had.shape) - 1)
        self.n_items, self._components, self._users = n_items, None, None
        if rank < 1:
            self._components = np.zeros((n_items, 1), np.float32)
        elif n_items <= POPULAR:
            self._components = TruncatedSVD(rank, random_state=seed).fit(had).components_.T
        else:
            popular = np.sort(np.argsort(-seen, kind="stable")[:POPULAR])
            part = had[:, popular]
            directions = TruncatedSVD(rank, random_state=seed).fit(part).components_
            self._users = (part @ directions.T) / np.maximum(
                np.linalg.norm(part @ directions.T, axis=0) ** 2, 1e-9
            ).astype(np.float32)
            self._had = had.T.tocsr()

    @property
    def dim(self) -> int:
        """Dimension of the vectors, at most 128."""
        table = self._components if self._components is not None else self._users
        assert table is not None
        return table.shape[1]

    def vectors(self, rows: slice = slice(None)) -> np.ndarray:
        """Vectors of some items (rows, dim) float32."""
        vectors = self._components[rows] if self._components is not None else self._had[rows] @ self._users
        return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def joint_vectors(text: np.ndarray, behaviour: np.ndarray, weight: float) -> np.ndarray:
    """Text and behaviour vectors concatenated, so that inner products mix by ``weight`` of behaviour.

    Unit length, or zero where both are.
    """
    joint = np.concatenate([np.sqrt(1 - weight) * text, np.sqrt(weight) * behaviour], axis=1)
    return (joint / np.maximum(np.linalg.norm(joint, axis=1, keepdims=True), 1e-9)).astype(np.float32)


@dataclass
class ItemSpace:
    """Turns text vectors into vectors of the space the codebooks live in.

    ``bridge`` (text_dim, behaviour_dim) predicts an item's co-consumption vector from its text: without it a new item
    would have half a vector, and land at the centroids whose other half is small. ``weight`` is that of
    co-consumption.
    """

    bridge: np.ndarray
    weight: float

    @classmethod
    def fit(cls, text: np.ndarray, behaviour: np.ndarray, weight: float) -> ItemSpace:
        """Ridge regression over the items that were consumed: text (n, text_dim), behaviour (n, behaviour_dim)."""
        return cls.fit_blocks([(text, behaviour)], weight)

    @classmethod
    def fit_blocks(cls, blocks: Iterable[tuple[np.ndarray, np.ndarray]], weight: float) -> ItemSpace:
        """``fit`` over consecutive blocks of items."""
        shape, products = (0, 0), None
        for text, behaviour in blocks:
            shape = text.shape[1], behaviour.shape[1]
            seen = np.linalg.norm(behaviour, axis=1) > 0
            if weight == 0 or not seen.any():
                continue
            known = text[seen].astype(np.float64)
            more = known.T @ known, known.T @ behaviour[seen]
            products = more if products is None else (products[0] + more[0], products[1] + more[1])
        if products is None:
            return cls(np.zeros(shape, np.float32), weight)
        gram = products[0] + RIDGE * np.eye(shape[0])
        return cls(np.linalg.solve(gram, products[1]).astype(np.float32), weight)

    def vectors(self, text: np.ndarray, behaviour: np.ndarray | None = None) -> np.ndarray:
        """Vectors (n, text_dim + behaviour_dim) of items or queries with text (n, text_dim).

        Rows of ``behaviour`` that are zero, or all of them where it is None, are predicted from the text.
        """
        predicted = text @ self.bridge
        if behaviour is not None:
            seen = np.linalg.norm(behaviour, axis=1, keepdims=True) > 0
            predicted = np.where(seen, behaviour, predicted)
        return joint_vectors(text, predicted, self.weight)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays that ``from_arrays`` reads."""
        return {"bridge": self.bridge, "share": np.array([self.weight], np.float32)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> ItemSpace:
        """Inverse of ``to_arrays``. Raises ``UserError`` where an array is missing."""
        missing = [name for name in ("bridge", "share") if name not in arrays]
        if missing:
            raise UserError(f"item space: missing {', '.join(missing)}; tokenize again")
        return cls(arrays["bridge"], float(arrays["share"][0]))
