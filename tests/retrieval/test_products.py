"""Products of rows with ranges of a table equal those of copies, with their gradients."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from genrec.retrieval.products import owned_products, pair_products, ragged_products


def test_products_and_gradients_equal_those_of_copies():
    torch.manual_seed(0)
    counts = torch.tensor([3, 0, 5, 1, 4])
    begin = counts.cumsum(0) - counts
    owner = torch.arange(5).repeat_interleave(counts)
    column = torch.tensor([4, 5, 6, 4, 5, 6, 7, 8, 0, 2, 3, 4, 5])  # ranges that share rows, and rows of none
    weight, results = torch.randn(len(owner)), []
    for products in (ragged_products, lambda r, t, o, _, c: (F.embedding(o, r) * F.embedding(c, t)).sum(-1)):
        torch.manual_seed(1)
        rows, table = torch.randn(5, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
        values = products(rows, table, owner, begin, column)
        (values * weight).sum().backward()
        results.append((values.detach(), rows.grad, table.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not results[0][1][1].any() and not results[0][2][1].any()
    with torch.inference_mode():
        torch.testing.assert_close(ragged_products(rows, table, owner, begin, column), values)


def test_products_of_pairs_equal_those_of_copies_in_any_type_and_batch():
    torch.manual_seed(0)
    left, right, ids = torch.randn(4, 16), torch.randn(50, 16), torch.randint(0, 50, (4, 7))
    for other in (right, right.half(), right.bfloat16()):
        expected = torch.einsum("bd,bkd->bk", left, other[ids].float())
        together = pair_products(left, other, ids)
        torch.testing.assert_close(together, expected)
        assert together.dtype == torch.float32
        for row in range(4):  # no score depends on the other requests
            assert torch.equal(pair_products(left[row : row + 1], other, ids[row : row + 1])[0], together[row])
    assert pair_products(left, right, ids[:, :0]).shape == (4, 0)


def test_products_by_owner_need_no_beginnings():
    torch.manual_seed(0)
    rows, table = torch.randn(5, 8), torch.randn(9, 8)
    owner, column = torch.tensor([0, 0, 2, 4, 4, 4]), torch.tensor([3, 1, 8, 0, 0, 2])
    torch.testing.assert_close(owned_products(rows, table, owner, column), (rows[owner] * table[column]).sum(-1))
