"""Collision resolution: items that share a semantic ID get codes of their own, as near as possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genrec.errors import UserError
from genrec.semantic_ids.prefixes import prefix_ids
from genrec.semantic_ids.quantizers import Codebooks, reconstruct

MAX_LEAF = 16  # items of one code: a search reads beam x largest leaf candidates
BLOCK_CELLS = 1 << 24  # cells of the (prefixes, codes) distance table held at once: 64 MB of float32


@dataclass(frozen=True)
class CollisionReport:
    """What `resolve_collisions` did. A collision is an item beyond the first on one code."""

    items: int
    collisions_before: int
    collisions_after: int
    moved: int  # items that got another code
    mean_extra_error: float  # mean growth of the squared reconstruction error of the moved items; 0 where none moved


def resolve_collisions(
    codes: np.ndarray, vectors: np.ndarray, codebooks: Codebooks, popularity: np.ndarray | None = None, fixed: int = 0
) -> tuple[np.ndarray, CollisionReport]:
    """Move colliding items to the nearest free code that differs only in the last two levels.

    `codes` (n, L) int, `vectors` (n, d) float32, `popularity` (n,) larger is more popular (None: all equal). On each
    code the most popular item (then the lowest index) stays. The others choose in the same order: each takes, of the
    codes with its first L - 2 levels that no item has, the one whose reconstruction is nearest to its vector. Where
    none is free the item keeps sharing, up to `MAX_LEAF` items a code; the others also change their third last level,
    then the one before, and so on, each to the nearest code below which there is room. The first `fixed` rows are there
    already: they keep their codes, and a row after them shares none while there is a free one. Returns new codes (n, L)
    int64 and a report; deterministic. For an RQ-VAE "nearest" is in its latent space.

    Codes of different prefixes never compete, so the first choosers of all prefixes choose at once, then the second,
    and so on: exactly the sequential result, without a loop over items. Raises UserError where the arrays do not fit
    together.
    """
    codes = np.array(codes, np.int64)
    _check(codes, vectors, codebooks, popularity)
    vectors = codebooks.project(vectors)
    original = codes.copy()
    order = (
        np.arange(len(codes)) if popularity is None else np.argsort(-np.asarray(popularity, np.float64), kind="stable")
    )
    order = order[np.argsort(order >= fixed, kind="stable")]
    waiting = order[~_first_on_code(codes[order])]  # in order of choice
    collisions_before = len(waiting)
    waiting = waiting[waiting >= fixed]
    if len(waiting):
        _move(codes, waiting, vectors, codebooks)
        _spread(codes, waiting, vectors, codebooks, 1 if fixed else MAX_LEAF)
    moved = np.flatnonzero((codes != original).any(1))
    report = CollisionReport(
        items=len(codes),
        collisions_before=collisions_before,
        collisions_after=int((~_first_on_code(codes)).sum()),
        moved=len(moved),
        mean_extra_error=_mean_extra_error(vectors[moved], codebooks, original[moved], codes[moved]),
    )
    return codes, report


def _check(codes: np.ndarray, vectors: np.ndarray, codebooks: Codebooks, popularity: np.ndarray | None) -> None:
    if codes.ndim != 2 or not len(codes) or codes.shape[1] != len(codebooks.sizes):
        raise UserError(
            f"codes have shape {codes.shape}; expected (n, {len(codebooks.sizes)}), n at least 1; encode with these "
            f"codebooks"
        )
    if vectors.shape != (len(codes), codebooks.dimension):
        raise UserError(
            f"vectors have shape {vectors.shape}; expected {(len(codes), codebooks.dimension)}, one row per code"
        )
    if popularity is not None and np.shape(popularity) != (len(codes),):
        raise UserError(f"popularity has shape {np.shape(popularity)}; expected ({len(codes)},), one value per item")


def _first_on_code(codes: np.ndarray) -> np.ndarray:
    """(n,) bool: the row is the first that has its code."""
    order, ids = prefix_ids(codes)  # the sort is stable, so the first row of each run is the first of its code
    first = np.empty(len(codes), bool)
    first[order] = np.diff(ids[order, -1], prepend=-1) != 0
    return first


def _rank_on_code(codes: np.ndarray) -> np.ndarray:
    """(n,) how many earlier rows have the row's code."""
    order, ids = prefix_ids(codes)
    leaf = ids[order, -1]
    rank = np.empty(len(codes), np.int64)
    rank[order] = np.arange(len(codes)) - np.searchsorted(leaf, leaf)
    return rank


def _spread(codes: np.ndarray, waiting: np.ndarray, vectors: np.ndarray, codebooks: Codebooks, limit: int) -> None:
    """Move rows of `waiting` (in order of choice) that exceed `limit` on a code to other prefixes, in place.

    A row first changes level L - 3 to the nearest code with a free pair below it; where all are full, the level before.
    The levels between follow by reconstruction. Where that leads nowhere, `_fill` finds what is free.
    """
    first = np.setdiff1d(np.arange(len(codes)), waiting)
    queue = np.concatenate([first, waiting])
    waiting = waiting[_rank_on_code(codes[queue])[len(first) :] >= limit]
    tables = codebooks.code_vectors()
    for level in range(codes.shape[1] - 3, -1, -1):
        if not len(waiting):
            return
        above = np.zeros(len(codes), np.int64) if not level else prefix_ids(codes[:, :level])[1][:, -1]
        rows = np.flatnonzero(np.isin(above, above[waiting]))  # all that the moves can meet
        part, points, settled = codes[rows], vectors[rows], ~np.isin(rows, waiting)
        left = np.searchsorted(rows, waiting)
        target = vectors[waiting] - reconstruct(codebooks, codes[waiting, :level])
        nearest = np.argsort((tables[level] ** 2).sum(1) - 2 * target @ tables[level].T, axis=1, kind="stable")
        for turn in range(nearest.shape[1]):
            choice = nearest[:, turn]
            rest = target - tables[level][choice]
            part[left, level] = choice
            for below in range(level + 1, codes.shape[1] - 2):
                part[left, below] = ((tables[below] ** 2).sum(1) - 2 * rest @ tables[below].T).argmin(1)
                rest = rest - tables[below][part[left, below]]
            placed = _move(part, left, points, codebooks, settled)
            settled[left[placed]] = True
            codes[rows[left[placed]]] = part[left[placed]]
            left, target, nearest = left[~placed], target[~placed], nearest[~placed]
            if not len(left):
                break
        waiting = rows[left]
    _fill(codes, waiting, codebooks.sizes)


