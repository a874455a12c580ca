"""Recency-weighted co-occurrence and transitions: a baseline of two sparse products, and candidate features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from genrec.data.histories import Histories
from genrec.errors import UserError
from genrec.retrieval.neighbours import cooccurring_items, row_blocks, row_of, strongest, users_by_items
from genrec.retrieval.sparse import kept_values, product, stacked, table_arrays, table_of

FORMAT_VERSION = 1
TRANSITION_WEIGHTS = ("count", "log")
BLOCK_VALUES = 1 << 23  # of a table at a time
MAX_PAIRS = 1 << 27  # pairs of a table: 8 bytes each
MIN_NEIGHBOURS = 64
MAX_HISTORY = 500  # newest events of a user that are counted, as co-occurrence costs their square


class CooccurrenceTransition:
    """Score items by ``h S`` with ``S = D^-1/2 C D^-1/2 + 1/2 (T + 1/2 T^T)``; h weighs an event by ``decay ** age``.

    C (n_items, n_items) counts the users who had both items, zero diagonal; D is diagonal, one plus the number of users
    who had the item: the one damps cosines that rest on a single user and keeps unseen items finite. T[i, j] is the
    plain number of times j came right after i, i and j different. T is not normalised: a frequent transition *is*
    strong evidence, and the symmetric or row-wise forms cost accuracy on Amazon Beauty. ``transitions="log"`` takes
    log(1 + count) instead: better there on validation too.

    ``max_history``: only that many newest events of a user are counted, as co-occurrence costs their square. Of each
    item the strongest ``MAX_PAIRS / n_items`` neighbours are kept (at least ``MIN_NEIGHBOURS``), so that a table stays
    near a gigabyte: a catalogue of 10^4 items keeps all of them, one of 10^6 134 each.
    """

    def __init__(self, decay: float = 0.6, transitions: str = "count", max_history: int = MAX_HISTORY):
        if not 0 < decay <= 1 or max_history < 1:
            raise UserError(
                f"CooccurrenceTransition got decay={decay} and max_history={max_history}; "
                "expected 0 < decay <= 1 and max_history >= 1"
            )
        if transitions not in TRANSITION_WEIGHTS:
            raise UserError(
                f"CooccurrenceTransition got transitions={transitions!r}; "
                f"expected one of {', '.join(TRANSITION_WEIGHTS)}"
            )
        self.decay, self.transitions, self.max_history = decay, transitions, max_history
        self.similar: sp.csr_matrix | None = None  # D^-1/2 C D^-1/2
        self.following: sp.csr_matrix | None = None  # 1/2 (T + 1/2 T^T)

    def fit(self, train: Histories, n_items: int) -> CooccurrenceTransition:
        """Count ``train`` (one history per user, all of it used); item ids are in [0, n_items)."""
        train = train.last_n(self.max_history)
        width = max(MAX_PAIRS // max(n_items, 1), MIN_NEIGHBOURS)
        self.similar = _similar(train, n_items, width)
        self.following = _following(train.transitions(n_items), self.transitions == "log", width)
        return self

    def score(self, histories: Histories) -> np.ndarray:
        """(B, n_items) float32."""
        similar, following = self.score_parts(histories)
        similar += following
        return similar

    def score_parts(self, histories: Histories) -> tuple[np.ndarray, np.ndarray]:
        """The co-occurrence and the transition part of the score, each (B, n_items) float32."""
        similar, following = self.sparse_parts(histories)
        return similar.toarray(), following.toarray()

    def sparse_parts(self, histories: Histories) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """The same two parts as sparse matrices."""
        if self.similar is None or self.following is None:
            raise UserError("CooccurrenceTransition has not been fitted; call fit(train, n_items) first")
        # Items that were added since the fit are wider than the table; they count nothing.
        n_items = max(self.similar.shape[0], int(histories.items.max(initial=-1)) + 1)
        weighted = histories.to_csr(n_items, weights=lambda ages: self.decay ** ages.astype(np.float64))
        return product(weighted, self.similar), product(weighted, self.following)

    def between(self, items: np.ndarray, other: int) -> np.ndarray:
        """The score that each of ``items`` (n,) in a history gives to ``other``; 0 for items added since the fit."""
        if self.similar is None or self.following is None:
            raise UserError("CooccurrenceTransition has not been fitted; call fit(train, n_items) first")
        scores, known = np.zeros(len(items), np.float32), np.flatnonzero(items < self.similar.shape[0])
        if other < self.similar.shape[0] and len(known):
            rows = items[known]
            both = self.similar[rows, other] + self.following[rows, other]
            scores[known] = np.asarray(both.todense()).ravel()
        return scores

    def state(self) -> dict[str, np.ndarray]:
        """Everything fitted, as plain arrays that ``from_state`` takes back."""
        if self.similar is None or self.following is None:
            raise UserError("CooccurrenceTransition has not been fitted; there is nothing to save")
        arrays: dict[str, Any] = {
            "format_version": np.int64(FORMAT_VERSION),
            "n_items": np.int64(self.similar.shape[0]),
            "decay": np.float64(self.decay),
            "transitions": np.int64(TRANSITION_WEIGHTS.index(self.transitions)),
            "max_history": np.int64(self.max_history),
        }
        for name, matrix in (("similar", self.similar), ("following", self.following)):
            arrays |= table_arrays(name, matrix)
        return {name: np.asarray(value) for name, value in arrays.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> CooccurrenceTransition:
        """The model that ``state`` describes. Raises ``UserError`` for arrays of another format."""
        if int(state.get("format_version", -1)) != FORMAT_VERSION:
            raise UserError(f"the co-occurrence state is not of format {FORMAT_VERSION}; fit and save it again")
        model = cls(float(state["decay"]), TRANSITION_WEIGHTS[int(state["transitions"])], int(state["max_history"]))
        shape = (int(state["n_items"]),) * 2
        model.similar, model.following = (table_of(name, state, shape) for name in ("similar", "following"))
        return model

    def save(self, path: Path) -> None:
        """Write ``state()`` as an npz file at exactly ``path``."""
        with open(path, "wb") as file:
            np.savez(file, **self.state())  # type: ignore[arg-type]  # numpy's stub takes the names for its options

    @classmethod
    def load(cls, path: Path) -> CooccurrenceTransition:
        """Read the file that ``save`` wrote, without pickle."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls.from_state(dict(arrays))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: not a saved co-occurrence model ({error}); fit and save it again") from error


