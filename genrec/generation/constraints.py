"""The trie nodes that a search may enter: item constraints, applied to all nodes above, so that the order is exact."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from genrec.catalogue.trie import CatalogueTrie
from genrec.retrieval.allowed import AllowedItems


class Constraint(Protocol):
    """Tells which nodes have an allowed item below them."""

    def keep(self, nodes: Tensor) -> Tensor:
        """Bool (B, N) for nodes (B, N)."""
        ...

    def select(self, requests: Tensor) -> Constraint:
        """The same for some of the requests."""
        ...


class NodeMask:
    """A bool mask over nodes, (n_nodes,) for all requests or (B, n_nodes), as ``CatalogueTrie.restrict`` makes it."""

    def __init__(self, mask: Tensor):
        self.mask = mask

    def keep(self, nodes: Tensor) -> Tensor:
        """As ``Constraint.keep``."""
        return self.mask[nodes] if self.mask.ndim == 1 else self.mask.gather(1, nodes)

    def select(self, requests: Tensor) -> NodeMask:
        """As ``Constraint.select``."""
        return self if self.mask.ndim == 1 else NodeMask(self.mask[requests])


class AllowedNodes:
    """Nodes above allowed items, without anything as long as the catalogue per request.

    ``paths`` (B, W x L) lists the nodes above the items that each request names, ascending, padded with ``n_nodes``.
    With ``counts`` (n_nodes,), the items of a common mask below each node, the named items are excluded: a node stays
    while it has more items than excluded ones. Without ``counts`` only the named items are allowed.
    """

    def __init__(self, paths: Tensor, counts: Tensor | None):
        self.paths, self.counts = paths, counts

    @classmethod
    def of(
        cls, trie: CatalogueTrie, allowed: AllowedItems, batch: int, counts: Tensor | None = None
    ) -> AllowedNodes | None:
        """The constraint of ``allowed`` for ``batch`` requests, None if it restricts nothing.

        ``counts`` (n_nodes,): the allowed items of its mask below each node, if already computed.
        """
        if allowed.only is not None:
            ids = allowed.candidates
            return cls(_paths(trie, ids, (ids >= 0) & (ids < trie.n_items)), None)
        if counts is None:
            counts = trie.node_item_count if allowed.mask is None else trie.allowed_count(allowed.mask)
        if allowed.excluded is None:
            return None if allowed.mask is None else cls(counts.new_empty(batch, 0, dtype=trie.item_path.dtype), counts)
        ids = allowed.excluded
        counted = ids < trie.n_items
        counted[:, 1:] &= ids[:, 1:] != ids[:, :-1]
        if allowed.mask is not None:
            counted &= allowed.mask[ids.clamp(max=trie.n_items - 1)]
        return cls(_paths(trie, ids, counted), counts)

    def keep(self, nodes: Tensor) -> Tensor:
        """As ``Constraint.keep``."""
        if not self.paths.shape[1]:
            return torch.zeros_like(nodes, dtype=torch.bool) if self.counts is None else self.counts[nodes] > 0
        first = torch.searchsorted(self.paths, nodes.contiguous()).clamp_(max=self.paths.shape[1] - 1)
        named = self.paths.gather(1, first) == nodes
        if self.counts is None:
            return named
        column = torch.arange(self.paths.shape[1], device=nodes.device)
        repeats = torch.searchsorted(self.paths, self.paths, right=True) - column  # of a node, at its first column
        return torch.where(named, repeats.gather(1, first), 0) < self.counts[nodes]

    def select(self, requests: Tensor) -> AllowedNodes:
        """As ``Constraint.select``."""
        return AllowedNodes(self.paths[requests], self.counts)


def _paths(trie: CatalogueTrie, ids: Tensor, counted: Tensor) -> Tensor:
    """The nodes above the ``counted`` (B, W) ones of ids (B, W), one per item and level: (B, W x L), ascending."""
    nodes = trie.item_path[ids.clamp(min=0, max=trie.n_items - 1)]
    return nodes.masked_fill(~counted[..., None], trie.n_nodes).flatten(1).sort(dim=1).values
