"""Rewards of sampled items, each a function of what is known about the samples of one batch; ``preference.rewards`` weighs them by name.

To add one, put a function into ``REWARDS``: it takes a ``Sampled`` and returns (B, G), higher is better.
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
    """``items`` (B, G) drawn for B requests, ``live`` (B, G) those that count; the reward model's value ``judged`` (B, G) and text
    ``relevance`` (B, G); what the log says: ``shown`` (B, K) items with calibrated rewards ``shown_rewards`` (B, K), -1 where empty;
    ``popularity`` (n_items,) log counts of training events.
    """

    items: Tensor
    live: Tensor
    judged: Tensor
    relevance: Tensor
    shown: Tensor
    shown_rewards: Tensor
    popularity: Tensor
    trie: CatalogueTrie


def model(sampled: Sampled) -> Tensor:
    """What the reward model expects of showing the item."""
    return sampled.judged


def behaviour(sampled: Sampled) -> Tensor:
    """The calibrated reward of what the person did with the item in this very request; 0 for what was not shown."""
    same = (sampled.items[:, :, None] == sampled.shown[:, None, :]) & (sampled.shown >= 0)[:, None, :]
    return torch.where(same, sampled.shown_rewards[:, None, :], 0).amax(-1)


def relevance(sampled: Sampled) -> Tensor:
    """How well the item's text answers the query; 0 without one."""
    return sampled.relevance


def diversity(sampled: Sampled) -> Tensor:
    """The share of the request's other samples that have another first code."""
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
    """``UserError`` for a reward that does not exist, or where none is asked for."""
    unknown = [name for name in weights if name not in REWARDS]
    if unknown:
        raise UserError(f"preference.rewards: '{unknown[0]}' is not one of {', '.join(REWARDS)}")
    if not any(weights.values()):
        raise UserError("preference.rewards: no reward has a weight; give one, e.g. preference.rewards={model: 1}")


def total_reward(sampled: Sampled, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, float]]:
    """The weighed sum (B, G), and each reward's mean over the live samples.

    Each part is first put on one scale within the batch (mean 0, deviation 1 over live samples), so that weights mean what they say.
    """
    total, means = torch.zeros_like(sampled.judged), {}
    for name, weight in weights.items():
        if weight:
            value = REWARDS[name](sampled).float()
            seen = value[sampled.live]
            means[name] = float(seen.mean()) if len(seen) else 0.0
            spread = float(seen.std()) if len(seen) > 1 else 0.0
            total = total + weight * (value - means[name]) / spread if spread > 1e-6 else total
    return total, means
