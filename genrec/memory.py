"""Memory that is taken late, kept for a while, or given back to the system."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
_USUAL = 32 << 20  # the largest block that glibc takes from its heap by itself
_ALWAYS = 1 << 30


def return_memory() -> None:
    """Give freed memory back: glibc keeps it for itself, and a process that rebuilds large tables would grow."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


@contextmanager
def reused_memory() -> Iterator[None]:
    """A context in which freed blocks of up to a gigabyte are used again, and given back at its end.

    glibc otherwise gives back each large block at once, and every further one begins with pages that the system has to
    clear: a third of the time of loading a large catalogue. It holds for the whole process while the context lasts.
    """
    option = _glibc("mallopt")
    if option is None:
        yield
        return
    if not option(_MMAP_THRESHOLD, _ALWAYS):  # older versions take no more
        option(_MMAP_THRESHOLD, _USUAL)
    option(_TRIM_THRESHOLD, _ALWAYS)
    try:
        yield
    finally:
        option(_MMAP_THRESHOLD, _USUAL)
        option(_TRIM_THRESHOLD, 2 * _USUAL)
        return_memory()


def zeros_on_demand(*shape: int, like: Tensor) -> Tensor:
    """``like.new_zeros``; on a CPU, rows take memory when they are written."""
    if like.device.type != "cpu" or like.dtype != torch.float32:
        return like.new_zeros(shape)
    return torch.from_numpy(np.zeros(shape, np.float32))


def _glibc(name: str) -> Any:
    """A function of glibc, None with another C library."""
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
