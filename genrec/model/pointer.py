"""A pointer over the trie: the code decoder may copy one of its request's anchors (pointer-generator networks, arXiv 1704.04368).

Every anchor a has a strength ``s[a, l]`` per code level, learned from its counts, the retrieval head's score of it and the request's state.
A node n of level l gets ``log(1 + mass)`` on its logit, with ``mass = sum of exp(s[a, l]) over the anchors below n``. Over the children of
a node that is a mixture, normalised as before: ``p = (1 - g) x p_decoder + g x p_copy`` with ``p_copy`` in proportion to
``p_decoder x mass`` and ``g = E[mass] / (1 + E[mass])`` under the decoder. Where no anchor lies below a node nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.catalogue.trie import CatalogueTrie
from genrec.model.anchors import Anchors

WIDTH = 64
SPAN = 1 << 40  # above every node: row x SPAN + node is a key of both
LEAST, MOST = -20.0, 20.0  # of a strength: its exponential stays finite


@dataclass
class CopyBias:
    """``nodes`` (B, R, P) that have anchors below them, rising, ``n_nodes`` behind them; ``bonus`` (B, R, P) what the logit of each gains.

    A node may be listed more than once, with the same bonus.
    """

    nodes: Tensor
    bonus: Tensor

    def for_rows(self, nodes: Tensor) -> Tensor:
        """What the logits of nodes (B x R, N) gain, row by row: (B x R, N)."""
        mine, bonus = self.nodes.flatten(0, 1), self.bonus.flatten(0, 1)
        nodes = nodes.long().contiguous()
        place = torch.searchsorted(mine, nodes).clamp(max=mine.shape[1] - 1)
        return torch.where(mine.gather(1, place) == nodes, bonus.gather(1, place), 0.0)

    def for_pairs(self, rows: Tensor, nodes: Tensor) -> Tensor:
        """The same of nodes (M,), each of one of the B x R ``rows`` (M,): (M,)."""
        mine = self.nodes.flatten(0, 1)
        keys = (mine + torch.arange(len(mine), device=mine.device)[:, None] * SPAN).flatten()
        wanted = nodes + rows * SPAN
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return torch.where(keys[place] == wanted, F.embedding(place, self.bonus.reshape(-1, 1))[:, 0], 0.0)

    def take(self, rows: Tensor) -> CopyBias:
        return CopyBias(self.nodes[rows], self.bonus[rows])


class Pointer(nn.Module):
    """Strengths of anchors per code level, and the nodes above them."""

    def __init__(self, dim: int, levels: int, features: int):
        super().__init__()
        self.counts, self.state = nn.Linear(features + 1, WIDTH), nn.Linear(dim, WIDTH, bias=False)
        self.strength = nn.Linear(WIDTH, levels + 1)  # the last: of whole items, beside the retrieval head
        nn.init.constant_(self.strength.bias, -3.0)  # at first the decoder speaks

    def forward(self, state: Tensor, anchors: Anchors, relevance: Tensor, trie: CatalogueTrie) -> CopyBias:
        """state (B, R, dim) of requests, their anchors, and the retrieval head's score of each anchor (B, R, A)."""
        nodes = torch.where(anchors.live[..., None], trie.item_path[anchors.ids], trie.n_nodes)
        return _together(nodes.flatten(2), self._mass(state, anchors, relevance)[..., :-1].flatten(2))

    def items(self, state: Tensor, anchors: Anchors, relevance: Tensor, n_items: int) -> CopyBias:
        """The same of item ids instead of nodes: what the retrieval head's logit of each anchor gains. Only a teacher asks for it."""
        return _together(
            torch.where(anchors.live, anchors.ids, n_items), self._mass(state, anchors, relevance)[..., -1]
        )

    def _mass(self, state: Tensor, anchors: Anchors, relevance: Tensor) -> Tensor:
        """Per anchor, level and whole item: (B, R, A, levels + 1); 0 where hidden."""
        known = torch.cat([anchors.features, relevance[..., None]], dim=-1)
        strength = self.strength(F.gelu(self.counts(known) + self.state(state)[:, :, None])).float()
        return torch.where(anchors.live[..., None], strength.clamp(LEAST, MOST).exp(), 0.0)


def _together(nodes: Tensor, mass: Tensor) -> CopyBias:
    """Nodes (B, R, P) in rising order, and the logarithm of one plus the mass of all places that name the same."""
    nodes, order = nodes.sort(dim=-1)
    mass = mass.gather(-1, order)
    group = F.pad(nodes[..., 1:] != nodes[..., :-1], (1, 0)).cumsum(-1)
    return CopyBias(nodes, torch.zeros_like(mass).scatter_add(-1, group, mass).gather(-1, group).log1p())
