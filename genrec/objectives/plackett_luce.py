"""Plackett-Luce policy gradient over whole lists (Neural PG-RANK, Gao et al., arXiv 2310.04407).

Use it where the reward belongs to a list, not to an item: a discounted gain over ranks, a list's diversity. A list
is drawn rank by rank from the softmax over the candidates that are left; the gradient of its expected utility is
estimated from a few drawn lists, each with the mean of the others as its baseline.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample_lists(scores: Tensor, lists: int, k: int, generator: torch.Generator | None = None) -> Tensor:
    """Indices (B, lists, k) of candidates, drawn without replacement in order by Plackett-Luce from scores (B, K).

    -inf is never drawn while k others are left. The Gumbel trick: perturb once, take the top.
    """
    noise = (
        torch.empty(len(scores), lists, scores.shape[1], device=scores.device).exponential_(generator=generator).log()
    )
    return (scores.detach()[:, None].float() - noise).topk(k, dim=-1).indices


def list_log_probabilities(scores: Tensor, drawn: Tensor) -> Tensor:
    """Log-probability of each rank of drawn lists (B, lists, k) given scores (B, K): (B, lists, k).

    Their sum is the log-probability of the list. Rank i chooses among the candidates that earlier ranks left: its
    normaliser is a log-sum-exp over them.
    """
    batch, lists, k = drawn.shape
    chosen = scores[:, None].expand(-1, lists, -1).gather(2, drawn)
    rest = torch.ones(batch, lists, scores.shape[1], dtype=torch.bool, device=scores.device).scatter_(2, drawn, False)
    others = (
        scores[:, None]
        .expand(-1, lists, -1)
        .masked_fill(~rest, torch.finfo(scores.dtype).min)
        .logsumexp(-1, keepdim=True)
    )
    # Normaliser of rank i: itself, the later ranks and the candidates that were not drawn, summed from the end.
    later = torch.cat([chosen, others], dim=-1).flip(-1).logcumsumexp(-1).flip(-1)[..., :k]
    return chosen - later


def leave_one_out(utilities: Tensor) -> Tensor:
    """Utilities (B, lists) minus the mean of the request's other lists.

    The leave-one-out advantage: unbiased, and it needs no value model.

    With one list there is no other: 0.
    """
    lists = utilities.shape[1]
    return utilities * 0 if lists < 2 else (utilities - utilities.mean(1, keepdim=True)) * lists / (lists - 1)


def discounted_gain(rewards: Tensor) -> Tensor:
    """Sum over ranks of reward / log2(rank + 1), for rewards (..., k) in the order of the list: (...)."""
    discount = 1 / torch.log2(torch.arange(rewards.shape[-1], device=rewards.device, dtype=rewards.dtype) + 2)
    return (rewards * discount).sum(-1)


def list_policy_loss(scores: Tensor, drawn: Tensor, utilities: Tensor) -> Tensor:
    """Mean of ``-advantage x log p(list)`` over requests and lists.

    Scores (B, K), drawn (B, lists, k), utilities (B, lists).
    """
    return -(leave_one_out(utilities).detach() * list_log_probabilities(scores, drawn).sum(-1)).mean()
