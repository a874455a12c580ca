"""Losses of ranking logits: pointwise, pairwise and list-wise (SynerGen, arXiv 2509.21777, section 1.5; OnePiece, arXiv 2509.18091, SCL).

All take flat candidates: ``logits`` (n,), ``labels`` (n,) bool and ``group`` (n,) int64, the request (or person) a candidate belongs to.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pointwise(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy."""
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float())


def pairs(labels: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (P,) of every chosen candidate and (P,) of every other one of its group. The groups need no order."""
    order = torch.argsort(group, stable=True)
    _, place, sizes = group[order].unique_consecutive(return_inverse=True, return_counts=True)
    chosen = labels[order]
    negatives = order[~chosen]  # by group
    count = torch.zeros_like(sizes).index_add(0, place, (~chosen).long())
    start = count.cumsum(0) - count
    positive, owner = order[chosen], place[chosen]
    times = count[owner]
    first = times.cumsum(0) - times
    row = torch.repeat_interleave(torch.arange(len(owner), device=labels.device), times)
    return positive[row], negatives[start[owner][row] + torch.arange(len(row), device=labels.device) - first[row]]


def pairwise(logits: Tensor, labels: Tensor, group: Tensor) -> Tensor:
    """Mean of ``-log sigma(s_i - s_j)`` over the pairs of a chosen i and a not chosen j of one group; 0 without a pair."""
    better, worse = pairs(labels, group)
    if len(better) == 0:
        return logits.sum() * 0
    return F.softplus(logits[worse].float() - logits[better].float()).mean()


def listwise(logits: Tensor, labels: Tensor, group: Tensor) -> Tensor:
    """Mean softmax cross-entropy of each chosen candidate against the not chosen ones of its group; 0 without a pair.

    A chosen candidate does not compete with others that were chosen.
    """
    better, worse = pairs(labels, group)
    if len(better) == 0:
        return logits.sum() * 0
    logits = logits.float()
    positives, row = better.unique(return_inverse=True)
    own = logits[positives]
    top = own.detach().scatter_reduce(0, row, logits.detach()[worse], "amax")
    others = torch.zeros_like(own).index_add(0, row, (logits[worse] - top[row]).exp())
    return (((own - top).exp() + others).log() + top - own).mean()


def area_under_curve(scores: Tensor, labels: Tensor) -> float:
    """AUC: how often a chosen candidate scores above one that was not, a tie counting half; nan where one of the two is missing.

    ``scores`` (n,), ``labels`` (n,) bool.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    rank = counts.cumsum(0).double() - (counts.double() - 1) / 2  # ties share the mean of their ranks, from 1
    return float((rank[place][labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))
