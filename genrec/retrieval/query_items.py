"""Query-item counts: how often each item was taken after a query text, and after queries that say more or less."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import scipy.sparse as sp

from genrec.data.dataset import Dataset
from genrec.retrieval.related_queries import RelatedQueries
from genrec.retrieval.sparse import table_arrays, table_of

REMEMBERED = 1 << 8  # queries whose related ones are kept: a request reads them several times


class QueryItemCounts:
    """Events of a log by query text and item. Texts are compared in lower case and with single blanks.

    ``keys`` (Q,) uint64 hashes of query texts, rising; ``counts`` (Q, n_items) events; ``related`` knows the words of
    the queries.
    """

    def __init__(self, keys: np.ndarray, counts: sp.csr_matrix, related: RelatedQueries):
        self.keys, self.counts, self.related = keys, counts, related
        self.searches = np.asarray(counts.sum(axis=0), np.float32).ravel()  # of each item
        self._found: dict[str, tuple[sp.csr_matrix, sp.csr_matrix]] = {}
        self.totals = np.maximum(np.asarray(counts.sum(axis=1), np.float32).ravel(), 1)

    @classmethod
    def build(cls, dataset: Dataset, last: int) -> QueryItemCounts:
        """Count all searches up to split ``last``."""
        searches = np.flatnonzero((np.asarray(dataset.split) <= last) & (np.asarray(dataset.queries) >= 0))
        queries, items = (
            np.asarray(dataset.queries)[searches].astype(np.int64),
            np.asarray(dataset.items)[searches].astype(np.int64),
        )
        used, position = np.unique(queries, return_inverse=True)
        texts = [dataset.query_texts[query] for query in used]
        keys, first, row = np.unique(text_keys(texts), return_index=True, return_inverse=True)
        counts = sp.coo_matrix(
            (np.ones(len(items), np.float32), (row[position], items)), shape=(len(keys), dataset.n_items)
        )
        counts = counts.tocsr()
        frequency = np.asarray(counts.sum(axis=1)).ravel()
        return cls(keys, counts, RelatedQueries.of([texts[index] for index in first], frequency))

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Each item's fraction of the interactions that followed the query: (N, n_items) float32.

        Rows sum to 1, or to 0 for an unknown query.
        """
        return self.sparse_scores(texts).toarray()

    def sparse_scores(self, texts: Sequence[str]) -> sp.csr_matrix:
        """The same as a sparse matrix; an empty text is no query."""
        keys = text_keys(texts)
        row = np.minimum(np.searchsorted(self.keys, keys), max(len(self.keys) - 1, 0))
        known = np.array([text != "" for text in texts], bool)
        known &= self.keys[row] == keys if len(self.keys) else False
        rows = self.counts[row[known]]
        lengths = np.zeros(len(texts), np.int64)
        lengths[known] = np.diff(rows.indptr)
        data = rows.data / np.repeat(self.totals[row[known]], np.diff(rows.indptr))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return sp.csr_matrix((data, rows.indices, offsets), shape=(len(texts), self.counts.shape[1]))

    def related_scores(self, texts: Sequence[str]) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Of each item's searches in the log the fractions that had all words of the query and more, and fewer words.

        Two sparse matrices (N, n_items). An item that was searched once counts half.
        """
        found = {text: self._related(text) for text in dict.fromkeys(texts)}
        longer, shorter = (sp.vstack(rows, format="csr") for rows in zip(*(found[text] for text in texts), strict=True))
        return longer, shorter

    def _related(self, text: str) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """``related_scores`` of one query, each (1, n_items). Not to be written to."""
        found = self._found.get(text)
        if found is None:
            if len(self._found) >= REMEMBERED:
                self._found.clear()
            longer, shorter = (self._fraction(rows) for rows in self.related.find(text))
            found = self._found[text] = longer, shorter
        return found

    def _fraction(self, rows: np.ndarray) -> sp.csr_matrix:
        some = self.counts[rows]
        items, position = np.unique(some.indices, return_inverse=True)
        sums = np.bincount(position, weights=some.data, minlength=len(items)) / (self.searches[items] + 1)
        return sp.csr_matrix((sums.astype(np.float32), items, [0, len(items)]), shape=(1, self.counts.shape[1]))

    def knows(self, texts: Sequence[str]) -> np.ndarray:
        """Which query texts have been searched: (N,) bool."""
        keys = text_keys(texts)
        if not len(self.keys):
            return np.zeros(len(keys), bool)
        return self.keys[np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)] == keys

    def state(self) -> dict[str, np.ndarray]:
        """Plain arrays that ``from_state`` takes back."""
        return {"query_item_keys": self.keys, **table_arrays("query_item", self.counts), **self.related.state()}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], n_items: int) -> QueryItemCounts:
        """Inverse of ``state``."""
        keys = state["query_item_keys"]
        counts = table_of("query_item", state, (len(keys), n_items))
        return cls(keys, counts, RelatedQueries.from_state(state, np.asarray(counts.sum(axis=1)).ravel()))


def text_keys(texts: Sequence[str]) -> np.ndarray:
    """(n,) uint64: 8 bytes of BLAKE2 of each text, the same on every machine."""
    plain = (
        pl.Series("text", list(texts), dtype=pl.String)
        .str.to_lowercase()
        .str.replace_all(r"\s+", " ")
        .str.strip_chars()
    )
    return np.fromiter(
        (int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little") for text in plain),
        np.uint64,
        len(plain),
    )
