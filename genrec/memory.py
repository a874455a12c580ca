"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import os


def return_memory() -> None:
    """Give freed memory back: glibc keeps it for itself, and a process that rebuilds large tables would grow."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
