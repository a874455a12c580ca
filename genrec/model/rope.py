"""Rotary positions over index and time (TO-RoPE, arXiv 2510.20455, split by dimension; SynerGen's time RoPE is ``time_share`` 1)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_angles(index: Tensor, time: Tensor, planes: int, time_share: float, time_base: float) -> Tensor:
    """Angles (batch, length, planes) in float32.

    ``index`` (batch, length) event positions; ``time`` (batch, length) time since the sequence's origin in buckets. The first planes
    turn by index, the last ``time_share`` of them by time, with a base raised to the span of the data.
    """
    n_time = round(planes * time_share)
    n_index = planes - n_time
    device = index.device
    index_rate = 10_000.0 ** (-torch.arange(n_index, device=device, dtype=torch.float32) / max(n_index, 1))
    time_rate = time_base ** (-torch.arange(n_time, device=device, dtype=torch.float32) / max(n_time, 1))
    return torch.cat([index.float()[..., None] * index_rate, time.float()[..., None] * time_rate], dim=-1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn x (batch, heads, length, 2 x planes) by angles (batch, length, planes)."""
    cos, sin = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
