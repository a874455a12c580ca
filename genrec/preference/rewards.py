"""Rewards of sampled items. ``preference.rewards`` weights them by name.

To add a reward, put a function into ``REWARDS``: it takes a ``Sampled`` and returns (B, G), higher is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from genrec.catalogue.trie import CatalogueTrie
from genrec.errors import UserError


@dataclass
class Sampled:
    """What is known of the samples of a batch of B requests.

    ``items`` (B, G) sampled, ``live`` (B, G) those that count, ``predicted`` (B, G) the reward model's value,
    ``relevance`` (B, G) of the item's text for the query, ``impressions`` (B, K) items of the request's slate with
    calibrated ``impression_rewards`` (B, K), -1 where empty, and ``popularity`` (n_items,) log counts of training
    events.
    """

    items: Tensor
    live: Tensor
    predicted: Tensor
    relevance: Tensor
    impressions: Tensor
    impression_rewards: Tensor
    popularity: Tensor
    trie: CatalogueTrie


def model(sampled: Sampled) -> Tensor:
    """The reward model's value of showing the item."""
    return sampled.predicted


def behaviour(sampled: Sampled) -> Tensor:
    """The calibrated reward of the user's feedback on the item in this very request; 0 without an impression."""
    same = (sampled.items[:, :, None] == sampled.impressions[:, None, :]) & (sampled.impressions >= 0)[:, None, :]
    return torch.where(same, sampled.impression_rewards[:, None, :], 0).amax(-1)


def relevance(sampled: Sampled) -> Tensor:
    """Similarity of the item's text and the query; 0 without a query."""
    return sampled.relevance


def diversity(sampled: Sampled) -> Tensor:
    """The fraction of the request's other samples that have another first code."""
    first = sampled.trie.item_path[sampled.items][..., 0]
    both = sampled.live[:, :, None] & sampled.live[:, None, :]
    other = (first[:, :, None] != first[:, None, :]) & both
    return other.sum(-1) / (both.sum(-1) - 1).clamp(min=1)


REWARDS: dict[str, Callable[[Sampled], Tensor]] = {
    "model": model,
    "behaviour": behaviour,
    "relevance": relevance,
    "diversity": diversity,
}


def check_rewards(weights: Mapping[str, float]) -> None:
    """``UserError`` for a reward that does not exist, or where no reward has a weight."""
    unknown = [name for name in weights if name not in REWARDS]
    if unknown:
        raise UserError(f"preference.rewards: '{unknown[0]}' is not one of {', '.join(REWARDS)}")
    if not any(weights.values()):
        raise UserError("preference.rewards: no reward has a weight; give one, e.g. preference.rewards={model: 1}")


def total_reward(sampled: Sampled, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum (B, G), and each reward's mean over the live samples.

    Each reward is first standardised over the live samples of the batch (mean 0, deviation 1), so that weights are
    comparable.
    """
    total, means = torch.zeros_like(sampled.predicted), {}
    for name, weight in weights.items():
        if weight:
            value = REWARDS[name](sampled).float()
            live = value[sampled.live]
            means[name] = float(live.mean()) if len(live) else 0.0
            spread = float(live.std()) if len(live) > 1 else 0.0
            total = total + weight * (value - means[name]) / spread if spread > 1e-6 else total
    return total, means
