"""ESCI: published and repackaged layouts, graded labels, locales and versions, and every row accounted for."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from genrec.data.readers import read_log
from genrec.data.readers.toolkit import lines as text_lines
from genrec.data.readers.toolkit import parquet
from genrec.data.schema import JUDGMENT_SCHEMA, RawLog, join_parts
from genrec.errors import UserError

EXAMPLES = {
    "example_id": [0, 1, 2, 3, 4],
    "query": ["red lamp", "red lamp", "red lamp", "lampe", "cup"],
    "query_id": [7, 7, 7, 8, 9],
    "product_id": ["B1", "B2", "B3", "B1", "B2"],
    "product_locale": ["us", "us", "us", "es", "us"],
    "esci_label": ["E", "S", "I", "E", "C"],
    "small_version": [1, 1, 0, 0, 0],
    "large_version": [1, 1, 1, 1, 1],
    "split": ["train", "train", "train", "test", "test"],
}
PRODUCTS = {
    "product_id": ["B1", "B1", "B2"],
    "product_title": ["Lamp", "Lámpara", "Cup"],
    "product_description": ["Good.", None, None],
    "product_bullet_point": ["Red\nBright", None, None],
    "product_brand": ["Vela", "Vela", None],
    "product_color": ["red", None, None],
    "product_locale": ["us", "es", "us"],
}
NDJSON = [
    {
        "title": "Lamp",
        "description": "",
        "bullet_points": "Red",
        "brand": "Vela",
        "color": None,
        "price": 3.5,
        "category": ["Home"],
        "asin": "B1",
    },
    {"title": "Cup", "category": [], "price": None, "asin": "B2", "query_id": ["1"]},
]


def read(path: Path, **options) -> RawLog:
    log = join_parts(read_log("esci", path, options))
    judged = log.judgments.height if log.judgments is not None else 0
    assert log.rows_read == judged + log.items.height + log.quarantine.height + sum(log.filtered.values())
    assert log.events.is_empty()
    return log


@pytest.fixture(params=["parquet", "csv"])
def folder(request, tmp_path) -> Path:
    for name, rows in (("examples", EXAMPLES), ("products", PRODUCTS)):
        table, file = pl.DataFrame(rows), tmp_path / f"shopping_queries_dataset_{name}.{request.param}"
        table.write_parquet(file) if request.param == "parquet" else table.write_csv(file)
    return tmp_path


def test_published_files(folder):
    log = read(folder)
    assert log.judgments.rows() == [
        ("7", "red lamp", "B1", "E", 1.0, "train"),
        ("7", "red lamp", "B2", "S", 0.1, "train"),
        ("7", "red lamp", "B3", "I", 0.0, "train"),
        ("9", "cup", "B2", "C", 0.01, "test"),
    ]
    assert dict(log.judgments.schema) == JUDGMENT_SCHEMA
    assert log.items.select("item_id", "title", "text", "brand", "color").rows() == [
        ("B1", "Lamp", "Red\nBright\nGood.", "Vela", "red"),
        ("B2", "Cup", None, None, None),
    ]
    assert log.filtered == {"locale": 2} and log.quarantine.is_empty() and log.rows_read == 8


def test_locale_and_version(folder):
    assert read(folder, locale="es").items["title"].to_list() == ["Lámpara"]
    log = read(folder, version="small")
    assert log.judgments["item_id"].to_list() == ["B1", "B2"] and log.filtered == {"locale": 2, "version": 2}
    for options, words in (
        ({"version": "smal"}, "did you mean 'small'"),
        ({"locale": 1}, "locale"),
        ({"lokale": "us"}, "did you mean 'locale'"),
    ):
        with pytest.raises(UserError, match=words):
            read(folder, **options)


def test_repackaged_tables(tmp_path):
    text = "query\tasin\tgain\nred lamp\tB1\t100.000\nred lamp\tB2\t10.000\nred lamp\tB3\t1.000\ncup\tB1\t0.000\n"
    (tmp_path / "judgments.tsv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "products.ndjson.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, NDJSON)).encode()))
    log = read(tmp_path)
    assert log.judgments.select("query_id", "query", "label", "gain", "split").rows() == [
        ("red lamp", "red lamp", "E", 1.0, None),
        ("red lamp", "red lamp", "S", 0.1, None),
        ("red lamp", "red lamp", "C", 0.01, None),
        ("cup", "cup", "I", 0.0, None),
    ]
    assert log.items.select("item_id", "title", "text", "brand", "category", "price").rows() == [
        ("B1", "Lamp", "Red", "Vela", ["Home"], 3.5),
        ("B2", "Cup", None, None, None, None),
    ]
    with pytest.raises(UserError, match="product_locale"):
        read(tmp_path, locale="us")
    with pytest.raises(UserError, match="small_version"):
        read(tmp_path, version="small")
    assert read(tmp_path / "products.ndjson.gz").judgments is None


def test_bad_rows_have_their_reason(tmp_path):
    text = (
        "query\tasin\tgain\n\tB1\t100\nlamp\t\t100\nlamp\tB1\t50\nlamp\tB1\tE\nlamp\tB1\nlamp\tB1\t100\nlamp\tB1\t10\n"
    )
    (tmp_path / "judgments.tsv").write_text(text)
    (tmp_path / "products.ndjson").write_text(
        "\n".join([json.dumps(NDJSON[0]), '{"title": "no id"}', "{", json.dumps(NDJSON[0])])
    )
    log = read(tmp_path)
    actual = {(source, line): reason for source, line, reason in log.quarantine.iter_rows()}
    for line, words in enumerate(("no query", "no product_id", "label", "label", "2 fields"), start=2):
        assert words in actual["judgments.tsv", line]
    assert (
        "no product_id" in actual["products.ndjson", 2]
        and "broken JSON" in actual["products.ndjson", 3]
        and len(actual) == 7
    )
    assert sum(log.filtered.values()) == 2 and log.judgments["gain"].to_list() == [1.0] and log.items.height == 1
    (tmp_path / "judgments.tsv").write_text("query\titem\tgain\n")
    with pytest.raises(UserError, match="product_id"):
        read(tmp_path / "judgments.tsv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="judgments"):
        read(tmp_path / "empty")


@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
def test_batches_do_not_change_the_log(kind, tmp_path, monkeypatch):
    rows = 90
    examples = pl.DataFrame(
        {name: [values[n % 5] for n in range(rows)] for name, values in EXAMPLES.items()}
    ).with_columns(
        pl.Series("product_id", [f"B{n // 2}" if n % 11 else None for n in range(rows)]),
        pl.Series("query", [f'a "{n // 9}", b' for n in range(rows)]),
    )
    writers = {"parquet": examples.write_parquet, "csv": examples.write_csv, "json": examples.write_ndjson}
    writers[kind](tmp_path / f"examples.{kind}")
    whole = read(tmp_path)
    monkeypatch.setattr(text_lines, "BATCH_BYTES", 300)
    monkeypatch.setattr(parquet, "BATCH_ROWS", 7)
    parts = list(read_log("esci", tmp_path, {}))
    log = join_parts(parts)
    assert (
        len(parts) > 5 and log.filtered == whole.filtered and whole.quarantine.height == 7
    )  # of 9, two are of another locale
    for name in ("judgments", "quarantine"):
        assert_frame_equal(getattr(log, name), getattr(whole, name))
