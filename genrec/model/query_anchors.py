"""What goes with a query: the items whose text is next to it, and the items that people took after its words. A further group of anchors.

The first needs no count, so nothing of the answer is in it, and it knows new items too. The second is counted from training searches, word
by word, so that a query nobody has asked has anchors as soon as its words have been; a request in training takes its own search out again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.retrieval.neighbours import WordTable
from genrec.text.query_tokens import WORD_BUCKETS

SHARPNESS = 10.0  # an item whose text is nearer to a query by .1 stands before one that e times as many people had
WORDS = 8  # of a query that are looked up


@dataclass
class QueryHits:
    """Of each request, (B, R, W) each: ``near`` item ids and the cosine of the texts, ``likeness``, 0 where there is no query; ``taken`` item
    ids, how often after the query's words, rare ones weighing more, ``strength``, 0 for none, and what one search adds to it, ``unit``.
    """

    near: Tensor
    likeness: Tensor
    taken: Tensor
    strength: Tensor
    unit: Tensor


class QueryTables(nn.Module):
    """Per hashed word the ``width`` items most often taken after it."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.register_buffer("items", torch.full((WORD_BUCKETS, width), -1, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(WORD_BUCKETS, width))
        self.register_buffer("weight", torch.zeros(WORD_BUCKETS))

    def fill(self, table: WordTable) -> None:
        """Take over what was counted."""
        for name in ("items", "counts", "weight"):
            getattr(self, name).copy_(torch.as_tensor(getattr(table, name)))

    @torch.no_grad()
    def look_up(
        self, asked: Tensor, text: Tensor, words: Tensor, offsets: Tensor, items: Tensor, users: Tensor
    ) -> QueryHits:
        """``asked`` (B, R): 0 for no query, else 1 + its row in ``text`` (Q, d) and in the ragged ``words`` (n,) with ``offsets`` (Q,).

        ``items`` (n_items, d) unit vectors of the items' texts, ``users`` (n_items,) who had each.
        """
        likeness = F.pad(text, (0, 0, 1, 0)) @ items.T
        near = (likeness * SHARPNESS + users.log1p()).topk(min(self.width, len(items)), dim=1).indices
        found = (near, likeness.gather(1, near), *(F.pad(part, (0, 0, 1, 0)) for part in self._taken(words, offsets)))
        return QueryHits(*(part[asked] for part in found))

    def _taken(self, words: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What was taken after the words of each query: ids, strength and unit, (Q, width) each, the strongest first."""
        total = words.shape[0]  # not len(): torch.export would take it for a constant
        end = torch.cat([offsets[1:], offsets.new_full((1,), total)])[: offsets.shape[0]]
        place = offsets[:, None] + torch.arange(WORDS, device=words.device)
        word = F.pad(words, (0, 1), value=WORD_BUCKETS)[place.clamp(max=total)]
        word = torch.where(place < end[:, None], word, WORD_BUCKETS)
        again = (word[:, :, None] == word[:, None]).tril(-1).any(2)
        live = (word < WORD_BUCKETS) & ~again
        word = torch.where(live, word, 0)
        ids = torch.where(live[..., None], self.items[word].long(), -1).flatten(1)
        unit = torch.where(ids >= 0, self.weight[word].repeat_interleave(self.width, 1), 0.0)
        strength = unit * self.counts[word].flatten(1)
        ids, order = ids.sort(dim=1)
        first = F.pad(ids[:, 1:] != ids[:, :-1], (1, 0), value=True)
        group = first.cumsum(1) - 1
        unit, strength = (
            torch.zeros_like(part).scatter_add(1, group, part.gather(1, order)).gather(1, group)
            for part in (unit, strength)
        )
        best = strength.masked_fill(~first | (ids < 0), -1.0).topk(self.width, dim=1)
        return ids.gather(1, best.indices).clamp(min=0), best.values.clamp(min=0), unit.gather(1, best.indices)
