"""Rotary positions over index and time (TO-RoPE, arXiv 2510.20455; SynerGen, arXiv 2509.21777, rotates by time alone).

The last ``time_share`` of the planes rotate by time, the others by the index of the event, so that the two never
cancel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

INDEX_BASE = 10_000.0


def rotary_angles(index: Tensor, time: Tensor, planes: int, time_share: float, time_base: float) -> Tensor:
    """Angles (batch, length, planes) in float32, modulo a full turn.

    ``index`` (batch, length) event positions; ``time`` (batch, length) float64 time since the sequence's origin in
    buckets. The base of the time planes is the span of the data. Angles are computed in float64: in float32 a year in
    seconds leaves no digits for fractions of a turn.
    """
    n_time = round(planes * time_share)
    angles = torch.cat(
        [
            index.double()[..., None] * _rates(planes - n_time, INDEX_BASE, index.device),
            time.double()[..., None] * _rates(n_time, time_base, index.device),
        ],
        dim=-1,
    )
    return torch.remainder(angles, 2 * math.pi).float()


def _rates(planes: int, base: float, device: torch.device) -> Tensor:
    return base ** (-torch.arange(planes, device=device, dtype=torch.float64) / max(planes, 1))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate x (batch, heads, length, 2 x planes) by angles (batch, length, planes)."""
    cos, sin = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
