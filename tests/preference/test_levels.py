"""Levels, calibrated rates, margins; and feedback of which training knows nothing held out."""

from __future__ import annotations

import copy

import numpy as np
import polars as pl
import pytest

from genrec.data.dataset import TEST, TRAIN, VALID
from genrec.data.impressions import feedback_chain
from genrec.errors import UserError
from genrec.preference.feedback import collect
from genrec.preference.levels import Levels, Rates, adaptive_margins

CHAIN = ("impression", "click", "cart", "purchase")


def test_weights_by_rule_and_by_config():
    levels = Levels.build(CHAIN, {})
    assert levels.weights.tolist() == [0.5, 1.0, 1.5, 2.0] and (levels.click, levels.order) == (1, 3)
    assert Levels.build(["rating"], {}).weights.tolist() == [1.0]
    ours = Levels.build(CHAIN, {"cart": 1.8, "similar": 0.1}, order="cart")
    assert ours.weights.tolist() == [0.5, 1.0, 1.8, 2.0] and ours.similar == 0.1 and ours.order == 2


@pytest.mark.parametrize(
    ("weights", "order", "wrong"),
    [
        ({"buy": 1}, None, "buy"),
        ({"click": 3.0}, None, "must not fall"),
        ({}, "impression", "before the click"),
        ({}, "x", "x"),
    ],
)
def test_wrong_levels_are_named(weights, order, wrong):
    with pytest.raises(UserError, match=wrong):
        Levels.build(CHAIN, weights, order)


def test_rates_and_reward_are_the_papers_formula():
    items, stages = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 3, 0, 2])
    rates = Rates.of_rows(items, stages, 3, Levels.build(CHAIN, {}))
    visible, clicked, ordered = np.log([13, 12, 10]), np.log([12, 11, 10]), np.log([11, 10, 10])
    np.testing.assert_allclose(rates.ctr, clicked / (visible + clicked + ordered))
    np.testing.assert_allclose(rates.cvr, ordered / clicked)
    reward = rates.reward(np.array([0, 2]), np.array([2.0, 0.5]))
    np.testing.assert_allclose(
        reward,
        [
            4 * rates.ctr[0] * rates.cvr[0] / (rates.ctr[0] + rates.cvr[0]),
            rates.ctr[2] * rates.cvr[2] / (rates.ctr[2] + rates.cvr[2]),
        ],
    )


def test_close_pairs_count_more_within_limits():
    margins = adaptive_margins(np.array([1.0, 1.0, 1.0, 1.0]), np.array([0.0, 0.5, 2.0, np.nan]), 3.0)
    assert margins[1] >= margins[0] and margins[2] == 3.0 and margins[3] == 0 and margins.min() >= 0


@pytest.fixture(scope="module", params=["leave-last-out", "global-time"])
def feedback_run(request, tmp_path_factory, tiny_overrides):
    from genrec.pipeline.stages import stage_prepare
    from genrec.runs.run import Run

    run = Run.create(None, tiny_overrides(tmp_path_factory.mktemp("runs"), f"split.kind={request.param}"))
    stage_prepare(run)
    return run


def test_requests_see_what_was_before_and_training_nothing_held_out(feedback_run):
    data = feedback_run.dataset
    levels = Levels.build(feedback_chain(data), {})
    feedback = collect(data, levels)
    assert (
        feedback.observed
        and (np.diff(feedback.times) >= 0).all()
        and set(np.unique(feedback.split)) == {TRAIN, VALID, TEST}
    )
    requests = feedback.requests
    owner = np.repeat(np.arange(len(feedback)), np.diff(requests.offsets))
    assert (requests.timestamps < requests.times[owner]).all()
    of_event = np.repeat(np.arange(data.n_users), np.diff(data.offsets))
    events = pl.DataFrame(
        {
            "user": of_event,
            "item": data.items.astype(np.int64),
            "stage": data.actions.astype(np.int64),
            "split": data.split,
            "t": data.timestamps,
        }
    )
    train = feedback.take(np.flatnonzero(feedback.split == TRAIN))
    rows = pl.DataFrame(
        {"user": train.users[train.owner], "item": train.items, "stage": train.stages, "t0": train.times[train.owner]}
    )
    # The simulator's requests are three minutes apart, and everything that one leads to happens within that time.
    led = rows.join(events, on=["user", "item", "stage"]).filter(
        (pl.col("t") >= pl.col("t0")) & (pl.col("t") < pl.col("t0") + 180)
    )
    assert (led["split"] == TRAIN).all() and led.height > 100
    if data.info["split"] == "global-time":
        assert train.times.max() < data.timestamps[data.split == VALID].min()


def test_rates_do_not_change_with_what_is_held_out(feedback_run):
    """In another future, every impression after the end of its user's training is a purchase."""
    data = feedback_run.dataset
    levels = Levels.build(feedback_chain(data), {})

    def rates(dataset):
        feedback = collect(dataset, levels)
        train = feedback.take(np.flatnonzero(feedback.split == TRAIN))
        return Rates.of_rows(train.items, train.stages, dataset.n_items, levels)

    before = rates(data)
    other = copy.copy(data)
    held = np.asarray(data.split) > 0
    owner = np.repeat(np.arange(data.n_users), np.diff(data.offsets))
    begin = np.full(data.n_users, np.iinfo(np.int64).max)
    np.minimum.at(begin, owner[held], np.asarray(data.timestamps)[held])
    if data.info["split"] == "global-time":
        begin[:] = begin.min()
    visible = data.impressions
    late = visible["timestamp"].to_numpy() >= begin[visible["user"].to_numpy()]
    assert late.any()
    other.__dict__["impressions"] = visible.with_columns(
        pl.when(pl.Series(late)).then(pl.lit("purchase")).otherwise(pl.col("action")).alias("action")
    )
    after = rates(other)
    np.testing.assert_array_equal(before.ctr, after.ctr)
    np.testing.assert_array_equal(before.cvr, after.cvr)
    train_only = visible.with_columns(
        pl.when(pl.Series(~late)).then(pl.lit("purchase")).otherwise(pl.col("action")).alias("action")
    )
    other.__dict__["impressions"] = train_only
    assert np.abs(rates(other).cvr - before.cvr).max() > 1e-3  # the check can fail


def test_a_log_without_impressions_gives_its_events(prepare_table):
    events = [
        {"user_id": f"u{u}", "item_id": f"i{(u + t) % 5}", "timestamp": 1000 + 10 * t + u, "action": "buy"}
        for u in range(4)
        for t in range(5)
    ]
    data = prepare_table(events)
    feedback = collect(data, Levels.build(feedback_chain(data), {}))
    assert not feedback.observed and len(feedback) == 4 * 4
    assert (np.diff(feedback.requests.offsets) > 0).all() and (feedback.targets == feedback.items).all()
    items, stages = feedback.padded()
    assert items.shape == (16, 1) and (stages == 0).all()
