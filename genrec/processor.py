"""Features of the processor that torch does not use by default."""

from __future__ import annotations

import torch


def bfloat16_hardware() -> str | None:
    """How the processor multiplies bfloat16, where torch can use it: ``tiles`` of float32 or ``pairs`` of bfloat16."""
    if hasattr(torch.backends.mkldnn, "matmul") and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)():
        return "tiles"
    return "pairs" if getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)() else None
