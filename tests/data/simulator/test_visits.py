"""Exploration in the simulated log, and days of visits that answer to anybody's lists."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec.data.simulator.simulate import make_world, simulate
from genrec.data.simulator.value import list_value
from genrec.data.simulator.visits import best_lists, draw_visits, react, tables
from genrec.data.simulator.world import SimulatorConfig
from genrec.errors import UserError

CONFIG = SimulatorConfig(n_users=300, n_items=60, n_events=12_000, n_categories=6, n_brands=4, seed=3, exploration=0.3)


@pytest.fixture(scope="module")
def world():
    return make_world(CONFIG)


def test_one_over_the_propensity_counts_every_item_once():
    """Of the first slot, which drops no double: the mean of 1 / propensity over an item's rows is 1 a request."""
    log = simulate(CONFIG).impressions
    first = log.filter((pl.col("surface") == "feed") & (pl.col("position") == 0))
    assert first["propensity"].null_count() == 0 and first["propensity"].min() >= 0.3 / 60
    counts = first.group_by("item_id").agg(((1 / pl.col("propensity")).sum() / first.height).alias("mean"))["mean"]
    assert len(counts) == 60 and counts.mean() == pytest.approx(1, abs=0.1)
    assert counts.std() < 0.6
    with pytest.raises(UserError, match="exploration"):
        SimulatorConfig(exploration=1.5)


def test_what_people_do_agrees_with_what_is_expected(world):
    leaf = np.zeros(300, np.int64)
    visits = draw_visits(world, 50, 60, leaf, 0.7, seed=1)
    assert 150 < len(visits.users) < 260 and (np.diff(visits.users) > 0).all()
    assert (leaf[visits.users] == visits.leaf).all() and len(set(visits.leaf.tolist())) == 6
    again = draw_visits(world, 50, 60, np.zeros(300, np.int64), 0.7, seed=1)
    np.testing.assert_array_equal(visits.leaf, again.leaf)
    lists = np.tile(np.arange(10), (len(visits.users), 1))
    bought, expected = [], react(world, visits, lists, 0)[1]
    for seed in range(200):
        stages, value = react(world, visits, lists, seed)
        bought.append((stages == 3).sum(1).mean())
        np.testing.assert_array_equal(value, expected)
    assert np.mean(bought) == pytest.approx(expected.mean(), abs=5 * np.std(bought) / np.sqrt(200))
    short = react(world, visits, np.where(np.arange(10) < 4, lists, -1), 0)
    assert (short[0][:, 4:] == -1).all() and (short[1] < expected).all()


def test_the_oracle_is_best_in_the_mean_and_leaves_out_what_was_seen(world):
    leaf = np.random.default_rng(0).integers(0, 6, 300)
    users, when = np.arange(300), np.full(300, 0.9)
    seen = np.zeros((300, 60), bool)
    seen[:, ::7] = True
    best = best_lists(world, users, when, leaf, seen, 10)
    assert not np.isin(best, np.arange(0, 60, 7)).any()
    values = []
    for lists in (best, np.random.default_rng(1).permuted(best, axis=1), np.tile(np.arange(1, 7), (300, 1))):
        total = 0.0
        for day in range(40):
            visits = draw_visits(world, 54, 60, leaf.copy(), 100.0, seed=day)
            total += react(world, visits, lists[visits.users], 0)[1].mean()
        values.append(total)
    assert values[0] > values[1] > values[2]
    assert list_value(world, users, when, np.full(300, -1), best).purchases.mean() > 0


def test_a_day_becomes_a_log(world):
    visits = draw_visits(world, 3, 60, np.zeros(300, np.int64), 0.5, seed=2)
    lists = np.tile(np.arange(8), (len(visits.users), 1))
    lists[:, 7] = -1
    stages, _ = react(world, visits, lists, 1)
    events, impressions = tables(world, visits, lists, stages, np.full(lists.shape, 0.25))
    assert impressions.height == 7 * len(visits.users) and set(impressions["propensity"]) == {0.25}
    assert impressions["request_id"].n_unique() == len(visits.users)
    counts = {name: events.filter(pl.col("action") == name).height for name in ("click", "cart", "purchase")}
    assert counts == {name: int((stages >= step).sum()) for step, name in enumerate(("click", "cart", "purchase"), 1)}
    assert (
        events.join(impressions, on=["request_id", "item_id"])
        .filter(pl.col("timestamp") <= pl.col("timestamp_right"))
        .is_empty()
    )
