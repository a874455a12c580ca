"""Softmax cross-entropy of a product with a large table, without the matrix of logits.

The product, its softmax and both gradients are computed for a few rows at a time, while these are in the cache: there
are no passes over an (N, V) matrix in memory, and memory does not grow with N x V. The idea is that of Liger Kernel's
fused linear cross-entropy (arXiv 2410.10989), here in plain torch for any device. Half precisions (autocast) have
float32 logits, but for bfloat16 without a bias on a CPU: there the passes over logits cost as much as the products,
and halving their bytes halves both. Sums stay in float32.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

# Logits at a time: what fits into a core's cache; what fills a GPU. With bfloat16 on a CPU the products gain more from
# many rows than the passes lose.
CHUNK_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
CPU_HALF_BYTES = 16 << 20
WIDE_PRODUCT = "out_dtype" in (torch.mm.__doc__ or "")


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, table: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
        device = rows.device.type
        known = torch.amp.is_autocast_available(device)  # not on meta
        work = torch.get_autocast_dtype(device) if known and torch.is_autocast_enabled(device) else rows.dtype
        memory = CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"])
        if device == "cpu" and work == torch.bfloat16:
            memory = CPU_HALF_BYTES
        step = max(16, memory // (4 * len(table)))
        cast_rows, cast_table = rows.detach().to(work), table.detach().to(work)
        with torch.autocast(device, enabled=False) if known else nullcontext():
            if not any(ctx.needs_input_grad[:2]):
                return _passes(cast_rows, cast_table, targets, bias, step, None)
            gradients = torch.empty(rows.shape, device=rows.device), torch.zeros(table.shape, device=table.device)
            loss = _passes(cast_rows, cast_table, targets, bias, step, gradients)
        ctx.save_for_backward(gradients[0].to(rows.dtype), gradients[1].to(table.dtype))
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):
        d_rows, d_table = ctx.saved_tensors
        return d_rows * grad, d_table * grad, None, None


def float_product(rows: Tensor, table: Tensor) -> Tensor:
    """Rows (N, dim) . table (V, dim) in float32: (N, V). A GPU adds up half precisions in float32 anyway."""
    if rows.is_cuda and rows.dtype != torch.float32 and WIDE_PRODUCT:
        return torch.mm(rows, table.T, out_dtype=torch.float32)
    return (rows @ table.T).float()


def _passes(
    rows: Tensor,
    table: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    step: int,
    gradients: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """The mean loss; ``gradients`` are float32 buffers for those of rows and table (zeroed), if they are needed."""
    count = len(rows)
    loss = torch.zeros((), device=rows.device)
    own = table[targets]
    narrow = rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and bias is None
    for begin in range(0, count, step):
        part = rows[begin : begin + step]
        logits = part @ table.T if narrow else float_product(part, table)
        if bias is not None:
            logits += bias
        top = logits.amax(1, keepdim=True)
        weights = logits.sub_(top).exp_()
        total = weights.sum(1, keepdim=True, dtype=torch.float32)
        log_total = (total.log() + top)[:, 0]
        part_own = own[begin : begin + step]
        loss += (log_total - (part.float() * part_own.float()).sum(1)).sum()
        if gradients is not None:
            # The softmax is weights / total; dividing the thin side of each product saves a pass over the wide one.
            weights = weights.to(rows.dtype)
            gradients[0][begin : begin + step] = (weights @ table) / total - part_own
            if rows.dtype == torch.float32:
                gradients[1].addmm_(weights.T, part / total)
            else:
                gradients[1].add_(weights.T @ (part / total).to(rows.dtype))
    if bias is not None:
        loss -= bias[targets].sum()
    if gradients is not None:
        d_rows, d_table = gradients
        d_table.index_add_(0, targets, rows.float(), alpha=-1)
        d_rows /= count
        d_table /= count
    return loss / count


def linear_cross_entropy(rows: Tensor, table: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of ``targets`` (N,) under the logits rows (N, dim) . table (V, dim) + bias (V,).

    Equals ``F.cross_entropy`` but for rounding, in less time and memory. Gradients flow to ``rows`` and ``table``, once
    (not twice differentiable), and none to ``bias``.
    """
    return _LinearCrossEntropy.apply(rows, table, targets, bias)
