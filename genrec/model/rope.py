"""Rotary positions over index and time (TO-RoPE, arXiv 2510.20455; SynerGen, arXiv 2509.21777, turns by time alone).

``index``  all planes turn by the event's place in the sequence
``time``   all planes turn by time
``split``  the last ``time_share`` of the planes turn by time, the others by place: the two never cancel
``early``  every plane turns by ``(1 - time_share) x place + time_share x time``, each at its own rate
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

KINDS = ("index", "time", "split", "early")
INDEX_BASE = 10_000.0


def rotary_angles(
    index: Tensor, time: Tensor, planes: int, time_share: float, time_base: float, kind: str = "split"
) -> Tensor:
    """Angles (batch, length, planes) in float32, whole turns taken out.

    ``index`` (batch, length) event positions; ``time`` (batch, length) float64 time since the sequence's origin in buckets. Time turns
    with a base raised to the span of the data. Angles are made in float64: a year in seconds times a rate of 1 has no place for fractions
    of a turn in float32.
    """
    if kind == "early":
        place = index.double()[..., None] * _rates(planes, INDEX_BASE, index.device)
        angles = (1 - time_share) * place + time_share * time.double()[..., None] * _rates(
            planes, time_base, index.device
        )
    else:
        n_time = {"index": 0, "time": planes, "split": round(planes * time_share)}[kind]
        angles = torch.cat([
            index.double()[..., None] * _rates(planes - n_time, INDEX_BASE, index.device),
            time.double()[..., None] * _rates(n_time, time_base, index.device),
        ], dim=-1)  # fmt: skip
    return torch.remainder(angles, 2 * math.pi).float()


def _rates(planes: int, base: float, device: torch.device) -> Tensor:
    return base ** (-torch.arange(planes, device=device, dtype=torch.float64) / max(planes, 1))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn x (batch, heads, length, 2 x planes) by angles (batch, length, planes)."""
    cos, sin = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
