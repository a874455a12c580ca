"""A trie that grows by a few items: existing tensors are shifted, not rebuilt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genrec.catalogue.trie import CatalogueTrie, checked_codes, trie_of_levels
from genrec.semantic_ids.prefixes import code_order


def extend_trie(trie: CatalogueTrie, codes: Tensor) -> tuple[CatalogueTrie, Tensor]:
    """The trie of a catalogue that grew by items with codes (m, L), and where its nodes went.

    The new items get the ids after the old ones; items that the trie lacks stay missing. Equal to `build_trie` of all
    codes, but only the new codes are sorted and looked up; all else is copied once, with gaps. Returns the trie and
    node_map (old n_nodes,) int64: the new id of each old node, to carry over whatever is kept per node. Raises
    UserError as `build_trie` does.
    """
    new = checked_codes(codes, trie.vocab_sizes)
    order = code_order(new)
    rows, bounds = new[order], trie.level_bounds
    old = {name: tensor.cpu().numpy() for name, tensor in trie.tensors().items()}
    steps = _walk(old, bounds, rows)
    node_map, paths = np.zeros(trie.n_nodes, np.int64), np.empty(rows.shape, np.int64)
    counts, children, first = [old["node_item_count"][:1] + len(rows)], [], 1
    spelled = [old["node_code"][:1]]
    nothing = np.zeros(0, np.int64)
    above = _Step(nothing, nothing, np.zeros(len(rows), np.int64), 1)  # the root
    for level, step in enumerate(steps):
        here = slice(bounds[level + 1], bounds[level + 2])
        children.append(above.insert(old["child_count"][bounds[level] : bounds[level + 1]], above.nodes[step.made]))
        spelled.append(np.insert(old["node_code"][here], step.gaps, rows[step.made, level]))
        counts.append(step.insert(old["node_item_count"][here], step.nodes))
        moved = np.arange(first, first + step.size) + np.bincount(step.gaps, minlength=step.size + 1).cumsum()[:-1]
        node_map[here] = moved
        paths[:, level] = np.concatenate([moved, first + step.gaps + np.arange(len(step.gaps))])[step.nodes]
        first, above = first + step.size + len(step.gaps), step
    item_path = np.empty((trie.n_items + len(rows), trie.depth), np.int64)
    moved_to = np.append(node_map, first)  # a missing item has the number behind all nodes
    np.take(moved_to, old["item_path"], out=item_path[: trie.n_items], mode="clip")  # any other mode makes a copy more
    item_path[trie.n_items + order] = paths
    # A new item stands behind the old ones of its leaf; a new leaf where the next old one began.
    last, ends = steps[-1], old["leaf_item_offsets"]
    behind = np.concatenate([ends[1:], ends[last.gaps]])[last.nodes]
    leaf_items = np.insert(old["leaf_items"], behind, trie.n_items + order)
    device = trie.child_start.device
    grown = trie_of_levels(spelled, counts, children, leaf_items, item_path, trie.vocab_sizes)
    return grown.to(device), torch.from_numpy(node_map).to(device)


@dataclass(frozen=True)
class _Step:
    """Where new rows (m,), in code order, stand on one level that has ``size`` old nodes.

    ``gaps``: before which old node each of the level's new nodes comes, rising; ``made``: the row that brings it.
    ``nodes`` (m,): each row's node, old ones numbered from 0 and new ones behind them.
    """

    gaps: np.ndarray
    made: np.ndarray
    nodes: np.ndarray
    size: int

    def insert(self, values: np.ndarray, nodes: np.ndarray) -> np.ndarray:
        """``values`` (size,) plus one for each of ``nodes`` (as ``self.nodes`` numbers nodes), in the new order."""
        more = np.bincount(nodes, minlength=self.size + len(self.gaps))
        return np.insert(values + more[: self.size], self.gaps, more[self.size :])


def _walk(old: dict[str, np.ndarray], bounds: tuple[int, ...], rows: np.ndarray) -> list[_Step]:
    """Look up rows (m, L), in code order, level by level.

    The children of a node are a sorted range, found by binary search.
    """
    steps, differs = [], np.zeros(len(rows), bool)
    known, node = (
        np.ones(len(rows), bool),
        np.zeros(len(rows), np.int64),
    )  # is the row's node an old one, and which, or before which?
    for level in range(rows.shape[1]):
        begin, end, after = bounds[level], bounds[level + 1], bounds[level + 2]
        starts = np.append(old["child_start"][begin:end], after)
        low, top = starts[node], np.where(known, starts[np.minimum(node + 1, end - begin)], starts[node])
        high = top.copy()
        while (open_ := low < high).any():
            middle = (low + high) // 2
            less = open_ & (old["node_code"][np.minimum(middle, after - 1)] < rows[:, level])
            low, high = np.where(less, middle + 1, low), np.where(open_ & ~less, middle, high)
        known = (low < top) & (old["node_code"][np.minimum(low, after - 1)] == rows[:, level])
        node = low - end
        differs[1:] |= rows[1:, level] != rows[:-1, level]
        differs[0] = True
        made = np.flatnonzero(differs & ~known)
        rank = np.searchsorted(made, np.arange(len(rows)), side="right") - 1
        size = after - end
        steps.append(_Step(node[made], made, np.where(known, node, size + rank), size))
    return steps
