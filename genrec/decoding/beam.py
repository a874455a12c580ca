"""Constrained beam search over the catalogue trie: gather, mask, top-k. No Python per beam, static shapes per level.

The engine knows only a trie and a scorer; it emits leaves of the trie, so an identifier that does not exist cannot come out.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from genrec.semantic_ids.trie import CatalogueTrie


class Scorer(Protocol):
    """What the engine asks of a model."""

    def advance(self, level: int, nodes: Tensor, beams: Tensor | None) -> None:
        """Take the beams' new nodes (B, W); ``beams`` (B, W) says which earlier beam each grew from (None at the root)."""

    def child_logits(self, level: int, children: Tensor) -> Tensor:
        """Logits (B, W, C) of the candidate children (B, W, C) of the current nodes."""


def beam_search(trie: CatalogueTrie, scorer: Scorer, batch: int, width: int, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The ``width`` most probable leaves per request.

    ``allowed`` (n_nodes,) or (B, n_nodes) bool hides nodes after normalisation: the ranking of what remains is exact for a mask
    pushed up from the leaves (``CatalogueTrie.restrict``). Returns leaf nodes (B, W') and float32 log-probabilities (B, W'), best
    first, W' <= width; lanes without a leaf have node -1 and -inf. Ties go to the lower node.
    """
    device = trie.child_start.device
    nodes = torch.zeros(batch, 1, dtype=torch.long, device=device)
    total = torch.zeros(batch, 1, device=device)
    beams = None
    for level in range(trie.depth):
        scorer.advance(level, nodes.clamp(min=0), beams)
        lane = torch.arange(trie.max_branching[level], device=device)
        alive = (nodes >= 0)[..., None] & (lane < trie.child_count[nodes.clamp(min=0)][..., None])
        children = torch.where(alive, trie.child_start[nodes.clamp(min=0)][..., None] + lane, 0)
        logits = scorer.child_logits(level, children).float().masked_fill(~alive, -torch.inf)
        step = torch.where(alive, logits - logits.logsumexp(-1, keepdim=True), -torch.inf)
        if allowed is not None:
            keep = allowed[children] if allowed.ndim == 1 else allowed.gather(1, children.flatten(1)).view_as(children)
            step = step.masked_fill(~keep, -torch.inf)
        scores = (total[..., None] + step).flatten(1)
        keep = min(width, scores.shape[1])
        total, choice = scores.topk(keep, dim=1)
        nodes = children.flatten(1).gather(1, choice).masked_fill(total.isneginf(), -1)
        # Equal scores come out of top-k in no stated order; the lower node first makes results the same everywhere.
        order = torch.argsort(nodes, dim=1, stable=True)
        order = order.gather(1, torch.argsort(total.gather(1, order), dim=1, descending=True, stable=True))
        total, nodes = total.gather(1, order), nodes.gather(1, order)
        beams = (choice // trie.max_branching[level]).gather(1, order)
    return nodes, total


def leaf_items(trie: CatalogueTrie, leaves: Tensor, scores: Tensor, item_scores: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Items of leaves (B, W): ids and log-probabilities (B, W x largest leaf); lanes without an item have -1 and -inf.

    A leaf with several items splits its probability by ``item_scores`` (B, n_items) where given, else evenly.
    """
    starts = trie.leaf_item_offsets
    leaf = (leaves - trie.level_bounds[trie.depth]).clamp(min=0)
    counts = (starts[leaf + 1] - starts[leaf]).masked_fill(leaves < 0, 0)
    largest = max(int(starts.diff().max()), 1)
    lane = torch.arange(largest, device=leaves.device)
    live = lane < counts[..., None]
    ids = trie.leaf_items[(starts[leaf][..., None] + lane).clamp(max=len(trie.leaf_items) - 1)]
    inner = torch.zeros_like(ids, dtype=torch.float32)
    if item_scores is not None:
        inner = item_scores.gather(1, ids.flatten(1)).view_as(ids).float()
    share = inner.masked_fill(~live, -torch.inf).log_softmax(-1)
    share = torch.where(live, share, -torch.inf)
    return torch.where(live, ids, -1).flatten(1), (scores[..., None] + share).flatten(1)
