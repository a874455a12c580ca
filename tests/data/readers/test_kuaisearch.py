"""KuaiSearch: recall or rank as requests, judgments with their products, and every row accounted for."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from genrec.data.readers.kuaisearch import CHAIN, read_kuaisearch
from genrec.data.readers.toolkit import lines as text_lines
from genrec.data.schema import RawLog, join_parts
from genrec.errors import UserError

ITEMS = [
    {
        "item_id": 1,
        "item_title": "貂皮大衣",
        "brand_id": 1,
        "brand_name": "金粟兰",
        "seller_name": "s",
        "category_level1_name": "女装",
        "category_level2_name": "皮草",
        "category_level3_name": "UNKNOWN",
    },
    {"item_id": 2, "item_title": "拖鞋", "brand_name": "UNKNOWN"},
]
USERS = [{"user_id": 5, "gender": "M", "age_bucket": "31-40"}, {"user_id": 6, "gender": "F"}]
RECALL = [
    {
        "user_id": 5,
        "session_id": 1,
        "impressed_item_ids": [1, 2, 3],
        "clicked_item_ids": [3, 2],
        "purchased_item_ids": [2],
        "time_index": 40,
        "query": "拖鞋",
        "split": "train",
    },
    {
        "user_id": 5,
        "session_id": 2,
        "impressed_item_ids": [1],
        "clicked_item_ids": [],
        "purchased_item_ids": [9],
        "time_index": 41,
        "query": "大衣",
        "split": "test",
    },
    {
        "user_id": 6,
        "session_id": 3,
        "impressed_item_ids": [2, 1],
        "clicked_item_ids": [],
        "purchased_item_ids": [],
        "time_index": 39,
        "query": "鞋",
        "split": "train",
    },
]
RANK = [
    {
        "user_id": 5,
        "session_id": 1,
        "time_index": 40,
        "search_entrance": "mall",
        "recently_clicked_item_ids": [1],
        "query": "拖鞋",
        "target_item_id": 2,
        "target_item_price": 59.5,
        "is_clicked": 1,
        "is_purchased": 1,
        "user_statistical_features": {"a": 0.0},
        "split": "train",
    },
    {
        "user_id": 5,
        "session_id": 1,
        "time_index": 40,
        "search_entrance": "mall",
        "query": "拖鞋",
        "target_item_id": 1,
        "target_item_price": None,
        "is_clicked": 0,
        "is_purchased": 0,
        "split": "train",
    },
]
RELEVANCE = [
    {"query": "裙", "item_title": "半裙", "brand": "无品牌", "seller_name": "s", "attr_value": "长裙", "score": 2},
    {"query": "裤", "item_title": "半裙", "brand": "无品牌", "seller_name": "s", "attr_value": "长裙", "score": 0},
    {"query": "裙", "item_title": "半裙", "brand": "别的", "seller_name": "s", "attr_value": "长裙", "score": 3.0},
]


def write(folder: Path, name: str, rows: list) -> None:
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


def layout(folder: Path, recall: list = RECALL) -> Path:
    write(folder, "items.jsonl.gz", ITEMS)
    write(folder, "users.jsonl", USERS)
    write(folder, "recall.jsonl", recall)
    write(folder, "rank_lite.jsonl.gz", RANK)
    write(folder, "relevance.jsonl", RELEVANCE)
    return folder


def read(path: Path, **options: object) -> RawLog:
    return join_parts(read_kuaisearch(path, options))


def accounted(log: RawLog, rank: bool = False) -> bool:
    visible = (
        0
        if log.impressions is None
        else log.impressions.height
        if rank
        else log.impressions.filter(pl.col("position") == 0).height
    )
    items = log.items.filter(~pl.col("item_id").str.starts_with("relevance-")).height
    others = sum(table.height for table in (log.users, log.judgments, log.quarantine) if table is not None)
    return log.rows_read == visible + items + others + sum(log.filtered.values())


def test_recall_gives_requests_and_relevance_gives_judgments(tmp_path):
    log = read(layout(tmp_path))
    assert log.chain == CHAIN and log.quarantine.is_empty() and accounted(log)
    assert log.filtered == {"rank left out by option requests=recall": 2}
    assert log.impressions.select(
        "request_id", "item_id", "position", "action", "click", "purchase", "query"
    ).rows() == [
        ("5/1/40", "1", 0, "impression", False, False, "拖鞋"),
        ("5/1/40", "2", 1, "purchase", True, True, "拖鞋"),
        ("5/1/40", "3", 2, "click", True, False, "拖鞋"),
        ("5/2/41", "1", 0, "impression", False, False, "大衣"),
        ("6/3/39", "2", 0, "impression", False, False, "鞋"),
        ("6/3/39", "1", 1, "impression", False, False, "鞋"),
    ]
    assert log.events.select("user_id", "item_id", "timestamp", "action", "query", "surface", "split").rows() == [
        ("5", "3", 40, "click", "拖鞋", "search", "train"),
        ("5", "2", 40, "purchase", "拖鞋", "search", "train"),
        ("5", "9", 41, "purchase", "大衣", "search", "test"),  # bought although the list does not show it
    ]
    assert log.items.select("item_id", "title", "brand", "category").rows()[:2] == [
        ("1", "貂皮大衣", "金粟兰", ["女装", "皮草"]),
        ("2", "拖鞋", None, None),
    ]
    assert log.items.height == 4 and log.items["text"].to_list() == [None, None, "长裙", "长裙"]
    first, other, branded = log.judgments["item_id"]
    assert first == other != branded and set(log.judgments["item_id"]) == set(log.items["item_id"][2:])
    assert log.judgments.select("query", "label", "gain").rows() == [
        ("裙", "2", 2.0),
        ("裤", "0", 0.0),
        ("裙", "3", 3.0),
    ]
    assert log.judgments["query_id"].n_unique() == 2
    # The names do not change from run to run: stored judgments stay valid.
    assert first == "relevance-dad5679508eccb0e"


def test_rank_and_options(tmp_path):
    layout(tmp_path)
    log = read(tmp_path, requests="rank", relevance=False)
    assert log.impressions.select("item_id", "position", "action", "price", "search_entrance").rows() == [
        ("2", None, "purchase", 59.5, "mall"), ("1", None, "impression", None, "mall"),
    ]  # fmt: skip
    assert log.filtered == {
        "recall left out by option requests=rank": 3,
        "relevance left out by option relevance=false": 3,
    }
    assert log.events["item_id"].to_list() == ["2"] and log.judgments is None and accounted(log, rank=True)
    assert read(tmp_path, min_action="purchase").events["item_id"].to_list() == ["2", "9"]
    everything = read(tmp_path, min_action="impression")
    assert everything.events.height == 7 and accounted(everything)
    with pytest.raises(UserError, match="set option requests to rank"):
        read(tmp_path / "rank*")
    with pytest.raises(UserError, match="did you mean 'recall'"):
        read(tmp_path, requests="recalls")


def test_bad_rows_are_set_aside_one_by_one(tmp_path):
    base = RECALL[0]
    bad = [
        {**base, "user_id": None}, {**base, "session_id": " "}, {**base, "time_index": "later"},
        {**base, "time_index": -1},
        {**base, "impressed_item_ids": "1 2"}, {**base, "impressed_item_ids": [[1], 2]},
        {**base, "clicked_item_ids": [1, None]},
        {**base, "impressed_item_ids": []}, "{broken", "[1]",
    ]  # fmt: skip
    layout(tmp_path, [*bad, *RECALL])
    write(tmp_path, "relevance.jsonl", [*RELEVANCE, {**RELEVANCE[0], "score": 4}, {**RELEVANCE[0], "query": ""}])
    write(tmp_path, "items.jsonl.gz", [*ITEMS, ITEMS[0], {"item_title": "x"}])
    log = read(tmp_path)
    actual = {(source, line): reason for source, line, reason in log.quarantine.iter_rows()}
    words = [
        "user_id",
        "session_id",
        "time_index",
        "time_index",
        "no list",
        "no list",
        "clicked_item_ids",
        "no impressed",
        "broken JSON",
        "not a JSON",
    ]
    for line, word in enumerate(words, start=1):
        assert word in actual["recall.jsonl", line]
    assert "score" in actual["relevance.jsonl", 4] and "no query" in actual["relevance.jsonl", 5]
    assert "repeated" in actual["items.jsonl.gz", 3] and "no item_id" in actual["items.jsonl.gz", 4]
    assert log.quarantine.height == 14 and log.impressions.height == 6 and accounted(log)


def test_small_batches_give_the_same_log(tmp_path, monkeypatch):
    layout(tmp_path)
    write(tmp_path, "users.jsonl", [*USERS, USERS[0]])
    whole = {options: read(tmp_path, requests=options) for options in ("recall", "rank")}
    monkeypatch.setattr(text_lines, "BATCH_BYTES", 100)
    for options, log in whole.items():
        small = read(tmp_path, requests=options)
        for name in ("events", "items", "users", "impressions", "judgments", "quarantine"):
            assert getattr(log, name).equals(getattr(small, name)), name
        assert log.rows_read == small.rows_read and log.filtered == small.filtered
