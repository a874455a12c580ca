"""Transfers between host and device; only ``read_back`` waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor


def read_back(sizes: Tensor) -> list[int]:
    """Whole numbers as Python ints.

    The only function of a training step that waits for its device, so that tests can count the waits. Use it for sizes
    of ragged data that only the device knows; gather all of them into one tensor.
    """
    return sizes.flatten().tolist()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a CPU tensor on ``device``, which the host does not wait for."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator of ``device``, seeded by the CPU ``generator``; on a CPU that one itself.

    No device draws from another's generator.
    """
    if device.type == "cpu":
        return generator
    return torch.Generator(device).manual_seed(int(torch.randint(1 << 62, (), generator=generator)))


def selected(mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Indices (m,) that a loss over ``mask`` (n,) looks at, and the weight of each (m,), None where all weigh 1.

    On a CPU these are the true entries. Elsewhere they are all n, false ones with weight 0: only the device knows how
    many are true.
    """
    if mask.device.type == "cpu":
        return mask.nonzero()[:, 0], None
    return torch.arange(len(mask), device=mask.device), mask.float()


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of values (m,) with weights (m,) of 0 and 1; values of weight 0 may be infinite. 0 without any value."""
    if weights is None:
        return values.mean() if len(values) else values.sum()
    return torch.where(weights > 0, values, 0).sum() / weights.sum().clamp(min=1)
