"""New files behind the old ones of a log: only they are parsed, ids stay, and the result equals a full rebuild."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrec.config.load import load_config
from genrec.data.dataset import Dataset
from genrec.data.ids import IdMap, first_order
from genrec.data.prepare.pipeline import prepare
from genrec.data.readers.table import read as table

ARRAYS = ("offsets", "items", "timestamps", "actions", "queries", "split")


def day(folder: Path, number: int, users: int = 12, items: int = 15) -> None:
    """One file of a log; later days know more users and items."""
    rng = np.random.default_rng(number)
    count = 60
    pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in rng.integers(0, users + 4 * number, count)],
            "item_id": [f"i{n}" for n in rng.integers(0, items + 5 * number, count)],
            # days overlap: some late events come with the next file
            "timestamp": rng.integers(0, 1000, count) + 700 * number,
            "query": [["lamp", "cup", None][n] for n in rng.integers(0, 3, count)],
        }
    ).write_parquet(folder / f"day-{number}.parquet")


@pytest.fixture
def log(tmp_path, monkeypatch):
    """``log(days)`` writes days, ``log.prepare(name, *overrides)`` prepares.

    ``log.read`` lists the event files that were parsed.
    """

    class Log:
        folder, read = tmp_path / "log", []

        def __call__(self, *days):
            for number in days:
                day(self.folder, number)

        def prepare(self, name: str, *overrides: str) -> Dataset:
            self.read.clear()
            config = load_config(None, ["data.reader=table", f"data.path={self.folder}", *overrides])
            return Dataset(prepare(config, tmp_path / name / "dataset"))

    made = Log()
    made.folder.mkdir()
    real = table._read_events
    monkeypatch.setattr(table, "_read_events", lambda file, *more: (made.read.append(file.name), real(file, *more))[1])
    monkeypatch.setattr("genrec.data.prepare.ordering.PARTITION_EVENTS", 50)
    monkeypatch.setattr("genrec.data.prepare.splits.CHUNK_EVENTS", 40)
    return made


def same(one: Dataset, other: Dataset) -> bool:
    tables = ("item_table", "user_ids", "heldout_queries")
    return (
        all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ARRAYS)
        and all(getattr(one, name).equals(getattr(other, name)) for name in tables)
        and one.query_texts == other.query_texts
        and {**one.info, "log": 0} == {**other.info, "log": 0}
    )


@pytest.mark.parametrize(
    "overrides",
    [[], ["split.kind=global-time", "data.end_time=2500"], ["split.kind=session", "data.duplicates=keep"]],
    ids=str,
)
def test_appending_equals_a_rebuild(log, overrides):
    log(0, 1)
    old = log.prepare("kept", *overrides)
    assert log.read == ["day-0.parquet", "day-1.parquet"]
    users, items = old.user_ids.to_list(), old.item_table["item_id"].to_list()
    log(2, 3)
    appended = log.prepare("kept", *overrides)
    assert log.read == ["day-2.parquet", "day-3.parquet"]
    assert appended.user_ids.to_list()[: len(users)] == users and appended.n_users > len(users)
    assert appended.item_table["item_id"].to_list()[: len(items)] == items and appended.n_items > len(items)
    rebuilt = log.prepare("new", *overrides)
    assert len(log.read) == 4 and same(appended, rebuilt)
    assert appended.info["split_fingerprint"] == rebuilt.info["split_fingerprint"] != old.info["split_fingerprint"]


def test_ids_stay_when_the_k_core_lets_an_old_id_in_late(log):
    rules = ["data.min_user_events=4", "data.min_item_events=5"]
    log(0, 1)
    old = log.prepare("kept", *rules)
    users, items = old.user_ids.to_list(), old.item_table["item_id"].to_list()
    log(2, 3)
    appended, rebuilt = log.prepare("kept", *rules), log.prepare("new", *rules)
    assert (
        appended.user_ids.to_list()[: len(users)] == users
        and appended.item_table["item_id"].to_list()[: len(items)] == items
    )
    assert rebuilt.user_ids.to_list()[: len(users)] != users  # or the log is too easy for this test

    def by_name(data: Dataset) -> dict:
        return {
            user: (
                data.item_table["item_id"].gather(data.items[start:stop].astype(np.int64)).to_list(),
                data.timestamps[start:stop].tolist(),
                data.split[start:stop].tolist(),
            )
            for user, start, stop in zip(data.user_ids, data.offsets[:-1], data.offsets[1:], strict=True)
        }

    assert by_name(appended) == by_name(rebuilt)
    assert {key: appended.info[key] for key in ("users", "items", "rows", "leakage")} == {
        key: rebuilt.info[key] for key in ("users", "items", "rows", "leakage")
    }


@pytest.mark.parametrize("change", ["changed", "removed", "before"])
def test_another_past_is_read_again_and_said(log, change, caplog):
    log(1, 2, 3)
    log.prepare("kept")
    if change == "changed":
        day(log.folder, 2, users=30)
    elif change == "removed":
        (log.folder / "day-2.parquet").unlink()
    else:
        log(0)
    with caplog.at_level(logging.WARNING):
        again = log.prepare("kept")
    expected = {"changed": [2, 3], "removed": [3], "before": [0, 1, 2, 3]}[change]
    assert log.read == [f"day-{number}.parquet" for number in expected]
    assert "read again" in caplog.text and ("day-2" in caplog.text or change == "before")
    assert same(again, log.prepare("new"))


def test_a_removed_last_file(log):
    log(0, 1, 2)
    log.prepare("kept")
    (log.folder / "day-2.parquet").unlink()
    again = log.prepare("kept")
    assert log.read == [] and same(again, log.prepare("new"))


def test_other_rules_need_no_parsing(log):
    log(0, 1)
    log.prepare("kept")
    again = log.prepare("kept", "data.min_user_events=3", "queries.share=0.1")
    assert log.read == [] and same(again, log.prepare("new", "data.min_user_events=3", "queries.share=0.1"))


def test_changed_items_do_not_touch_the_events(log):
    log(0, 1)
    items = log.folder / "things.csv"
    items.write_text("item_id,title\ni1,Lamp\n")
    options = ["data.options.items=things.csv"]
    log.prepare("kept", *options)
    items.write_text("item_id,title\ni1,Cup\n,broken\n")
    again = log.prepare("kept", *options, "data.max_quarantine_share=0.5")
    assert log.read == [] and again.item_table.filter(pl.col("item_id") == "i1")["title"].to_list() == ["Cup"]
    assert again.info["rows"]["quarantined"] == 1 and again.info["rows"]["read"] == 122


def test_what_a_killed_job_left_is_removed(log, tmp_path):
    log(0)
    work = tmp_path / "kept"
    for name in (".dataset.999999999.scratch", ".dataset.parsed/000000.999999999.partial"):
        (work / name).mkdir(parents=True)
    log.prepare("kept")
    assert sorted(path.name for path in work.iterdir()) == [".dataset.parsed", "dataset"]
    assert [path.name for path in (work / ".dataset.parsed").iterdir()] == ["000000"]


def test_codes_of_strings_over_batches():
    ids, texts, codes = IdMap(), [], []
    rng = np.random.default_rng(0)
    values = [None if n % 11 == 0 else f"s{n}" for n in rng.integers(0, 60, 300)]
    for start in range(0, 300, 7):
        actual, fresh = ids.encode(pl.Series(values[start : start + 7], dtype=pl.String))
        codes += actual.tolist()
        texts += fresh.to_list()
    assert texts == list(dict.fromkeys(value for value in values if value is not None)) and len(ids) == len(texts)
    assert codes == [-1 if value is None else texts.index(value) for value in values]
    again, _ = IdMap(pl.Series(texts)).encode(pl.Series(values, dtype=pl.String))
    assert again.tolist() == codes
    order, count = np.full(9, -1), 0
    for batch in ([4, -1, 2], [2, 7, 4], [-1], [0, 7]):
        count = first_order(np.array(batch), order)
    assert count == 4 and order.tolist() == [3, -1, 1, -1, 0, -1, -1, 2, -1]


def kuairand_day(folder: Path, day: int) -> None:
    flags = "is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,is_profile_enter,is_rand"
    rows = [
        f"{n % 5 + day},{n * 7 % 11 + day},{1650812741000 + day * 10**7 + n * 1000},1,0,0,0,0,0,0,0,0,1"
        for n in range(40)
    ]
    name = f"log_standard_4_0{day}_to_4_0{day}_1k.csv"
    (folder / name).write_text("\n".join([f"user_id,video_id,time_ms,{flags},tab", *rows]) + "\n")
    (folder / "user_features_1k.csv").write_text("user_id,user_active_degree\n1,full\n")


def trivago_day(folder: Path, day: int) -> None:
    rows = [
        f"u{n % 5 + day}\ts{n % 5}\t{1541599500 + day * 10**5 + n}\t{n}\tinteraction item info\t{n * 7 % 11 + day}"
        for n in range(40)
    ]
    (folder / f"train_{day}.tsv").write_text(
        "\n".join(["user_id\tsession_id\ttimestamp\tstep\taction_type\treference", *rows]) + "\n"
    )
    (folder / "item_metadata.csv").write_text("item_id,properties\n1,Wifi|Pool\n")


def amazon_day(folder: Path, day: int) -> None:
    rows = [
        f'{{"reviewerID": "u{n % 5 + day}", "asin": "i{n * 7 % 11 + day}", '
        f'"unixReviewTime": {10**9 + day * 10**6 + n}}}'
        for n in range(40)
    ]
    (folder / f"reviews_{day}.json").write_text("\n".join(rows) + "\n")
    (folder / "meta_all.json").write_text("{'asin': 'i1', 'title': 'Lamp'}\n")


@pytest.mark.parametrize(
    ("reader", "write"), [("kuairand", kuairand_day), ("trivago", trivago_day), ("amazon-2014", amazon_day)]
)
def test_day_files_of_published_layouts_are_appended(tmp_path, caplog, reader, write):
    folder = tmp_path / "log"
    folder.mkdir()

    def made(name: str) -> Dataset:
        return Dataset(
            prepare(load_config(None, [f"data.reader={reader}", f"data.path={folder}"]), tmp_path / name / "dataset")
        )

    write(folder, 1)
    users = made("kept").user_ids.to_list()
    parsed = tmp_path / "kept" / ".dataset.parsed" / "000000"
    before = {path.name: path.stat().st_mtime_ns for path in parsed.iterdir()}
    write(folder, 2)
    with caplog.at_level(logging.WARNING):
        appended = made("kept")
    assert (
        "read again" not in caplog.text and {path.name: path.stat().st_mtime_ns for path in parsed.iterdir()} == before
    )
    assert appended.user_ids.to_list()[: len(users)] == users and appended.n_users > len(users)
    assert same(appended, made("new"))
