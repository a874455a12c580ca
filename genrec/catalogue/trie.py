"""The catalogue as a trie of flat tensors: what constrained beam search walks on.

Nodes are numbered breadth first: the root is 0, then all nodes of level 1, of level 2, ..., each level in code order.
So the children of a node have consecutive ids, in order of their code, and a step of the search is a gather, not a
loop. The items are laid out in the order of their leaves, so the items below *any* node are one range of that layout.

Source: the CSR layout follows STATIC (arXiv 2602.22647).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from genrec.errors import UserError
from genrec.semantic_ids.prefixes import code_order

TENSORS = (
    "child_start", "child_count", "node_code", "node_parent", "node_item_start", "node_item_count", "level_start",
    "leaf_item_offsets", "leaf_items", "item_leaf", "item_path",
)  # fmt: skip
LARGE_TRIE = 1 << 17  # nodes; of larger tries only those are made and learnt that a search or a step reads
SAVED = ("level_start", "child_count", "node_code", "node_item_count", "leaf_items")  # the others follow from these


class CatalogueTrie(nn.Module):
    """Trie over semantic IDs of L codes: int64 buffers, which move with the module that holds the trie.

    Children of node v: ids `child_start[v]` to `child_start[v] + child_count[v] - 1`. A leaf has count 0 and start
    n_nodes. Items below node v: `leaf_items[node_item_start[v] : node_item_start[v] + node_item_count[v]]`. Several
    items may share a leaf; within it they stand in order of their id.

    Items may be missing, as those that were removed from the catalogue: `leaf_items` then holds `n_held` items, and
    leaf and path of the others are n_nodes.

    The buffers are not persistent: the tokenize folder saves them, not the weights of a model.
    """

    child_start: Tensor  # (n_nodes,)
    child_count: Tensor  # (n_nodes,)
    node_code: Tensor  # (n_nodes,) code on the edge into the node; -1 for the root
    node_parent: Tensor  # (n_nodes,) -1 for the root
    node_item_start: Tensor  # (n_nodes,)
    node_item_count: Tensor  # (n_nodes,)
    level_start: Tensor  # (L + 2,) nodes of level l are level_start[l] to level_start[l + 1] - 1
    leaf_item_offsets: Tensor  # (n_leaves + 1,) by leaf index = node - level_start[L]
    leaf_items: Tensor  # (n_held,) item ids in the order of their leaves
    item_leaf: Tensor  # (n_items,) leaf node of each item
    item_path: Tensor  # (n_items, L) nodes of levels 1 to L on the way to the item

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        vocab_sizes: Sequence[int],
        max_branching: Sequence[int],
        level_bounds: Sequence[int],
    ):
        """`tensors` by the names of `TENSORS`.

        The other arguments are plain numbers, so that decoding never waits for the device: codes per level; the largest
        number of children of a node at depth 0, 1, ..., L - 1; and `level_start`.
        """
        super().__init__()
        for name in TENSORS:
            self.register_buffer(name, tensors[name], persistent=False)
        self.vocab_sizes, self.max_branching, self.level_bounds = (
            tuple(vocab_sizes),
            tuple(max_branching),
            tuple(level_bounds),
        )

    @property
    def depth(self) -> int:
        """L, the number of codes of a semantic ID."""
        return len(self.vocab_sizes)

    @property
    def n_nodes(self) -> int:
        """Number of nodes of all levels, with the root."""
        return len(self.node_code)

    @property
    def n_items(self) -> int:
        """Number of items, missing ones included."""
        return len(self.item_leaf)

    @property
    def n_held(self) -> int:
        """Number of items that have a leaf."""
        return len(self.leaf_items)

    @property
    def held(self) -> Tensor:
        """Whether each item has a leaf: (n_items,) bool."""
        return self.item_leaf < self.n_nodes

    @property
    def n_leaves(self) -> int:
        """Number of distinct semantic IDs."""
        return len(self.leaf_item_offsets) - 1

    @cached_property
    def largest_leaf(self) -> int:
        """The maximum number of items that share one leaf."""
        return int(self.leaf_item_offsets.diff().max())

    @cached_property
    def item_position(self) -> Tensor:
        """Index of each item in `leaf_items`, `n_held` for a missing one: (n_items,)."""
        return self.leaf_items.new_full((self.n_items,), self.n_held).scatter_(
            0, self.leaf_items, torch.arange(self.n_held, device=self.leaf_items.device)
        )

    @cached_property
    def child_sums(self) -> list[Tensor]:
        """Per level, how many children its 1, 2, 3, ... (at most 4096) most branching nodes have together."""
        levels = [
            self.child_count[self.level_bounds[level] : self.level_bounds[level + 1]] for level in range(self.depth)
        ]
        return [counts.topk(min(len(counts), 4096)).values.cumsum(0).cpu() for counts in levels]

    def most_children(self, level: int, width: int) -> int:
        """Upper bound of the children that `width` distinct nodes of a level have together: a static shape."""
        return most_children(self.child_sums[level], self.level_bounds, level, width)

    def single_leaf(self, nodes: Tensor, level: int | None = None) -> Tensor:
        """`only_leaf` of nodes (any shape); ``level`` of all of them, where it is known, may save work."""
        return self.only_leaf[nodes]

    def leaf_range(self, leaf: Tensor) -> tuple[Tensor, Tensor]:
        """The range of the items of leaves in `leaf_items`, by leaf index: first index and count."""
        start = self.leaf_item_offsets[leaf]
        return start, self.leaf_item_offsets[leaf + 1] - start

    @cached_property
    def only_leaf(self) -> Tensor:
        """The leaf below each node that has a single one (a leaf is its own), -1 for the others: (n_nodes,) int32.

        The rest of a path through such a node has probability 1.
        """
        leaf = torch.arange(
            self.level_bounds[self.depth], self.n_nodes, dtype=torch.int32, device=self.child_start.device
        )
        levels = [leaf]
        for level in range(self.depth - 1, -1, -1):
            here = slice(self.level_bounds[level], self.level_bounds[level + 1])
            below = levels[-1][self.child_start[here] - self.level_bounds[level + 1]]
            levels.append(torch.where(self.child_count[here] == 1, below, -1))
        return torch.cat(levels[::-1])

    @cached_property
    def open_nodes(self) -> tuple[int, ...]:
        """Nodes of levels 0 to L - 1 with more than one leaf below.

        A network runs these nodes to score the whole catalogue.
        """
        is_open = self.only_leaf < 0
        return tuple(
            int(is_open[self.level_bounds[level] : self.level_bounds[level + 1]].sum()) for level in range(self.depth)
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CatalogueTrie:
        """Move the buffers as any module does.

        Plain numbers are read before the tensors leave the CPU. Derived tensors are computed again at the next read.
        """
        if fn(torch.empty(0)).device.type != "cpu":
            _ = self.largest_leaf, self.child_sums, self.open_nodes
        for name in ("item_position", "only_leaf"):
            self.__dict__.pop(name, None)
        return super()._apply(fn, recurse)

    def share(self) -> CatalogueTrie:
        """Another module over the same tensors: moving one leaves the other where it is."""
        other = CatalogueTrie(self.tensors(), self.vocab_sizes, self.max_branching, self.level_bounds)
        derived = ("item_position", "only_leaf", "largest_leaf", "child_sums", "open_nodes")
        other.__dict__.update({name: self.__dict__[name] for name in derived if name in self.__dict__})
        return other

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return {name: getattr(self, name) for name in TENSORS}

    def saved_tensors(self) -> dict[str, Tensor]:
        """Plain tensors of 2 or 4 bytes a number, ready for safetensors; `from_saved` builds the trie from them."""
        vocab_sizes = torch.tensor(self.vocab_sizes, dtype=torch.int64)
        return {name: _small(getattr(self, name)) for name in SAVED} | {"vocab_sizes": vocab_sizes}

    @classmethod
    def from_saved(cls, saved: Mapping[str, Tensor]) -> CatalogueTrie:
        """Inverse of `saved_tensors`. Raises UserError where a tensor is missing."""
        missing = [name for name in (*SAVED, "vocab_sizes") if name not in saved]
        if missing:
            raise UserError(f"catalogue trie: missing {', '.join(missing)}; build it again with genrec tokenize")
        arrays = {name: saved[name].cpu().numpy().astype(np.int64) for name in SAVED}
        first, items = arrays["level_start"], arrays["leaf_items"]
        names = ("node_code", "node_item_count", "child_count")
        codes, counts, children = (np.split(arrays[name], first[1:-1]) for name in names)
        path = np.empty((len(items), len(first) - 2), np.int64)
        for level in range(path.shape[1]):
            path[items, level] = np.repeat(np.arange(first[level + 1], first[level + 2]), counts[level + 1])
        return trie_of_levels(codes, counts, children[:-1], items, path, saved["vocab_sizes"].tolist())

    def save(self, path: str | Path) -> None:
        """Write the tensors to a safetensors file."""
        save_file({name: tensor.cpu() for name, tensor in self.saved_tensors().items()}, path)

    @classmethod
    def load(cls, path: str | Path) -> CatalogueTrie:
        """Read what `save` wrote.

        Raises UserError for another file.
        """
        try:
            with safe_open(path, "pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path}: cannot be read as a catalogue trie ({error}); build it again with genrec tokenize"
            ) from error
        return cls.from_saved(state)

    def restrict(self, item_mask: Tensor) -> Tensor:
        """Node mask (..., n_nodes) bool: a node is allowed where some item below it is.

        `item_mask` is bool, (n_items,) or (batch, n_items). Items below a node are one range of `leaf_items`, so the
        mask is a difference of running counts: no scatter, no loop over levels. The root is False where nothing is
        allowed. Raises UserError for another shape or type.
        """
        if item_mask.dtype != torch.bool or item_mask.ndim not in (1, 2) or item_mask.shape[-1] != self.n_items:
            actual = f"{item_mask.dtype} {tuple(item_mask.shape)}"
            raise UserError(f"item_mask is {actual}; expected bool, ({self.n_items},) or (batch, {self.n_items})")
        return self.allowed_count(item_mask) > 0

    def allowed_count(self, item_mask: Tensor) -> Tensor:
        """How many items of a bool mask (..., n_items) lie below each node: (..., n_nodes) int32."""
        running = torch.cumsum(item_mask[..., self.leaf_items], dim=-1, dtype=torch.int32)
        running = torch.nn.functional.pad(running, (1, 0))  # (..., n_items + 1)
        return running[..., self.node_item_start + self.node_item_count] - running[..., self.node_item_start]


def _small(tensor: Tensor) -> Tensor:
    """Whole numbers in 2 bytes each where these hold them, else in 4."""
    low, high = (int(value) for value in tensor.aminmax())
    limits = torch.iinfo(torch.int16)
    return tensor.to(torch.int16 if limits.min <= low and high <= limits.max else torch.int32).contiguous()


def most_children(sums: Sequence[int] | Tensor, level_bounds: Sequence[int], level: int, width: int) -> int:
    """The maximum number of children that `width` nodes of a level have together.

    `sums`: the children of its 1, 2, 3, ... most branching nodes together.
    """
    if width <= len(sums):
        return int(sums[width - 1])
    nodes = level_bounds[level + 1] - level_bounds[level]
    beyond = min(width, nodes) - len(sums)
    last = int(sums[-1] - sums[-2]) if len(sums) > 1 else 0
    return min(int(sums[-1]) + beyond * last, level_bounds[level + 2] - level_bounds[level + 1])


def build_trie(codes: Tensor, vocab_sizes: Sequence[int], held: Tensor | None = None) -> CatalogueTrie:
    """Build the trie of a catalogue from its codes (n_items, L), any integer type; row i is item i.

    `vocab_sizes` has one entry per level. `held` (n_items,) bool: the items that get a leaf, None for all. Vectorised:
    one sort, then one pass per level. The trie is on the device of `codes`. Items with equal codes share a leaf. Raises
    UserError for an empty catalogue, another shape or type, or a code outside its level's vocabulary.
    """
    table = checked_codes(codes if held is None else codes[held], vocab_sizes)
    trie = _assemble(table, code_order(table), vocab_sizes)
    if held is not None:
        ids, tensors = held.cpu().nonzero()[:, 0], trie.tensors()
        path = torch.full((len(codes), trie.depth), trie.n_nodes)
        path[ids] = trie.item_path
        tensors |= {"leaf_items": ids[trie.leaf_items], "item_path": path, "item_leaf": path[:, -1].clone()}
        trie = CatalogueTrie(tensors, trie.vocab_sizes, trie.max_branching, trie.level_bounds)
    return trie.to(codes.device)


def _assemble(table: np.ndarray, order: np.ndarray, vocab_sizes: Sequence[int]) -> CatalogueTrie:
    """The trie of codes (n_items, L) whose stable order is known: one linear pass per level."""
    n_items, depth = table.shape
    path = np.empty((n_items, depth), np.int64)
    differs = np.zeros(n_items, bool)
    bounds, codes, counts, children = [0, 1], [np.array([-1])], [np.array([n_items])], []
    parents = np.zeros(n_items, np.int64)
    for level in range(depth):
        column = table[order, level]
        differs[1:] |= column[1:] != column[:-1]
        nodes = np.cumsum(differs)
        path[order, level] = nodes + bounds[-1]
        start = np.concatenate([[0], np.flatnonzero(differs)])  # first item of every node of this level
        codes.append(column[start])
        counts.append(np.diff(start, append=n_items))
        children.append(np.bincount(parents[start]))
        bounds.append(bounds[-1] + len(start))
        parents = nodes
    return trie_of_levels(codes, counts, children, order, path, vocab_sizes)


def trie_of_levels(
    codes: list[np.ndarray],
    counts: list[np.ndarray],
    children: list[np.ndarray],
    leaf_items: np.ndarray,
    item_path: np.ndarray,
    vocab_sizes: Sequence[int],
) -> CatalogueTrie:
    """Build the trie from the arrays of each level, in node order.

    `codes` and `counts` (items below) of levels 0 to L, `children` of 0 to L - 1.
    """
    bounds = [0, *np.cumsum([len(level) for level in codes]).tolist()]
    child_count = np.concatenate([*children, np.zeros(len(codes[-1]), np.int64)])
    inner, n_nodes = bounds[-2], bounds[-1]
    child_start = np.full(n_nodes, n_nodes)
    np.cumsum(child_count[: inner - 1], out=child_start[1:inner])
    child_start[:inner] += 1
    child_start[0] = 1
    item_start = [np.cumsum(level) - level for level in counts]
    arrays = {
        "child_start": child_start,
        "child_count": child_count,
        "node_code": np.concatenate(codes),
        "node_parent": np.concatenate([[-1], np.repeat(np.arange(inner), child_count[:inner])]),
        "node_item_start": np.concatenate(item_start),
        "node_item_count": np.concatenate(counts),
        "level_start": np.array(bounds),
        "leaf_item_offsets": np.append(item_start[-1], len(leaf_items)),
        "leaf_items": leaf_items,
        "item_leaf": item_path[:, -1].copy(),
        "item_path": item_path,
    }
    return CatalogueTrie(
        {name: torch.from_numpy(array.astype(np.int64, copy=False)) for name, array in arrays.items()},
        vocab_sizes=tuple(int(size) for size in vocab_sizes),
        max_branching=tuple(int(level.max()) for level in children),
        level_bounds=tuple(bounds),
    )


def checked_codes(codes: Tensor, vocab_sizes: Sequence[int]) -> np.ndarray:
    """Codes as an int64 array; UserError for anything that is no catalogue."""
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise UserError(f"codes are {codes.dtype}; expected whole numbers (n_items, levels)")
    table = codes.detach().cpu().numpy().astype(np.int64, copy=False)
    _check_codes(table, vocab_sizes)
    return table


def _check_codes(table: np.ndarray, vocab_sizes: Sequence[int]) -> None:
    if table.ndim != 2 or 0 in table.shape:
        raise UserError(
            f"codes have shape {table.shape}; expected (n_items, levels) with at least one item and one level"
        )
    if table.shape[1] != len(vocab_sizes):
        raise UserError(
            f"codes have {table.shape[1]} levels but vocab_sizes names {len(vocab_sizes)}; give one size per level"
        )
    bad = (table < 0) | (table >= np.asarray(vocab_sizes))
    if bad.any():
        row, level = (int(index) for index in np.argwhere(bad)[0])
        actual, largest = table[row, level], vocab_sizes[level] - 1
        raise UserError(
            f"codes: item {row} has code {actual} at level {level + 1}; expected 0 to {largest}; encode it again"
        )
