"""Constrained sampling of items from the decoder's distribution over the catalogue, for all requests at once.

A sample is a walk from the root to a leaf over the children in the trie, so it is always an item of the catalogue. Each
step draws one child per walk by its probability (Gumbel-max). Samples are with replacement and on-policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genrec.catalogue.trie import CatalogueTrie
from genrec.generation.beam import Scorer, expand_children


@dataclass(frozen=True)
class Samples:
    """``items`` (B, G), their nodes ``paths`` (B, G, L), and float32 leaf log-probabilities ``scores`` (B, G)."""

    items: Tensor
    paths: Tensor
    scores: Tensor


def sample_items(
    trie: CatalogueTrie, scorer: Scorer, batch: int, samples: int, generator: torch.Generator | None = None
) -> Samples:
    """Draw ``samples`` items for each of ``batch`` requests; the items of a leaf are equally probable.

    The scorer needs room for 1 + samples x (L - 1) rows. No loop over requests, samples or children.
    """
    device = trie.child_start.device
    nodes, total = torch.zeros(batch, 1, dtype=torch.long, device=device), torch.zeros(batch, 1, device=device)
    slots, paths = None, []
    for level in range(trie.depth):
        slot = scorer.expand(level, nodes, slots)
        children, owner, scores = expand_children(
            trie,
            level,
            scorer,
            slot,
            nodes,
            torch.ones_like(nodes, dtype=torch.bool),
            total,
            static=device.type != "cpu",
            distinct=False,
        )
        if level == 0:
            noisy = scores[:, None] + _gumbel((batch, samples, children.shape[1]), device, generator)
            choice, owner = noisy.argmax(-1), torch.zeros(batch, samples, dtype=torch.long, device=device)
        else:
            choice = _one_per_owner(scores + _gumbel(scores.shape, device, generator), owner, nodes.shape[1])
            owner = owner.gather(1, choice)
        nodes, total, slots = children.gather(1, choice), scores.gather(1, choice), owner + slot
        paths.append(nodes)
    start, count = trie.leaf_range(nodes - trie.level_bounds[trie.depth])
    index = (torch.rand(nodes.shape, device=device, generator=generator) * count).long().clamp(max=count - 1)
    return Samples(trie.leaf_items[start + index], torch.stack(paths, dim=-1), total)


def _gumbel(shape, device: torch.device, generator: torch.Generator | None) -> Tensor:
    return -torch.empty(shape, device=device).exponential_(generator=generator).log()


def _one_per_owner(noisy: Tensor, owner: Tensor, owners: int) -> Tensor:
    """The column (B, owners) of each owner's highest value in ``noisy`` (B, N); of equal values the first."""
    best = noisy.new_full((len(noisy), owners), -torch.inf).scatter_reduce_(1, owner, noisy, "amax")
    columns = noisy.shape[1]
    column = torch.arange(columns, device=noisy.device).expand_as(noisy)
    first = torch.where((noisy == best.gather(1, owner)) & noisy.isfinite(), column, columns)
    return torch.full_like(best, columns, dtype=torch.long).scatter_reduce_(1, owner, first, "amin")
