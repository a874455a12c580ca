"""Against torch's own cross-entropy on the whole matrix of logits: value and both gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from genrec.objectives import linear_cross_entropy as module
from genrec.objectives.linear_cross_entropy import linear_cross_entropy


def tensors(rows, size, dim, scale=1.0):
    generator = torch.Generator().manual_seed(rows)
    a, b = (torch.randn(n, dim, generator=generator) * scale for n in (rows, size))
    return a.requires_grad_(), b.requires_grad_(), torch.randint(size, (rows,), generator=generator)


def reference(rows, table, targets, bias=0.0):
    return F.cross_entropy(rows @ table.T + bias, targets)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("rows", "size", "scale"), [(1, 7, 1.0), (50, 30, 1.0), (33, 400, 1.0), (40, 200, 12.0)])
def test_value_and_gradients(monkeypatch, rows, size, scale, biased):
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", 16 * 4 * size)  # several chunks, the last one not full
    a, b, targets = tensors(rows, size, 8, scale)
    bias = torch.randn(size, generator=torch.Generator().manual_seed(1)) if biased else None
    (3 * linear_cross_entropy(a, b, targets, bias)).backward()
    actual = [a.grad.clone(), b.grad.clone()]
    value = linear_cross_entropy(a, b, targets, bias)
    a.grad = b.grad = None
    expected = reference(a, b, targets, bias if biased else 0.0)
    (3 * expected).backward()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(actual, (a.grad, b.grad), strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_logits_far_apart_do_not_overflow():
    a, b, targets = tensors(20, 50, 8, 40.0)
    value = linear_cross_entropy(a, b, targets)
    value.backward()
    assert torch.isfinite(value) and a.grad.isfinite().all() and b.grad.isfinite().all()
    torch.testing.assert_close(value, reference(a, b, targets, 0.0), rtol=1e-5, atol=1e-3)


def test_under_bf16():
    a, b, targets = tensors(60, 90, 16)
    with torch.autocast("cpu", torch.bfloat16):
        value = linear_cross_entropy(a, b, targets)
    value.backward()
    assert value.dtype == a.grad.dtype == b.grad.dtype == torch.float32
    mine = [a.grad.clone(), b.grad.clone()]
    a.grad = b.grad = None
    expected = reference(a, b, targets, 0.0)
    expected.backward()
    assert value != expected and abs(value - expected) < 0.05
    for one, other in zip(mine, (a.grad, b.grad), strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


def test_one_side_may_be_fixed():
    a, b, targets = tensors(5, 9, 4)
    linear_cross_entropy(a, b.detach(), targets).backward()
    assert a.grad is not None and b.grad is None
    with torch.no_grad():
        assert not linear_cross_entropy(a, b, targets).requires_grad
