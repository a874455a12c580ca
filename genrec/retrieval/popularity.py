"""The most popular items, from an order that is computed once."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from genrec.catalogue.growing import append_rows
from genrec.retrieval.allowed import AllowedItems
from genrec.retrieval.protocol import RetrievalRequests
from genrec.retrieval.top_k import best


class PopularItems:
    """Retriever of the items with the highest ``popularity`` (n_items,); equal ones by id.

    The requests are not read.
    """

    def __init__(self, popularity: np.ndarray):
        self.scores = torch.from_numpy(popularity)
        self.order = torch.from_numpy(np.argsort(-popularity, kind="stable"))

    def grown(self, n_items: int) -> PopularItems:
        """The same for a catalogue with more items behind its own, which nobody has had."""
        grown, n = copy.copy(self), len(self.scores)
        grown.scores = append_rows(self.scores, self.scores.new_zeros(n_items - n))
        grown.order = append_rows(self.order, torch.arange(n, n_items))
        return grown

    def top(self, requests: RetrievalRequests, k: int, allowed: AllowedItems) -> tuple[Tensor, Tensor]:
        """As ``Retriever.top``."""
        return self.first(len(requests), k, allowed)

    def first(self, batch: int, k: int, allowed: AllowedItems) -> tuple[Tensor, Tensor]:
        """The first ``k`` allowed items of ``batch`` requests: as much of the order is read as that takes."""
        if allowed.only is not None:
            ids = allowed.candidates
            return best(ids, self.scores[ids.clamp(min=0)].masked_fill(ids < 0, -torch.inf), k)
        fetched = k
        while True:
            ids = self.order[:fetched].expand(batch, -1)
            kept = allowed.keep(ids)
            if fetched >= len(self.order) or bool((kept.sum(1) >= k).all()):
                return best(ids, self.scores[ids].masked_fill(~kept, -torch.inf), k)
            fetched *= 4

    def score(self, requests: RetrievalRequests, ids: Tensor) -> Tensor:
        """As ``Retriever.score``."""
        return self.scores[ids.cpu()]
