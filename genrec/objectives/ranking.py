"""Losses of ranking logits: pointwise and pairwise (SynerGen, arXiv 2509.21777; OnePiece, arXiv 2509.18091).

All take N requests with C candidates each: ``logits`` (N, C), ``labels`` (N, C) bool for chosen candidates, ``live``
(N, C) bool, false for padding. Candidates of different requests are never compared: of two requests of one user the
later one has seen the outcome of the earlier.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from genrec.model.device import selected, weighted_mean


def pointwise(logits: Tensor, labels: Tensor, live: Tensor) -> Tensor:
    """Mean binary cross-entropy. Use it for calibrated probabilities."""
    index, weights = selected(live.flatten())
    logits, labels = logits.flatten()[index].float(), labels.flatten()[index].float()
    loss = F.binary_cross_entropy_with_logits(logits, labels, weight=weights)
    return loss if weights is None else loss * (len(weights) / weights.sum().clamp(min=1))


def pairwise(logits: Tensor, labels: Tensor, live: Tensor) -> Tensor:
    """Mean of ``-log sigma(s_i - s_j)`` over pairs of a chosen i and a live j that was not chosen; 0 without a pair.

    Use it for order.
    """
    n, count = logits.shape
    pairs = (labels & live)[:, :, None] & (~labels & live)[:, None]  # (N, C, C)
    index, weights = selected(pairs.flatten())
    row, pair = index // (count * count), index % (count * count)
    logits = logits.flatten()
    better, worse = logits[row * count + pair // count], logits[row * count + pair % count]
    return weighted_mean(F.softplus(worse.float() - better.float()), weights)


def area_under_curve(scores: Tensor, labels: Tensor) -> float:
    """AUC: how often a chosen candidate scores above one that was not, a tie counting half; nan without either kind.

    ``scores`` (n,), ``labels`` (n,) bool.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    _, value, counts = scores.unique(return_inverse=True, return_counts=True)
    rank = counts.cumsum(0).double() - (counts.double() - 1) / 2  # ties share the mean of their ranks, from 1
    return float((rank[value][labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))
