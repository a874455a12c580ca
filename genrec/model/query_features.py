"""Features of queries: text vectors, hashed words and character n-grams, and the codes of their semantic IDs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
import torch

from genrec.model.embeddings import CODE_SPAN
from genrec.progress import Progress
from genrec.retrieval.similar_texts import NamedItems, SimilarTexts
from genrec.semantic_ids.query_codes import QueryCoder
from genrec.text.encoder import TextEncoder
from genrec.text.query_tokens import HASHED, hashed_tokens, readable


@dataclass(frozen=True)
class QueryFeatures:
    """Features of a table of query texts: ``text`` (Q, text_dim) and tokens ``words[offsets[q]:offsets[q + 1]]``.

    Tokens below ``WORD_BUCKETS`` are hashed words, those below ``HASHED`` hashed character n-grams, the rest codes of
    the query's semantic ID. ``named`` (Q, W), where they were looked up, are the items that ``SimilarTexts`` gives.
    """

    text: np.ndarray
    words: np.ndarray
    offsets: np.ndarray
    named: NamedItems | None = None

    @classmethod
    def build(cls, texts: Sequence[str], encoder: TextEncoder) -> QueryFeatures:
        """Features of the first 256 characters of each query. An encoder without codebooks gives no code tokens.

        A query without known words, or without any letter, has a zero text vector and is still a query.
        """
        if not len(texts):
            return cls(np.zeros((0, encoder.dim), np.float32), np.zeros(0, np.int64), np.zeros(1, np.int64))
        texts = readable(texts)
        rows, tokens = hashed_tokens(texts)
        if isinstance(encoder, QueryCoder):
            text, codes = encoder.encode_queries(texts)
            row, level = np.nonzero(codes >= 0)
            rows = np.concatenate([rows, row])
            tokens = np.concatenate([tokens, HASHED + level * CODE_SPAN + codes[row, level]])
        else:
            text = encoder.encode(texts)
        order = np.argsort(rows, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(texts)))]).astype(np.int64)
        return cls(text, tokens[order].astype(np.int64), offsets)

    def with_named(
        self, queries: Sequence[str], similar: SimilarTexts, rows: np.ndarray | None = None, report: bool = False
    ) -> QueryFeatures:
        """The same with the items that each of the texts ``queries`` names.

        ``rows``: the queries that are looked up, by default all; the others get none. ``report``: show progress.
        """
        rows = np.arange(len(self.text)) if rows is None else rows
        named = NamedItems.none(len(self.text), similar.width)
        with Progress("items that queries name", len(rows), report) as progress:
            some = similar.of(
                [queries[row] for row in rows.tolist()], torch.from_numpy(self.text[rows]), progress.advance
            )
        for name, values in vars(some).items():
            getattr(named, name)[rows] = values
        return replace(self, named=named)

    def joined(self, other: QueryFeatures) -> QueryFeatures:
        """One table of both, this one's rows first."""
        offsets = np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]])
        words = np.concatenate([self.words, other.words])
        return QueryFeatures(np.concatenate([self.text, other.text]), words, offsets)

    def take(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Text vectors, words and start offsets of some queries."""
        lengths = np.diff(self.offsets)[ids]
        starts = np.cumsum(lengths) - lengths
        rows = np.repeat(self.offsets[ids] - starts, lengths) + np.arange(lengths.sum())
        return self.text[ids], self.words[rows], starts


class QueryFeatureCache:
    """``QueryFeatures.build`` that keeps the rows of the texts used last, for callers that see the same ones again.

    The history of a person holds the same queries in each request. A row depends on its text alone (measured: equal to
    the last bit for any other texts beside it), so a result does not depend on what was kept. May be shared by threads.
    """

    def __init__(self, encoder: TextEncoder, capacity: int = 16384):
        self.encoder, self.capacity = encoder, capacity
        self._rows: OrderedDict[str, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._lock = Lock()

    def build(self, texts: Sequence[str]) -> QueryFeatures:
        """Features of ``texts``, a row each; of a table that would not fit, nothing is kept."""
        if not 0 < len(texts) <= self.capacity // 2:
            return QueryFeatures.build(texts, self.encoder)
        texts = readable(texts)
        with self._lock:
            rows = {text: self._rows[text] for text in texts if text in self._rows}
        missing = [text for text in dict.fromkeys(texts) if text not in rows]
        if missing:
            made = QueryFeatures.build(missing, self.encoder)
            words = np.split(made.words, made.offsets[1:-1])
            # Copies: a view would keep the whole table alive for one row.
            rows |= {text: (made.text[row].copy(), words[row].copy()) for row, text in enumerate(missing)}
        with self._lock:
            for text in dict.fromkeys(texts):
                self._rows[text] = rows[text]
                self._rows.move_to_end(text)
            while len(self._rows) > self.capacity:
                self._rows.popitem(last=False)
        parts = [rows[text] for text in texts]
        lengths = [len(words) for _, words in parts]
        return QueryFeatures(
            np.stack([vector for vector, _ in parts]),
            np.concatenate([words for _, words in parts]),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )
