"""Group-relative policy optimisation over semantic IDs.

Samples of one request are judged against each other, code position by position.

GRPO (arXiv 2402.03300) without a critic, strictly on-policy (the ratio is 1, so nothing is clipped), in the form of
OneSearch-V2's TPMA (arXiv 2603.24422): every code position has an advantage and a weight of its own, and a position's
match with the observed item only counts where the positions before it matched (the prefix gate).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def group_normalised(values: Tensor, live: Tensor, least: float = 1e-4) -> Tensor:
    """(value - mean) / standard deviation over the live ones of the second dimension: (B, G, ...).

    0 where not live, or where all are equal.
    """
    count = live.sum(1, keepdim=True).clamp(min=1)
    centred = torch.where(live, values - torch.where(live, values, 0).sum(1, keepdim=True) / count, 0)
    spread = (centred.square().sum(1, keepdim=True) / count).sqrt()
    return torch.where(spread > least, centred / spread.clamp(min=least), 0)


def prefix_matches(paths: Tensor, targets: Tensor) -> Tensor:
    """Whether sampled paths (B, G, L) of nodes are still on the target's path (B, L) after each level: (B, G, L) bool.

    Nodes name prefixes, so equal nodes are equal prefixes. A target of -1s matches nothing.
    """
    return paths == targets[:, None]


def position_advantages(rewards: Tensor, live: Tensor, matches: Tensor | None, weights: Tensor) -> Tensor:
    """Advantages (B, G, L) of every code position of every sample.

    ``rewards`` (B, G) of whole items, ``live`` (B, G) samples that count, ``matches`` (B, G, L) as ``prefix_matches``
    (None: no observed item), ``weights`` (L,) position weights. A position's advantage is its weight times (the
    item's group-normalised reward + the match's, normalised among the samples whose prefix was right so far).
    """
    item = group_normalised(rewards, live)[..., None].expand(-1, -1, len(weights))
    if matches is not None:
        gate = torch.cat([torch.ones_like(matches[..., :1]), matches[..., :-1]], dim=-1) & live[..., None]
        item = item + group_normalised(matches.to(rewards.dtype), gate)
    return item * weights


@dataclass(frozen=True)
class PolicyLoss:
    """``loss``, with estimates on the samples: ``kl`` from the reference and ``entropy`` (nats per item)."""

    loss: Tensor
    kl: Tensor
    entropy: Tensor


def policy_loss(
    steps: Tensor, reference: Tensor, advantages: Tensor, live: Tensor, kl_weight: float = 0.0
) -> PolicyLoss:
    """``-mean sum_l advantage_l x log p_l + kl_weight x KL``.

    ``steps`` and ``reference`` (B, G, L): log-probability of each step of each sample under the policy and the frozen
    reference. The KL term is Schulman's estimator ``exp(d) - d - 1`` with d = log(reference / policy): never
    negative, right in the mean for on-policy samples.
    """
    n = live.sum().clamp(min=1)
    gain = torch.where(live, (advantages.detach() * steps).sum(-1), 0).sum() / n
    policy = steps.sum(-1)
    behind = (reference.detach().sum(-1) - policy).clamp(
        max=20.0
    )  # exp must stay finite for a sample the reference thinks impossible
    kl = torch.where(live, behind.exp() - behind - 1, 0).sum() / n
    entropy = -torch.where(live, policy, 0).sum() / n
    return PolicyLoss(-gain + kl_weight * kl, kl.detach(), entropy.detach())
