"""Products of rows with ranges of a table equal those of copies, with their gradients."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from genrec.model.ragged_products import ragged_products


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
