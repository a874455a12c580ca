"""What the words of a query say of candidates: BM25F, how much of the query a title has, how ambiguous it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genrec.retrieval.protocol import RetrievalRequests
from genrec.retrieval.sources import PopularMatchRetriever, WordRetriever


@dataclass(frozen=True)
class WordFeatures:
    """Of candidates (B, K): ``score`` of BM25F; ``share``, the same as a fraction of the query's best; fields.

    ``title`` (B, K, 4): fractions of the query's words, as typed, that the title has, that stand in this order and
    side by side (``TitleWords.match``), and whether it has all of them. ``facets`` (B, K, 5): what brand, category and
    attributes say of the query (``FacetWords.match``). ``near`` and ``words`` (B,): log(1 + items
    that match nearly as well as the best), log(1 + words of the query that carry meaning).
    """

    score: Tensor
    share: Tensor
    title: Tensor
    facets: Tensor
    near: Tensor
    words: Tensor

    @classmethod
    def of(
        cls, requests: RetrievalRequests, known: Tensor, words: WordRetriever, popular: PopularMatchRetriever
    ) -> WordFeatures:
        """The features of items ``known`` (B, K) int64, on the host."""
        score = words.score(requests, known)
        best = torch.from_numpy(words.scores(requests).maxima())[:, None]
        texts, ids = requests.requests.request_texts, known.numpy()
        title, facets = (
            torch.from_numpy(part(texts, ids)) for part in (words.lexical.title_match, words.lexical.facet_match)
        )
        near, length = (
            torch.from_numpy(np.log1p(counts)).float()
            for counts in (popular.ambiguity(requests), words.lengths(requests))
        )
        return cls(
            score,
            score / best.clamp(min=torch.finfo(torch.float32).tiny),
            torch.cat([title, (title[..., :1] == 1).float()], dim=-1),
            facets,
            near,
            length,
        )
