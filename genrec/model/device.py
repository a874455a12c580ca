"""What keeps a step on its device: nothing here but ``read_back`` waits for the device to finish."""

from __future__ import annotations

import torch
from torch import Tensor


def read_back(sizes: Tensor) -> list[int]:
    """Whole numbers as Python ints. The one place where a training step waits for its device, so that tests can count it.

    Use it for the sizes of ragged data that only the device knows; gather all of a step's sizes into one tensor.
    """
    return sizes.flatten().tolist()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a CPU tensor on ``device`` that the host does not wait for: pinned memory is copied while it goes on."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def selected(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Indices that a loss over ``mask`` (n,) looks at, and the weight of each, both (m,).

    On a CPU these are the true entries. Elsewhere they are all n, false ones with weight 0: how many are true is known only there.
    """
    if mask.device.type == "cpu":
        index = mask.nonzero()[:, 0]
        return index, torch.ones(len(index))
    return torch.arange(len(mask), device=mask.device), mask.float()


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of values (m,) with weights (m,); values of weight 0 may be infinite. 0 without any weight."""
    return torch.where(weights > 0, values * weights, 0).sum() / weights.sum().clamp(min=1)
