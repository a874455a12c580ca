"""The trie nodes that a training step of the code decoder looks at, and their rows in a table of their vectors.

At every node of a path the loss compares all children. In a large catalogue a batch meets most nodes of the second
level that way, and their vectors, gradients and moments cost several times as much as the rest of a step. Of parents
with many children a step then draws some, which all paths share, and a drawn child stands for those that were not
drawn: its term in the softmax is divided by its chance (importance sampling, as in a sampled softmax).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from genrec.catalogue.trie import LARGE_TRIE, CatalogueTrie
from genrec.model.device import read_back

SIBLINGS = 32  # children of a node that are drawn, on average; nodes with fewer keep all


class NodeRows:
    """The row of each of some distinct nodes (M,), which rise; what it says of other nodes has no meaning."""

    def __init__(self, nodes: Tensor):
        self.nodes = nodes

    def __getitem__(self, nodes: Tensor) -> Tensor:
        """The rows of nodes of any shape."""
        return torch.searchsorted(self.nodes, nodes.contiguous())


class SampledNodes(NodeRows):
    """The nodes (M,) of some paths and a part of their siblings.

    ``drawn`` (M,) bool: nodes of the sample. The others are on a path, and no wrong answers for other paths: they
    would be too frequent ones.
    """

    def __init__(self, nodes: Tensor, drawn: Tensor, siblings: int):
        super().__init__(nodes)
        self.drawn, self.siblings = drawn, siblings

    def children(self, trie: CatalogueTrie, parents: Tensor) -> tuple[Tensor, Tensor]:
        """Of each of ``parents``, of any shape, the row of its first child that is here, and how many are."""
        start = trie.child_start[parents]
        first = self[start]
        return first, self[start + trie.child_count[parents]] - first

    def log_weights(self, trie: CatalogueTrie, rows: Tensor, parents: Tensor, own: Tensor) -> Tensor:
        """What to add to the logits of children with ``rows`` (c,) and ``parents`` (c,): (c,) float32.

        ``own`` (c,) bool: the child that the path takes.
        """
        weights = (trie.child_count[parents] / self.siblings).clamp(min=1).log()
        return weights.masked_fill(~self.drawn[rows], -torch.inf).masked_fill(own, 0.0)


def walked_nodes(trie: CatalogueTrie, paths: Tensor) -> tuple[Tensor, Tensor | NodeRows]:
    """The nodes that the loss of ``paths`` (N, levels) looks at: the root and the children of every node on the way.

    Returns the distinct nodes (M,), rising, and the row of each node among them, by indexing: meaningless for the
    others. On a CPU the cost of a large trie follows the paths, not the trie.
    """
    if paths.device.type == "cpu" and trie.n_nodes > LARGE_TRIE:
        nodes, _ = _listed(trie, paths)
        return nodes, NodeRows(nodes)
    walked = _marked(trie, paths)
    row = walked.cumsum(0)
    return torch.nonzero_static(walked, size=read_back(row[-1:])[0])[:, 0], row - 1


def sampled_nodes(trie: CatalogueTrie, paths: Tensor, siblings: int = SIBLINGS) -> tuple[Tensor, SampledNodes]:
    """As ``walked_nodes``, of nodes behind the first level only those of ``paths`` and a sample of their siblings."""
    if paths.device.type == "cpu":
        nodes, counts = _listed(trie, paths)
        chance = F.pad((siblings / counts).repeat_interleave(counts), (1, 0), value=1.0)
        drawn = _drawn(trie, nodes, chance)
        kept = drawn.index_fill(0, torch.searchsorted(nodes, paths.flatten()), True)
        return nodes[kept], SampledNodes(nodes[kept], drawn[kept], siblings)
    chance = siblings / trie.child_count[trie.node_parent.clamp(min=0)]
    drawn = _marked(trie, paths) & _drawn(trie, torch.arange(trie.n_nodes, device=paths.device), chance)
    kept = drawn.index_fill(0, paths.flatten(), True)
    nodes = torch.nonzero_static(kept, size=read_back(kept.sum()[None])[0])[:, 0]
    return nodes, SampledNodes(nodes, drawn[nodes], siblings)


def _drawn(trie: CatalogueTrie, nodes: Tensor, chance: Tensor) -> Tensor:
    """A draw of ``nodes`` (M,), each by its ``chance`` (M,) among its siblings: (M,) bool; the first level always."""
    return (torch.rand(len(nodes), device=nodes.device) < chance) | (nodes < trie.level_bounds[2])


def _listed(trie: CatalogueTrie, paths: Tensor) -> tuple[Tensor, Tensor]:
    """The walked nodes (M,), rising, and the number of children of each parent; at a cost that follows the paths."""
    parents = F.pad(paths[:, :-1].flatten(), (1, 0)).unique()  # the root is the parent of every first step
    counts = trie.child_count[parents]
    begin = (trie.child_start[parents] - (counts.cumsum(0) - counts)).repeat_interleave(counts)
    return F.pad(begin + torch.arange(len(begin)), (1, 0)), counts


def _marked(trie: CatalogueTrie, paths: Tensor) -> Tensor:
    """Which nodes are walked: (n_nodes,) bool."""
    parent = torch.zeros(trie.n_nodes, dtype=torch.bool, device=paths.device)
    parent[0] = True
    parent.index_fill_(0, paths[:, :-1].flatten(), True)
    return parent[trie.node_parent.clamp(min=0)]  # the root counts as its own child
