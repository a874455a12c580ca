"""Preference anchors: items that usually go with an item, counted from training events.

Source: OnePiece (arXiv 2509.18091, section 3.1).

A request shows the network the strongest neighbours of the user's last events, in two groups: *co-occurrence
neighbours*, items that the same users had (co-occurrence and transitions), and the *top of category and brand*, the
most frequent items of the same category and brand. The tables hold plain counts next to the ids, so that a training
request can subtract its own user's events: a count that the request's own target went into would reveal the target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
import scipy.sparse as sp
import torch
from torch import Tensor

from genrec.data.histories import Histories
from genrec.progress import Progress

MAX_HISTORY = 500  # newest events of a user that are counted, as co-occurrence costs their square
PAIRS = 1 << 24  # pairs of items that are counted at a time: 200 MB
LONG = 16  # blocks of pairs from which progress is reported
COUNTS = ("together", "after", "before")  # what is counted of a pair (item, neighbour)


@dataclass(frozen=True)
class AnchorTable:
    """Neighbours of every item, strongest first.

    ``ids`` (n_items, width) int32, -1 where there are fewer; ``counts`` (n_items, width, 3) float32: users who had both
    items, how often the neighbour came right after the item, and right before it; ``users`` (n_items,) float32: users
    who had the item.
    """

    ids: np.ndarray
    counts: np.ndarray
    users: np.ndarray


Values = TypeVar("Values", np.ndarray, Tensor)


def strength(together: Values, after: Values, before: Values, scale: Values) -> Values:
    """Score of neighbours from their counts.

    ``scale`` is ``((1 + d_i) (1 + d_j)) ** -1/2``, where d counts the users of an item.
    """
    log1p = np.log1p if isinstance(after, np.ndarray) else torch.log1p
    return together * scale + 0.5 * log1p(after) + 0.25 * log1p(before)


def cooccurrence_neighbours(train: Histories, n_items: int, width: int) -> AnchorTable:
    """The ``width`` strongest neighbours of each item, counted over all of ``train``."""
    train = train.last_n(MAX_HISTORY)
    moves = train.transitions(n_items)
    back = moves.T.tocsr()
    ids, counts = np.full((n_items, width), -1, np.int32), np.zeros((n_items, width, len(COUNTS)), np.float32)
    had = users_by_items(train, n_items)
    users = users_of_items(had)
    scale = 1 / np.sqrt(users + 1)
    for begin, together in cooccurring_items(had):
        rows = slice(begin, begin + together.shape[0])
        row = row_of(together)
        # Two items that follow each other were had together, so the pairs of the moves are among those of the product.
        after, before = (_aligned(part[rows], together) for part in (moves, back))
        values = np.stack([together.data, after, before], axis=1)
        score = strength(together.data, after, before, scale[row + begin] * scale[together.indices])
        chosen = strongest(score, together.indptr, width)
        rank, order = _best(row[chosen], together.indices[chosen], score[chosen], width)
        order = chosen[order]
        ids[row[order] + begin, rank] = together.indices[order]
        counts[row[order] + begin, rank] = values[order]
    return AnchorTable(ids, counts, users)


def users_by_items(histories: Histories, n_items: int) -> sp.csr_matrix:
    """(users, n_items) float32: 1 where the user had the item, however often."""
    had = histories.to_csr(n_items)
    had.data[:] = 1
    return had


def users_of_items(had: sp.csr_matrix) -> np.ndarray:
    """(n_items,) float32: the users of each item; ``had`` is that of ``users_by_items``."""
    return np.asarray(had.sum(axis=0), np.float32).ravel()


def cooccurring_items(had: sp.csr_matrix) -> Iterator[tuple[int, sp.csr_matrix]]:
    """Count the users who had both of two different items, in blocks of rows.

    Yields the first row and the counts (rows, n_items) float32, with sorted columns.

    ``had`` is that of ``users_by_items``. A block holds at most ``PAIRS`` pairs, or one row, whatever the size of the
    catalogue.
    """
    turned, n_items = had.T.tocsr(), had.shape[1]
    work = turned @ np.diff(had.indptr).astype(np.int64)  # at least the pairs of each item
    with Progress("co-occurrence, items", n_items, enabled=work.sum() > LONG * PAIRS) as progress:
        for begin, end in row_blocks(work, PAIRS):
            together = (turned[begin:end] @ had).tocsr()
            own = together.indices == row_of(together) + begin
            together.data[own] = 0
            together.eliminate_zeros()
            together.sort_indices()
            yield begin, together
            progress.advance(end - begin)


def row_of(matrix: sp.csr_matrix) -> np.ndarray:
    """The row of each stored value: (nnz,) int64."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def strongest(score: np.ndarray, indptr: np.ndarray, width: int) -> np.ndarray:
    """Indices of the scores (nnz,) that are at least the ``width``-th highest of their row: rising, ties included."""
    if width < 1:
        return np.zeros(0, np.int64)
    least = np.full(len(indptr) - 1, -np.inf, score.dtype)
    for row in np.flatnonzero(np.diff(indptr) > width):
        values = score[indptr[row] : indptr[row + 1]]
        least[row] = np.partition(values, len(values) - width)[len(values) - width]
    return np.flatnonzero(score >= np.repeat(least, np.diff(indptr)))


