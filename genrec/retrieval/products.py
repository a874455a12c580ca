"""Dot products of rows with ranges of a table, without a copy of either per product."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

GATHER = 1 << 22  # numbers gathered at once where the vectors of pairs have to be copied

with warnings.catch_warnings():  # PyTorch says once that sparse tensors are in beta
    warnings.simplefilter("ignore")
    torch.zeros(1, 1).to_sparse_csr()


def ragged_products(rows: Tensor, table: Tensor, owner: Tensor, begin: Tensor, column: Tensor) -> Tensor:
    """Dot products (c,) of ``rows`` (n, dim) with the rows ``column`` (c,) of ``table`` (M, dim).

    ``owner`` (c,) is the row of each product, not falling, and ``begin`` (n,) where those of a row begin.
    """
    if rows.device.type == "cpu" and rows.dtype == table.dtype == torch.float32:
        products: Any = _RaggedProducts.apply
        return products(rows, table, owner, begin, column)
    # Embedding look-ups, not indexing: their backward pass adds rows faster.
    return (F.embedding(owner, rows) * F.embedding(column, table)).sum(-1)


def owned_products(rows: Tensor, table: Tensor, owner: Tensor, column: Tensor) -> Tensor:
    """``ragged_products`` of which only the ``owner`` (c,) is known."""
    counts = torch.bincount(owner, minlength=len(rows))
    return ragged_products(rows, table, owner, counts.cumsum(0) - counts, column)


def pair_products(left: Tensor, right: Tensor, ids: Tensor) -> Tensor:
    """Products (B, K) float32 of each row of ``left`` (B, dim) with the rows ``ids`` (B, K) of ``right`` (N, dim).

    A pair's product is summed in an order of its own: it depends on no other pair.
    """
    owner = torch.arange(len(ids), device=ids.device)[:, None].expand(ids.shape).flatten()
    begin, column = torch.arange(len(ids), device=ids.device) * ids.shape[1], ids.flatten()
    if left.device.type == "cpu" and left.dtype == right.dtype == torch.float32 and len(column):
        return ragged_products(left, right, owner, begin, column).view(ids.shape)
    step = max(GATHER // max(left.shape[1], 1), 1)
    parts = [
        (right.index_select(0, some).float() * left.index_select(0, row)).sum(-1)
        for some, row in zip(column.split(step), owner.split(step), strict=True)
    ]
    return torch.cat(parts).view(ids.shape)


class _RaggedProducts(torch.autograd.Function):
    """On a CPU: products at the entries of a sparse matrix, and products with it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor, owner: Tensor, begin: Tensor, column: Tensor) -> Tensor:
        ctx.save_for_backward(rows, table, owner, begin, column)
        pairs = _pairs(begin, column, torch.zeros(len(column)), len(table))
        return torch.sparse.sampled_addmm(pairs, rows, table.T, beta=0.0).values()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, table, owner, begin, column = ctx.saved_tensors
        (gradient,) = gradients
        to_rows = to_table = None
        if ctx.needs_input_grad[0]:
            to_rows = _pairs(begin, column, gradient, len(table)) @ table
        if ctx.needs_input_grad[1]:
            order = column.argsort(stable=True)
            counts = torch.bincount(column, minlength=len(table))
            to_table = _pairs(counts.cumsum(0) - counts, owner[order], gradient[order], len(rows)) @ rows
        return to_rows, to_table, None, None, None


def _pairs(begin: Tensor, column: Tensor, values: Tensor, width: int) -> Tensor:
    """The sparse matrix whose rows begin at ``begin`` (n,): (n, width)."""
    bounds = F.pad(begin, (0, 1), value=len(column)).to(torch.int32)
    size = len(begin), width
    return torch.sparse_csr_tensor(bounds, column.to(torch.int32), values.contiguous(), size, check_invariants=False)
