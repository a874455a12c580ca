"""Queries of a log that say more than a query, with all of its words, or less, with some of them and no others.

What people name in more words they seldom mean by fewer: "audio accessory" is not how they ask for headphones where
"audio accessory headphone" is. And an unknown query has no counts of its own, while the log may know the same in
fewer words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from genrec.retrieval.title_words import MAX_WORDS, word_hashes
from genrec.text.analysis import words_of

MOST = 64  # longer queries that count, and shorter ones: the most frequent
LISTED = 1 << 14  # most frequent queries of a word that are looked at


class RelatedQueries:
    """Finds longer and shorter queries of a log.

    Query q has the words ``words[offsets[q]:offsets[q + 1]]`` (uint32 hashes), each once, ``frequency[q]`` times.
    """

    def __init__(self, words: np.ndarray, offsets: np.ndarray, frequency: np.ndarray):
        self.words, self.offsets, self.frequency = words, offsets, frequency
        self.lengths = np.diff(offsets)
        owner = np.repeat(np.arange(len(self.lengths)), self.lengths)
        order = np.lexsort((-frequency[owner], words))
        self._listed, self._queries = words[order], owner[order]

    @classmethod
    def of(cls, texts: Sequence[str], frequency: np.ndarray) -> RelatedQueries:
        """Index the ``texts`` (Q,) of a log's distinct queries."""
        listed = [query_words(text) for text in texts]
        offsets = np.cumsum([0, *map(len, listed)], dtype=np.int64)
        return cls(word_hashes([word for words in listed for word in words]), offsets, frequency)

    def find(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The longer and the shorter queries, as indices, the most frequent ``MOST`` of each."""
        words = word_hashes(query_words(text))
        low, high = (np.searchsorted(self._listed, words, side=side) for side in ("left", "right"))
        lists = [
            self._queries[start : min(stop, start + LISTED)]
            for start, stop in zip(low.tolist(), high.tolist(), strict=True)
        ]
        if not lists:
            return (np.zeros(0, np.int64),) * 2
        found, common = np.unique(np.concatenate(lists), return_counts=True)
        lengths = self.lengths[found]
        longer = (common == len(words)) & (lengths > len(words))
        shorter = (common == lengths) & (lengths < len(words))
        return self._first(found[longer]), self._first(found[shorter])

    def _first(self, queries: np.ndarray) -> np.ndarray:
        if len(queries) <= MOST:
            return queries
        return np.sort(queries[np.argsort(-self.frequency[queries], kind="stable")[:MOST]])

    def state(self) -> dict[str, np.ndarray]:
        """Plain arrays that ``from_state`` takes back."""
        return {"query_words": self.words, "query_word_offsets": self.offsets}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], frequency: np.ndarray) -> RelatedQueries:
        """Inverse of ``state``."""
        return cls(state["query_words"], state["query_word_offsets"], frequency)


def query_words(text: str) -> list[str]:
    """The distinct words of a query as typed, of a long one the first."""
    return list(dict.fromkeys(words_of(text)))[:MAX_WORDS]
