"""What the processor can do that torch does not choose by itself."""

from __future__ import annotations

import torch


def bfloat16_hardware() -> str | None:
    """How the processor multiplies bfloat16, if torch can be told to use it: ``tiles`` of float32 inputs, ``pairs`` of bfloat16 ones."""
    if hasattr(torch.backends.mkldnn, "matmul") and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)():
        return "tiles"
    return "pairs" if getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)() else None
