"""Preference anchors: what usually goes with an item, counted from training events (OnePiece, arXiv 2509.18091, section 3.1).

A request shows the network the strongest neighbours of the person's last events. Two groups: *company*, items that the same people had
(co-occurrence and transitions, DESIGN.md section 9), and *shelf*, the most frequent items of the same category and brand. Beside the ids
stand plain counts, so that a training request can take its own person's part out of them again: a count that a request's own answer went
into would tell the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import scipy.sparse as sp

from genrec.data.histories import Histories

MAX_HISTORY = 500  # newest events of a user that are counted, as co-occurrence costs their square
BLOCK = 1 << 12  # items whose neighbours are ranked at a time
COUNTS = ("together", "after", "before")  # what is counted of a pair (item, neighbour)


@dataclass(frozen=True)
class AnchorTable:
    """``ids`` (n_items, width) int32 neighbours, the strongest first, -1 where there are fewer; ``counts`` (n_items, width, 3) float32: users
    who had both, how often the neighbour came right after the item, and right before it; ``users`` (n_items,) float32 users who had the item.
    """

    ids: np.ndarray
    counts: np.ndarray
    users: np.ndarray


def strength(together: np.ndarray, after: np.ndarray, before: np.ndarray, scale: np.ndarray):
    """The co-occurrence and transition score of DESIGN.md section 9, of arrays or tensors; ``scale`` is ``((1 + d_i) (1 + d_j)) ** -1/2``."""
    return together * scale + 0.5 * _log1p(after) + 0.25 * _log1p(before)


def _log1p(values):
    return np.log1p(values) if isinstance(values, np.ndarray) else values.log1p()


def cooccurrence_neighbours(train: Histories, n_items: int, width: int) -> AnchorTable:
    """The ``width`` strongest neighbours of each item over histories that may all be used."""
    train = train.last_n(MAX_HISTORY)
    had = train.to_csr(n_items)
    had.data[:] = 1  # users are counted, not repeats
    users = np.asarray(had.sum(axis=0), np.float32).ravel()
    moves = train.transitions(n_items)
    back = moves.T.tocsr()
    scale = 1 / np.sqrt(users + 1)
    turned = had.T.tocsr()
    ids, counts = np.full((n_items, width), -1, np.int32), np.zeros((n_items, width, len(COUNTS)), np.float32)
    for begin in range(0, n_items, BLOCK):
        rows = slice(begin, min(begin + BLOCK, n_items))
        together = (turned[rows] @ had).tocoo()
        keep = together.row + begin != together.col
        parts = [
            sp.csr_matrix((together.data[keep], (together.row[keep], together.col[keep])), shape=together.shape),
            moves[rows].astype(np.float32), back[rows].astype(np.float32),
        ]  # fmt: skip
        row, neighbour, values = _aligned(parts)
        score = strength(*values.T, scale[row + begin] * scale[neighbour])
        place, order = _best(row, neighbour, score, width)
        ids[row[order] + begin, place] = neighbour[order]
        counts[row[order] + begin, place] = values[order]
    return AnchorTable(ids, counts, users)


def top_of_category_and_brand(items: pl.DataFrame, users: np.ndarray, width: int) -> np.ndarray:
    """The items of the same category and brand that most people had: ids (n_items, width) int32, half of the width each, -1 where fewer.

    Category is the last level of the path. An item is no anchor of itself, and an item nobody had is none.
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
    """``items`` (n_words, width) int32 taken after a word, the most often taken first, -1 where there are fewer; ``counts`` (n_words, width)
    float32 searches; ``weight`` (n_words,) float32 of a word, ``log(1 + searches / searches with it)``.
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
    """What was taken after each word, of events with ``queries`` and ``items`` (n,); query q has ``words[offsets[q]:offsets[q + 1]]``.

    Words from ``n_words`` on are no words; one that a query repeats counts once.
    """
    length = np.diff(offsets)[queries]
    event = np.repeat(np.arange(len(queries)), length)
    place = np.repeat(offsets[queries] - (np.cumsum(length) - length), length) + np.arange(len(event))
    word = words[place]
    keys = np.unique(event[word < n_words] * n_words + word[word < n_words])
    event, word = keys // n_words, keys % n_words
    pairs, counts = np.unique(word * n_items + items[event].astype(np.int64), return_counts=True)
    word_of, item = pairs // n_items, pairs % n_items
    lane, order = _best(word_of, item, counts, width)
    ids, number = np.full((n_words, width), -1, np.int32), np.zeros((n_words, width), np.float32)
    ids[word_of[order], lane], number[word_of[order], lane] = item[order], counts[order]
    searches = np.bincount(word, minlength=n_words)
    return WordTable(ids, number, np.log1p(len(queries) / np.maximum(searches, 1)).astype(np.float32))


def _most_had(values: pl.Series, users: np.ndarray, width: int) -> np.ndarray:
    known = (values.is_not_null() & (values != "")).fill_null(False).to_numpy()
    code = np.where(known, values.rank("dense").fill_null(0).cast(pl.Int64).to_numpy() - 1, -1)
    result = np.full((len(code), width), -1, np.int32)
    rows = np.flatnonzero((code >= 0) & (users > 0))
    if not len(rows) or not width:
        return result
    place, order = _best(code[rows], rows, users[rows], width + 1)  # one more: an item leaves itself out
    table = np.full((int(code.max()) + 1, width + 1), -1, np.int32)
    table[code[rows][order], place] = rows[order]
    own = table[np.maximum(code, 0)]
    own[code < 0] = -1
    own[own == np.arange(len(code))[:, None]] = -1
    front = np.argsort(own < 0, axis=1, kind="stable")[:, :width]
    return np.take_along_axis(own, front, 1)


def _aligned(parts: list[sp.csr_matrix]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (P,), columns (P,) and values (P, parts) of every pair that any of the matrices holds."""
    coo = [part.tocoo() for part in parts]
    n = parts[0].shape[1]
    keys = np.unique(np.concatenate([part.row.astype(np.int64) * n + part.col for part in coo]))
    values = np.zeros((len(keys), len(parts)), np.float32)
    for column, part in enumerate(coo):
        values[np.searchsorted(keys, part.row.astype(np.int64) * n + part.col), column] = part.data
    return keys // n, keys % n, values


def _best(group: np.ndarray, item: np.ndarray, score: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``width`` highest scores of each group: their places in it (n,) and their indices (n,). Ties: the lower item first."""
    order = np.lexsort((item, -score, group))
    start = np.searchsorted(group[order], group[order])
    place = np.arange(len(order)) - start
    kept = place < width
    return place[kept], order[kept]
