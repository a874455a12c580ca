"""Retrievers over counts and words: each scores few items of the catalogue per request, as rows of a sparse matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from genrec.data.dataset import Requests
from genrec.retrieval.allowed import EMPTY, AllowedItems, contains
from genrec.retrieval.bm25 import HEAD
from genrec.retrieval.collaborative import EaseWeights, ItemFactors
from genrec.retrieval.cooccurrence import CooccurrenceTransition
from genrec.retrieval.dense import DenseRetriever
from genrec.retrieval.lexical import LexicalIndex
from genrec.retrieval.products import pair_products
from genrec.retrieval.protocol import RetrievalRequests
from genrec.retrieval.query_items import QueryItemCounts
from genrec.retrieval.recent import RecentPopularity
from genrec.retrieval.top_k import best
from genrec.retrieval.windowed import WindowedTransitions

NEARLY = 0.8  # of a query's best BM25 score: nearly as good a match
NEARLY_ALONE = 0.5  # the same for a query of one word, which says little about which of its items is meant
SPAN = 1 << 40  # above every item id: row x SPAN + item is a key of both
NEVER = np.iinfo(np.int64).min  # a time before every event
ROOM = 1 << 22  # entries of a padded block of sparse rows
FULL = 8  # scores of which one in so many is not zero are kept as a plain array too, at most four times as large


class SparseScores:
    """Positive scores of B requests as a CSR matrix (B, n_items), or a plain array where few are zero.

    They may be narrower than the catalogue: items that were added since score 0.
    """

    def __init__(self, matrix: sp.csr_matrix | np.ndarray):
        """``matrix``: CSR in any order, or an array (B, n_items) float32."""
        self.shape: tuple[int, int] = matrix.shape  # B, and the number of items that may have a score
        self._sparse: sp.csr_matrix | None = None
        self._full: np.ndarray | None = None
        if isinstance(matrix, np.ndarray):
            self._full = matrix
        else:
            self._sparse = matrix
            if 0 < np.prod(matrix.shape) <= matrix.nnz * FULL:
                self._full = matrix.toarray()

    @property
    def matrix(self) -> sp.csr_matrix:
        """The scores as CSR."""
        if self._sparse is not None:
            return self._sparse
        assert self._full is not None
        return sp.csr_matrix(self._full)

    def __add__(self, other: SparseScores) -> SparseScores:
        if self._full is not None and other._full is not None and self.shape == other.shape:
            return SparseScores(self._full + other._full)
        return SparseScores((self.matrix + other.matrix).tocsr())

    def at(self, ids: np.ndarray) -> np.ndarray:
        """Scores (B, K) float32 of item ids (B, K)."""
        if self._full is not None:
            width = self._full.shape[1]
            scores = np.take_along_axis(self._full, np.minimum(ids, width - 1), 1)
            return np.where(ids < width, scores, np.float32(0))
        matrix, offset = self.matrix, np.int64(SPAN)
        if not matrix.nnz:
            return np.zeros(ids.shape, np.float32)
        matrix.sort_indices()
        rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        keys = rows * offset + matrix.indices
        targets = np.arange(len(ids))[:, None] * offset + ids
        index = np.minimum(np.searchsorted(keys, targets), len(keys) - 1)
        return np.where(keys[index] == targets, matrix.data[index], np.float32(0))

    def top(self, k: int, allowed: AllowedItems) -> tuple[Tensor, Tensor]:
        """The best allowed items with a positive score: ids and scores (B, k), -1 and -inf where there are fewer."""
        batch, width = self.shape
        ids = torch.full((batch, k), -1)
        scores = torch.full(ids.shape, -torch.inf)
        widest = width if self._sparse is None else int(np.diff(self._sparse.indptr).max(initial=0))
        step = max(ROOM // max(widest, 1), 1)
        for start in range(0, batch, step):
            rows = slice(start, min(start + step, batch))
            padded, values = self._padded(rows)
            kept = allowed.take(torch.arange(rows.start, rows.stop)).keep(padded) & (values > 0)
            ids[rows], scores[rows] = best(padded, values.masked_fill(~kept, -torch.inf), k)
        return ids, scores

    def _padded(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Ids and scores of some rows side by side, -1 and 0 behind them."""
        if self._full is not None:
            full = torch.from_numpy(self._full[rows])
            return torch.arange(full.shape[1]).expand(full.shape), full
        part = self.matrix[rows]
        lengths = np.diff(part.indptr)
        filled = np.arange(int(lengths.max(initial=0))) < lengths[:, None]
        ids, values = np.full(filled.shape, -1, np.int64), np.zeros(filled.shape, np.float32)
        ids[filled], values[filled] = part.indices, part.data
        return torch.from_numpy(ids), torch.from_numpy(values)

    def maxima(self) -> np.ndarray:
        """The best score of each request, 0 without any: (B,)."""
        if self._full is not None:
            return self._full.max(1)
        if not self.matrix.nnz:
            return np.zeros(self.matrix.shape[0], np.float32)
        return np.asarray(self.matrix.max(axis=1).todense()).ravel()


