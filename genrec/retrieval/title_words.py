"""The words of titles in their order, as typed: how much of a query a title says, in which order and side by side.

BM25 adds up stems of all fields, so for "intense beauty" a title with "intensity" twice can be ahead of the one that
has both words. How much of the query a field covers is a classic feature of learning to rank (LETOR's "covered query
term ratio").
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from genrec.catalogue.growing import append_rows
from genrec.text.analysis import words_of

LONGEST = 64  # words of a title that are kept
MAX_WORDS = 16  # words of a query that are compared
CELLS = 1 << 20  # words of titles compared at a time


class TitleWords:
    """``words`` (n_words,) uint32 hashes of the words of all titles, ``offsets`` (n_items + 1,) where each begins."""

    def __init__(self, words: np.ndarray, offsets: np.ndarray):
        self.words, self.offsets = words, offsets

    @classmethod
    def of(cls, vocabulary: Sequence[str], words: np.ndarray, offsets: np.ndarray) -> TitleWords:
        """Titles whose words are indices of ``vocabulary``: title i has ``words[offsets[i]:offsets[i + 1]]``."""
        lengths = np.minimum(np.diff(offsets), LONGEST)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        kept = np.arange(starts[-1]) + np.repeat(offsets[:-1] - starts[:-1], lengths)
        return cls(word_hashes(vocabulary)[words[kept]], starts)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def grown(self, added: TitleWords) -> TitleWords:
        """These titles with ``added`` ones behind them."""
        return TitleWords(
            append_rows(self.words, added.words), append_rows(self.offsets, added.offsets[1:] + self.offsets[-1])
        )

    def match(self, queries: Sequence[str], ids: np.ndarray) -> np.ndarray:
        """How much of each query the titles of items (B, K) say: (B, K, 3) float32, 0 without a query.

        The fraction of its distinct words that stand in the title as typed; of its neighbouring words those that stand
        in this order; and those that stand side by side.
        """
        result = np.zeros((*ids.shape, 3), np.float32)
        for row, text in enumerate(queries):
            words = list(dict.fromkeys(words_of(text)))[:MAX_WORDS] if text else []
            if words:
                hashes, step = word_hashes(words), max(CELLS // (LONGEST * len(words)), 1)
                for begin in range(0, ids.shape[1], step):
                    some = slice(begin, begin + step)
                    result[row, some] = self._match(hashes, ids[row, some])
        return result

    def _match(self, query: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The same of one query's hashes (Q,) and items (K,): (K, 3)."""
        start = self.offsets[ids]
        lengths = self.offsets[ids + 1] - start
        column = np.arange(max(int(lengths.max(initial=0)), 1))
        live = column < lengths[:, None]
        words = np.zeros(live.shape, np.uint32)
        words[live] = self.words[(start[:, None] + column)[live]]
        same = (words == query[:, None, None]) & live  # (Q, K, words of the longest title)
        has = same.any(2)
        covered = has.mean(0)
        if len(query) == 1:  # nothing to order: a word that is there is in order
            return np.stack([covered, covered, covered], axis=1)
        first, last = same.argmax(2), same.shape[2] - 1 - same[:, :, ::-1].argmax(2)
        ordered = has[:-1] & has[1:] & (first[:-1] < last[1:])
        adjacent = (same[:-1, :, :-1] & same[1:, :, 1:]).any(2)
        return np.stack([covered, ordered.mean(0), adjacent.mean(0)], axis=1)

    def state(self) -> dict[str, np.ndarray]:
        """Plain arrays that ``from_state`` takes back."""
        return {"title_words": self.words, "title_offsets": self.offsets}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> TitleWords:
        """Inverse of ``state``."""
        return cls(state["title_words"], state["title_offsets"])

    def first(self, n_items: int) -> TitleWords:
        """The titles of the first ``n_items`` items."""
        return TitleWords(self.words[: self.offsets[n_items]], self.offsets[: n_items + 1])


def word_hashes(words: Sequence[str]) -> np.ndarray:
    """A hash of each word that is the same on every machine: (n,) uint32. Two words share one once in 2^32 times."""
    return np.fromiter((zlib.crc32(word.encode()) for word in words), np.uint32, len(words))
