"""Assignment under a capacity.

No centroid gets more than ceil(n / k) vectors, over the whole catalogue or below each parent.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from genrec.semantic_ids.quantizers.kmeans import cluster_means, two_best

BALANCED_ROUNDS = 10  # Lloyd rounds under the capacity, started from the unconstrained centroids
_CELLS = 1 << 24  # (parent, centroid) cells held at once
_ROWS_AT_ONCE = 1 << 16  # vectors read at once from a source that is not in memory


class Rows(Protocol):
    """Vectors that need not be in memory: an array, a memory map, or anything indexed by rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray) -> np.ndarray: ...


def balanced_assignment(vectors: Rows, centroids: np.ndarray, parents: np.ndarray | None = None) -> np.ndarray:
    """Assign vectors (n, d) to centroids (k, d), at most ceil(n / k) each; returns (n,) int64.

    With `parents` (n,) int the vectors of each parent are balanced among themselves: at most ceil(n_p / k) of a
    parent's n_p vectors per centroid, so that up to k vectors below one parent all differ.

    Rounds of proposals: every unplaced vector proposes to its nearest centroid with room left; a centroid that gets
    more than it can hold keeps those who would lose most elsewhere (largest gap to their second choice, ties to the
    lower row). A round either places everyone or fills a centroid, so there are at most k rounds, and no (n, k) matrix
    is ever stored.
    """
    n, k = len(vectors), len(centroids)
    assigned = np.full(n, -1, np.int64)
    if parents is None:
        _place(vectors, np.arange(n), np.zeros(n, np.int64), np.array([n]), centroids, assigned)
        return assigned
    # parents never compete, so a few of them at a time give the same answer in bounded memory
    _, parent, sizes = np.unique(parents, return_inverse=True, return_counts=True)
    by_parent = np.argsort(parent, kind="stable")
    ends = np.cumsum(sizes)
    step = max(1, _CELLS // k)
    for first in range(0, len(sizes), step):
        last = min(first + step, len(sizes))
        rows = np.sort(by_parent[ends[first] - sizes[first] : ends[last - 1]])
        _place(vectors, rows, parent[rows] - first, sizes[first:last], centroids, assigned)
    return assigned


def balanced_lloyd(vectors: np.ndarray, centroids: np.ndarray, parents: np.ndarray | None = None) -> np.ndarray:
    """Move centroids (k, d) to the means of their balanced clusters until nothing changes, a few rounds at most."""
    previous = None
    for _ in range(BALANCED_ROUNDS):
        assigned = balanced_assignment(vectors, centroids, parents)
        if previous is not None and np.array_equal(assigned, previous):
            break
        previous = assigned
        means, counts = cluster_means(vectors, assigned, len(centroids))
        centroids = np.where(counts[:, None] > 0, means, centroids)
    return centroids


def _place(
    vectors: Rows, rows: np.ndarray, parent: np.ndarray, sizes: np.ndarray, centroids: np.ndarray, assigned: np.ndarray
) -> None:
    """Fill `assigned` at `rows` (ascending); `parent` of each row indexes `sizes`, the rows per parent."""
    k = len(centroids)
    room = np.repeat(-(-sizes // k), k)
    pending = np.arange(len(rows))
    while len(pending):
        target, gap = _proposals(vectors, rows[pending], parent[pending], room.reshape(-1, k), centroids)
        order = np.lexsort((-gap, target))  # stable: ties stay in row order
        proposed = target[order]
        rank = np.arange(len(order)) - np.searchsorted(proposed, proposed)
        kept = rank < room[proposed]
        assigned[rows[pending[order[kept]]]] = proposed[kept] % k
        room -= np.bincount(proposed[kept], minlength=len(room))
        pending = np.sort(pending[order[~kept]])


def _proposals(
    vectors: Rows, rows: np.ndarray, parent: np.ndarray, room: np.ndarray, centroids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The cell (parent * k + centroid) each row proposes to, and what the second choice would cost more."""
    k = len(centroids)
    if len(room) == 1:
        open_centroids = np.flatnonzero(room[0])
        choices, table = open_centroids, centroids[open_centroids]
    else:
        choices, table = np.arange(k), centroids
    target, gap = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        closed = None if len(room) == 1 else (room == 0)[parent[part]]
        best, gap[part] = two_best(np.asarray(vectors[rows[part]], np.float32), table, closed)
        target[part] = parent[part] * k + choices[best]
    return target, gap
