"""Transfers between host and device; only ``read_back`` waits for the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

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


def without_autocast(device: torch.device) -> AbstractContextManager:
    """A context in which operations keep the precision of their inputs."""
    known = torch.amp.is_autocast_available(device.type)  # not on meta
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def scores(rows: Tensor, table: Tensor) -> Tensor:
    """Dot products (N, V) of rows (N, dim) and table (V, dim), in float32 also under autocast and of half precisions.

    Two scores that differ by less than bfloat16's third digit are a tie there, and ranks and probabilities change.
    """
    with without_autocast(rows.device):
        return wide(rows) @ wide(table).T


def wide(x: Tensor) -> Tensor:
    """Half precisions as float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def seed(device: torch.device, value: int) -> None:
    """Seed all random numbers of a step on ``device``.

    ``torch.manual_seed`` keeps a stack trace for each kind of GPU that has not started: on a CPU 2 ms, and memory, a
    call.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(value)
    else:
        torch.manual_seed(value)


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
