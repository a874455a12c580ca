"""Softmax cross-entropy of a product with a large table, without the matrix of logits.

The product, its softmax and both gradients are made for a few rows at a time, while they are in the cache: instead of several passes over
an (N, V) matrix in memory there is none, and the memory taken does not grow with N x V. The idea is that of the fused linear cross-entropy
of Liger Kernel (arXiv 2410.10989), here in plain torch for any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}  # of logits at a time: what stays in a core's cache; what fills a GPU


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, table: Tensor, targets: Tensor, smoothing: float, bias: Tensor | None) -> Tensor:
        device = rows.device.type
        work = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype
        wanted = any(ctx.needs_input_grad[:2])
        step = max(16, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * len(table)))
        cast_rows, cast_table = rows.detach().to(work), table.detach().to(work)
        with torch.autocast(device, enabled=False):
            loss, d_rows, d_table = _passes(cast_rows, cast_table, targets, smoothing, bias, step, wanted)
        if wanted:
            ctx.save_for_backward(d_rows.to(rows.dtype), d_table.to(table.dtype))
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):
        d_rows, d_table = ctx.saved_tensors
        return d_rows * grad, d_table * grad, None, None, None


def _passes(
    rows: Tensor, table: Tensor, targets: Tensor, smoothing: float, bias: Tensor | None, step: int, wanted: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The mean loss and, where wanted, its gradients in float32."""
    count, size = len(rows), len(table)
    loss = torch.zeros((), device=rows.device)
    d_rows = torch.empty(rows.shape, device=rows.device) if wanted else None
    d_table = torch.zeros(table.shape, device=table.device) if wanted else None
    own = table[targets]
    mean = table.float().mean(0) if smoothing else None
    for begin in range(0, count, step):
        part = rows[begin : begin + step]
        logits = (part @ table.T).float()
        if bias is not None:
            logits += bias
        top = logits.amax(1, keepdim=True)
        weights = logits.sub_(top).exp_()
        total = weights.sum(1, keepdim=True)
        log_total = (total.log() + top)[:, 0]
        part_own = own[begin : begin + step]
        loss += (log_total - (1 - smoothing) * (part.float() * part_own.float()).sum(1)).sum()
        if smoothing:
            loss -= smoothing * (part.float() @ mean).sum()
        if wanted:
            # The softmax is weights / total; dividing the thin side of each product saves a pass over the wide one.
            weights = weights.to(rows.dtype)
            d_rows[begin : begin + step] = (weights @ table) / total - (1 - smoothing) * part_own
            if rows.dtype == torch.float32:
                d_table.addmm_(weights.T, part / total)
            else:
                d_table += weights.T @ (part / total).to(rows.dtype)
    if bias is not None:
        loss -= (1 - smoothing) * bias[targets].sum() + smoothing * count * bias.mean()
    if wanted:
        d_table.index_add_(0, targets, rows.float(), alpha=smoothing - 1)
        if smoothing:
            d_rows -= smoothing * mean
            d_table -= smoothing / size * rows.float().sum(0)
        d_rows /= count
        d_table /= count
    return loss / count, d_rows, d_table


def linear_cross_entropy(
    rows: Tensor, table: Tensor, targets: Tensor, smoothing: float = 0.0, bias: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of ``targets`` (N,) under the logits rows (N, dim) . table (V, dim) + bias (V,), in less time and memory.

    Equals ``F.cross_entropy``, ``smoothing`` included, but for rounding. Gradients flow to ``rows`` and ``table``, once (not twice
    differentiable), and none to ``bias``.
    """
    return _LinearCrossEntropy.apply(rows, table, targets, smoothing, bias)
