"""From tables in memory or files to a trained run: what is recognised, what is refused, and the newcomer's script."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.util import find_spec

import polars as pl
import pytest

from genrec.data.dataset import Dataset
from genrec.data.simulator.simulate import simulate
from genrec.data.simulator.world import SimulatorConfig
from genrec.errors import UserError
from genrec.pipeline import fit_frames as module
from genrec.pipeline.fit_frames import _dotted, _frame, _named, _with_seconds, evaluate, fit_frames

TINY = {
    "text": {"dim": 16},
    "model": {"dim": 16, "heads": 2, "layers": 1, "max_length": 10},
    "training": {"epochs": 1, "batch_size": 64, "accelerator": "cpu", "refit": False, "decoder_epochs": 1},
    "decoding__beam": 20,
}


@pytest.fixture(scope="module")
def shop():
    """Events and items of a small shop, under names of its own."""
    log = simulate(SimulatorConfig(n_users=80, n_items=60, n_events=1200, n_categories=6, n_brands=4, seed=2))
    events = log.events.select(
        customer_id="user_id", product_id="item_id", time="timestamp", event="action", search_term="query"
    )
    return events, log.items.select("item_id", "title", "category", "price")


def test_a_newcomers_script_from_csv_to_an_answer(shop, tmp_path, monkeypatch):
    """At most eight lines, imports included."""
    monkeypatch.chdir(tmp_path)
    shop[0].write_csv("events.csv")
    shop[1].with_columns(pl.col("category").list.join("|")).write_csv("items.csv")
    script = """\
from genrec.inference.recommender import Recommender
from genrec.pipeline.fit_frames import fit_frames
run = fit_frames("events.csv", "items.csv", output="runs/shop", **settings)
model = Recommender.load("runs/shop")
answers = model.recommend(user="u000001", k=5)
found = model.search("red lamp", k=5)
"""
    assert len(script.splitlines()) <= 8
    names = {"settings": TINY}
    exec(script, names)
    assert len(names["answers"]) == len(names["found"]) == 5 and names["answers"][0].title
    data = Dataset(tmp_path / "runs/shop/dataset")
    assert data.n_items == 60 and data.actions_chain and len(data.query_texts) > 5
    table = evaluate(names["run"])
    assert {"popularity"} < set(table["model"]) and table["recall@10"].is_between(0, 1).all()
    made = (tmp_path / "runs/shop/model/manifest.json").stat().st_mtime_ns
    fit_frames("events.csv", "items.csv", output="runs/shop", **TINY)
    assert (tmp_path / "runs/shop/model/manifest.json").stat().st_mtime_ns == made


def test_every_kind_of_table_gives_the_same_log(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "stage_train", lambda run: None)
    events = shop[0].head(200)
    events.write_csv(tmp_path / "e.csv")
    events.write_parquet(tmp_path / "e.parquet")
    events.write_ndjson(tmp_path / "e.jsonl")
    given = [
        events,
        events.lazy(),
        events.to_arrow(),
        *(tmp_path / f"e.{kind}" for kind in ("csv", "parquet", "jsonl")),
    ]
    if find_spec("pandas"):
        given.append(events.to_pandas())
    written = []
    for table in given:
        fit_frames(table, output=tmp_path / "run")
        log = pl.read_parquet(tmp_path / "run/log/events.parquet")
        written.append(log.select("user_id", "item_id", "timestamp", "action", "query"))
    assert all(one.equals(written[0]) for one in written[1:])


def test_searches_may_be_a_table_of_their_own(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "stage_train", lambda run: None)
    searches = shop[0].filter(pl.col("search_term").is_not_null())
    plain = shop[0].filter(pl.col("search_term").is_null()).drop("search_term")
    fit_frames(plain, queries=searches, output=tmp_path / "run")
    log = pl.read_parquet(tmp_path / "run/log/events.parquet")
    assert log.height == shop[0].height and log["query"].count() == searches.height


MOMENT = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
SECONDS = int(MOMENT.timestamp())


@pytest.mark.parametrize(
    "values",
    [
        [SECONDS],
        [float(SECONDS)],
        [SECONDS * 1000],
        [SECONDS * 10**6],
        [SECONDS * 10**9],
        [MOMENT],
        [MOMENT.replace(tzinfo=None)],
        [str(SECONDS)],
        ["2024-05-01 12:30:00"],
        ["2024-05-01T12:30:00Z"],
        ["2024-05-01T14:30:00+02:00"],
    ],
)
def test_times_become_seconds(values):
    frame = _with_seconds(pl.LazyFrame({"timestamp": values})).collect()
    assert frame["timestamp"].to_list() == [SECONDS] and frame["timestamp"].dtype == pl.Int64


def test_dates_and_missing_times():
    days = _with_seconds(pl.LazyFrame({"timestamp": [MOMENT.date()]})).collect()
    assert days["timestamp"].to_list() == [SECONDS // 86_400 * 86_400]
    assert _with_seconds(pl.LazyFrame({"user_id": ["a", "b"]})).collect()["timestamp"].to_list() == [0, 1]
    with pytest.raises(UserError, match="'yesterday' is neither"):
        _with_seconds(pl.LazyFrame({"timestamp": ["yesterday"]}))


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(UserError, match=r"events: no column 'user_id'; the table has who, item_id"):
        fit_frames(pl.DataFrame({"who": ["a"], "item_id": ["b"]}), output=tmp_path / "run")
    with pytest.raises(UserError, match="items: a int is no table"):
        _frame(3, "items")
    with pytest.raises(UserError, match=r"nothing\.csv does not exist"):
        _frame(tmp_path / "nothing.csv", "events")
    (tmp_path / "log.xls").write_text("")
    with pytest.raises(UserError, match="is no .csv"):
        _frame(tmp_path / "log.xls", "events")
    with pytest.raises(UserError, match="did you mean 'training.epochs'"):
        fit_frames(pl.DataFrame({"user": ["a"], "item": ["b"]}), output=tmp_path / "run", training={"epoch": 3})
    assert _dotted({"a": {"b": 1, "c": {"d": 2}}, "e__f": [3], "g": 4}) == {"a.b": 1, "a.c.d": 2, "e.f": [3], "g": 4}


def test_a_name_of_the_contract_wins_over_others():
    frame = _named(
        pl.LazyFrame({"item": ["x"], "item_id": ["y"], "Title": ["z"]}), ("item_id", "title"), ("item_id",), "items"
    )
    assert frame.collect().columns == ["item", "item_id", "title"]
