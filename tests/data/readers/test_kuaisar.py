"""KuaiSAR: feed and search in one log, queries from word ids, both clocks, and every row accounted for."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from genrec.data.readers import read_log
from genrec.data.readers.kuaisar import CHAIN
from genrec.data.readers.toolkit import lines as text_lines
from genrec.data.schema import RawLog, join_parts
from genrec.errors import UserError

FEED = [
    "user_id,item_id,time,timestamp,click,duration_ms,playing_time,like,follow,forward,search,search_item_related",
    "1,10,2023-05-22 15:53:20,1684742000123.0,1,45400.0,60792.0,0,0,0,0,0",
    "1,11,2023-05-22 15:53:21,1684742001000.0,0,45400.0,0.0,0,0,0,0,0",
    "2,10,2023-05-22 15:53:22,1.684742002e12,1,45400.0,,1,0,1,1,0",
]
SEARCH = [
    "user_id,search_session_id,search_session_time,search_session_timestamp,keyword,search_source,item_id,click_cnt,item_type",
    '1,7,2023-05-22 21:58:52,1684763932919,"[20, 34, 3]",USER_INPUT,10,2,VIDEO',
    '1,7,2023-05-22 21:58:52,1684763932919,"[20, 34, 3]",USER_INPUT,12,0,USER',
    "2,7,2023-05-22 21:59:52,1684763992919,[5],,11,1,VIDEO",
]
LEVELS = (
    "first_level_category_name,first_level_category_name_en,second_level_category_name_en,third_level_category_name"
)
ITEMS = [
    f"item_id,caption,author_id,{LEVELS}",
    '10,"[1, 213]",4,搞笑,Funny,Funny joke,空',
    "11,[],5,,UNKNOWN,empty,",
]
USERS = ["user_id,onehot_feat1,search_active_level", "1,3,2", "2,0,1"]


def write(folder: Path, name: str, lines: list[str]) -> None:
    data = ("\n".join(lines) + "\n").encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def layout(folder: Path) -> Path:
    write(folder, "rec_inter.csv.gz", FEED)
    write(folder, "src_inter.csv", SEARCH)
    write(folder, "item_features.csv", ITEMS)
    write(folder, "user_features.csv", USERS)
    write(folder, "social_network.csv", ["user_id,user_follow_id", "1,2", "2,1"])
    return folder


def read(path: Path, **options: object) -> RawLog:
    return join_parts(read_log("kuaisar", path, options))


def accounted(log: RawLog) -> bool:
    tables = [log.impressions, log.items, log.users, log.quarantine]
    return log.rows_read == sum(table.height for table in tables if table is not None) + sum(log.filtered.values())


def test_feed_and_search_in_one_log(tmp_path):
    log = read(layout(tmp_path))
    assert log.chain == CHAIN and log.quarantine.is_empty() and accounted(log)
    assert log.filtered == {"social_network is not read": 2}
    assert log.impressions.select(
        "user_id", "item_id", "timestamp", "action", "query", "surface", "request_id"
    ).rows() == [
        ("1", "10", 1684742000, "click", None, "feed", None),
        ("1", "11", 1684742001, "impression", None, "feed", None),
        ("2", "10", 1684742002, "forward", None, "feed", None),
        ("1", "10", 1684763932, "click", "20 34 3", "search", "1/7"),
        ("1", "12", 1684763932, "impression", "20 34 3", "search", "1/7"),
        ("2", "11", 1684763992, "click", "5", "search", "2/7"),
    ]
    assert log.impressions["click"].to_list() == [True, False, True, True, False, True]
    assert log.impressions["search"].to_list() == [False, False, True, None, None, None]
    assert log.events.select("item_id", "action", "query").rows() == [
        ("10", "click", None), ("10", "forward", None), ("10", "click", "20 34 3"), ("11", "click", "5"),
    ]  # fmt: skip
    assert log.items.select("item_id", "title", "category").rows() == [
        ("10", "1 213", ["Funny", "Funny joke"]),
        ("11", None, None),
    ]
    assert log.users.rows()[0] == ("1", "3", "2")
    assert read(tmp_path, min_action="like").events.height == 1
    assert read(tmp_path / "src_inter.csv").impressions.height == 3


def test_beijing_time_where_there_are_no_milliseconds(tmp_path):
    layout(tmp_path)
    write(
        tmp_path, "rec_inter.csv.gz", ["user_id,item_id,time,click", "1,10,2023-05-22 15:53:20,1", "1,10,yesterday,1"]
    )
    log = read(tmp_path / "rec_inter.csv.gz")
    assert log.impressions["timestamp"].to_list() == [1684742000]  # the same moment as the milliseconds above
    assert log.quarantine["line"].to_list() == [3] and accounted(log)
    write(tmp_path, "rec_inter.csv.gz", ["user_id,item_id,click", "1,10,1"])
    with pytest.raises(UserError, match="no column 'timestamp'"):
        read(tmp_path)


def test_bad_rows_are_set_aside_one_by_one(tmp_path):
    layout(tmp_path)
    write(
        tmp_path,
        "rec_inter.csv.gz",
        [
            *FEED,
            ",10,,1684742000123,1,1,1,0,0,0,0,0",
            "1,10,,1684742000,1,1,1,0,0,0,0,0",
            "1,10,,1684742000123,x,1,1,0,0,0,0,0",
        ],
    )
    write(
        tmp_path,
        "src_inter.csv",
        [
            *SEARCH,
            '1,7,,1684763932919,"[20, 34",A,10,2,V',
            "1,7,,1684763932919,[2],A,10,-1,V",
            "1,,,1684763932919,[2],A,10,1,V",
            "1,7",
            '1,8,,1684763932919,"[20, ""3""]",A,10,1,V',
        ],
    )
    write(tmp_path, "item_features.csv", [*ITEMS, ITEMS[1], '13,"{1}",4,,,,'])
    log = read(tmp_path)
    actual = {(source, line): reason for source, line, reason in log.quarantine.iter_rows()}
    expected = {
        ("rec_inter.csv.gz", 5): "no user_id", ("rec_inter.csv.gz", 6): "milliseconds",
        ("rec_inter.csv.gz", 7): "click is neither",
        ("src_inter.csv", 5): "keyword", ("src_inter.csv", 6): "click_cnt", ("src_inter.csv", 7): "search_session_id",
        ("src_inter.csv", 8): "2 fields", ("item_features.csv", 4): "repeated", ("item_features.csv", 5): "caption",
    }  # fmt: skip
    assert set(actual) == set(expected) and all(word in actual[key] for key, word in expected.items())
    assert log.impressions["query"][-1] == "20 3" and accounted(log)


def test_small_batches_give_the_same_log(tmp_path, monkeypatch):
    layout(tmp_path)
    write(tmp_path, "item_features.csv", [*ITEMS, ITEMS[2], ITEMS[1]])
    whole = read(tmp_path)
    monkeypatch.setattr(text_lines, "BATCH_BYTES", 90)
    small = read(tmp_path)
    for name in ("events", "items", "users", "impressions", "quarantine"):
        assert getattr(whole, name).equals(getattr(small, name)), name
    assert whole.quarantine.height == 2 and whole.rows_read == small.rows_read and accounted(small)
