"""A pointer over the trie: the code decoder may copy an anchor of its request (arXiv 1704.04368).

Every anchor a has a strength ``s[a, l]`` per code level, from its counts, the retrieval head's score and the
request's state. The logit of a node n of level l gains ``log(1 + mass)`` with ``mass = sum of exp(s[a, l]) over the
anchors below n``. Over the children of a node that is a normalised mixture: ``p = (1 - g) x p_decoder + g x p_copy``
with ``p_copy`` in proportion to ``p_decoder x mass`` and ``g = E[mass] / (1 + E[mass])`` under the decoder. Where no
anchor is below a node, nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.catalogue.trie import CatalogueTrie
from genrec.model.anchors import Anchors

WIDTH = 64
SPAN = 1 << 40  # larger than any node: row x SPAN + node is a key of both
MIN_STRENGTH, MAX_STRENGTH = -20.0, 20.0  # keep the exponential finite
INITIAL_STRENGTH = -3.0  # the decoder dominates at first


@dataclass
class CopyBias:
    """What anchors add to logits: the ``bonus`` (B, R, P) of ``nodes`` (B, R, P) above anchors.

    Nodes rise and are padded with ``n_nodes``. A node may occur more than once, with the same bonus.
    """

    nodes: Tensor
    bonus: Tensor

    def for_rows(self, nodes: Tensor) -> Tensor:
        """The bonus of nodes (B x R, N), row by row: (B x R, N)."""
        own, bonus = self.nodes.flatten(0, 1), self.bonus.flatten(0, 1)
        nodes = nodes.long().contiguous()
        match = torch.searchsorted(own, nodes).clamp(max=own.shape[1] - 1)
        return torch.where(own.gather(1, match) == nodes, bonus.gather(1, match), 0.0)

    def for_range(self, start: int, stop: int) -> Tensor:
        """The bonus of all nodes from ``start`` to before ``stop``: (B x R, stop - start); nothing is looked up."""
        own, bonus = self.nodes.flatten(0, 1), self.bonus.flatten(0, 1)
        first = F.pad(own[:, 1:] != own[:, :-1], (1, 0), value=True)
        column = torch.where(first & (own >= start) & (own < stop), own - start, stop - start)
        return bonus.new_zeros(len(own), stop - start + 1).scatter(1, column, bonus)[:, :-1]

    def for_pairs(self, rows: Tensor, nodes: Tensor) -> Tensor:
        """The bonus of nodes (M,), each for one of the B x R ``rows`` (M,): (M,)."""
        own = self.nodes.flatten(0, 1)
        keys = (own + torch.arange(len(own), device=own.device)[:, None] * SPAN).flatten()
        key = nodes + rows * SPAN
        match = torch.searchsorted(keys, key).clamp(max=len(keys) - 1)
        return torch.where(keys[match] == key, F.embedding(match, self.bonus.reshape(-1, 1))[:, 0], 0.0)

    def take(self, rows: Tensor) -> CopyBias:
        """The copy bias of some sequences."""
        return CopyBias(self.nodes[rows], self.bonus[rows])


class Pointer(nn.Module):
    """Strengths of anchors per code level, and the copy bias of the nodes above them."""

    def __init__(self, dim: int, levels: int, features: int):
        super().__init__()
        self.counts, self.state = nn.Linear(features + 1, WIDTH), nn.Linear(dim, WIDTH, bias=False)
        self.strength = nn.Linear(WIDTH, levels + 1)  # the last one is for items, where the retrieval head teaches
        nn.init.constant_(self.strength.bias, INITIAL_STRENGTH)

    def forward(self, state: Tensor, anchors: Anchors, relevance: Tensor, trie: CatalogueTrie) -> CopyBias:
        """Copy bias of trie nodes, given request states (B, R, dim) and retrieval scores of anchors (B, R, A)."""
        n_items = trie.item_path.shape[0]  # anchors behind them are pending: they have no nodes yet
        live = anchors.live & (anchors.ids < n_items)
        nodes = torch.where(live[..., None], trie.item_path[anchors.ids.clamp(max=n_items - 1)], trie.n_nodes)
        return _merge(nodes.flatten(2), self._mass(state, anchors, relevance)[..., :-1].flatten(2))

    def items(self, state: Tensor, anchors: Anchors, relevance: Tensor, n_items: int) -> CopyBias:
        """Copy bias of item ids instead of nodes, for the retrieval head's logits. Only a teacher uses it."""
        return _merge(torch.where(anchors.live, anchors.ids, n_items), self._mass(state, anchors, relevance)[..., -1])

    def _mass(self, state: Tensor, anchors: Anchors, relevance: Tensor) -> Tensor:
        """Mass per anchor, for each level and the item: (B, R, A, levels + 1); 0 where hidden."""
        known = torch.cat([anchors.features, relevance[..., None]], dim=-1)
        strength = self.strength(F.gelu(self.counts(known) + self.state(state)[:, :, None])).float()
        return torch.where(anchors.live[..., None], strength.clamp(MIN_STRENGTH, MAX_STRENGTH).exp(), 0.0)


def _merge(nodes: Tensor, mass: Tensor) -> CopyBias:
    """Nodes (B, R, P) in rising order, with the logarithm of one plus the mass of all entries of the same node."""
    nodes, order = nodes.sort(dim=-1)
    mass = mass.gather(-1, order)
    group = F.pad(nodes[..., 1:] != nodes[..., :-1], (1, 0)).cumsum(-1)
    return CopyBias(nodes, torch.zeros_like(mass).scatter_add(-1, group, mass).gather(-1, group).log1p())
