"""Amazon 2023: JSON lines and published tables, milliseconds, splits, and every row accounted for."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from genrec.data.readers import read_log, toolkit
from genrec.data.readers.toolkit import lines as text_lines
from genrec.data.schema import ITEM_SCHEMA, RawLog, join_parts
from genrec.errors import UserError

REVIEW = {
    "rating": 5.0, "title": "t", "text": "x", "images": [], "asin": "B1-red", "parent_asin": "B1", "user_id": "A1",
    "timestamp": 1588687728923, "helpful_vote": 0, "verified_purchase": True,
}  # fmt: skip
REVIEWS = [
    REVIEW,
    {**REVIEW, "parent_asin": "B2", "rating": 1.0, "timestamp": 1588687728924, "verified_purchase": False},
]
META = [
    {
        "main_category": "Home", "title": "Lamp", "average_rating": 4.5, "features": ["Red."],
        "description": ["Good.", "Lamp."],
        "price": 21.99, "store": "Vela", "categories": ["Home", "Lamps"], "details": {"Brand": "Other"},
        "parent_asin": "B1",
    },
    {
        "title": "Cup", "features": [], "description": [], "price": "from 12.99", "store": None, "categories": [],
        "details": {"Brand": "Cupco"}, "parent_asin": "B2",
    },
]  # fmt: skip


def write(file: Path, rows: list[dict | bytes]) -> None:
    content = b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n"
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def read(path: Path, **options) -> RawLog:
    log = join_parts(read_log("amazon-2023", path, options))
    assert log.rows_read == log.events.height + log.items.height + log.quarantine.height + sum(log.filtered.values())
    return log


def test_json_lines(tmp_path):
    write(tmp_path / "Home.jsonl.gz", REVIEWS)
    write(tmp_path / "meta_Home.jsonl", META)
    log = read(tmp_path)
    assert log.events.select("user_id", "item_id", "timestamp", "rating", "verified").rows() == [
        ("A1", "B1", 1588687728, 5.0, True),
        ("A1", "B2", 1588687728, 1.0, False),
    ]
    assert log.items.select(*ITEM_SCHEMA).rows() == [
        ("B1", "Lamp", "Good. Lamp. Red.", "Vela", ["Home", "Lamps"], 21.99),
        ("B2", "Cup", None, "Cupco", None, None),
    ]
    assert log.quarantine.is_empty() and log.rows_read == 4
    assert read(tmp_path, verified_only=True).filtered == {"verified_only": 1}
    assert read(tmp_path, min_rating=2).events["item_id"].to_list() == ["B1"]


def test_tables_with_and_without_header_keep_their_split(tmp_path):
    (tmp_path / "Home.test.csv").write_text("A1,B3,5.0,1588687728999,B1 B2\n")
    (tmp_path / "Home.train.csv").write_text("user_id,parent_asin,rating,timestamp,history\nA1,B1,5.0,1588687728000,\n")
    (tmp_path / "Home.valid.csv").write_text("user_id,rating,parent_asin,timestamp\nA1,3.0,B2,1588687728500\n")
    write(tmp_path / "meta_Home.jsonl", META)
    log = read(tmp_path)
    assert log.events.select("item_id", "rating", "split").rows() == [
        ("B1", 5.0, "train"),
        ("B2", 3.0, "valid"),
        ("B3", 5.0, "test"),
    ]
    assert log.items.height == 2
    assert read(tmp_path / "Home.t*.csv").events["split"].to_list() == ["train", "test"]
    (tmp_path / "Home.csv").write_text("A1,B1,5.0,1588687728000\n")
    with pytest.raises(UserError, match="both hold reviews of Home"):
        read(tmp_path)
    log = read(tmp_path / "Home.csv")
    assert log.events.height == 1 and "split" not in log.events.columns
    with pytest.raises(UserError, match="verified"):
        read(tmp_path / "Home.csv", verified_only=True)


def test_bad_rows_have_their_reason(tmp_path):
    bad = [
        b'{"user_id"',
        {**REVIEW, "user_id": ""},
        {**REVIEW, "parent_asin": None},
        {**REVIEW, "timestamp": 1588687728},
    ]
    write(tmp_path / "Home.jsonl", [*bad, REVIEW])
    (tmp_path / "Toys.csv").write_text(
        "user_id,parent_asin,rating,timestamp\nA1,B1,5.0\nA1,,5.0,1588687728000\nA1,B1,x,1588687728000\nA1,B1,1,now\n"
    )
    write(tmp_path / "meta_Home.jsonl", [META[0], {"title": "no id"}, META[0]])
    log = read(tmp_path)
    actual = {(source, line): reason for source, line, reason in log.quarantine.iter_rows()}
    for line, words in enumerate(("broken JSON", "no user_id", "no parent_asin", "milliseconds"), start=1):
        assert words in actual["Home.jsonl", line]
    assert (
        "3 fields" in actual["Toys.csv", 2]
        and "no parent_asin" in actual["Toys.csv", 3]
        and "timestamp" in actual["Toys.csv", 5]
    )
    assert actual["meta_Home.jsonl", 2] == "no parent_asin" and len(actual) == 8
    assert log.filtered == {toolkit.REPEATED_ITEM: 1} and log.events["rating"].to_list() == [5.0, None]
    (tmp_path / "Toys.csv").write_text("user_id,item_id,rating,timestamp\nA1,B1,5.0,1588687728000\n")
    with pytest.raises(UserError, match="no column 'parent_asin'; valid: user_id, item_id"):
        read(tmp_path)
    with pytest.raises(UserError, match="NAME.jsonl"):
        read(tmp_path / "meta_Home.jsonl")


def test_batches_do_not_change_the_log(tmp_path, monkeypatch):
    write(tmp_path / "Home.jsonl", [{**REVIEW, "user_id": f"A{n}"} if n % 7 else b"{" for n in range(100)])
    (tmp_path / "Toys.csv").write_text("".join(f"A{n},B1,5.0,15886877280{n % 100:02d}\n" for n in range(100)))
    write(tmp_path / "meta_Home.jsonl", [{**META[n % 2], "parent_asin": f"B{n // 2}"} for n in range(40)])
    whole = read(tmp_path)
    monkeypatch.setattr(text_lines, "BATCH_BYTES", 400)
    parts = list(read_log("amazon-2023", tmp_path, {}))
    log = join_parts(parts)
    assert len(parts) > 20 and log.filtered == whole.filtered == {toolkit.REPEATED_ITEM: 20}
    for name in ("events", "items", "quarantine"):
        assert_frame_equal(getattr(log, name), getattr(whole, name))
