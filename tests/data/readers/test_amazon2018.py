"""Amazon 2018: original layout, which files belong together, options, and every line accounted for."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard
from polars.testing import assert_frame_equal

from genrec.data.readers import read_log, toolkit
from genrec.data.readers.toolkit import lines as text_lines
from genrec.data.schema import EVENT_SCHEMA, ITEM_SCHEMA, RawLog, join_parts
from genrec.errors import UserError

REVIEWS = [
    {
        "overall": 5.0, "verified": True, "reviewTime": "09 13, 2016", "reviewerID": "A1", "asin": "B1",
        "style": {"Color:": " Red"},
        "reviewerName": "x", "reviewText": "nice", "summary": "s", "unixReviewTime": 1473724800,
    },
    {"overall": 2.0, "verified": False, "reviewerID": "A1", "asin": "B2", "unixReviewTime": 1473724800, "vote": "3"},
    {"overall": 4.0, "verified": True, "reviewerID": "A2", "asin": "B1", "unixReviewTime": 1300000000},
]  # fmt: skip
META = [
    {
        "category": ["Home &amp; Kitchen", "", "12&quot; Lamps"], "description": ["A \"good\" lamp.", "Two."],
        "title": "Lamp &amp; shade",
        "also_buy": ["B2"], "brand": "Vela", "feature": ["Red"], "rank": [">#1"], "price": "$1,299.50", "asin": "B1",
    },
    {"category": [], "description": "plain text", "title": "[2 Pack] Cup", "brand": "", "price": "$1.23 - $4.56",
    "asin": "B2"},
    {"title": "Junk price", "price": ".a-box-inner{background-color:#fff}", "asin": "B3", "feature": [1, {"a": 2}]},
]  # fmt: skip


def write(file: Path, rows: list[dict | bytes]) -> None:
    content = b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n"
    packers = {".gz": gzip.compress, ".zst": zstandard.compress}
    file.write_bytes(packers.get(file.suffix, bytes)(content))


def read(path: Path, **options) -> RawLog:
    log = join_parts(read_log("amazon-2018", path, options))
    assert log.rows_read == log.events.height + log.items.height + log.quarantine.height + sum(log.filtered.values())
    return log


@pytest.fixture
def folder(tmp_path) -> Path:
    write(tmp_path / "Home_5.json.gz", REVIEWS)
    write(tmp_path / "meta_Home.json.zst", META)
    return tmp_path


def test_events_and_items(folder):
    log = read(folder)
    assert log.events.select("user_id", "item_id", "timestamp", "rating", "verified").rows() == [
        ("A1", "B1", 1473724800, 5.0, True),
        ("A1", "B2", 1473724800, 2.0, False),
        ("A2", "B1", 1300000000, 4.0, True),
    ]
    assert log.events["action"].unique().to_list() == ["purchase"] and log.events["surface"].unique().to_list() == [
        "feed"
    ]
    assert dict(list(log.events.schema.items())[: len(EVENT_SCHEMA)]) == EVENT_SCHEMA
    assert log.items.select(*ITEM_SCHEMA).rows() == [
        ("B1", "Lamp & shade", 'A "good" lamp. Two. Red', "Vela", ["Home & Kitchen", '12" Lamps'], 1299.5),
        ("B2", "[2 Pack] Cup", "plain text", None, None, 1.23),
        ("B3", "Junk price", '1 {"a": 2}', None, None, None),
    ]
    assert log.quarantine.is_empty() and log.rows_read == 6


def test_file_and_pattern_bring_their_meta(folder):
    whole = read(folder)
    for path in (folder / "Home_5.json.gz", folder / "H*.json.gz"):
        log = read(path)
        assert log.events.equals(whole.events) and log.items.equals(whole.items)
    write(folder / "Home.json", REVIEWS)
    with pytest.raises(UserError, match="both hold reviews of Home"):
        read(folder)
    assert read(folder / "Home.json").events.height == 3
    with pytest.raises(UserError, match="NAME_5.json"):
        read(folder / "meta_Home.json.zst")


def test_options(folder):
    log = read(folder, min_rating=4, verified_only=True)
    assert log.events["item_id"].to_list() == ["B1", "B1"] and log.filtered == {"min_rating": 1}
    assert read(folder, verified_only=True).filtered == {"verified_only": 1}
    for options, words in (
        ({"min_ratings": 4}, "min_rating"),
        ({"min_rating": "4"}, "number"),
        ({"verified_only": 1}, "true or false"),
    ):
        with pytest.raises(UserError, match=words):
            read(folder, **options)


def test_bad_lines_have_their_reason(folder):
    good = REVIEWS[0]
    bad = [
        b'{"reviewerID": "A3", "asin',
        {**good, "reviewerID": " "},
        {**good, "asin": None},
        {**good, "unixReviewTime": "soon"},
        {**good, "unixReviewTime": 1473724800000},
        b'{"reviewerID": "A\xff"}',
        b"[1]",
    ]
    write(folder / "Home_5.json.gz", [good, *bad, {**good, "overall": "many"}])
    write(folder / "meta_Home.json.zst", [*META, {**META[0], "title": "Later"}, {"title": "no id"}])
    log = read(folder)
    actual = {(source, line): reason for source, line, reason in log.quarantine.iter_rows()}
    words = (
        "broken JSON",
        "no reviewerID",
        "no asin",
        "unixReviewTime",
        "unixReviewTime",
        "utf-8",
        "not a JSON object",
    )
    for line, word in enumerate(words, start=2):
        assert word in actual["Home_5.json.gz", line]
    assert actual["meta_Home.json.zst", 5] == "no asin" and len(actual) == 8
    assert log.events["rating"].to_list() == [5.0, None] and log.items["title"][0] == "Lamp & shade"
    assert list(log.filtered.values()) == [1]


def test_batches_do_not_change_the_log(folder, monkeypatch):
    write(folder / "Home_5.json.gz", [{**REVIEWS[0], "reviewerID": f"A{n}"} if n % 7 else b"{" for n in range(200)])
    write(folder / "meta_Home.json.zst", [{**META[n % 3], "asin": f"B{n // 2}"} for n in range(60)])
    whole = read(folder)
    monkeypatch.setattr(text_lines, "BATCH_BYTES", 500)
    parts = list(read_log("amazon-2018", folder, {}))
    log = join_parts(parts)
    assert len(parts) > 20 and log.filtered == whole.filtered == {toolkit.REPEATED_ITEM: 30}
    for name in ("events", "items", "quarantine"):
        assert_frame_equal(getattr(log, name), getattr(whole, name))
