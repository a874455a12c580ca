"""The probability of the items below each node of the trie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from genrec.catalogue.trie import CatalogueTrie


@dataclass(frozen=True)
class SubtreeMass:
    """The probability of every subtree for N requests, given one of every item; looked up node by node.

    Nothing of size (N, n_nodes) is made.

    Items below a node are one range of ``trie.leaf_items``, so a mass is a difference of running sums. ``running``
    (N, K + 1) float64, in leaf order (float32 would lose the small subtrees); ``keys`` (N x K,) sorted ``request x
    (n_items + 1) + position in leaf_items`` of the candidates, None where all items are candidates (K = n_items).
    """

    trie: CatalogueTrie
    running: Tensor
    keys: Tensor | None = None

    @classmethod
    def of_items(cls, trie: CatalogueTrie, log_probabilities: Tensor) -> SubtreeMass:
        """From log-probabilities (N, n_items), -inf for what may not be taught; rows need not be normalised."""
        return cls.in_leaf_order(trie, log_probabilities.detach()[:, trie.leaf_items])

    @classmethod
    def in_leaf_order(cls, trie: CatalogueTrie, log_probabilities: Tensor) -> SubtreeMass:
        """``of_items`` for columns that are in the order of ``trie.leaf_items`` already."""
        return cls.of_mass(trie, log_probabilities.detach().exp())

    @classmethod
    def of_mass(cls, trie: CatalogueTrie, mass: Tensor) -> SubtreeMass:
        """From probabilities (N, n_held) in the order of ``trie.leaf_items``."""
        running = mass.new_zeros((mass.shape[0], trie.n_held + 1), dtype=torch.float64)
        torch.cumsum(mass, 1, dtype=torch.float64, out=running[:, 1:])
        return cls(trie, running)

    @classmethod
    def of_candidates(cls, trie: CatalogueTrie, ids: Tensor, log_probabilities: Tensor) -> SubtreeMass:
        """From log-probabilities (N, K) of distinct ``ids`` (N, K), -1 for padding; all other mass is 0."""
        live = ids >= 0
        position = torch.where(live, trie.item_position[ids.clamp(min=0)], trie.n_items)
        position, order = position.sort(dim=1)
        return cls.of_positions(trie, position, log_probabilities.masked_fill(~live, -torch.inf).gather(1, order))

    @classmethod
    def of_positions(cls, trie: CatalogueTrie, positions: Tensor, log_probabilities: Tensor) -> SubtreeMass:
        """As ``of_candidates`` for ``positions`` (N, K) in ``trie.leaf_items``, rising in a row, n_items for padding.

        Of a position that comes twice all but one have to be -inf, as padding.
        """
        mass = log_probabilities.detach().double().exp()
        request = torch.arange(len(positions), device=positions.device)[:, None]
        return cls(trie, F.pad(mass.cumsum(1), (1, 0)), (request * (trie.n_items + 1) + positions).flatten())

    def draw(self) -> Tensor:
        """One item per request, drawn from the teacher: (N,)."""
        total = self.running[:, -1:]
        column = torch.searchsorted(self.running, torch.rand_like(total) * total, right=True) - 1
        column = column.clamp(max=self.running.shape[1] - 2)
        if self.keys is None:
            return self.trie.leaf_items[column[:, 0]]
        return self._items(self.keys.view(len(column), -1).gather(1, column)[:, 0])

    def first_level(self) -> Tensor:
        """The mass below each node of the first level: (N, nodes) float64."""
        start, stop = self.trie.level_bounds[1:3]
        if self.keys is None:
            nodes = torch.arange(start, stop, device=self.running.device)
            first = self.trie.node_item_start[nodes]
            return self.running[:, first + self.trie.node_item_count[nodes]] - self.running[:, first]
        mass = self.running.new_zeros(len(self.running), stop - start)
        nodes = self.trie.item_path[self._items(self.keys), 0].view(len(mass), -1) - start
        return mass.scatter_add_(1, nodes, self.running.diff(dim=1))

    def below_children(
        self, requests: Tensor, parents: Tensor, level: int, begin: Tensor, owner: Tensor, child: Tensor
    ) -> Tensor:
        """The mass below the children of ``parents`` (n,), nodes of ``level``, for ``requests`` (n,): (c,) float64.

        ``child`` (c,) are the children side by side, ``owner`` (c,) says whose, ``begin`` (n,) where they begin. Of a
        teacher over candidates, those below a parent are added up where they belong: a look-up of each child would
        cost more than everything else.
        """
        if self.keys is None or self.keys.device.type != "cpu":
            return self.below(requests[owner], child)
        first, span = self.trie.node_item_start[parents], self.trie.n_items + 1
        low, high = (
            torch.searchsorted(self.keys, requests * span + position)
            for position in (first, first + self.trie.node_item_count[parents])
        )
        counts = high - low
        path = torch.repeat_interleave(torch.arange(len(counts)), counts)
        entry = torch.arange(len(path)) + (low - (counts.cumsum(0) - counts))[path]
        row, column = entry // (self.running.shape[1] - 1), entry % (self.running.shape[1] - 1)
        node = self.trie.item_path[self._items(self.keys[entry]), level]
        mass = self.running[row, column + 1] - self.running[row, column]
        index = begin[path] + node - self.trie.child_start[parents[path]]
        return self.running.new_zeros(len(child)).index_add_(0, index, mass)

    def _items(self, keys: Tensor) -> Tensor:
        """The items that keys stand for; any where a key is padding, whose mass is 0."""
        return self.trie.leaf_items[(keys % (self.trie.n_items + 1)).clamp(max=self.trie.n_items - 1)]

    def below(self, requests: Tensor, nodes: Tensor) -> Tensor:
        """The mass below ``nodes`` (M,) for ``requests`` (M,), rows of the teacher: (M,) float64."""
        start = self.trie.node_item_start[nodes]
        stop = start + self.trie.node_item_count[nodes]
        if self.keys is not None:
            width, span = self.running.shape[1] - 1, self.trie.n_items + 1
            start, stop = (
                torch.searchsorted(self.keys, requests * span + position) - requests * width
                for position in (start, stop)
            )
        return self.running[requests, stop] - self.running[requests, start]
