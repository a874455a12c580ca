"""InfoNCE over the catalogue: the whole softmax when it is small, else shared sampled negatives with logQ correction."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from genrec.objectives.linear_cross_entropy import linear_cross_entropy


def full_softmax(requests: Tensor, index: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of targets (N,) under logits requests (N, dim) . index (n_items, dim)."""
    return linear_cross_entropy(requests, index, targets, smoothing)


def sampled_softmax(
    requests: Tensor, index: Tensor, targets: Tensor, negatives: int, batch: Tensor | None = None, draw: torch.Generator | None = None
) -> Tensor:
    """InfoNCE against in-batch targets and uniform negatives, corrected by each candidate's expected count (logQ).

    Candidates are the batch's distinct targets and ``negatives`` uniform draws; a candidate equal to a row's own target is hidden.
    ``batch`` holds the targets of all processes where each sees a part only; ``draw`` is a CPU generator they share.
    With every item drawn as negative and no duplicates the value equals ``full_softmax``.
    """
    n_items = len(index)
    batch = targets if batch is None else batch
    in_batch, counts = batch.unique(return_counts=True)
    drawn = torch.arange(n_items) if negatives >= n_items else torch.randperm(n_items, generator=draw)[:negatives]
    drawn = drawn.to(targets.device)
    candidates = torch.cat([in_batch, drawn[~torch.isin(drawn, in_batch)]])
    # Chance of being a candidate: drawn uniformly, or somebody's target (estimated by this batch's counts).
    uniform = min(negatives / n_items, 1.0)
    share = torch.cat([counts / counts.sum(), torch.zeros(len(candidates) - len(in_batch), device=targets.device)])
    chance = 1 - (1 - uniform) * (1 - share).clamp(min=1e-6) ** len(batch)
    logits = requests @ index[candidates].T - chance.clamp(min=1e-9).log()
    place = torch.searchsorted(in_batch, targets)
    return F.cross_entropy(logits, place)