def _fill(codes: np.ndarray, waiting: np.ndarray, sizes: Sequence[int]) -> None:
    """Give rows the lowest free codes of all, however far, in place. In a full code space they go on sharing."""
    if not len(waiting):
        return
    shape = tuple(reversed(sizes))  # the first level varies fastest, so that no prefix gets them all
    n_codes = min(math.prod(sizes), len(codes) + len(waiting))
    candidates = np.column_stack(np.unravel_index(np.arange(n_codes), shape)[::-1])
    held = prefix_ids(np.concatenate([codes, candidates]))[1][:, -1]
    free = candidates[~np.isin(held[len(codes) :], held[: len(codes)])][: len(waiting)]
    codes[waiting[: len(free)]] = free


def _move(
    codes: np.ndarray,
    waiting: np.ndarray,
    vectors: np.ndarray,
    codebooks: Codebooks,
    settled: np.ndarray | None = None,
) -> np.ndarray:
    """Give rows `waiting` (in order of choice) of `codes` free codes of their first L - 2 levels, in place.

    `settled` (n,) bool: the rows that keep their codes; all by default. Returns which of `waiting` got a free code.
    """
    n_varied = min(2, codes.shape[1])
    tables = codebooks.code_vectors()[-n_varied:]
    # a semantic ID of one level varies that level next to a dummy level of a single zero vector
    left = tables[0] if n_varied == 2 else np.zeros((1, codebooks.latent_dimension), np.float32)
    right = tables[-1]
    target = vectors[waiting] - reconstruct(
        codebooks, codes[waiting, :-n_varied]
    )  # what the last two levels have to express

    prefix = np.zeros(len(codes), np.int64) if codes.shape[1] <= 2 else prefix_ids(codes[:, :-2])[1][:, -1]
    pair = codes[:, -1] if n_varied == 1 else codes[:, -2] * len(right) + codes[:, -1]
    groups, group, size = np.unique(prefix[waiting], return_inverse=True, return_counts=True)
    position = np.empty(len(groups), np.int64)  # biggest first: prefixes that need equally many turns share a block
    position[np.argsort(-size, kind="stable")] = np.arange(len(groups))
    position_of_prefix = np.full(prefix.max() + 1, -1)
    position_of_prefix[groups] = position
    position_of_item, position_of_waiting = position_of_prefix[prefix], position[group]

    n_pairs, moved = len(left) * len(right), np.zeros(len(waiting), bool)
    block = max(1, BLOCK_CELLS // n_pairs)
    for start in range(0, len(groups), block):
        stop = min(start + block, len(groups))
        here = (position_of_item >= start) & (position_of_item < stop)
        holders = np.flatnonzero(here if settled is None else here & settled)
        taken = np.zeros((stop - start, n_pairs), bool)
        taken[position_of_item[holders] - start, pair[holders]] = True
        chosen = np.flatnonzero((position_of_waiting >= start) & (position_of_waiting < stop))
        choice = _choose(target[chosen], position_of_waiting[chosen] - start, taken, left, right)
        movable = choice >= 0
        moved[chosen] = movable
        items = waiting[chosen[movable]]
        codes[items, -1] = choice[movable] % len(right)
        if n_varied == 2:
            codes[items, -2] = choice[movable] // len(right)
    return moved


def _choose(target: np.ndarray, rows: np.ndarray, taken: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pair index (m,) that each of m items takes, -1 where nothing was free.

    `target` (m, d) and `rows` (m,), the prefix of each item, are in order of choice. `taken` (prefixes, k_left *
    k_right) says which pairs are held and is updated.
    """
    # |x - a - b|^2 is |x|^2 plus this, less 2 x.a and 2 x.b
    pair_norm = (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :] + 2 * left @ right.T  # (k_left, k_right)
    by_row = np.argsort(rows, kind="stable")
    turn = np.empty(len(rows), np.int64)
    turn[by_row] = np.arange(len(rows)) - np.searchsorted(rows[by_row], rows[by_row])
    choice = np.full(len(rows), -1, np.int64)
    for now in np.split(np.argsort(turn, kind="stable"), np.cumsum(np.bincount(turn))[:-1]):
        now = now[~taken[rows[now]].all(1)]
        if not len(now):
            break  # the prefixes that still have items waiting are full, and stay full
        distance = pair_norm - 2 * (target[now] @ left.T)[:, :, None] - 2 * (target[now] @ right.T)[:, None, :]
        distance = distance.reshape(len(now), -1)
        distance[taken[rows[now]]] = np.inf
        choice[now] = distance.argmin(1)
        taken[rows[now], choice[now]] = True
    return choice


def _mean_extra_error(vectors: np.ndarray, codebooks: Codebooks, before: np.ndarray, after: np.ndarray) -> float:
    if not len(vectors):
        return 0.0
    error_before, error_after = (((vectors - reconstruct(codebooks, codes)) ** 2).sum(1) for codes in (before, after))
    return float((error_after - error_before).mean())
