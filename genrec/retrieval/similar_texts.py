"""Items whose text is similar to a query's, popular ones first: the first group of a search's anchors."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from genrec.catalogue.growing import append_rows
from genrec.retrieval.allowed import AllowedItems
from genrec.retrieval.dense import DenseRetriever, ExactIndex

SHARPNESS = 10.0  # a similarity higher by 0.1 outweighs e times as many users
SCORES = 1 << 22  # products of queries and items that are held at once
PROPOSALS = 8  # times as many items are proposed by an approximate index, which does not know the users
BLOCK = 4096  # queries looked up between two reports of progress
MIN_ROWS = 4  # a product of fewer rows sums in another order, and a query's items would depend on the others


class SimilarTexts:
    """The ``width`` items with the highest ``SHARPNESS`` x cosine + log(1 + users), for each query text.

    What a query is similar to does not change in training, nor with the request, so it is looked up once per distinct
    query and gathered after. An exact index multiplies all items, block by block; of a FAISS index the nearest
    ``PROPOSALS`` x ``width`` texts are ordered.
    """

    def __init__(self, texts: DenseRetriever, users: Tensor, width: int):
        """``texts``: retriever over the items' text vectors (n_items, d). ``users`` (n_items,) counts their users."""
        missing = len(texts.vectors) - len(users)  # items that were added since the users were counted
        self.texts, self.popular = texts, torch.nn.functional.pad(users, (0, missing)).log1p()
        self.width = min(width, len(texts.vectors))

    def grown(self, texts: DenseRetriever) -> SimilarTexts:
        """The same for ``texts`` with more items behind its own, which nobody has had."""
        grown = copy.copy(self)
        grown.texts = texts
        grown.popular = append_rows(self.popular, self.popular.new_zeros(len(texts.vectors) - len(self.popular)))
        return grown

    def of(self, queries: Tensor, progress: Callable[[int], None] | None = None) -> tuple[Tensor, Tensor]:
        """Item ids (Q, width) int64 of text vectors (Q, d), best first, and the cosines of the texts (Q, width)."""
        ids = torch.zeros(len(queries), self.width, dtype=torch.long)
        cosines = torch.zeros(len(queries), self.width)
        for begin in range(0, len(queries), BLOCK):
            rows = slice(begin, begin + BLOCK)
            some = queries[rows].to(self.popular.device)
            if isinstance(self.texts.index, ExactIndex):
                few = torch.arange(max(len(some), MIN_ROWS), device=some.device) % len(some)
                similar = most_similar(some[few], self.texts.vectors, self.popular, self.width)
                similar = similar[0][: len(some)], similar[1][: len(some)]
            else:
                similar = self._proposed(some)
            ids[rows], cosines[rows] = (part.cpu() for part in similar)
            if progress is not None:
                progress(len(some))
        return ids, cosines

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
