"""Fitting of small list-wise rankers: weights by L-BFGS where the loss is convex, networks by AdamW."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

WEIGHT_DECAY = 1e-2


def list_loss(logits: Tensor, live: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the target's column (N,) over the live candidates of each list, (N, K) each."""
    return nn.functional.cross_entropy(logits.masked_fill(~live, -torch.inf), target)


def fit_weights(start: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The weights that minimise a convex ``loss``, found from ``start``; same shape."""
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(weights)
        value.backward()
        return value

    optimizer.step(closure)
    return weights.detach()


def fit_network(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[Tensor], Tensor],
    rows: Tensor,
    rate: float,
    epochs: int,
    batch: int,
) -> None:
    """Fit ``parameters`` to ``loss(rows)`` over batches of ``rows`` (n,), with one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=WEIGHT_DECAY)
    steps = max(1, len(rows) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps * epochs + 1)
    for _ in range(epochs):
        for part in rows[torch.randperm(len(rows))].tensor_split(steps):
            optimizer.zero_grad()
            loss(part).backward()
            optimizer.step()
            schedule.step()
