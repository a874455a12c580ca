"""Dropout whose random numbers cost little on a CPU, where torch draws one 24-bit number for each element."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STEPS = 1 << 16  # one 64-bit draw decides four elements, each by 16 of its bits


class Dropout(nn.Module):
    """Zeroes each element with chance ``rate`` in training and scales the others by 1 / (1 - rate).

    The chance is kept to 1 / 65,536.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of x in training."""
        if not self.training or not self.rate:
            return x
        if x.device.type != "cpu":
            return nn.functional.dropout(x, self.rate)
        return x * kept(x.shape, self.rate, x.dtype)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"rate={self.rate}"


def kept(shape: torch.Size, rate: float, dtype: torch.dtype) -> Tensor:
    """What to multiply with: 0 for the dropped elements, 1 / (1 - rate) for the others; a CPU tensor of ``shape``."""
    count = shape.numel()
    # All bits count: without bounds ``random_`` leaves the sign of int64 out.
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    threshold = round(rate * STEPS) - STEPS // 2
    alive = words.view(torch.int16)[:count].view(shape) >= threshold
    return alive.to(dtype).mul_(1 / (1 - rate))