def _similar(train: Histories, n_items: int, width: int) -> sp.csr_matrix:
    """D^-1/2 C D^-1/2, of each row the ``width`` highest values: (n_items, n_items) float32."""
    had = users_by_items(train, n_items)
    scale = 1 / np.sqrt(np.asarray(had.sum(axis=0), np.float64).ravel() + 1)

    def scaled(begin: int, together: sp.csr_matrix) -> sp.csr_matrix:
        rows = slice(begin, begin + together.shape[0])
        return (sp.diags(scale[rows]) @ together @ sp.diags(scale)).tocsr().astype(np.float32)

    return stacked(strongest_of_rows(scaled(*block), width) for block in cooccurring_items(had))


def strongest_of_rows(matrix: sp.csr_matrix, width: int) -> sp.csr_matrix:
    """The ``width`` highest values of each row, of equal ones those of the lowest columns."""
    if not (np.diff(matrix.indptr) > width).any():
        return matrix
    matrix.sort_indices()
    keep, rows = np.zeros(matrix.nnz, bool), row_of(matrix)
    chosen = strongest(matrix.data, matrix.indptr, width)
    keep[chosen] = True
    tied = chosen[np.bincount(rows[chosen], minlength=matrix.shape[0])[rows[chosen]] > width]
    tied = tied[np.lexsort((matrix.indices[tied], -matrix.data[tied], rows[tied]))]
    rank = np.arange(len(tied)) - np.searchsorted(rows[tied], rows[tied])
    keep[tied[rank >= width]] = False
    return kept_values(matrix, keep)


def _following(moves: sp.csr_matrix, log: bool, width: int) -> sp.csr_matrix:
    """1/2 (T + 1/2 T^T) of counts T: (n_items, n_items) float32.

    Kept are values among the ``width`` highest of their row or of their column, with their mirror images. Some rows at
    a time, and twice rather than kept in between, which bounds the memory.
    """
    back, n_items = moves.T.tocsr(), moves.shape[0]
    parts = [slice(*rows) for rows in row_blocks(np.diff(moves.indptr), BLOCK_VALUES)]
    # The lowest value that is kept of each row, and the last column where it is.
    least, last = np.full(n_items, -np.inf, np.float32), np.full(n_items, n_items)
    for rows in parts:
        part = _summed(moves, back, rows, log)
        cut = np.flatnonzero(np.diff(part.indptr) > width)
        part = strongest_of_rows(part, width)
        place = part.indptr[cut][:, None] + np.arange(width)
        values = part.data[place]
        least[cut + rows.start] = values.min(1)
        last[cut + rows.start] = np.where(values == values.min(1, keepdims=True), part.indices[place], -1).max(1)

    def strong(values: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return (values > least[row]) | ((values == least[row]) & (column <= last[row]))

    def block(rows: slice) -> sp.csr_matrix:
        part, mirrored = _summed(moves, back, rows, log), _summed(back, moves, rows, log)
        row, column = row_of(part) + rows.start, part.indices
        return kept_values(part, strong(part.data, row, column) | strong(mirrored.data, column, row))

    return stacked(block(rows) for rows in parts)


def _summed(forth: sp.csr_matrix, back: sp.csr_matrix, rows: slice, log: bool) -> sp.csr_matrix:
    """Some rows of 1/2 (T + 1/2 T^T), where ``forth`` is T and ``back`` is T^T."""
    own, other = (part[rows].astype(np.float64) for part in (forth, back))
    for part in (own, other) if log else ():
        part.data = np.log1p(part.data)
    return (0.5 * own + 0.25 * other).tocsr().astype(np.float32)
