"""The least that search needs of a catalogue: one number per inner node and one per item, in 32 bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from genrec.catalogue.trie import CatalogueTrie, most_children


@dataclass(frozen=True, eq=False)
class SearchIndex:
    """A ``CatalogueTrie`` stripped to what beam and best-first search read; it stands in for the trie there and in ``leaf_items``.

    4 bytes per inner node and per item, and 8 per leaf that several items share. Whether a node has a single leaf below it is found by
    walking down instead of being kept.
    """

    child_start: Tensor  # (inner nodes + 1,) int32 first child of each inner node; behind the last, the number of nodes
    leaf_items: Tensor  # (n_items,) int32
    shared: Tensor  # (S,) int32 leaves with several items, rising
    extra: Tensor  # (S + 1,) int32 items beyond one that the shared leaves before each have together
    level_bounds: tuple[int, ...]
    largest_leaf: int
    widest: tuple[tuple[int, ...], ...]  # per level, the children of its 1, 2, 3, ... most branching nodes together
    open_nodes: tuple[int, ...]

    @classmethod
    def from_trie(cls, trie: CatalogueTrie) -> SearchIndex:
        inner = trie.level_bounds[trie.depth]
        beyond = trie.leaf_item_offsets.diff() - 1
        shared = torch.nonzero(beyond)[:, 0]
        extra = torch.nn.functional.pad(beyond[shared].cumsum(0), (1, 0))
        return cls(
            trie.child_start[: inner + 1].int(), trie.leaf_items.int(), shared.int(), extra.int(),
            trie.level_bounds, trie.largest_leaf, tuple(tuple(sums.tolist()) for sums in trie.child_sums), trie.open_nodes,
        )  # fmt: skip

    @property
    def depth(self) -> int:
        return len(self.level_bounds) - 2

    @property
    def n_nodes(self) -> int:
        return self.level_bounds[-1]

    @property
    def n_items(self) -> int:
        return len(self.leaf_items)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(
            part.numel() * part.element_size() for part in (self.child_start, self.leaf_items, self.shared, self.extra)
        )

    def to(self, device: torch.device | str) -> SearchIndex:
        """The same index with every tensor on ``device``."""
        names = ("child_start", "leaf_items", "shared", "extra")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def most_children(self, level: int, width: int) -> int:
        """As ``CatalogueTrie.most_children``."""
        return most_children(self.widest[level], self.level_bounds, level, width)

    def single_leaf(self, nodes: Tensor, level: int | None = None) -> Tensor:
        """As ``CatalogueTrie.single_leaf``. Leaves below a node are one range, so both ends of it just walk down."""
        first, after = nodes, nodes + 1
        if level is not None:  # all walks are equally long
            for _ in range(level, self.depth):
                first, after = self.child_start[first], self.child_start[after]
            return torch.where(after - first == 1, first, -1)
        inner = self.level_bounds[self.depth]
        for _ in range(self.depth):
            walks = first < inner
            after = torch.where(walks, self.child_start[after.clamp(max=inner)], after)
            first = torch.where(walks, self.child_start[first.clamp(max=inner)], first)
        return torch.where(after - first == 1, first, -1)

    def leaf_range(self, leaf: Tensor) -> tuple[Tensor, Tensor]:
        """As ``CatalogueTrie.leaf_range``."""
        if not len(self.shared):
            return leaf, torch.ones_like(leaf)
        place = torch.searchsorted(self.shared, leaf.int().contiguous())
        own = self.shared[place.clamp(max=len(self.shared) - 1)] == leaf
        before = self.extra[place].long()
        after = self.extra[(place + 1).clamp(max=len(self.shared))].long()
        return leaf + before, torch.where(own, 1 + after - before, 1)
