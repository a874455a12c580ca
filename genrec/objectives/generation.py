"""Cross-entropy of a semantic ID, level by level, over the legal children of each node on the way."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from genrec.catalogue.trie import CatalogueTrie
from genrec.model.pointer import CopyBias


def walked_nodes(trie: CatalogueTrie, paths: Tensor) -> tuple[Tensor, Tensor]:
    """The nodes that the loss of ``paths`` (N, levels) looks at: their children on the way, the root first.

    Returns the distinct nodes (M,), rising, and the row of each node among them: (n_nodes,), meaningless for the others.
    """
    parents = torch.cat([paths.new_zeros(1), paths[:, :-1].flatten()]).unique()
    counts = trie.child_count[parents]
    begin = counts.cumsum(0) - counts
    row = torch.repeat_interleave(torch.arange(len(parents), device=paths.device), counts)
    children = trie.child_start[parents][row] + torch.arange(len(row), device=paths.device) - begin[row]
    nodes = torch.cat([paths.new_zeros(1), children]).unique()  # every walked node is a child of the one before it
    place = torch.zeros(trie.n_nodes, dtype=torch.long, device=paths.device)
    place[nodes] = torch.arange(len(nodes), device=paths.device)
    return nodes, place


def nodes_without(trie: CatalogueTrie, known: Tensor) -> Tensor:
    """Which nodes have none of the items ``known`` (K,) below them: (n_nodes,) bool."""
    running = torch.zeros(trie.n_items + 1, dtype=torch.long, device=known.device)
    running[1:] = torch.zeros_like(running[1:]).index_fill(0, trie.item_place[known], 1).cumsum(0)
    return running[trie.node_item_start + trie.node_item_count] == running[trie.node_item_start]


def path_log_probabilities(
    states: Tensor, scale: Tensor, vectors: Tensor, trie: CatalogueTrie, paths: Tensor, place: Tensor | None = None,
    copy_bias: CopyBias | None = None, ignored: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Log-probability of each step of each walk: (N, levels).

    ``states`` (N, levels, dim) unit states that score the children of the node before each step; ``scale`` (levels,) inverse temperatures;
    ``vectors`` (n_nodes, dim) node vectors, or those of some nodes with ``place`` (n_nodes,) the row of each; ``paths`` (N, levels) the
    nodes walked to; ``copy_bias``, row by row, what anchors add to the logits; ``ignored`` (n_nodes,) bool: nodes, never walked to, that are
    no wrong answers and stay out of the softmax. A step with one legal child costs nothing.
    """
    root = paths.new_zeros(len(paths), 1)
    parents = torch.cat([root, paths[:, :-1]], dim=1)
    steps = []
    for level in range(paths.shape[1]):
        steps.append(
            _step(
                states[:, level] * scale[level],
                vectors,
                trie,
                parents[:, level],
                paths[:, level],
                level == 0,
                place,
                copy_bias,
                ignored,
            )
        )
    return torch.stack(steps, dim=1)


def _step(
    states: Tensor, vectors: Tensor, trie: CatalogueTrie, parents: Tensor, chosen: Tensor, first: bool, place: Tensor | None,
    copy_bias: CopyBias | None, ignored: Tensor | None,
) -> Tensor:  # fmt: skip
    if first:  # every walk starts at the root: one dense product
        start, count = int(trie.child_start[0]), int(trie.child_count[0])
        children = vectors[start : start + count] if place is None else vectors[place[start : start + count]]
        logits = (states @ children.T).float()
        if copy_bias is not None:
            logits = logits + copy_bias.for_rows(
                torch.arange(start, start + count, device=states.device).expand(len(states), -1)
            )
        if ignored is not None:
            logits = logits.masked_fill(ignored[start : start + count], -torch.inf)
        return logits.log_softmax(-1).gather(1, (chosen - start)[:, None])[:, 0]
    counts = trie.child_count[parents]
    open_rows = torch.nonzero(counts > 1)[:, 0]
    result = states.new_zeros(len(states), dtype=torch.float32)
    if len(open_rows) == 0:
        return result
    counts = counts[open_rows]
    row = torch.repeat_interleave(torch.arange(len(open_rows), device=states.device), counts)
    begin = counts.cumsum(0) - counts
    child = trie.child_start[parents[open_rows]][row] + torch.arange(len(row), device=states.device) - begin[row]
    local = states[open_rows]
    # Embedding lookups: their backward pass adds rows faster than that of indexing.
    logits = (F.embedding(row, local) * F.embedding(child if place is None else place[child], vectors)).sum(-1).float()
    if copy_bias is not None:
        logits = logits + copy_bias.for_pairs(open_rows[row], child)
    if ignored is not None:
        logits = logits.masked_fill(ignored[child], -torch.inf)
    top = torch.full((len(open_rows),), -torch.inf, device=states.device).scatter_reduce(
        0, row, logits.detach(), "amax"
    )
    total = torch.zeros_like(top).index_add(0, row, (logits - top[row]).exp())
    target = logits[begin + chosen[open_rows] - trie.child_start[parents[open_rows]]]
    return result.index_copy(0, open_rows, target - top - total.log())
