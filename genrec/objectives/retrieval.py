"""InfoNCE over the catalogue: the whole softmax, or shared sampled negatives with logQ correction."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genrec.model.device import to_device
from genrec.objectives.linear_cross_entropy import linear_cross_entropy

LARGE = 64  # times as many items as negatives


def full_softmax(requests: Tensor, index: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of targets (N,) under logits requests (N, dim) . index (n_items, dim)."""
    return linear_cross_entropy(requests, index, targets)


@dataclass
class Candidates:
    """The items of one step's softmax: ``ids`` (C,), the batch's distinct targets first, rising.

    ``log_chance`` (C,) of being one; None where all are certain.
    """

    ids: Tensor
    log_chance: Tensor | None
    in_batch: int

    def index_of(self, targets: Tensor) -> Tensor:
        """The index of each of the batch's targets (N,) among the candidates: (N,)."""
        return torch.searchsorted(self.ids[: self.in_batch], targets)

    def to(self, device: torch.device) -> Candidates:
        """A copy on ``device``."""
        chance = None if self.log_chance is None else to_device(self.log_chance, device)
        return Candidates(to_device(self.ids, device), chance, self.in_batch)


def draw_candidates(
    n_items: int, targets: Tensor, negatives: int, draw: torch.Generator | None = None, among: Tensor | None = None
) -> Candidates:
    """The distinct ``targets`` (of all processes) and ``negatives`` uniform draws.

    All tensors are on the CPU: their sizes depend on the data.

    ``draw`` is a generator that all processes share; ``among`` (n_items,) are the ids to draw from, by default 0 to
    n_items - 1. From a large catalogue draws are with replacement, so that few occur twice: a permutation of all
    items would cost more than the rest of a step.
    """
    in_batch, counts = targets.unique(return_counts=True)
    uniform = min(negatives / n_items, 1.0)
    if uniform == 1:
        drawn = torch.arange(n_items)
    elif n_items <= LARGE * negatives:
        drawn = torch.randperm(n_items, generator=draw)[:negatives]
    else:
        drawn = torch.randint(n_items, (negatives,), generator=draw).unique()
        uniform = -math.expm1(negatives * math.log1p(-1 / n_items))
    drawn = drawn if among is None else among[drawn]
    ids = torch.cat([in_batch, drawn[~torch.isin(drawn, in_batch)]])
    # Chance of being a candidate: drawn uniformly, or a target (estimated by this batch's counts).
    share = torch.cat([counts / counts.sum(), torch.zeros(len(ids) - len(in_batch))])
    chance = 1 - (1 - uniform) * (1 - share).clamp(min=1e-6) ** len(targets)
    return Candidates(ids, chance.clamp(min=1e-9).log(), len(in_batch))


def sampled_softmax(requests: Tensor, vectors: Tensor, targets: Tensor, candidates: Candidates) -> Tensor:
    """InfoNCE of requests (N, dim) against the ``vectors`` (C, dim) of candidates, with logQ correction.

    With all items drawn and no duplicates the value equals ``full_softmax``.
    """
    bias = None if candidates.log_chance is None else -candidates.log_chance
    return linear_cross_entropy(requests, vectors, candidates.index_of(targets), bias)
