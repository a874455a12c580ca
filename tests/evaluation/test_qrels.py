"""Metrics with several relevant items, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.errors import UserError
from genrec.evaluation.qrels import Qrels, qrels_metrics


def test_binary_by_hand():
    # topic 0: items 3 and 5 relevant, found at ranks 1 and 3 of 4; topic 1: items 2 and 9, only 2 found at rank 2;
    # topic 2: nothing found
    ranked = np.array([[3, 1, 5, 0], [7, 2, -1, -1], [1, 0, 3, 4]])
    qrels = Qrels.build([0, 1, 0, 1, 2], [5, 2, 3, 9, 8])
    got = qrels_metrics(ranked, qrels, (2, 3))
    np.testing.assert_allclose(got["map"], [(1 + 2 / 3) / 2, (1 / 2) / 2, 0])
    np.testing.assert_allclose(got["mrr"], [1, 1 / 2, 0])
    ideal = 1 + 1 / np.log2(3)
    np.testing.assert_allclose(got["ndcg@3"], [(1 + 1 / 2) / ideal, (1 / np.log2(3)) / ideal, 0])
    np.testing.assert_allclose(got["ndcg@2"], [1 / ideal, (1 / np.log2(3)) / ideal, 0])
    np.testing.assert_allclose(got["recall@3"], [1, 1 / 2, 0])
    np.testing.assert_allclose(got["recall@2"], [1 / 2, 1 / 2, 0])


def test_graded_by_hand():
    ranked = np.array([[2, 0, 1]])
    qrels = Qrels.build([0, 0, 0], [0, 1, 2], [1.0, 0.0, 0.1])
    got = qrels_metrics(ranked, qrels, (1,))
    expected = (0.1 + 1 / np.log2(3)) / (1 + 0.1 / np.log2(3))
    assert got["ndcg"][0] == pytest.approx(expected) and got["ndcg@1"][0] == pytest.approx(0.1)
    assert got["recall@1"][0] == 0.5, "a gain of 0 is no answer"


def test_a_pair_counts_once_with_its_higher_gain():
    once, twice = Qrels.build([0], [4], [1.0]), Qrels.build([0, 0, 0], [4, 4, 4], [0.1, 1.0, 0.0])
    assert len(twice.items) == 1 and twice.gains.tolist() == once.gains.tolist()


def test_against_a_slow_reference():
    rng = np.random.default_rng(0)
    ranked = np.stack([rng.permutation(30)[:12] for _ in range(20)])
    truth = [(t, int(i), float(rng.choice([0.01, 0.1, 1.0]))) for t in range(20) for i in rng.permutation(30)[: t % 5]]
    qrels = Qrels.build(*(np.array(column) for column in zip(*truth, strict=True)), n=20)
    got = qrels_metrics(ranked, qrels, (5,))
    for topic in range(20):
        gains = {i: g for t, i, g in truth if t == topic}
        actual = [gains.get(int(item), 0) for item in ranked[topic]]
        precision = [sum(g > 0 for g in actual[: r + 1]) / (r + 1) for r, gain in enumerate(actual) if gain > 0]
        assert got["map"][topic] == pytest.approx(sum(precision) / max(len(gains), 1))
        best = sum(g / np.log2(r + 2) for r, g in enumerate(sorted(gains.values(), reverse=True)[:5]))
        assert got["ndcg@5"][topic] == pytest.approx(
            sum(g / np.log2(r + 2) for r, g in enumerate(actual[:5])) / best if best else 0
        )


def test_misfits_are_named():
    with pytest.raises(UserError, match="rank at least that many"):
        qrels_metrics(np.zeros((1, 3), np.int64), Qrels.build([0], [0]), (5,))
    with pytest.raises(UserError, match="no gain below 0"):
        Qrels.build([0], [0], [-1.0])