class SparseRetriever(ABC):
    """A retriever whose scores are the rows of a sparse matrix, zero for most items."""

    @abstractmethod
    def scores(self, requests: RetrievalRequests) -> SparseScores:
        """Scores of every item that has one."""

    def top(self, requests: RetrievalRequests, k: int, allowed: AllowedItems) -> tuple[Tensor, Tensor]:
        """As ``Retriever.top``; items without a score are not proposed."""
        return self.scores(requests).top(k, allowed)

    def score(self, requests: RetrievalRequests, ids: Tensor) -> Tensor:
        """As ``Retriever.score``; on the CPU."""
        return torch.from_numpy(self.scores(requests).at(ids.cpu().numpy()))


class CooccurrenceRetriever(SparseRetriever):
    """Items that go with the history: co-occurrence plus transitions."""

    def __init__(self, table: CooccurrenceTransition):
        self.table = table

    def parts(self, requests: RetrievalRequests) -> tuple[SparseScores, SparseScores]:
        """Co-occurrence and transition scores apart."""
        return requests.once(
            "cooccurrence", lambda: tuple(map(SparseScores, self.table.sparse_parts(requests.requests.histories)))
        )

    def scores(self, requests: RetrievalRequests) -> SparseScores:
        """As ``SparseRetriever.scores``."""
        similar, following = self.parts(requests)
        return requests.once("together", lambda: similar + following)


class WindowedRetriever(SparseRetriever):
    """Items that came within a few events of those of the history."""

    def __init__(self, table: WindowedTransitions):
        self.table = table

    def scores(self, requests: RetrievalRequests) -> SparseScores:
        """As ``SparseRetriever.scores``."""
        return requests.once("windowed", lambda: SparseScores(self.table.scores(requests.requests.histories)))


class EaseRetriever(SparseRetriever):
    """Items that EASE^R predicts from the history."""

    def __init__(self, table: EaseWeights):
        self.table = table

    def scores(self, requests: RetrievalRequests) -> SparseScores:
        """As ``SparseRetriever.scores``; items with a negative score are not proposed."""
        return requests.once("ease", lambda: SparseScores(self.table.scores(requests.requests.histories)))


class RecentRetriever(SparseRetriever):
    """Items that many people took shortly before the request's reference time, for requests without a query."""

    def __init__(self, popularity: RecentPopularity, own_time: bool):
        """``own_time``: a request's reference time is its own, not that of its last event."""
        self.popularity, self.own_time = popularity, own_time

    def scores(self, requests: RetrievalRequests) -> SparseScores:
        """As ``SparseRetriever.scores``."""
        return requests.once("recent", lambda: SparseScores(self._scores(requests.requests)))

    def _scores(self, requests: Requests) -> sp.csr_matrix:
        until = np.where(requests.request_queries < 0, requests.reference_times(self.own_time), NEVER)
        return self.popularity.scores(until)


class FactorRetriever:
    """Items whose factors have the highest products with those of the history; on the CPU."""

    def __init__(self, factors: ItemFactors):
        self.dense = DenseRetriever(factors.items, lambda requests: self._users(requests), "exact")
        self.factors = factors

    def top(self, requests: RetrievalRequests, k: int, allowed: AllowedItems) -> tuple[Tensor, Tensor]:
        """As ``Retriever.top``; items with a score of 0 or less are not proposed."""
        ids, scores = self.dense.top(requests, k, allowed)
        return ids.masked_fill(scores <= 0, -1), scores.masked_fill(scores <= 0, -torch.inf)

    def score(self, requests: RetrievalRequests, ids: Tensor) -> Tensor:
        """As ``Retriever.score``."""
        return self.dense.score(requests, ids)

    def _users(self, requests: RetrievalRequests) -> Tensor:
        return requests.once("als", lambda: self.factors.users(requests.requests.histories))


