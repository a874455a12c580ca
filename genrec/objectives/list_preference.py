"""List-wise direct preference optimisation.

One preferred item against many, with reward weights and an anchor to supervised learning.

Use it where real or simulated feedback says which of several items was better for the same request. The implicit
reward of an item is ``beta x log(policy / reference)``; one loss joins all losers of a list (S-DPO, arXiv
2406.09215), each pair weighed by how close the two rewards are (OneSearch's adaptive margin, arXiv 2509.03236).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class ListPreference:
    """``loss`` with its terms, and metrics to log: all scalars.

    ``accuracy``: fraction of pairs whose implicit rewards are in the right order.
    """

    loss: Tensor
    preference: Tensor
    anchor: Tensor
    accuracy: Tensor
    gap: Tensor


def listwise_dpo(
    policy: Tensor,
    reference: Tensor,
    live: Tensor,
    beta: float,
    weights: Tensor | None = None,
    margin: float = 0.0,
    anchor: float = 0.0,
) -> ListPreference:
    """Loss of N lists: ``-log sigmoid(-log sum_l exp(-w_l (r_0 - r_l - margin))) - anchor x log policy_0``.

    ``policy`` and ``reference`` (N, K) log-probabilities, column 0 the preferred item; ``live`` (N, K) bool, a list
    needs a live column 0 and one live loser to count; ``weights`` (N, K) of the pairs (column 0 unused), 1 without.
    With policy = reference, margin 0 and no anchor, a list with m losers costs log(1 + m): log 2 for a pair, as in
    DPO (arXiv 2305.18290).
    """
    implicit = beta * (policy - reference.detach())
    gap = implicit[:, :1] - implicit[:, 1:]  # (N, K - 1)
    scaled = gap - margin
    if weights is not None:
        scaled = scaled * weights[:, 1:]
    losers = live[:, 1:] & live[:, :1]
    counted = losers.any(1)
    empty = torch.finfo(scaled.dtype).min
    worst = torch.where(losers, -scaled, empty).logsumexp(1)  # log sum_l exp(-w_l gap_l)
    n = counted.sum().clamp(min=1)
    preference = torch.where(counted, F.softplus(torch.where(counted, worst, 0)), 0).sum() / n
    own = torch.where(live[:, 0], policy[:, 0], 0)
    anchored = -own.sum() / live[:, 0].sum().clamp(min=1)
    pairs = losers.sum().clamp(min=1)
    return ListPreference(
        preference + anchor * anchored, preference.detach(), anchored.detach(), ((gap > 0) & losers).sum() / pairs,
        torch.where(losers, gap, 0).sum().detach() / pairs,
    )  # fmt: skip
