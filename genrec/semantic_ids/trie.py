"""The catalogue as a trie of flat tensors: what constrained beam search walks on.

Nodes are numbered breadth first: the root is 0, then all nodes of level 1, of level 2, ..., each level in code order. So the
children of a node have consecutive ids, in order of their code, and a step of the search is a gather, not a loop. The items are
laid out in the order of their leaves, so the items below *any* node are one range of that layout.

Source: the CSR layout follows STATIC (arXiv 2602.22647).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from genrec.errors import UserError


@dataclass(frozen=True, eq=False)
class CatalogueTrie:
    """Trie over semantic IDs of L codes. All tensors are int64 and on one device.

    Children of node v: ids `child_start[v]` to `child_start[v] + child_count[v] - 1`. A leaf has count 0 and start n_nodes.
    Items below node v: `leaf_items[node_item_start[v] : node_item_start[v] + node_item_count[v]]`.
    Several items may share a leaf; within it they stand in order of their id.
    """

    child_start: Tensor  # (n_nodes,)
    child_count: Tensor  # (n_nodes,)
    node_code: Tensor  # (n_nodes,) code on the edge into the node; -1 for the root
    node_parent: Tensor  # (n_nodes,) -1 for the root
    node_item_start: Tensor  # (n_nodes,)
    node_item_count: Tensor  # (n_nodes,)
    level_start: Tensor  # (L + 2,) nodes of level l are level_start[l] to level_start[l + 1] - 1
    leaf_item_offsets: Tensor  # (n_leaves + 1,) by leaf index = node - level_start[L]
    leaf_items: Tensor  # (n_items,) item ids in the order of their leaves
    item_leaf: Tensor  # (n_items,) leaf node of each item
    item_path: Tensor  # (n_items, L) nodes of levels 1 to L on the way to the item
    vocab_sizes: tuple[int, ...]  # codes per level
    max_branching: tuple[int, ...]  # largest number of children of a node at depth 0, 1, ..., L - 1
    level_bounds: tuple[int, ...]  # level_start as Python ints, so that decoding never waits for the device

    @property
    def depth(self) -> int:
        """L, the number of codes of a semantic ID."""
        return len(self.vocab_sizes)

    @property
    def n_nodes(self) -> int:
        return len(self.node_code)

    @property
    def n_items(self) -> int:
        return len(self.item_leaf)

    @property
    def n_leaves(self) -> int:
        return len(self.leaf_item_offsets) - 1

    @cached_property
    def largest_leaf(self) -> int:
        """The most items that share one leaf."""
        return int(self.leaf_item_offsets.diff().max())

    @cached_property
    def _child_sums(self) -> list[Tensor]:
        """Per level, how many children its 1, 2, 3, ... most branching nodes have together."""
        levels = [self.child_count[self.level_bounds[level] : self.level_bounds[level + 1]] for level in range(self.depth)]
        return [counts.topk(min(len(counts), 4096)).values.cumsum(0).cpu() for counts in levels]

    def most_children(self, level: int, width: int) -> int:
        """The most children that ``width`` distinct nodes of a level can have together: a static shape that nothing exceeds."""
        sums = self._child_sums[level]
        if width <= len(sums):
            return int(sums[width - 1])
        nodes = self.level_bounds[level + 1] - self.level_bounds[level]
        beyond = min(width, nodes) - len(sums)
        last = int(sums[-1] - sums[-2]) if len(sums) > 1 else 0
        return min(int(sums[-1]) + beyond * last, self.level_bounds[level + 2] - self.level_bounds[level + 1])

    @cached_property
    def only_leaf(self) -> Tensor:
        """The leaf below each node that has a single one (a leaf is its own), -1 for the others: (n_nodes,) int32.

        A walk that reaches such a node is decided: what is left of it has probability 1.
        """
        leaf = torch.arange(self.level_bounds[self.depth], self.n_nodes, dtype=torch.int32, device=self.child_start.device)
        levels = [leaf]
        for level in range(self.depth - 1, -1, -1):
            here = slice(self.level_bounds[level], self.level_bounds[level + 1])
            below = levels[-1][self.child_start[here] - self.level_bounds[level + 1]]
            levels.append(torch.where(self.child_count[here] == 1, below, -1))
        return torch.cat(levels[::-1])

    @cached_property
    def open_nodes(self) -> tuple[int, ...]:
        """Nodes of levels 0 to L - 1 with more than one leaf below: the rows that a network must run to score the whole catalogue."""
        is_open = self.only_leaf < 0
        return tuple(int(is_open[self.level_bounds[level] : self.level_bounds[level + 1]].sum()) for level in range(self.depth))

    def to(self, device: torch.device | str) -> CatalogueTrie:
        """The same trie with every tensor on `device`."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors, ready for safetensors; `from_state_dict` reads them back."""
        return {name: tensor.contiguous() for name, tensor in self._tensors().items()} | {
            name: torch.tensor(getattr(self, name), dtype=torch.int64) for name in _TUPLES
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> CatalogueTrie:
        """Inverse of `state_dict`. Raises UserError where a tensor is missing."""
        missing = [part.name for part in fields(cls) if part.name not in state]
        if missing:
            names = ", ".join(missing)
            raise UserError(f"catalogue trie: missing {names}; expected the tensors that CatalogueTrie.state_dict writes; rebuild it")
        tuples = {name: tuple(state[name].tolist()) for name in _TUPLES}
        return cls(**{part.name: state[part.name] for part in fields(cls) if part.name not in _TUPLES}, **tuples)

    def restrict(self, item_mask: Tensor) -> Tensor:
        """Node mask (..., n_nodes) bool: a node is allowed where some item below it is.

        `item_mask` is bool, (n_items,) or (batch, n_items). Items below a node are one range of `leaf_items`, so the mask is a
        difference of running counts: no scatter, no loop over levels. The root is False where nothing is allowed.
        Raises UserError for another shape or type.
        """
        if item_mask.dtype != torch.bool or item_mask.ndim not in (1, 2) or item_mask.shape[-1] != self.n_items:
            found = f"{item_mask.dtype} {tuple(item_mask.shape)}"
            raise UserError(f"item_mask is {found}; expected bool, ({self.n_items},) or (batch, {self.n_items})")
        return self.allowed_count(item_mask) > 0

    def allowed_count(self, item_mask: Tensor) -> Tensor:
        """How many items of a bool mask (..., n_items) lie below each node: (..., n_nodes) int32."""
        running = torch.cumsum(item_mask[..., self.leaf_items], dim=-1, dtype=torch.int32)
        running = torch.nn.functional.pad(running, (1, 0))  # (..., n_items + 1)
        return running[..., self.node_item_start + self.node_item_count] - running[..., self.node_item_start]

    def _tensors(self) -> dict[str, Tensor]:
        return {part.name: getattr(self, part.name) for part in fields(self) if part.name not in _TUPLES}


_TUPLES = ("vocab_sizes", "max_branching", "level_bounds")


def prefix_ids(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the distinct prefixes of codes (n, L) in code order.

    Returns `order` (n,), a stable sort of the rows, and `ids` (n, L): ids[i, l] is the rank, among all distinct prefixes of
    length l + 1, of row i's prefix. One sort and L running sums.
    """
    order = np.lexsort(codes.T[::-1])
    ordered = codes[order]
    differs = np.zeros(codes.shape, bool)
    differs[1:] = np.logical_or.accumulate(ordered[1:] != ordered[:-1], axis=1)
    ids = np.empty(codes.shape, np.int64)
    ids[order] = np.cumsum(differs, axis=0)
    return order, ids


def build_trie(codes: Tensor, vocab_sizes: Sequence[int]) -> CatalogueTrie:
    """Build the trie of a catalogue from its codes (n_items, L), any integer type; row i is item i.

    `vocab_sizes` has one entry per level. Vectorised: one sort, then one pass per level. The trie is on the device of `codes`.
    Raises UserError for an empty catalogue, another shape, or a code outside its level's vocabulary.
    """
    table = codes.detach().cpu().numpy().astype(np.int64, copy=False)
    _check_codes(table, vocab_sizes)
    n_items, depth = table.shape
    order, ids = prefix_ids(table)
    bounds = np.concatenate([[0, 1], 1 + np.cumsum(ids[order[-1]] + 1)])  # (L + 2,)
    n_nodes = int(bounds[-1])
    path = ids + bounds[1:-1]  # (n_items, L)

    node_code = np.full(n_nodes, -1, np.int64)
    node_parent = np.full(n_nodes, -1, np.int64)
    item_start = np.zeros(n_nodes, np.int64)
    item_count = np.full(n_nodes, n_items, np.int64)
    parents = np.zeros(n_items, np.int64)
    for level in range(depth):
        nodes = path[order, level]
        start = np.flatnonzero(np.diff(nodes, prepend=-1))  # first item of every node of this level
        here = slice(bounds[level + 1], bounds[level + 2])
        node_code[here] = table[order[start], level]
        node_parent[here] = parents[start]
        item_start[here] = start
        item_count[here] = np.diff(start, append=n_items)
        parents = nodes
    child_count = np.bincount(node_parent[1:], minlength=n_nodes)
    child_start = np.where(child_count > 0, 1 + np.cumsum(child_count) - child_count, n_nodes)
    leaves = slice(bounds[depth], bounds[depth + 1])
    arrays = {
        "child_start": child_start,
        "child_count": child_count,
        "node_code": node_code,
        "node_parent": node_parent,
        "node_item_start": item_start,
        "node_item_count": item_count,
        "level_start": bounds,
        "leaf_item_offsets": np.append(item_start[leaves], n_items),
        "leaf_items": order,
        "item_leaf": path[:, -1].copy(),
        "item_path": path,
    }
    return CatalogueTrie(
        **{name: torch.from_numpy(array.astype(np.int64, copy=False)).to(codes.device) for name, array in arrays.items()},
        vocab_sizes=tuple(int(size) for size in vocab_sizes),
        max_branching=tuple(int(child_count[bounds[level] : bounds[level + 1]].max()) for level in range(depth)),
        level_bounds=tuple(int(bound) for bound in bounds),
    )


def _check_codes(table: np.ndarray, vocab_sizes: Sequence[int]) -> None:
    if table.ndim != 2 or 0 in table.shape:
        raise UserError(f"codes have shape {table.shape}; expected (n_items, levels) with at least one item and one level")
    if table.shape[1] != len(vocab_sizes):
        raise UserError(f"codes have {table.shape[1]} levels but vocab_sizes names {len(vocab_sizes)}; give one size per level")
    bad = (table < 0) | (table >= np.asarray(vocab_sizes))
    if bad.any():
        row, level = (int(index) for index in np.argwhere(bad)[0])
        found, largest = table[row, level], vocab_sizes[level] - 1
        raise UserError(f"codes: item {row} has code {found} at level {level + 1}; expected 0 to {largest}; encode it again")
