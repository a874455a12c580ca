"""The product over the columns that occur equals the whole one bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from genrec.retrieval import sparse


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("named", [0, 1, 5])
def test_both_ways_are_equal(monkeypatch, dtype, named):
    draw = np.random.default_rng(named)
    table = sp.random(300, 5000, 0.01, "csr", np.float32, draw)
    left = sp.random(3, 300, named / 300, "csr", dtype, draw)
    calls = []
    unique = np.unique
    monkeypatch.setattr(sparse.np, "unique", lambda *args, **options: calls.append(1) or unique(*args, **options))
    monkeypatch.setattr(sparse, "WIDE", 0)
    narrow = sparse.product(left, table)
    assert len(calls) == 2  # rows and columns: the narrow way
    monkeypatch.setattr(sparse, "WIDE", 1 << 40)
    wide = sparse.product(left, table)
    assert len(calls) == (3 if left.nnz else 4)  # rows alone: the wide way, if there is anything to multiply
    for matrix in (narrow, wide):
        matrix.sort_indices()
    assert narrow.dtype == wide.dtype and narrow.shape == wide.shape
    assert np.array_equal(narrow.toarray(), wide.toarray())
    assert np.array_equal(narrow.toarray(), (left @ table).toarray())


def test_blocks_are_stacked_as_scipy_stacks_them():
    draw = np.random.default_rng(0)
    blocks = [sp.random(rows, 50, density, "csr", np.float32, draw) for rows, density in ((3, 0.2), (0, 0), (7, 0.5))]
    ours, theirs = sparse.stacked(iter(blocks)), sp.vstack(blocks, format="csr")
    assert ours.shape == theirs.shape
    for name in ("data", "indices", "indptr"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine, other)
