"""What may come out of a search, decided per request: masks and lists of items, pushed up the trie so that the ranking stays exact."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from genrec.catalogue.trie import CatalogueTrie
from genrec.errors import UserError


class Constraint(Protocol):
    """Says which nodes still have something allowed below them."""

    def keep(self, nodes: Tensor) -> Tensor:
        """Bool (B, N) for nodes (B, N)."""

    def select(self, requests: Tensor) -> Constraint:
        """The same for some of the requests."""


class NodeMask:
    """A bool mask over nodes, (n_nodes,) for all requests or (B, n_nodes), as ``CatalogueTrie.restrict`` makes it."""

    def __init__(self, mask: Tensor):
        self.mask = mask

    def keep(self, nodes: Tensor) -> Tensor:
        return self.mask[nodes] if self.mask.ndim == 1 else self.mask.gather(1, nodes)

    def select(self, requests: Tensor) -> NodeMask:
        return self if self.mask.ndim == 1 else NodeMask(self.mask[requests])


class Excluded:
    """A subset for all requests less some items of each: nothing as long as the catalogue is made per request.

    ``items`` (B, H) are the item ids to leave out (blocked, already had), -1 for an empty lane, repeated ids allowed. ``allowed``
    (n_items,) bool is the subset (a category, what is in stock); None allows all. A node stays while some allowed item below it is not
    left out: the left-out ones below it are counted by two binary searches in the sorted list. Raises ``UserError`` for an id out of range.
    """

    def __init__(self, trie: CatalogueTrie, items: Tensor, allowed: Tensor | None = None):
        if items.ndim != 2 or (items.numel() and (int(items.max()) >= trie.n_items or int(items.min()) < -1)):
            raise UserError(
                f"excluded items {tuple(items.shape)}: expected (batch, number) of ids from 0 to {trie.n_items - 1}, or -1"
            )
        self.counts = trie.node_item_count if allowed is None else trie.allowed_count(allowed)
        ordered = items.to(trie.child_start.device).sort(dim=1).values
        counted = ordered >= 0
        counted[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
        if allowed is not None:
            counted &= allowed[ordered.clamp(min=0)]
        paths = trie.item_path[ordered.clamp(min=0)].masked_fill(~counted[..., None], trie.n_nodes)
        self.paths = (
            paths.flatten(1).sort(dim=1).values
        )  # (B, H x L) each left-out item is listed under every node above it

    def keep(self, nodes: Tensor) -> Tensor:
        nodes = nodes.contiguous()
        left = torch.searchsorted(self.paths, nodes, right=True) - torch.searchsorted(self.paths, nodes)
        return left < self.counts[nodes]

    def select(self, requests: Tensor) -> Excluded:
        part = object.__new__(Excluded)
        part.counts, part.paths = self.counts, self.paths[requests]
        return part
