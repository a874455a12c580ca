"""Product-search triples: queries by line, places instead of times, the published split, and every line accounted
for."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from genrec.data.readers import read_log, toolkit
from genrec.data.readers.product_search import read_product_search
from genrec.data.readers.toolkit import lines as text_lines
from genrec.data.schema import RawLog, join_parts
from genrec.errors import UserError

TRAIN = "A_1_0 0 B1 1 \nA_1_2 0 B1 1 \nA_1_2 0 B2 1 \nA2_2 0 B2 1 \n"
FILES = {
    "train.qrels.txt": TRAIN,
    "test.qrels.txt": "A2_0 0 B2 1 \nA2_0 0 B1 1 \n",
    "query_text.txt": "red lamp\n\nblue cup\n",
    "items.tsv": "asin\tbrand\tcategories\nB1\tVela\tHome & Garden > Lamps\nB2\t\t\n",
    "train_review_id.txt": "line_1\nline_2\nline_5\n",
}


def fill(folder: Path, **changes: str) -> Path:
    for name, text in {**FILES, **{key.replace("__", "."): value for key, value in changes.items()}}.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def read(path: Path) -> RawLog:
    log = join_parts(read_log("product-search", path, {}))
    assert log.rows_read == log.events.height + log.items.height + log.quarantine.height + sum(log.filtered.values())
    return log


def test_triples(tmp_path):
    log = read(fill(tmp_path))
    assert log.events.select("user_id", "item_id", "timestamp", "query", "request_id", "split").rows() == [
        ("A_1", "B1", 0, "red lamp", "A_1_0", "train"),
        ("A_1", "B1", 0, "blue cup", "A_1_2", "train"),
        ("A_1", "B2", 1, "blue cup", "A_1_2", "train"),
        ("A2", "B2", 2, "blue cup", "A2_2", "train"),
        ("A2", "B2", 3, "red lamp", "A2_0", "test"),  # the same pair as the line before it, but of the other file
        ("A2", "B1", 4, "red lamp", "A2_0", "test"),
    ]
    assert log.events["surface"].unique().to_list() == ["search"] and log.events["action"].unique().to_list() == [
        "purchase"
    ]
    assert log.items.select("item_id", "brand", "category").rows() == [
        ("B1", "Vela", ["Home & Garden", "Lamps"]),
        ("B2", None, None),
    ]
    assert (
        list(log.filtered.values()) == [3]
        and "train_review_id" in next(iter(log.filtered))
        and log.quarantine.is_empty()
    )


def test_bad_lines_have_their_reason(tmp_path):
    train = TRAIN + "A2_7 0 B2 1\nA2 0 B2 1\nA2_1 0 B2 1\nA2_0 0 B2\nA2_0 0 B2 0\n"
    log = read(fill(tmp_path, train__qrels__txt=train, items__tsv=FILES["items.tsv"] + "\tx\ty\nB1\tx\ty\nB3\tx\n"))
    actual = {(source, line): reason for source, line, reason in log.quarantine.iter_rows()}
    for line, words in ((5, "query_text"), (6, "USER_QUERYLINE"), (7, "query_text"), (8, "USER_QUERYLINE")):
        assert words in actual["train.qrels.txt.gz", line]
    assert actual["items.tsv.gz", 4] == "no asin" and "2 fields" in actual["items.tsv.gz", 6] and len(actual) == 6
    assert log.filtered["label 0"] == 1 and log.filtered[toolkit.REPEATED_ITEM] == 1
    assert log.events.height == 6 and log.items.height == 2


def test_missing_files_and_options(tmp_path):
    with pytest.raises(UserError, match="train.qrels.txt"):
        read(tmp_path)
    fill(tmp_path)
    with pytest.raises(UserError, match="no option 'split'"):
        list(read_log("product-search", tmp_path, {"split": "train"}))
    for name in ("items.tsv", "train_review_id.txt", "test.qrels.txt"):
        (tmp_path / f"{name}.gz").unlink()
    assert read(tmp_path).rows_read == 4
    (tmp_path / "query_text.txt.gz").unlink()
    with pytest.raises(UserError, match="query_text.txt"):
        read(tmp_path)


def test_batches_do_not_change_the_log(tmp_path, monkeypatch):
    train = "".join(f"U{n // 9}_{n % 3} 0 B{n // 2} 1\n" for n in range(300))
    fill(tmp_path, train__qrels__txt=train)
    whole = read(tmp_path)
    assert whole.quarantine.height == 100  # query line 1 is blank
    monkeypatch.setattr(text_lines, "BATCH_BYTES", 50)
    parts = list(read_log("product-search", tmp_path, {}))
    log = join_parts(parts)
    assert len(parts) > 50 and log.filtered == whole.filtered
    for name in ("events", "items", "quarantine"):
        assert_frame_equal(getattr(log, name), getattr(whole, name))


def test_validation_queries_are_held_out_as_those_of_test(tmp_path):
    """No query of validation in training, no purchase of validation in training, and every line accounted for."""
    queries = [f"query {n} words" for n in range(30)]
    (tmp_path / "query_text.txt").write_text("\n".join(queries) + "\n")
    rows = [(f"U{n % 40}", query, f"I{n % 97}") for n in range(1500) for query in sorted({n % 30, (n * 7) % 30})]
    (tmp_path / "train.qrels.txt").write_text("".join(f"{user}_{query} 0 {item} 1\n" for user, query, item in rows))
    (tmp_path / "test.qrels.txt").write_text("U1_3 0 I5 1\n")
    parts = list(read_product_search(tmp_path, {"valid_queries": 0.3}))
    events = pl.concat([part.events for part in parts])
    train, valid = (events.filter(pl.col("split") == name) for name in ("train", "valid"))
    assert not valid.filter(~pl.col("item_id").is_in(train["item_id"].to_list())).height, (
        "every product keeps a query in training"
    )
    assert (
        20 < len(valid) < 400 and not set(valid["query"]) & set(train["query"]) and 2 < valid["query"].n_unique() < 16
    )
    assert len(valid.join(train, on=["user_id", "item_id"], how="semi")) <= 0.2 * len(valid), (
        "only where the person bought it twice"
    )
    assert (
        train["timestamp"].max() < valid["timestamp"].min()
        and valid["timestamp"].max() < events.filter(pl.col("split") == "test")["timestamp"].min()
    )
    filtered = sum(sum(part.filtered.values()) for part in parts)
    assert sum(part.rows_read for part in parts) == len(rows) + 1 == len(events) + filtered and filtered > len(valid)
    plain = pl.concat([part.events for part in read_product_search(tmp_path, {})])
    assert len(plain) == len(rows) + 1 and set(plain["split"]) == {"train", "test"}
    with pytest.raises(UserError, match="valid_queries is 1"):
        list(read_product_search(tmp_path, {"valid_queries": 1}))
