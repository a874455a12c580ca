"""Query-item counts: how often each item was taken after a query text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import scipy.sparse as sp

from genrec.data.dataset import Dataset
from genrec.retrieval.sparse import table_arrays, table_of


class QueryItemCounts:
    """Events of a log by query text and item. Texts are compared in lower case and with single blanks.

    ``keys`` (Q,) uint64 hashes of query texts, rising; ``counts`` (Q, n_items) events.
    """

    def __init__(self, keys: np.ndarray, counts: sp.csr_matrix):
        self.keys, self.counts = keys, counts
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
        keys, row = np.unique(text_keys([dataset.query_texts[query] for query in used]), return_inverse=True)
        counts = sp.coo_matrix(
            (np.ones(len(items), np.float32), (row[position], items)), shape=(len(keys), dataset.n_items)
        )
        return cls(keys, counts.tocsr())

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

    def knows(self, texts: Sequence[str]) -> np.ndarray:
        """Which query texts have been searched: (N,) bool."""
        keys = text_keys(texts)
        if not len(self.keys):
            return np.zeros(len(keys), bool)
        return self.keys[np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)] == keys

    def state(self) -> dict[str, np.ndarray]:
        """Plain arrays that ``from_state`` takes back."""
        return {"query_item_keys": self.keys, **table_arrays("query_item", self.counts)}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], n_items: int) -> QueryItemCounts:
        """Inverse of ``state``."""
        keys = state["query_item_keys"]
        return cls(keys, table_of("query_item", state, (len(keys), n_items)))


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
