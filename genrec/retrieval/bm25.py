"""BM25 over the items' words."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import bm25s
import numpy as np
import polars as pl
import scipy.sparse as sp

from genrec.data.queries import STOP_WORDS
from genrec.errors import UserError
from genrec.text.encoder import TOKEN_PATTERN, item_texts

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it announces every step


class BM25:
    """BM25 (Robertson's ranking function in Lucene's form, by ``bm25s``) over title, brand, category and text.

    The words are those the library's text encoder reads, so scripts without spaces work too.
    """

    def __init__(self, k1: float = 1.2, b: float = 0.75):
        if k1 < 0 or not 0 <= b <= 1:
            raise UserError(f"BM25 got k1={k1}, b={b}; expected k1 >= 0 and 0 <= b <= 1")
        self.k1, self.b = k1, b
        self.vocabulary: dict[str, int] = {}
        self.weights: sp.csr_matrix | None = (
            None  # (words, n_items): what one occurrence of the word in a query is worth
        )

    def fit(self, items: pl.DataFrame | Sequence[str]) -> BM25:
        """Index ``items``: a table with the items' columns in item id order, or one text per item."""
        texts = item_texts(items) if isinstance(items, pl.DataFrame) else list(items)
        tokens = _tokens(texts)
        if not any(tokens):  # bare ids: every query scores every item 0
            self.vocabulary, self.weights = {}, sp.csr_matrix((0, len(texts)), dtype=np.float32)
            return self
        index = bm25s.BM25(method="lucene", k1=self.k1, b=self.b)
        index.index(tokens, show_progress=False)
        scores = index.scores  # a CSC matrix of items by words, so its arrays are a CSR matrix of words by items
        n_words = len(scores["indptr"]) - 1
        self.weights = sp.csr_matrix(
            (scores["data"], scores["indices"], scores["indptr"]), shape=(n_words, len(texts)), dtype=np.float32
        )
        # bm25s indexes a text without words under the word "", which no query may match
        self.vocabulary = {word: place for word, place in index.vocab_dict.items() if word and place < n_words}
        return self

    def knows(self, query: str) -> bool:
        """Whether a word of the query occurs in the items. A query of stop words alone has no word that could."""
        return any(word in self.vocabulary for word in _tokens([query])[0])

    def score(self, queries: Sequence[str]) -> np.ndarray:
        """(B, n_items) float32: one sparse product for all queries. A query without known words scores 0 everywhere."""
        if self.weights is None:
            raise UserError("BM25 has not been fitted; call fit(items) first")
        known = [[self.vocabulary[word] for word in words if word in self.vocabulary] for words in _tokens(queries)]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in known])]).astype(np.int64)
        columns = np.concatenate([np.asarray(row, np.int64) for row in known] or [np.zeros(0, np.int64)])
        asked = sp.csr_matrix(
            (np.ones(len(columns), np.float32), columns, offsets), shape=(len(known), self.weights.shape[0])
        )
        return (asked @ self.weights).toarray()


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
