"""Scores of sparse sources: the same numbers whether they are kept as a matrix or as a plain array."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from genrec.retrieval.allowed import AllowedItems
from genrec.retrieval.sources import FULL, SparseScores

ITEMS, BATCH = 60, 5


def random_scores(fraction: float, seed: int) -> sp.csr_matrix:
    matrix = sp.random(BATCH, ITEMS, fraction, "csr", np.float32, np.random.default_rng(seed))
    matrix.data += 0.5
    return matrix


@pytest.mark.parametrize("fraction", [0.0, 0.5 / FULL, 2.0 / FULL, 1.0])
def test_scores_are_those_of_the_dense_array(fraction):
    matrix = random_scores(fraction, 0)
    dense = matrix.toarray()
    scores = SparseScores(matrix)
    assert (scores.matrix != matrix).nnz == 0
    np.testing.assert_array_equal(scores.maxima(), dense.max(1))
    ids = np.random.default_rng(1).integers(0, ITEMS + 10, (BATCH, 30))  # some were added since
    grown = np.pad(dense, ((0, 0), (0, 10)))
    np.testing.assert_array_equal(scores.at(ids), np.take_along_axis(grown, ids, 1))
    excluded = torch.from_numpy(np.sort(ids[:, :4], 1))
    for k in (3, ITEMS):
        found, values = scores.top(k, AllowedItems(excluded=excluded))
        for row in range(BATCH):
            left = np.delete(dense[row], excluded[row][excluded[row] < ITEMS])
            expected = np.sort(left[left > 0])[::-1][:k]
            kept = found[row] >= 0
            np.testing.assert_array_equal(values[row][kept], expected)
            np.testing.assert_array_equal(dense[row, found[row][kept]], expected)
            assert not kept[len(expected) :].any() and torch.isinf(values[row][len(expected) :]).all()


@pytest.mark.parametrize("fractions", [(0.01, 0.02), (0.01, 0.9), (0.9, 0.8)])
def test_sums_do_not_depend_on_how_the_parts_are_kept(fractions):
    one, other = (random_scores(fraction, seed) for seed, fraction in enumerate(fractions))
    total = SparseScores(one.copy()) + SparseScores(other.copy())
    np.testing.assert_array_equal(total.matrix.toarray(), (one + other).toarray())
