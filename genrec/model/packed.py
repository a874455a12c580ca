"""Weights in less space, with no digit lost: whole numbers in few bytes, tables without their zero rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

WHOLE = (torch.uint8, torch.int16, torch.int32)  # types that hold whole numbers, smallest first
# Behind the name of a table: which rows it has (its length last), and their values. The others are 0, or -1.
ROWS, ROWS_OF_NONE, VALUES = "@rows", "@rows-1", "@values"
TABLE = 1 << 16  # numbers; smaller tensors stay as they are


def packed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors in a form that ``unpacked`` reads."""
    result: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if tensor.numel() < TABLE:
            result[name] = tensor
            continue
        smaller = _whole(tensor)
        if smaller.ndim > 1:
            for missing, suffix in ((0, ROWS), (-1, ROWS_OF_NONE)):
                kept = (smaller != missing).flatten(1).any(1)
                if 2 * int(kept.sum()) < len(kept):
                    rows = kept.nonzero()[:, 0].to(torch.int32)
                    result[name + suffix] = torch.cat([rows, torch.tensor([len(kept)], dtype=torch.int32)])
                    smaller, name = smaller[kept], name + VALUES
                    break
        result[name] = smaller.contiguous()
    return result


def unpacked(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of ``packed``, but for the types of whole numbers: a module casts them to its own when it loads them."""
    result = {}
    for name, tensor in weights.items():
        if name.endswith((ROWS, ROWS_OF_NONE)):
            continue
        if name.endswith(VALUES):
            name = name.removesuffix(VALUES)
            missing, suffix = (0, ROWS) if name + ROWS in weights else (-1, ROWS_OF_NONE)
            rows = weights[name + suffix]
            table = tensor.new_full((int(rows[-1]), *tensor.shape[1:]), missing)
            table[rows[:-1].long()] = tensor
            tensor = table
        result[name] = tensor
    return result


def table_length(weights: Mapping[str, Tensor], name: str) -> int:
    """The number of rows of a table that ``packed`` may have packed, 0 where there is none."""
    return int(weights[name + ROWS][-1]) if name + ROWS in weights else len(weights.get(name, ()))


def table_rows(weights: Mapping[str, Tensor], name: str, chosen: Tensor) -> Tensor:
    """The rows ``chosen`` (n,), rising, of a table that ``packed`` may have packed, without making all of it."""
    if name in weights:
        return weights[name][chosen]
    rows, values = weights[name + ROWS][:-1].long(), weights[name + VALUES]
    result = values.new_zeros(len(chosen), *values.shape[1:])
    index = torch.searchsorted(chosen, rows).clamp(max=max(len(chosen) - 1, 0))
    known = chosen[index] == rows
    result[index[known]] = values[known]
    return result


def _whole(tensor: Tensor) -> Tensor:
    """The tensor in the smallest integer type that holds all its values, if these are whole numbers."""
    if tensor.is_floating_point() and not bool((tensor == tensor.round()).all()):
        return tensor
    low, high = (float(value) for value in tensor.aminmax())
    for kind in WHOLE:
        limits = torch.iinfo(kind)
        if kind.itemsize < tensor.element_size() and limits.min <= low and high <= limits.max:
            return tensor.to(kind)
    return tensor
