"""Pooled histories for every request of a batch at once: each request sees the events of its sequence before it.

Source: OneSearch (arXiv 2509.03236), multi-view behaviour. An event's weight grows with its age rank from the oldest
on, so the sums of all prefixes are one running sum divided by another; only views that leave out the oldest events are
summed one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Events of the short and of the long view: OneSearch's window of 5 and its sequences of up to 10^3.
SHORT, LONG = 5, 1000


def prefix_sums(vectors: Tensor, positions: Tensor) -> Tensor:
    """Sums of the first ``positions`` (B, R) of each sequence's vectors (B, T, d): (B, R, d), zero for no event.

    With an event's centroid (projected to the network's width) as its vector, zero where its behaviour is another one,
    these are OneSearch's pooled long histories of that level and behaviour, at every request.
    """
    return F.pad(vectors.cumsum(1), (0, 0, 1, 0)).gather(1, _spread(positions, vectors))


def recency_pool(vectors: Tensor, positions: Tensor, last: int) -> Tensor:
    """``sum_i lambda_i v_i`` over the newest ``last`` of the first ``positions`` (B, R) vectors (B, T, d).

    ``lambda_i = exp(sqrt(i)) / sum_t exp(sqrt(t))``, i = 1 the oldest event of the view. With the sum of an item's code
    vectors as v this is OneSearch's user ID, as a vector that learns. Returns (B, R, d), zero without events.
    """
    length = vectors.shape[1]
    root = torch.arange(1, length + 1, device=vectors.device).sqrt()
    if last >= length:
        weight = (root - root[-1]).exp()  # at most 1, whatever the length
        total = F.pad(weight.cumsum(0), (1, 0), value=1.0)[positions]
        return prefix_sums(vectors * weight[:, None], positions) / total[..., None]
    position = torch.arange(last, device=vectors.device)
    seen = positions.clamp(max=last)[..., None]
    event = (positions[..., None] - seen + position).clamp(
        min=0, max=length - 1
    )  # (B, R, last), the view's oldest first
    weight = root[:last].masked_fill(position >= seen, -torch.inf)
    weight = torch.where(seen > 0, weight, 0.0).softmax(-1) * (seen > 0)
    rows = torch.arange(len(vectors), device=vectors.device)[:, None, None]
    return (weight.to(vectors.dtype)[..., None] * vectors[rows, event]).sum(2)


def _spread(positions: Tensor, vectors: Tensor) -> Tensor:
    return positions[..., None].expand(-1, -1, vectors.shape[2])
