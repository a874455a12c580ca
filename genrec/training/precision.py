"""Which arithmetic a fit uses: bfloat16 throughout on a GPU, and on a CPU for the softmax over a large catalogue."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from genrec.config.schema import TrainingConfig
from genrec.training.distributed import on_gpu

LARGE_CATALOGUE = 4096  # items; below, a softmax costs little on a CPU


def lightning_precision(settings: TrainingConfig) -> Any:
    """Lightning's name of ``training.precision``; ``auto`` is bf16 on a GPU that has it, else 32.

    On a CPU always 32: for the small products of a backbone bfloat16's conversions cost more than they save (a
    quarter of a step on Amazon Beauty). See ``softmax_precision``.
    """
    if not on_gpu(settings.accelerator) or settings.precision == "32":
        return "32-true"
    half = settings.precision == "bf16" or torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if half else "32-true"


def softmax_precision(settings: TrainingConfig, n_items: int, device: torch.device) -> AbstractContextManager:
    """A context for the softmax over ``n_items`` items.

    On a CPU in bfloat16 where ``training.precision`` says so, or by rule for large catalogues on a processor that
    multiplies bfloat16: the logits take half the memory and the products half the time.
    """
    if device.type != "cpu" or settings.precision == "32":
        return nullcontext()
    fast = torch.cpu.get_capabilities().get("avx512_bf16", False) and n_items > LARGE_CATALOGUE
    return torch.autocast("cpu", torch.bfloat16) if settings.precision == "bf16" or fast else nullcontext()
