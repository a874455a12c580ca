"""The simulator: deterministic, on the contract, and worth learning from."""

from __future__ import annotations

import polars as pl
import pytest

from genrec.data.readers import read_log as read_parts
from genrec.data.schema import EVENT_SCHEMA, ITEM_SCHEMA, RawLog, join_parts
from genrec.data.simulator.simulate import (
    SimulatorConfig,
    simulate,
    simulate_chunks,
    write,
)
from genrec.data.simulator.world import _brand_names
from genrec.errors import UserError

SMALL = SimulatorConfig(n_users=300, n_items=600, n_events=12_000, n_categories=24, n_brands=12, seed=3)


def read_log(*arguments) -> RawLog:
    """A whole log at once."""
    return join_parts(read_parts(*arguments))


@pytest.fixture(scope="module")
def log():
    return simulate(SMALL)


def test_same_seed_same_log_other_seed_other_log(log):
    again = simulate(SMALL)
    assert (
        again.events.equals(log.events) and again.items.equals(log.items) and again.impressions.equals(log.impressions)
    )
    other = simulate(SimulatorConfig(**{**{k: getattr(SMALL, k) for k in SMALL.__dataclass_fields__}, "seed": 4}))
    assert not other.events.equals(log.events)


def test_tables_keep_the_contract(log):
    assert list(log.events.columns) == list(EVENT_SCHEMA) and log.events["timestamp"].is_sorted()
    assert abs(log.events.height - SMALL.n_events) < 0.1 * SMALL.n_events
    assert log.events["user_id"].n_unique() > 0.9 * SMALL.n_users
    assert log.items.select(*ITEM_SCHEMA).null_count().sum_horizontal()[0] == 0
    assert set(log.events["item_id"]) <= set(log.items["item_id"]) and log.items["item_id"].n_unique() == SMALL.n_items
    paths = log.items["category"]
    assert set(paths.list.len()) == {2, 3} and paths.list.first().n_unique() == 1
    assert len(set(_brand_names(8_000))) == 8_000


def test_the_chain_holds(log):
    key = ["request_id", "user_id", "item_id"]
    visible = log.impressions.select(*key, pl.col("timestamp").alias("shown_at"), pl.col("action").alias("stage"))
    assert not visible.select(key).is_duplicated().any()
    events = log.events.join(visible, on=key, how="left")
    assert events["shown_at"].null_count() == 0 and (events["timestamp"] > events["shown_at"]).all()
    counts = dict(log.events["action"].value_counts().iter_rows())
    assert counts["click"] > counts["cart"] > counts["purchase"] > 0
    stages = dict(log.impressions["action"].value_counts().iter_rows())
    assert (
        counts["purchase"] == stages["purchase"]
        and counts["click"] == stages["click"] + stages["cart"] + stages["purchase"]
    )
    wide = log.events.pivot("action", index=key, values="timestamp")
    assert ((wide["cart"] > wide["click"]) | wide["cart"].is_null()).all()
    assert ((wide["purchase"] > wide["cart"]) | wide["purchase"].is_null()).all()


def test_queries_belong_to_search_and_speak_of_the_items(log):
    search = log.events["surface"] == "search"
    assert (log.events["query"].is_not_null() == search).all() and 0.1 < search.mean() < 0.6
    clicked = log.events.filter(search).join(log.items, on="item_id")
    leaf = clicked["category"].list.last().str.to_lowercase()
    said = pl.Series([name in query for name, query in zip(leaf, clicked["query"], strict=True)])
    assert said.mean() > 0.7


def test_written_parts_hold_the_same_log(tmp_path, log, monkeypatch):
    monkeypatch.setattr("genrec.data.simulator.simulate.CHUNK_SESSIONS", 1_000)
    assert sum(1 for _ in simulate_chunks(SMALL)) > 1
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "part-99999.parquet").write_bytes(b"old")
    written = write(SMALL, tmp_path)
    back = read_log("table", str(tmp_path), {"events": "events", "items": "items.parquet", "users": "users.parquet"})
    assert back.events.height == written.events and back.items.height == SMALL.n_items and back.quarantine.is_empty()
    assert (
        back.events.group_by("request_id").agg(pl.col("user_id").n_unique())["user_id"].max() == 1
    )  # ids do not clash across parts


def test_reader_options():
    options = {"n_users": 20, "n_items": 50, "n_events": 400, "n_categories": 5, "n_brands": 3}
    plain = read_log("simulator", None, options)
    visible = read_log("simulator", None, {**options, "include_impressions_in_events": True})
    assert "impression" not in set(plain.events["action"])
    assert (
        visible.events["action"].value_counts().filter(pl.col("action") == "impression")["count"][0]
        > plain.events.height
    )
    assert visible.events.filter(pl.col("action") != "impression").equals(plain.events)
    assert plain.rows_read == plain.events.height + 70
    for wrong in (
        {"n_items": 2, "n_categories": 5},
        {"n_users": 0},
        {"n_users": "many"},
        {"slate_size": 40},
        {"drift": -1},
    ):
        with pytest.raises(UserError, match="simulator"):
            read_log("simulator", None, wrong)
