"""From tables in memory or files to a trained run: what is recognised, what is refused, and the newcomer's script."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest

from genrec.data.dataset import Dataset
from genrec.data.readers import read_log
from genrec.data.schema import RawLog, join_parts
from genrec.data.simulator.simulate import simulate
from genrec.data.simulator.world import SimulatorConfig
from genrec.errors import UserError
from genrec.pipeline import fit_frames as module
from genrec.pipeline.fit_frames import _dotted, evaluate, fit_frames

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


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(module, "stage_train", lambda run: None)


def read(run) -> RawLog:
    """The log as the run reads it."""
    data = run.config.data
    return join_parts(read_log(data.reader, Path(data.path), data.options))


EVENT = ["user_id", "item_id", "timestamp", "action", "query"]


@pytest.mark.usefixtures("untrained")
def test_every_kind_of_table_gives_the_same_log(shop, tmp_path):
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
        given += [events.to_pandas(), events.to_pandas().set_index("customer_id")]
    logs = [read(fit_frames(table, output=tmp_path / "run")).events.select(EVENT) for table in given]
    assert logs[0].height == 200 and all(one.equals(logs[0]) for one in logs[1:])


@pytest.mark.usefixtures("untrained")
def test_searches_may_be_a_table_of_their_own(shop, tmp_path):
    searches = shop[0].filter(pl.col("search_term").is_not_null())
    plain = shop[0].filter(pl.col("search_term").is_null()).drop("search_term")
    log = read(fit_frames(plain, queries=searches, output=tmp_path / "run"))
    assert log.events.height == shop[0].height and log.events["query"].count() == searches.height
    with pytest.raises(UserError, match="queries: no column 'query'"):
        fit_frames(plain, queries=plain, output=tmp_path / "other")


@pytest.mark.usefixtures("untrained")
def test_a_folder_and_items_in_memory(shop, tmp_path):
    for day in range(3):
        (tmp_path / "log").mkdir(exist_ok=True)
        shop[0][day * 100 : day * 100 + 100].write_csv(tmp_path / f"log/day-{day}.csv")
    log = read(fit_frames(tmp_path / "log", shop[1], output=tmp_path / "run"))
    assert log.events.height == 300 and log.items["title"].count() == log.items.height == 60


MOMENT = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
SECONDS = int(MOMENT.timestamp())
FRAME = {"user_id": ["a", "b"], "item_id": ["x", "y"]}


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    "value",
    [
        SECONDS,
        float(SECONDS),
        SECONDS * 1000,
        SECONDS * 10**6,
        SECONDS * 10**9,
        MOMENT,
        MOMENT.replace(tzinfo=None),
        str(SECONDS),
        "2024-05-01 12:30:00",
        "2024-05-01T12:30:00Z",
        "2024-05-01T14:30:00+02:00",
        "2024-05-01 12:30:00+00",
        "13.05.2024 12:30",
        45413.520833333336,
    ],
)
def test_times_become_seconds(value, tmp_path):
    log = read(fit_frames(pl.DataFrame(FRAME | {"time": [value, value]}), output=tmp_path / "run"))
    assert set(log.events["timestamp"]) == {SECONDS + (12 * 86_400 if str(value).startswith("13.") else 0)}


@pytest.mark.usefixtures("untrained")
def test_dates_and_missing_times(tmp_path):
    days = read(fit_frames(pl.DataFrame(FRAME | {"day": [MOMENT.date()] * 2}), output=tmp_path / "days"))
    assert set(days.events["timestamp"]) == {SECONDS // 86_400 * 86_400}
    rows = read(fit_frames(pl.DataFrame(FRAME), output=tmp_path / "rows"))
    assert rows.events["timestamp"].is_sorted() and rows.events["timestamp"].n_unique() == 2
    run = fit_frames(pl.DataFrame(FRAME | {"timestamp": ["05/06/2024", "07/08/2024"]}), output=tmp_path / "two")
    assert read(run).events["timestamp"][0] == 1717545600  # the day first, and said so


@pytest.mark.usefixtures("untrained")
def test_frames_are_read_as_files_are(tmp_path):
    """Kinds of silent mistakes: what the table reader mends in files is mended in frames."""
    events = pl.DataFrame(
        {
            "Kunde": [1.0, 2.0, None, float("nan"), 1.0],
            "Artikel": ["007", "008", "007", "007", " 008 "],
            "Zeit": [SECONDS] * 5,
            "Menge": [1, 1, 1, 1, -1],
        }
    )
    items = pl.DataFrame({"Artikel": ["007", "008"], "Bezeichnung": ["L&amp;M", "NULL"], "Preis": ["1.299,05", "4,50"]})
    log = read(fit_frames(events, items, output=tmp_path / "run"))
    assert log.events.select("user_id", "item_id").rows() == [("1", "007"), ("2", "008")]
    assert log.items.select("title", "price").rows() == [("L&M", 1299.05), (None, 4.5)]
    assert log.quarantine.height == 2 and log.filtered == {"returned or cancelled (quantity not above 0)": 1}
    flags = pl.DataFrame(FRAME | {"timestamp": [SECONDS] * 2, "clicked": [True, False]})
    log = read(fit_frames(flags, output=tmp_path / "flags"))
    assert log.events["action"].to_list() == ["click"] and log.chain == ("impression", "click")


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(UserError, match=r"events: no column 'user_id'; the table has who, item_id"):
        fit_frames(pl.DataFrame({"who": ["a"], "item_id": ["b"]}), output=tmp_path / "run")
    with pytest.raises(UserError, match="items: no column 'item_id'; the table has what"):
        fit_frames(pl.DataFrame(FRAME), pl.DataFrame({"what": ["q"]}), output=tmp_path / "run")
    with pytest.raises(UserError, match="items: a int is no table"):
        fit_frames(pl.DataFrame(FRAME), 3, output=tmp_path / "run")
    with pytest.raises(UserError, match=r"nothing\.csv does not exist"):
        fit_frames(tmp_path / "nothing.csv", output=tmp_path / "run")
    if find_spec("pandas"):
        import pandas as pd

        with pytest.raises(UserError, match=r"mixes types .*astype"):
            fit_frames(pd.DataFrame({"user": ["a", 1], "item": ["b", "c"]}), output=tmp_path / "run")
    with pytest.raises(UserError, match="did you mean 'training.epochs'"):
        fit_frames(pl.DataFrame({"user": ["a"], "item": ["b"]}), output=tmp_path / "run", training={"epoch": 3})
    assert _dotted({"a": {"b": 1, "c": {"d": 2}}, "e__f": [3], "g": 4}) == {"a.b": 1, "a.c.d": 2, "e.f": [3], "g": 4}


@pytest.mark.usefixtures("untrained")
def test_a_name_of_the_contract_wins_and_a_stated_one_wins_over_all(tmp_path):
    frame = pl.DataFrame({"user": ["a"], "item": ["x"], "item_id": ["y"], "who": ["z"]})
    assert read(fit_frames(frame, output=tmp_path / "run")).events.row(0)[:2] == ("a", "y")
    run = fit_frames(frame, output=tmp_path / "run2", data={"options": {"columns": {"user_id": "who"}}})
    assert read(run).events.row(0)[:2] == ("z", "y")