class WordRetriever(SparseRetriever):
    """Items that share words with the query, by BM25F; misspelt and half-typed words are read as known ones."""

    def __init__(self, lexical: LexicalIndex):
        self.lexical = lexical

    def scores(self, requests: RetrievalRequests) -> SparseScores:
        """As ``SparseRetriever.scores``; of words that very many items have, only the best items."""
        texts = requests.requests.request_texts
        return requests.once("words", lambda: SparseScores(self.lexical.sparse_scores(texts, HEAD)))

    def lengths(self, requests: RetrievalRequests) -> np.ndarray:
        """Words of each query that carry meaning: (B,), 0 without a query."""
        texts = requests.requests.request_texts
        return np.array([len(self.lexical.read(text).words) if text else 0 for text in texts], np.int64)

    def score(self, requests: RetrievalRequests, ids: Tensor) -> Tensor:
        """As ``Retriever.score``: exact for every item, whether it was proposed or not."""
        return torch.from_numpy(self.lexical.score_at(requests.requests.request_texts, ids.cpu().numpy()))


class PopularMatchRetriever(SparseRetriever):
    """Popularity of the items whose words match the query nearly as well as the best one's.

    Hundreds may match a category's name or a single word equally well; then popular items are the likely targets.
    """

    def __init__(self, words: WordRetriever, popularity: np.ndarray):
        """``popularity`` (n_items,) float32, not negative."""
        self.words, self.popularity = words, popularity

    def scores(self, requests: RetrievalRequests) -> SparseScores:
        """As ``SparseRetriever.scores``."""
        return requests.once("popular matches", lambda: self._scores(requests))

    def _scores(self, requests: RetrievalRequests) -> SparseScores:
        words = self.words.scores(requests)
        matrix = words.matrix
        least = words.maxima() * np.where(self.words.lengths(requests) > 1, NEARLY, NEARLY_ALONE)
        near = matrix.data >= np.repeat(least, np.diff(matrix.indptr))
        data = np.where(near, 1 + self.popularity[matrix.indices], np.float32(0))
        return SparseScores(sp.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape))

    def ambiguity(self, requests: RetrievalRequests) -> np.ndarray:
        """How many items match nearly as well as the best one: (B,)."""
        matrix = self.scores(requests).matrix
        owner = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        return np.bincount(owner[matrix.data > 0], minlength=matrix.shape[0])


class QueryItemRetriever(SparseRetriever):
    """Items that were taken after the same query."""

    def __init__(self, counts: QueryItemCounts):
        self.counts = counts

    def scores(self, requests: RetrievalRequests) -> SparseScores:
        """As ``SparseRetriever.scores``."""
        return requests.once(
            "query items", lambda: SparseScores(self.counts.sparse_scores(requests.requests.request_texts))
        )

    def related(self, requests: RetrievalRequests, ids: Tensor) -> Tensor:
        """How much of the searches for items (B, K) said more than the query, and less: (B, K, 2), on the CPU."""
        longer, shorter = requests.once(
            "related queries",
            lambda: tuple(map(SparseScores, self.counts.related_scores(requests.requests.request_texts))),
        )
        return torch.from_numpy(np.stack([part.at(ids.cpu().numpy()) for part in (longer, shorter)], axis=-1))


class LastItemNeighbours:
    """Items whose text is near that of the history's last item, for requests without a query.

    They include items without events.
    """

    def __init__(self, text: DenseRetriever):
        self.text = text

    def top(self, requests: RetrievalRequests, k: int, allowed: AllowedItems) -> tuple[Tensor, Tensor]:
        """As ``Retriever.top``; the last item itself is not proposed."""
        queries, last = self._queries(requests)
        if not bool(queries.any()):
            return torch.full((len(queries), k), -1), torch.full((len(queries), k), -torch.inf)
        ids, scores = self.text.search(queries, min(k + 1, len(self.text.vectors)), allowed)
        own = contains(last[:, None], ids)
        return best(ids, scores.masked_fill(own, -torch.inf), k)

    def score(self, requests: RetrievalRequests, ids: Tensor) -> Tensor:
        """As ``Retriever.score``."""
        return pair_products(self._queries(requests)[0], self.text.vectors, ids)

    def _queries(self, requests: RetrievalRequests) -> tuple[Tensor, Tensor]:
        """Text vectors of the last items (B, text_dim), zero for searches and without a history, and the items (B,)."""
        source, device = requests.requests, self.text.vectors.device
        reads = (source.request_queries < 0) & (np.diff(source.offsets) > 0)
        last = np.full(len(source), EMPTY)
        last[reads] = source.items[source.offsets[1:][reads] - 1]
        items = torch.from_numpy(last).to(device)
        live = torch.from_numpy(reads).to(device)
        queries = self.text.vectors[torch.where(live, items, 0)].float() * live[:, None]
        return queries, items
