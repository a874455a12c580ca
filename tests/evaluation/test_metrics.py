import numpy as np
import pytest
import torch

from genrec.data.histories import Histories
from genrec.errors import UserError
from genrec.evaluation.metrics import (
    bootstrap_interval,
    coverage,
    exposure,
    gini,
    paired_test,
    per_request_metrics,
    top_k,
)


def test_metrics_by_hand():
    ranked = np.array([[4, 7, 1], [4, 7, 1], [4, 7, 1], [2, -1, -1]])
    actual = per_request_metrics(ranked, np.array([4, 1, 9, -1]), [1, 3])
    assert actual["recall@1"].tolist() == [1, 0, 0, 0] and actual["recall@3"].tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(actual["ndcg@3"], [1, 0.5, 0, 0])  # 1 / log2(3 + 1)
    np.testing.assert_allclose(actual["mrr@3"], [1, 1 / 3, 0, 0])
    with pytest.raises(UserError, match="at least that many"):
        per_request_metrics(ranked, np.zeros(4, int), [5])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_top_k_equals_a_stable_sort(dtype):
    rng = np.random.default_rng(0)
    for n_levels in (1, 2, 5, 10_000):  # many ties to none
        scores = rng.integers(0, n_levels, (40, 57)).astype(dtype)
        for k in (1, 10, 56, 57):
            ids, best = top_k(scores, k)
            expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            np.testing.assert_array_equal(ids, expected)
            np.testing.assert_array_equal(best, np.take_along_axis(scores, expected, 1))


def test_excluded_items_never_return_even_when_too_few_remain():
    scores = np.arange(12, dtype=np.float32).reshape(2, 6)
    before = scores.copy()
    ids, best = top_k(scores, 8, Histories.from_lists([[5, 4, 0, 5], [0, 1, 2, 3, 4, 5]]))
    assert ids.tolist() == [[3, 2, 1, -1, -1, -1, -1, -1], [-1] * 8]
    assert best[0, :3].tolist() == [3, 2, 1] and np.isneginf(best[0, 3:]).all() and np.isneginf(best[1]).all()
    np.testing.assert_array_equal(scores, before)  # the caller's table is left as it was


def test_top_k_of_tensors_and_of_wrong_input():
    scores = np.random.default_rng(1).integers(0, 3, (5, 20)).astype(np.float32)
    exclude = Histories.from_lists([[1], [], [2, 3], [0], [19]])
    ids, best = top_k(torch.from_numpy(scores), 7, exclude)
    assert isinstance(ids, torch.Tensor)
    expected_ids, expected_best = top_k(scores, 7, exclude)
    np.testing.assert_array_equal(ids.numpy(), expected_ids)
    np.testing.assert_array_equal(best.numpy(), expected_best)
    assert top_k(np.zeros((0, 4)), 2)[0].shape == (0, 2)
    with pytest.raises(UserError, match="NaN"):
        top_k(np.array([[np.nan, 1.0]]), 1)
    with pytest.raises(UserError, match="histories"):
        top_k(scores, 3, Histories.from_lists([[1]]))


@pytest.mark.parametrize("kind", ["binary", "continuous"])  # resampled by counts of values, and by observations
def test_bootstrap_interval_covers(kind):
    rng = np.random.default_rng(0)
    size, truth = (400, 0.3) if kind == "binary" else (5000, 1.0)
    covered = []
    for seed in range(60):
        values = rng.binomial(1, 0.3, size).astype(float) if kind == "binary" else rng.exponential(1.0, size)
        low, high = bootstrap_interval(values, seed, n=300 if kind == "binary" else 200)
        assert low < values.mean() < high
        covered.append(low <= truth <= high)
    assert np.mean(covered) >= 0.85
    values = rng.binomial(1, 0.3, 400)
    assert bootstrap_interval(values, 3) == bootstrap_interval(values, 3)
    low, high = bootstrap_interval(values, 3)
    np.testing.assert_allclose(high - low, 2 * 1.96 * values.std() / 20, rtol=0.15)


def test_paired_test():
    rng = np.random.default_rng(0)
    a = rng.binomial(1, 0.3, 3000).astype(float)
    better = np.where(rng.random(3000) < 0.05, 1.0, a)
    mean, low, high, p = paired_test(better, a, seed=1)
    assert mean == pytest.approx((better - a).mean()) and 0 < low < mean < high and p < 0.01
    assert paired_test(a, a, seed=1) == (0.0, 0.0, 0.0, 1.0)
    p_values = [paired_test(rng.binomial(1, 0.3, 500), rng.binomial(1, 0.3, 500), seed)[3] for seed in range(80)]
    assert 0.3 < np.mean(p_values) < 0.7 and np.mean(np.array(p_values) < 0.05) < 0.15  # uniform when nothing differs
    with pytest.raises(UserError, match="same users"):
        paired_test(a, a[:5], seed=0)


def test_beyond_accuracy():
    ranked = np.array([[0, 1], [0, -1]])
    assert exposure(ranked, 4).tolist() == [2, 1, 0, 0] and exposure([ranked, ranked], 4).tolist() == [4, 2, 0, 0]
    assert coverage(ranked, 4) == 0.5
    assert gini(np.array([[0, 1, 2, 3]]), 4) == 0 and gini(np.array([[0], [0]]), 4) == 0.75
    assert gini(ranked, 4) == pytest.approx((1 * 1 + 3 * 2) / (4 * 3))
    # two events on item 0 and none on item 1: shares 3/4 and 1/4 after adding one
