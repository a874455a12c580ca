"""BM25 over the items' words."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path

import bm25s
import numpy as np
import polars as pl
import scipy.sparse as sp

from genrec.data.queries import STOP_WORDS
from genrec.errors import UserError
from genrec.retrieval.sparse import product
from genrec.text.encoder import TOKEN_PATTERN, item_texts

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it announces every step


class BM25:
    """BM25 (Robertson's ranking function in Lucene's form, by ``bm25s``) over title, brand, category and text.

    The words are those the library's text encoder reads, so scripts without spaces work too. ``segments`` are sparse
    matrices (words, items) of what one occurrence of a word in a query is worth, one for the items of the fit and a
    few for items added later. A segment may know fewer words than the vocabulary, which all versions of one fit share.
    """

    def __init__(self, k1: float = 1.2, b: float = 0.75):
        if k1 < 0 or not 0 <= b <= 1:
            raise UserError(f"BM25 got k1={k1}, b={b}; expected k1 >= 0 and 0 <= b <= 1")
        self.k1, self.b = k1, b
        self.vocabulary: dict[str, int] = {}
        self.segments: list[sp.csr_matrix] = []
        self.idf = np.zeros(0, np.float32)  # (words of the fit,)
        self.n_fitted, self.mean_length = 0, 1.0  # items of the fit, and words an item of it has
        self.unnamed = 0  # rows of the fit that belong to no word: 1 where it has texts without words

    @property
    def n_items(self) -> int:
        """Items of the fit and added ones."""
        return sum(segment.shape[1] for segment in self.segments)

    def fit(self, items: pl.DataFrame | Sequence[str]) -> BM25:
        """Index ``items``: a table with the items' columns in item id order, or one text per item."""
        tokens = _tokens(_texts(items))
        self.n_fitted = len(tokens)
        if not any(tokens):  # bare ids: every query scores every item 0
            self.vocabulary, self.segments = {}, [_sparse([], [], [0], (0, len(tokens)))]
            return self
        index = bm25s.BM25(method="lucene", k1=self.k1, b=self.b)
        index.index(tokens, show_progress=False)
        scores = index.scores  # a CSC matrix of items by words, so its arrays are a CSR matrix of words by items
        n_words = len(scores["indptr"]) - 1
        weights = _sparse(scores["data"], scores["indices"], scores["indptr"], (n_words, len(tokens)))
        self.segments, self.idf = [weights], self._idf(np.diff(weights.indptr))
        self.mean_length = float(np.mean([max(len(words), 1) for words in tokens]))  # bm25s counts a text without words
        # bm25s indexes a text without words under the word "", which no query may match
        self.vocabulary = {word: row for word, row in index.vocab_dict.items() if word and row < n_words}
        self.unnamed = n_words - len(self.vocabulary)
        return self

    def knows(self, query: str) -> bool:
        """Whether a word of the query occurs in the items. A query of stop words alone has no word that could."""
        return any(word in self.vocabulary for word in _tokens([query])[0])

    def grow(self, items: pl.DataFrame | Sequence[str]) -> BM25:
        """A version with more items after the known ones, at a cost that follows their number alone, amortised.

        Word frequencies and the mean length stay those of the fit; a word the fit did not know counts as one that a
        single item has. So an old item's scores do not change, and the order in which items come does not matter.
        """
        tokens = _tokens(_texts(items))
        rows, columns, values = [], [], []
        unseen, fitted = float(self._idf(np.ones(1))[0]), len(self.idf)
        for column, words in enumerate(tokens):
            damping = self.k1 * (1 - self.b + self.b * len(words) / self.mean_length)
            for word in set(words) - {""}:
                row = self.vocabulary.setdefault(word, len(self.vocabulary) + self.unnamed)
                count = words.count(word)
                rows.append(row)
                columns.append(column)
                values.append((self.idf[row] if row < fitted else unseen) * count / (count + damping))
        shape = (len(self.vocabulary) + self.unnamed, len(tokens))
        entries = (np.asarray(rows, np.int64), np.asarray(columns, np.int64))
        added = sp.coo_matrix((np.asarray(values, np.float32), entries), shape=shape).tocsr()
        grown = copy.copy(self)
        grown.segments = [*self.segments, added]
        while len(grown.segments) > 1 and grown.segments[-2].shape[1] <= grown.segments[-1].shape[1]:
            grown.segments[-2:] = [_joined(*grown.segments[-2:])]
        return grown

    def _idf(self, frequency: np.ndarray) -> np.ndarray:
        return np.log1p((self.n_fitted - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)

    def score(self, queries: Sequence[str]) -> np.ndarray:
        """(B, n_items) float32. A query without known words scores 0 everywhere."""
        return self.sparse_scores(queries).toarray()

    def sparse_scores(self, queries: Sequence[str]) -> sp.csr_matrix:
        """The same as a sparse matrix: one sparse product for all queries and each segment."""
        if not self.segments:
            raise UserError("BM25 has not been fitted; call fit(items) first")
        known = [[self.vocabulary[word] for word in words if word in self.vocabulary] for words in _tokens(queries)]
        parts = []
        for segment in self.segments:
            rows = [[row for row in words if row < segment.shape[0]] for words in known]
            offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
            columns = np.concatenate([np.asarray(row, np.int64) for row in rows] or [np.zeros(0, np.int64)])
            query_terms = _sparse(np.ones(len(columns)), columns, offsets, (len(rows), segment.shape[0]))
            parts.append(product(query_terms, segment))
        return parts[0] if len(parts) == 1 else sp.hstack(parts, format="csr", dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write an npz file that ``load`` reads: the items of the fit, without added ones."""
        weights = self.segments[0]
        words = [""] * weights.shape[0]
        for word, row in self.vocabulary.items():
            if row < len(words):
                words[row] = word
        np.savez(
            path,
            words=np.frombuffer("\n".join(words).encode(), np.uint8), data=weights.data,
            indices=weights.indices.astype(np.int32),
            indptr=weights.indptr, settings=np.array([self.k1, self.b, self.mean_length, self.n_fitted]),
        )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> BM25:
        """Read the file that ``save`` wrote. Raises ``UserError`` where it is missing or another kind of file."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                k1, b, mean_length, n_items = arrays["settings"].tolist()
                model, words = cls(k1, b), bytes(arrays["words"]).decode().split("\n")
                shape = (len(arrays["indptr"]) - 1, int(n_items))
                weights = _sparse(arrays["data"], arrays["indices"], arrays["indptr"], shape)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: not a saved BM25 index ({error}); run genrec train again") from error
        model.n_fitted, model.mean_length, model.segments = shape[1], mean_length, [weights]
        model.idf = model._idf(np.diff(weights.indptr))
        model.vocabulary = {word: row for row, word in enumerate(words) if word}
        model.unnamed = shape[0] - len(model.vocabulary)
        return model


def _texts(items: pl.DataFrame | Sequence[str]) -> list[str]:
    return item_texts(items) if isinstance(items, pl.DataFrame) else list(items)


def _sparse(data, indices, indptr, shape: tuple[int, int]) -> sp.csr_matrix:
    return sp.csr_matrix((np.asarray(data, np.float32), np.asarray(indices), np.asarray(indptr)), shape=shape)


def _joined(left: sp.csr_matrix, right: sp.csr_matrix) -> sp.csr_matrix:
    """Two segments side by side; the first may know fewer words."""
    indptr = np.concatenate([left.indptr, np.full(right.shape[0] - left.shape[0], left.indptr[-1], left.indptr.dtype)])
    padded = _sparse(left.data, left.indices, indptr, (right.shape[0], left.shape[1]))
    return sp.hstack([padded, right], format="csr", dtype=np.float32)


def _tokens(texts: Sequence[str]) -> list[list[str]]:
    """Lower-case words of each text without stop words."""
    if not len(texts):
        return []
    options = {
        "token_pattern": TOKEN_PATTERN,
        "stopwords": sorted(STOP_WORDS),
        "return_ids": False,
        "show_progress": False,
    }
    return bm25s.tokenize(list(texts), allow_empty=False, **options)
