"""Ragged histories: every request's events in two flat arrays, oldest first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from genrec.errors import UserError

if TYPE_CHECKING:
    import scipy.sparse as sp


def gather_ranges(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index ranges put one after the other: range n covers ``starts[n]`` to ``starts[n] + lengths[n] - 1``.

    Returns the offsets (N + 1,) of the ranges in the result and the indices (sum of lengths,).
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return offsets, np.repeat(np.asarray(starts) - offsets[:-1], lengths) + np.arange(offsets[-1])


@dataclass(frozen=True)
class Histories:
    """n histories in the layout of a CSR matrix without values.

    History r is ``items[offsets[r]:offsets[r + 1]]``, oldest first. ``offsets`` (n + 1,) int64, starts at 0 and never
    falls; ``items`` (n_events,) int32 dense item ids. Raises ``UserError`` where the two do not fit together.
    """

    offsets: np.ndarray
    items: np.ndarray

    def __post_init__(self) -> None:
        offsets, items = np.asarray(self.offsets), np.asarray(self.items)
        if offsets.ndim != 1 or items.ndim != 1 or not len(offsets):
            raise UserError(
                f"histories have offsets {offsets.shape} and items {items.shape}; expected (n + 1,) and (n_events,)"
            )
        if offsets[0] != 0 or offsets[-1] != len(items) or (np.diff(offsets) < 0).any():
            raise UserError(f"history offsets must rise from 0 to {len(items)}, the number of events")
        object.__setattr__(self, "offsets", offsets.astype(np.int64, copy=False))
        object.__setattr__(self, "items", items.astype(np.int32, copy=False))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int]]) -> Histories:
        """From one sequence of item ids per history, oldest first."""
        arrays = [np.asarray(row, np.int32).reshape(-1) for row in lists]
        offsets = np.zeros(len(arrays) + 1, np.int64)
        np.cumsum([len(row) for row in arrays], out=offsets[1:])
        return cls(offsets, np.concatenate(arrays) if arrays else np.zeros(0, np.int32))

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64 number of events of each history."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """(n_events,) int64 the history each event belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def ages(self) -> np.ndarray:
        """(n_events,) int64 events of the same history that came later: 0 for the newest."""
        return np.repeat(self.offsets[1:], self.lengths) - 1 - np.arange(len(self.items))

    def take(self, indices: np.ndarray) -> Histories:
        """The histories ``indices`` (m,), in that order; repeats are allowed."""
        indices = np.asarray(indices, np.int64)
        indices = np.where(indices < 0, indices + len(self), indices)  # as numpy indexes; offsets have one entry more
        offsets, rows = gather_ranges(self.offsets[:-1][indices], self.lengths[indices])
        return Histories(offsets, self.items[rows])

    def slice(self, start: int, stop: int) -> Histories:
        """Histories start to stop - 1, as Python slices a list; the items are a view, not a copy."""
        start, stop, _ = slice(start, stop).indices(len(self))
        stop = max(start, stop)
        offsets = self.offsets[start : stop + 1]
        return Histories(offsets - offsets[0], self.items[offsets[0] : offsets[-1]])

    def last_n(self, n: int) -> Histories:
        """At most the newest n events of each history."""
        return self._where(self.ages < n)

    def _where(self, keep: np.ndarray) -> Histories:
        counted = np.concatenate([[0], np.cumsum(keep)])
        return Histories(counted[self.offsets], self.items[keep])

    def transitions(self, n_items: int) -> sp.csr_matrix:
        """(n_items, n_items) float32: how often the column's item came right after the row's, the two different."""
        import scipy.sparse as sp  # here, as in to_csr

        before, after = self.items[:-1], self.items[1:]
        adjacent = before != after
        last = self.offsets[1:-1] - 1  # no event follows the last of a history; the first and last ones may be empty
        adjacent[last[(last >= 0) & (last < len(adjacent))]] = False
        pairs = before[adjacent], after[adjacent]
        moves = sp.coo_matrix((np.ones(len(pairs[0]), np.float32), pairs), shape=(n_items, n_items))
        return moves.tocsr()  # sums what came twice

    def to_csr(
        self, n_items: int, weights: np.ndarray | Callable[[np.ndarray], np.ndarray] | None = None
    ) -> sp.csr_matrix:
        """(n, n_items) float32 matrix of summed event weights.

        ``weights``: one value per event (n_events,), or a function of the events' ages (0 newest) to such values; None
        counts events. Raises ``UserError`` where an item id is not in [0, n_items).
        """
        if len(self.items) and (self.items.min() < 0 or self.items.max() >= n_items):
            raise UserError(
                f"histories name items {self.items.min()} to {self.items.max()}; expected ids from 0 to {n_items - 1}"
            )
        values = np.ones(len(self.items)) if weights is None else weights(self.ages) if callable(weights) else weights
        values = np.asarray(values, np.float32)
        import scipy.sparse as sp  # here: preparing a log starts in half the time without it

        matrix = sp.csr_matrix((values, self.items.copy(), self.offsets.copy()), shape=(len(self), n_items))
        matrix.sum_duplicates()
        return matrix
