"""Inverse propensities: weights and their limit, the impression behind an event, the reward model and the gate."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.preference.acceptance import WEIGHTED, Measured, decide
from genrec.preference.propensities import MIN_SAMPLE, inverse_weights, sample_size, target_propensities
from genrec.preference.stage import Stage


def test_weights_by_hand():
    weights = inverse_weights(np.array([0.5, 0.25, np.nan, 0.25]))
    np.testing.assert_allclose(weights, np.array([2, 4, 0, 4]) / (10 / 3))
    assert inverse_weights(np.full(10, np.nan)) is None and inverse_weights(np.zeros(0)) is None
    assert inverse_weights(np.r_[np.full(9, np.nan), 0.5]) is None  # a tenth says nothing of the log
    rng = np.random.default_rng(0)
    heavy = np.exp(np.minimum(2 * rng.standard_normal(5000) - 9, 0))
    weights = inverse_weights(heavy)
    assert weights.mean() == pytest.approx(1) and sample_size(weights) == pytest.approx(MIN_SAMPLE, rel=1e-3)
    clipped = weights == weights.max()
    np.testing.assert_allclose(weights[~clipped] * heavy[~clipped], (weights * heavy)[~clipped][0])
    assert sample_size(1 / heavy) < MIN_SAMPLE / 5


def test_the_impression_behind_each_event(trained_run):
    stage = Stage(trained_run, "key")
    data, feedback = trained_run.dataset, stage.feedback
    events = np.concatenate([data.heldout_events("valid"), data.heldout_events("test")])
    found = target_propensities(feedback, data, events, stage.levels)
    owner = feedback.owner
    for event, propensity in list(zip(events, found, strict=True))[::7]:
        same = (feedback.users[owner] == data.event_users[event]) & (feedback.items == data.items[event])
        rows = np.flatnonzero(same & (feedback.times[owner] <= data.timestamps[event]) & (feedback.stages > 0))
        rows = rows[feedback.times[owner[rows]] == feedback.times[owner[rows]].max(initial=-1)]
        options = feedback.propensities[rows]
        assert (len(rows) == 0 and np.isnan(propensity)) or propensity in options or np.isnan(options).any()
    weights = stage.exposure_weights("valid")
    assert len(weights) == len(data.requests("valid")) and weights[weights > 0].mean() == pytest.approx(1)
    measured = stage.measure("valid")
    hits = measured.paired["recall"]
    np.testing.assert_allclose(measured.means()[f"{WEIGHTED} recall"], (hits * weights)[weights > 0].mean(), rtol=1e-12)


def test_the_gate_judges_by_exposure_where_the_log_states_it():
    lists, n = np.zeros((1000, 10), np.int64), 1000

    def measured(share: float, weighted: float | None) -> Measured:
        paired = {name: np.arange(n) < share * n for name in ("recall", "ndcg")}
        paired = {name: values.astype(float) for name, values in paired.items()}
        if weighted is not None:
            paired |= {f"{WEIGHTED} {name}": (np.arange(n) < weighted * n).astype(float) for name in ("recall", "ndcg")}
        return Measured(lists, paired, {})

    cases = (
        (0.475, 0.52, True),  # the log's own recall falls by a twentieth: its policy did not show what is better
        (0.44, 0.52, False),  # ... by more than a tenth
        (0.50, 0.47, False),  # what people would choose falls
        (0.475, None, False),  # a log that does not say why it showed what it showed
    )
    for share, weighted, kept in cases:
        before = measured(0.5, None if weighted is None else 0.5)
        assert decide(before, measured(share, weighted), 0.02, 0).kept == kept, (share, weighted)
