"""Qilin: requests with their results from CSV and Parquet, judgments matched to requests, and every row accounted
for."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from genrec.data.readers import read_log, toolkit
from genrec.data.readers.toolkit import lines as text_lines
from genrec.data.schema import RawLog, join_parts
from genrec.errors import UserError


def result(note: int, position: int, seconds: float, page_time: float = float("nan"), **feedback: float) -> dict:
    zero = dict.fromkeys(("click", "collect", "comment", "like", "share"), 0.0)
    time = {"request_timestamp": int(seconds * 1000)} if seconds > 2_000 else {"search_timestamp": seconds}
    return {
        **zero,
        **feedback,
        "note_id": f"6f{note}",
        "note_idx": note,
        "page_time": page_time,
        "position": position,
        **time,
    }


def search(number: int, user: int, query: str, *results: dict) -> dict:
    return {
        "query": query,
        "search_idx": number,
        "session_idx": 5,
        "user_idx": user,
        "search_result_details_with_idx": list(results),
    }


SEARCH_TRAIN = [
    search(
        10,
        1,
        "red, lamp",
        result(7, 1, 1000.0),
        result(8, 2, 999.0, 4.5, click=1.0),
        result(9, 3, 1002.0, like=1.0, click=1.0),
    ),
    search(11, 1, "cup", result(7, 1, 1100.0)),
]
SEARCH_TEST = [
    search(12, 2, "pot", result(8, 1, 1200.0, click=1.0), result(7, 2, 1200.0, click=1.0)),
    search(13, 2, "pan", result(9, 1, 1300.0, click=1.0)),
    search(14, 3, "pan", result(9, 1, 1400.0, click=1.0)),
]
REC_TEST = [
    {
        "request_idx": 12, "session_idx": 6, "user_idx": 2, "query": "titles of notes",
        "rec_result_details_with_idx": [result(8, 1, 1732668760.4), result(9, 2, 1732668790.9, click=1.0, share=1.0)],
    },
]  # fmt: skip
NOTES = [
    {
        "note_idx": 7, "note_title": "A, b", "note_content": 'two\n"lines"', "note_type": 2.0, "click_num": 5.0,
        "taxonomy1_id": "x", "taxonomy2_id": "y", "taxonomy3_id": None,
    },
    {
        "note_idx": 8, "note_title": "C", "note_content": None, "note_type": 1.0, "click_num": 0.0,
        "taxonomy1_id": None, "taxonomy2_id": None, "taxonomy3_id": None,
    },
]  # fmt: skip
USERS = [{"user_idx": 1, "gender": "female", "age": "16-18", "location": None, "fans_num": 2.0}]
DQA = [{"query": "why", "search_idx": 99, "dqa_output": "because"}]
TABLES = {
    "search_train": SEARCH_TRAIN, "search_test": SEARCH_TEST, "recommendation_test": REC_TEST,
    "notes": NOTES, "user_feat": USERS, "dqa": DQA,
}  # fmt: skip
QRELS = "qid,pid\n0,9\n1,7\n1,8\n1,8\n2,9\n"


def printed(value: object) -> object:
    """A list as pandas writes an array into a CSV file."""
    if not isinstance(value, list):
        return value
    return "[" + "\n ".join(str(row) for row in value) + "]"


def as_csv(folder: Path, **changes: list[dict]) -> Path:
    for name, rows in {**TABLES, **changes}.items():
        pl.DataFrame([{key: printed(value) for key, value in row.items()} for row in rows]).write_csv(
            folder / f"{name}.csv"
        )
    (folder / "search.test.qrels.csv").write_text(QRELS)
    return folder


def as_parquet(folder: Path) -> Path:
    for name, rows in TABLES.items():
        (folder / name).mkdir()
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(folder / name / "train-00000-of-00001.parquet")
    (folder / "search.test.qrels.csv").write_text(QRELS)
    return folder


def read(path: Path) -> RawLog:
    log = join_parts(read_log("qilin", path, {}))
    tables = sum(table.height for table in (log.items, log.users, log.judgments) if table is not None)
    requests = log.impressions["request_id"].n_unique() if log.impressions is not None else 0
    assert log.rows_read == requests + tables + log.quarantine.height + sum(log.filtered.values())
    return log


@pytest.mark.parametrize("layout", [as_csv, as_parquet])
def test_requests(layout, tmp_path):
    log = read(layout(tmp_path))
    assert log.impressions.select(
        "request_id", "user_id", "item_id", "timestamp", "position", "action", "query", "split"
    ).rows() == [
        ("search:10", "1", "7", 999, 1, "impression", "red, lamp", "train"),
        ("search:10", "1", "8", 999, 2, "click", "red, lamp", "train"),
        ("search:10", "1", "9", 999, 3, "like", "red, lamp", "train"),
        ("search:11", "1", "7", 1100, 1, "impression", "cup", "train"),
        ("search:12", "2", "8", 1200, 1, "click", "pot", "test"),
        ("search:12", "2", "7", 1200, 2, "click", "pot", "test"),
        ("search:13", "2", "9", 1300, 1, "click", "pan", "test"),
        ("search:14", "3", "9", 1400, 1, "click", "pan", "test"),
        ("recommendation:12", "2", "8", 1732668760, 1, "impression", None, "test"),
        ("recommendation:12", "2", "9", 1732668760, 2, "share", None, "test"),
    ]
    acted = log.impressions.filter(pl.col("action") != "impression")
    assert_frame_equal(
        log.events.select(sorted(log.events.columns)), acted.drop("position").select(sorted(log.events.columns))
    )
    assert log.events["page_time"].to_list() == [4.5, None, None, None, None, None, None]
    assert log.events.select("click", "like", "share").rows()[1] == (True, True, False)
    assert log.events["surface"].to_list() == ["search"] * 6 + ["feed"] and log.events["session_id"].to_list() == [
        "5"
    ] * 6 + ["6"]
    assert log.chain == ("impression", "click", "like", "collect", "comment", "share")


@pytest.mark.parametrize("layout", [as_csv, as_parquet])
def test_notes_users_and_judgments(layout, tmp_path):
    log = read(layout(tmp_path))
    assert log.items.select("item_id", "title", "text", "category", "note_type").rows() == [
        ("7", "A, b", 'two\n"lines"', ["x", "y"], 2.0),
        ("8", "C", None, None, 1.0),
    ]
    assert "click_num" not in log.items.columns  # it counts clicks of the test
    assert log.users.select("user_id", "gender", "fans_num").rows() == [("1", "female", 2.0)]
    # Topics 0 and 2 have the clicked notes of two requests: whose they are cannot be told.
    assert log.judgments.select("query_id", "query", "item_id", "gain", "request_id").rows() == [
        ("search_test:0", None, "9", 1.0, None),
        ("search_test:1", "pot", "7", 1.0, "search:12"),
        ("search_test:1", "pot", "8", 1.0, "search:12"),
        ("search_test:2", None, "9", 1.0, None),
    ]
    assert sorted(log.filtered.values()) == [1, 1] and any(rule.startswith("dqa") for rule in log.filtered)
    assert log.quarantine.is_empty() and log.rows_read == 15


def test_bad_rows_have_their_reason(tmp_path):
    good = SEARCH_TRAIN[0]
    bad = [
        {**good, "search_idx": None},
        {**good, "user_idx": None},
        {**good, "query": " "},
        {**good, "search_result_details_with_idx": "[{'click': 1.0"},
        {**good, "search_result_details_with_idx": "[{'click': 'x', 'note_idx': 7, 'search_timestamp': 1.0}]"},
        {**good, "search_result_details_with_idx": "[{'click': 1.0, 'search_timestamp': 1.0}]"},
        {**good, "search_result_details_with_idx": "[{'click': 1.0, 'note_idx': 7}]"},
        {**good, "search_result_details_with_idx": "[]"},
        good,
        good,
    ]
    as_csv(
        tmp_path, search_train=bad, notes=[*NOTES, NOTES[0], {**NOTES[0], "note_idx": None}], user_feat=[*USERS, *USERS]
    )
    (tmp_path / "search.test.qrels.csv").write_text("qid,pid\n,1\n1,\n1\n")
    log = read(tmp_path)
    reasons = log.quarantine.filter(pl.col("source") == "search_train.csv")["reason"].to_list()
    words = (
        "no search_idx",
        "no user_idx",
        "no query",
        "cannot be read",
        "cannot be read",
        "without note_idx",
        "no time",
    )
    assert len(reasons) == len(words) and all(word in reason for word, reason in zip(words, reasons, strict=True))
    others = log.quarantine.filter(pl.col("source") != "search_train.csv")["reason"].to_list()
    assert others == ["no note_idx", "no qid", "no pid", "1 fields where 2 are expected"]
    assert log.filtered["request without results"] == 1 and log.filtered["repeated request; its first row is kept"] == 1
    assert log.filtered[toolkit.REPEATED_ITEM] == 1 and log.filtered[toolkit.REPEATED_USER] == 1


def test_paths_and_columns(tmp_path):
    with pytest.raises(UserError, match="search_train"):
        read(tmp_path)
    as_csv(tmp_path)
    assert read(tmp_path / "search_train.csv").events.height == 2
    assert read(tmp_path / "search_*.csv").events["split"].to_list() == ["train"] * 2 + ["test"] * 4
    (tmp_path / "search_train.csv").write_text("query,search_idx,user,session_idx,search_result_details_with_idx\n")
    with pytest.raises(UserError, match="'user_idx'; did you mean"):
        read(tmp_path / "search_train.csv")
    (tmp_path / "search_train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="Parquet"):
        read(tmp_path / "search_train.parquet")


def test_batches_do_not_change_the_log(tmp_path, monkeypatch):
    rows = [
        search(n, n % 4, f"q{n}", result(n, 1, 1000.0 + n), result(n + 1, 2, 1000.0 + n, click=float(n % 2)))
        for n in range(40)
    ]
    rows[7]["user_idx"] = None
    as_csv(tmp_path, search_train=rows, notes=[{**NOTES[n % 2], "note_idx": n // 2} for n in range(40)])
    whole = read(tmp_path)
    monkeypatch.setattr(text_lines, "BATCH_BYTES", 1500)
    parts = list(read_log("qilin", tmp_path, {}))
    log = join_parts(parts)
    assert len(parts) > 10 and log.filtered == whole.filtered and whole.quarantine.height == 1
    for name in ("events", "impressions", "items", "users", "judgments", "quarantine"):
        assert_frame_equal(getattr(log, name), getattr(whole, name))
