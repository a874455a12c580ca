"""Tables that grow by rows, amortised: earlier states keep their rows, and nothing is copied while there is room."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

SPARE = 16  # a table is given room for one sixteenth more rows, whose memory is taken only when they are written
MIN_SPARE = 1024

Table = TypeVar("Table", Tensor, np.ndarray)


@dataclass
class _Buffer:
    rows: Any  # a tensor or array with room behind its ``used`` rows
    used: int


_APPENDING = threading.Lock()
_BUFFERS = WeakIdKeyDictionary()  # by table: the buffer whose first rows it shows


@torch.inference_mode(False)
@torch.no_grad()
def with_room(table: Table, more: int = 0) -> Table:
    """The same rows as the beginning of a larger buffer, with room for at least ``more`` rows."""
    size = len(table)
    shape = (size + max((size + more) // SPARE, MIN_SPARE) + more, *table.shape[1:])
    buffer: Any
    if isinstance(table, Tensor):
        buffer = torch.empty(shape, dtype=table.dtype, device=table.device)
    else:
        buffer = np.empty(shape, table.dtype)
    buffer[:size] = table
    return _shown(_Buffer(buffer, size))


@torch.inference_mode(False)
@torch.no_grad()
def append_rows(table: Table, rows: Table) -> Table:
    """``table`` with ``rows`` behind it; of the two, ``table`` stays as it is.

    Rows are written into the room behind those of the table, unless another table has taken it: of two continuations
    of one table, the second gets a copy.
    """
    size = len(table) + len(rows)
    with _APPENDING:
        buffer = _BUFFERS.get(table)
        if buffer is None or buffer.used != len(table) or size > len(buffer.rows):
            buffer = _BUFFERS[with_room(table, len(rows))]
        buffer.rows[len(table) : size] = rows
        buffer.used = size
        return _shown(buffer)


def _shown(buffer: _Buffer) -> Any:
    table = buffer.rows[: buffer.used]
    _BUFFERS[table] = buffer
    return table
