"""Vectors of the trie's nodes: means of the items below them, and a table of those alone that a search reads.

Of a node whose parent has a single leaf below it, nobody asks for the score: the rest of a path through the parent is
certain. In a catalogue of a million items these are most of the nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genrec.catalogue.trie import CatalogueTrie
from genrec.memory import zeros_on_demand
from genrec.retrieval.products import owned_products


@dataclass(frozen=True, eq=False)
class NodeVectors:
    """The table (m + 1, dim) of the vectors that searches read, and the row of each node (n_nodes,) int32.

    It is indexed by nodes, as the table (n_nodes, dim) that it stands for. Nodes that no search reads have the last
    row, which is zero.
    """

    table: Tensor
    rows: Tensor

    @property
    def shape(self) -> torch.Size:
        """That of the table it stands for."""
        return torch.Size((len(self.rows), self.table.shape[1]))

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return self.table.device

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, nodes: Tensor | slice) -> Tensor:
        rows = self.rows[nodes]
        return self.table.index_select(0, rows.flatten()).view(*rows.shape, -1)

    def index_select(self, dim: int, nodes: Tensor) -> Tensor:
        """As ``Tensor.index_select`` of dimension 0."""
        return self.table.index_select(dim, self.rows.index_select(0, nodes))

    def products(self, nodes: Tensor, states: Tensor, owner: Tensor) -> Tensor:
        """Dot products (n,) of ``nodes`` (n,) with the rows ``owner`` (n,), not falling, of ``states`` (S, dim).

        Nothing of size (n, dim) is made: vectors of siblings lie side by side and are read where they are.
        """
        return owned_products(states, self.table, owner, self.rows.index_select(0, nodes))

    def new_empty(self, *shape: Any, **options: Any) -> Tensor:
        """As ``Tensor.new_empty``."""
        return self.table.new_empty(*shape, **options)


def read_nodes(trie: CatalogueTrie) -> Tensor:
    """The nodes that a search can score, rising: the root and those whose parent has several leaves below it."""
    read = trie.only_leaf[trie.node_parent.clamp(min=0)] < 0
    read[0] = True
    return read.nonzero()[:, 0]


def row_of_nodes(trie: CatalogueTrie, nodes: Tensor) -> Tensor:
    """The position of each node in ``nodes`` (m,), m for the others: (n_nodes,) int32."""
    rows = torch.full((trie.n_nodes,), len(nodes), dtype=torch.int32, device=nodes.device)
    rows[nodes] = torch.arange(len(nodes), dtype=torch.int32, device=nodes.device)
    return rows


def node_means(trie: CatalogueTrie, items: Tensor) -> Tensor:
    """The mean of the item vectors (n_items, dim) below each node: (n_nodes, dim), summed from the leaves up."""
    bounds, items = trie.level_bounds, items[: trie.n_items]
    leaves = items.new_zeros(trie.n_leaves + 1, items.shape[1])  # the last row is that of missing items
    sums = [leaves.index_add(0, trie.item_leaf - bounds[trie.depth], items)[:-1]]
    for level in range(trie.depth - 1, -1, -1):
        parent = trie.node_parent[bounds[level + 1] : bounds[level + 2]] - bounds[level]
        sums.append(items.new_zeros(bounds[level + 1] - bounds[level], items.shape[1]).index_add(0, parent, sums[-1]))
    joined = torch.cat(sums[::-1])
    del sums
    counts = trie.node_item_count[:, None]
    return joined / counts if joined.requires_grad else joined.div_(counts)


def means_of(trie: CatalogueTrie, items: Tensor, nodes: Tensor, rows: Tensor) -> Tensor:
    """The same of some ``nodes`` (m,) with their ``row_of_nodes``: (m + 1, dim), the last row 0; nothing else is made.

    Each level of ``trie.item_path`` adds the items to their nodes. Most items have no such node on the last levels.
    """
    items, path, means = (
        items[: trie.n_items],
        trie.item_path,
        zeros_on_demand(len(nodes) + 1, items.shape[1], like=items),
    )
    if trie.n_held < trie.n_items:
        items, path = items[trie.held], path[trie.held]
    means[0] = items.sum(0)  # the root
    for level in range(trie.depth):
        row = rows[path[:, level]]
        own = (row < len(nodes)).nonzero()[:, 0] if row.device.type == "cpu" else row  # a device would be waited for
        if 2 * len(own) < len(row):
            means.index_add_(0, row[own], items[own])
        else:
            means.index_add_(0, row, items)
    means[:-1] /= trie.node_item_count[nodes, None]
    means[-1] = 0
    return means
