"""Anchors of a search: items that the query names, by words or by a similar text, and items chosen after its words.

The first group needs no counts, so it cannot leak the answer and covers new items. The second is counted from
training searches word by word, so a new query has anchors as soon as its words have been searched; a training request
takes its own search out of the counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.retrieval.neighbours import WordTable
from genrec.text.query_tokens import WORD_BUCKETS

WORDS = 8  # words of a query that are looked up


@dataclass
class QueryHits:
    """Items that go with each request's query, (B, R, W) each.

    ``named`` item ids with the cosine of the texts, ``similarity``, and the fraction of the best word match,
    ``word_match``, both 0 without a query. ``chosen`` item ids with
    ``strength``, how often they were chosen after the query's words, rare words weighing more, 0 for none; one search
    adds ``unit`` to it.
    """

    named: Tensor
    similarity: Tensor
    word_match: Tensor
    chosen: Tensor
    strength: Tensor
    unit: Tensor


class QueryTables(nn.Module):
    """The ``width`` items most often chosen after each hashed word."""

    items: Tensor  # (WORD_BUCKETS, width) int32, -1 for none
    counts: Tensor  # (WORD_BUCKETS, width)
    weight: Tensor  # (WORD_BUCKETS,)

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.register_buffer("items", torch.full((WORD_BUCKETS, width), -1, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(WORD_BUCKETS, width))
        self.register_buffer("weight", torch.zeros(WORD_BUCKETS))

    def fill(self, table: WordTable) -> None:
        """Copy counted values."""
        for name in ("items", "counts", "weight"):
            getattr(self, name).copy_(torch.as_tensor(getattr(table, name)))

    @torch.no_grad()
    def look_up(
        self, request_queries: Tensor, named: tuple[Tensor, Tensor, Tensor], words: Tensor, offsets: Tensor
    ) -> QueryHits:
        """Hits of ``request_queries`` (B, R).

        0 for no query, else 1 + a row of ``named``, ids, cosines and word matches (Q, W) of the items that queries
        name, and of the ragged ``words`` (n,). ``offsets`` (Q,) say where the words of each query begin.
        """
        hits = (F.pad(values, (0, 0, 1, 0)) for values in (*named, *self._chosen_after(words, offsets)))
        return QueryHits(*(values[request_queries] for values in hits))

    def no_hits(self, request_queries: Tensor, n_items: int) -> QueryHits:
        """The hits of requests without a query."""
        empty = torch.zeros(*request_queries.shape, self.width, device=request_queries.device)
        none = empty[..., : min(self.width, n_items)]
        return QueryHits(none.long(), none, none, empty.long(), empty, empty)

    def _chosen_after(self, words: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Items chosen after the words of each query, strongest first: ids, strength and unit, (Q, width) each."""
        total = words.shape[0]  # len() would become a constant in torch.export
        end = torch.cat([offsets[1:], offsets.new_full((1,), total)])[: offsets.shape[0]]
        index = offsets[:, None] + torch.arange(WORDS, device=words.device)
        word = F.pad(words, (0, 1), value=WORD_BUCKETS)[index.clamp(max=total)]
        word = torch.where(index < end[:, None], word, WORD_BUCKETS)
        repeated = (word[:, :, None] == word[:, None]).tril(-1).any(2)
        live = (word < WORD_BUCKETS) & ~repeated
        word = torch.where(live, word, 0)
        ids = torch.where(live[..., None], self.items[word].long(), -1).flatten(1)
        unit = torch.where(ids >= 0, self.weight[word].repeat_interleave(self.width, 1), 0.0)
        strength = unit * self.counts[word].flatten(1)
        # Sum over words that share an item: sort by item, then add within runs.
        ids, order = ids.sort(dim=1)
        first = F.pad(ids[:, 1:] != ids[:, :-1], (1, 0), value=True)
        run = first.cumsum(1) - 1
        unit, strength = (
            torch.zeros_like(values).scatter_add(1, run, values.gather(1, order)).gather(1, run)
            for values in (unit, strength)
        )
        best = strength.masked_fill(~first | (ids < 0), -1.0).topk(self.width, dim=1)
        return ids.gather(1, best.indices).clamp(min=0), best.values.clamp(min=0), unit.gather(1, best.indices)