def top_of_category_and_brand(items: pl.DataFrame, users: np.ndarray, width: int) -> np.ndarray:
    """The most frequent items of the same category and of the same brand, half of the width each.

    Returns ids (n_items, width) int32, -1 where there are fewer.

    The category is the last level of the path. An item is no anchor of itself, and an item without users is no anchor.
    """
    half = width // 2
    levels = (
        items["category"].list.last()
        if items["category"].dtype == pl.List(pl.String)
        else pl.Series([None] * len(items), dtype=pl.String)
    )
    parts = [_most_had(values, users, size) for values, size in ((levels, width - half), (items["brand"], half))]
    return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class WordTable:
    """Items taken after each word of a query, most frequent first.

    ``items`` (n_words, width) int32, -1 where there are fewer; ``counts`` (n_words, width) float32 searches; ``weight``
    (n_words,) float32: ``log(1 + searches / searches with the word)``.
    """

    items: np.ndarray
    counts: np.ndarray
    weight: np.ndarray


def items_after_words(
    words: np.ndarray,
    offsets: np.ndarray,
    queries: np.ndarray,
    items: np.ndarray,
    n_words: int,
    n_items: int,
    width: int,
) -> WordTable:
    """Count the items taken after each word, over events with ``queries`` and ``items`` (n,).

    Query q has the words ``words[offsets[q]:offsets[q + 1]]``. Numbers from ``n_words`` on are no words; a word that a
    query repeats counts once.
    """
    known = words < n_words
    indptr = np.concatenate([[0], np.cumsum(known)])[offsets]
    texts = sp.csr_matrix((np.ones(indptr[-1], np.float32), words[known], indptr), shape=(len(offsets) - 1, n_words))
    texts.sum_duplicates()
    texts.data[:] = 1
    taken = sp.csr_matrix((np.ones(len(queries), np.float32), (queries, items)), shape=(len(offsets) - 1, n_items))
    turned = texts.T.tocsr()
    ids, number = np.full((n_words, width), -1, np.int32), np.zeros((n_words, width), np.float32)
    for begin, end in row_blocks(turned @ np.diff(taken.indptr).astype(np.int64), PAIRS):
        after = (turned[begin:end] @ taken).tocsr()
        chosen = strongest(after.data, after.indptr, width)
        word = row_of(after)[chosen] + begin
        rank, order = _best(word, after.indices[chosen], after.data[chosen], width)
        ids[word[order], rank], number[word[order], rank] = after.indices[chosen][order], after.data[chosen][order]
    searches = turned @ np.bincount(queries, minlength=len(offsets) - 1)
    return WordTable(ids, number, np.log1p(len(queries) / np.maximum(searches, 1)).astype(np.float32))


def row_blocks(work: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """First and last row, exclusive, of blocks whose ``work`` (n,) is at most ``limit`` together, or that of a row."""
    done, begin = np.cumsum(work), 0
    while begin < len(work):
        before = done[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(done, before + limit, side="right")))
        yield begin, end
        begin = end


def _most_had(values: pl.Series, users: np.ndarray, width: int) -> np.ndarray:
    known = (values.is_not_null() & (values != "")).fill_null(False).to_numpy()
    code = np.where(known, values.rank("dense").fill_null(0).cast(pl.Int64).to_numpy() - 1, -1)
    result = np.full((len(code), width), -1, np.int32)
    rows = np.flatnonzero((code >= 0) & (users > 0))
    if not len(rows) or not width:
        return result
    rank, order = _best(code[rows], rows, users[rows], width + 1)  # one more: an item leaves itself out
    table = np.full((int(code.max()) + 1, width + 1), -1, np.int32)
    table[code[rows][order], rank] = rows[order]
    own = table[np.maximum(code, 0)]
    own[code < 0] = -1
    own[own == np.arange(len(code))[:, None]] = -1
    front = np.argsort(own < 0, axis=1, kind="stable")[:, :width]
    return np.take_along_axis(own, front, 1)


def _aligned(part: sp.csr_matrix, product: sp.csr_matrix) -> np.ndarray:
    """The values of ``part`` at each pair that ``product`` stores, which has all pairs of ``part``: (nnz,) float32."""
    values = np.zeros(product.nnz, np.float32)
    keys, targets = (row_of(one) * one.shape[1] + one.indices for one in (product, part))
    values[np.searchsorted(keys, targets)] = part.data
    return values


def _best(group: np.ndarray, item: np.ndarray, score: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (n,) and indices (n,) of the ``width`` highest scores of each group; ties: lower item first."""
    order = np.lexsort((item, -score, group))
    rank = np.arange(len(order)) - np.searchsorted(group[order], group[order])
    kept = rank < width
    return rank[kept], order[kept]
