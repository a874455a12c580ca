"""Items that a query names, by its words or by a similar text: the first group of a search's anchors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genrec.catalogue.growing import append_rows
from genrec.retrieval.allowed import AllowedItems
from genrec.retrieval.bm25 import HEAD
from genrec.retrieval.dense import DenseRetriever, ExactIndex
from genrec.retrieval.lexical import LexicalIndex
from genrec.retrieval.sources import SparseScores

SHARPNESS = 10.0  # a similarity higher by 0.1 outweighs e times as many users
SCORES = 1 << 22  # products of queries and items that are held at once
PROPOSALS = 8  # times as many items are proposed by an approximate index, which does not know the users
BLOCK = 4096  # queries looked up between two reports of progress
MIN_ROWS = 4  # a product of fewer rows sums in another order, and a query's items would depend on the others


@dataclass(frozen=True)
class NamedItems:
    """Items that go with each of Q queries, best first, in host memory: ``ids`` (Q, W) int64.

    ``similarity`` (Q, W) is the cosine of the texts, and ``words`` (Q, W) how well the words match: the item's BM25F
    score as a fraction of the query's best one, 0 where no word matches.
    """

    ids: np.ndarray
    similarity: np.ndarray
    words: np.ndarray

    @classmethod
    def none(cls, n: int, width: int) -> NamedItems:
        """``n`` queries that name nothing."""
        return cls(np.zeros((n, width), np.int64), *(np.zeros((n, width), np.float32) for _ in range(2)))


class SimilarTexts:
    """The ``width`` items with the highest ``SHARPNESS`` x (cosine + word match) + log(1 + users), for each query.

    They come from the best by either, so that misspelt and half-typed words, which the lexical index reads, name items
    too. What a query names does not change in training, nor with the request, so it is looked up once per distinct
    query and gathered after. An exact index multiplies all items, block by block; of a FAISS index the nearest
    ``PROPOSALS`` x ``width`` texts are ordered.
    """

    def __init__(self, texts: DenseRetriever, users: Tensor, width: int, lexical: LexicalIndex | None = None):
        """``texts``: retriever over the items' text vectors (n_items, d). ``users`` (n_items,) counts their users.

        Without ``lexical`` no word matches.
        """
        missing = len(texts.vectors) - len(users)  # items that were added since the users were counted
        self.texts, self.popular = texts, torch.nn.functional.pad(users, (0, missing)).log1p()
        self.width, self.lexical = min(width, len(texts.vectors)), lexical
        self._popular_on_host = self.popular.cpu().numpy()  # on a CPU the same memory

    def grown(self, texts: DenseRetriever, lexical: LexicalIndex | None) -> SimilarTexts:
        """The same for ``texts`` and ``lexical`` with more items behind its own, which nobody has had."""
        grown = copy.copy(self)
        grown.texts, grown.lexical = texts, lexical
        grown.popular = append_rows(self.popular, self.popular.new_zeros(len(texts.vectors) - len(self.popular)))
        grown._popular_on_host = grown.popular.cpu().numpy()
        return grown

    def of(self, texts: Sequence[str], queries: Tensor, progress: Callable[[int], None] | None = None) -> NamedItems:
        """Items of the queries ``texts`` with text vectors ``queries`` (Q, d)."""
        named = NamedItems.none(len(queries), self.width)
        for begin in range(0, len(queries), BLOCK):
            rows = slice(begin, begin + BLOCK)
            some = queries[rows].to(self.popular.device)
            if isinstance(self.texts.index, ExactIndex):
                few = torch.arange(max(len(some), MIN_ROWS), device=some.device) % len(some)
                similar = most_similar(some[few], self.texts.vectors, self.popular, self.width)
                similar = similar[0][: len(some)], similar[1][: len(some)]
            else:
                similar = self._proposed(some)
            parts = self._with_words(texts[rows], some, *similar)
            ids, *scores = torch.stack([part.double() for part in parts]).cpu().numpy()  # one wait for the device
            named.ids[rows], named.similarity[rows], named.words[rows] = ids, *scores
            if progress is not None:
                progress(len(some))
        return named

    def _with_words(
        self, texts: Sequence[str], queries: Tensor, ids: Tensor, cosines: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best of items with similar texts, ``ids`` with ``cosines`` (Q, width), and of those whose words match."""
        if self.lexical is None:
            return ids, cosines, torch.zeros_like(cosines)
        matches = self.lexical.sparse_scores(texts, HEAD)
        best = np.repeat(np.maximum(SparseScores(matches).maxima(), 1e-9), np.diff(matches.indptr))
        matches.data = matches.data / best
        fractions, ordered = SparseScores(matches), matches.copy()
        ordered.data = SHARPNESS * matches.data + self._popular_on_host[matches.indices]
        matching = SparseScores(ordered).top(self.width, AllowedItems())[0]
        candidates = torch.cat([ids.cpu(), matching], 1)
        words = torch.from_numpy(fractions.at(candidates.numpy())).to(cosines)
        matching = matching.to(ids.device)
        known = (matching[:, :, None] == ids[:, None]).any(2) | (matching < 0)  # padding, or among the similar texts
        matching = matching.clamp(min=0)
        vectors = torch.nn.functional.embedding(matching, self.texts.vectors).to(queries.dtype)
        ids, cosines = torch.cat([ids, matching], 1), torch.cat([cosines, (vectors @ queries[:, :, None])[..., 0]], 1)
        scores = (cosines + words) * SHARPNESS + self.popular[ids]
        scores[:, self.width :].masked_fill_(known, -torch.inf)
        chosen = scores.topk(self.width, dim=1).indices
        return ids.gather(1, chosen), cosines.gather(1, chosen), words.gather(1, chosen)

    def _proposed(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        ids, cosines = self.texts.search(queries, PROPOSALS * self.width, AllowedItems())
        exists, ids = ids >= 0, ids.clamp(min=0)
        scores = (cosines * SHARPNESS + self.popular[ids]).masked_fill(~exists, -torch.inf)
        best = scores.topk(self.width, dim=1).indices
        return ids.gather(1, best), torch.where(exists, cosines, 0.0).gather(1, best)


def most_similar(queries: Tensor, texts: Tensor, popular: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """As ``SimilarTexts.of``, exactly, with at most ``SCORES`` products at a time.

    ``texts`` (n_items, d) are unit vectors, ``popular`` (n_items,) the logarithms of one plus their users.
    """
    if torch.compiler.is_exporting():  # the number of queries is not known: one block
        return _block(queries, texts, popular, width)
    step = max(SCORES // len(texts), 1)
    blocks = [_block(queries[begin : begin + step], texts, popular, width) for begin in range(0, len(queries), step)]
    if not blocks:
        return queries.new_zeros(0, width, dtype=torch.long), queries.new_zeros(0, width)
    ids, cosines = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return ids, cosines


def _block(queries: Tensor, texts: Tensor, popular: Tensor, width: int) -> tuple[Tensor, Tensor]:
    cosines = queries @ texts.to(queries.dtype).T
    best = (cosines * SHARPNESS + popular).topk(width, dim=1).indices
    return best, cosines.gather(1, best)
