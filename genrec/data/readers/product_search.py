"""Product-search triples, the benchmark layout of HEM, ZAM and TEM: who bought what for which query, as TREC qrels.

The path is a folder; each file plain, ``.gz`` or ``.zst``:

- ``train.qrels.txt`` and ``test.qrels.txt``: lines ``USER_QUERYLINE 0 ASIN 1``, in which QUERYLINE is a line of
  ``query_text.txt`` from 0;
- ``query_text.txt``: one query a line (made from category paths: synthetic, and to be called so); it is looked up,
  its lines are not rows;
- ``items.tsv`` (optional): ``asin``, ``brand``, ``categories`` (levels joined by " > ");
- ``train_review_id.txt`` (optional): names lines of a review file that is not part of the benchmark; its rows are
  counted as left out.

==============  ==========================================================================================
events          meaning
==============  ==========================================================================================
``user_id``     what stands before the last ``_`` of the first field; required
``item_id``     ``ASIN``; required
``timestamp``   **not a time**: the index of the purchase in the files, from 0, ``train`` before ``test``. A
                product belongs to several query categories, so one purchase has one line for each of its queries;
                consecutive lines with the same person and product are one purchase and have the same index
``action``      "purchase"
``query``       the text of line QUERYLINE
``surface``     "search"
``request_id``  ``USER_QUERYLINE``: the benchmark's topic, whose relevant products are all lines with it
``split``       "train" or "test", as published; no query of test has a line in train. "valid" with the option below
==============  ==========================================================================================

Option ``valid_queries`` (a fraction below 1, default 0): the published split has no validation part, and validating
on queries that training knows says little about a test of queries that it does not. With it, up to that fraction of
train's queries is held out as test's are, each product keeping a query of its own in training: of three tenths of the
purchases with such a query these lines become "valid", the purchase's other lines are left out, and so are all
further lines of such queries, each by a named rule. Drawn by hashes, so the same everywhere; the index places
validation between train and test.

Sources: Ai, Zhang, Bi, Chen, Croft, "Learning a hierarchical embedding model for personalized product search", SIGIR
2017; Bi, Ai, Croft, "A transformer-based embedding model for personalized product search", SIGIR 2020.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from genrec.data.queries import mix, string_hash
from genrec.data.readers.toolkit import (
    LINE,
    RAW,
    REPEATED_ITEM,
    Batch,
    SeenKeys,
    blank,
    check_options,
    delimited_batches,
    filled,
    read_lines,
    sibling,
    text_batches,
)
from genrec.data.schema import EVENT_SCHEMA, ITEM_SCHEMA, RawLog, conform
from genrec.errors import UserError

SPLITS = ("train", "test")
VALID_PURCHASES = 0.3  # of the purchases with a held-out query; as many as the benchmark holds out for test
TRIPLE = r"^\s*(?<user>\S+)_(?<query>\d{1,18})\s+\S+\s+(?<item>\S+)\s+(?<label>-?\d{1,9})\s*$"
REVIEW_IDS = "train_review_id.txt: it names lines of a review file that is not part of the log"


def read_product_search(path: Path, options: dict) -> Iterator[RawLog]:
    """Read the folder in parts: events of train, then of test, then items.

    A triple with label 0 is left out by the rule "label 0"; one whose query is not in ``query_text.txt`` goes to
    quarantine. An item that a later line repeats keeps its first line. Raises ``UserError`` when the folder lacks the
    queries or both qrels files.
    """
    check_options("product-search", options, ("valid_queries",))
    fraction = _fraction(options)
    qrels = {split: file for split in SPLITS if (file := sibling(path, f"{split}.qrels.txt"))}
    if not qrels:
        raise UserError(
            f"{path}: no train.qrels.txt or test.qrels.txt (plain, .gz or .zst); "
            "reader 'product-search' needs their folder"
        )
    text_file = sibling(path, "query_text.txt")
    if text_file is None:
        raise UserError(
            f"{path}: no query_text.txt (plain, .gz or .zst); the triples name its lines, put it next to them"
        )
    lines, wrong = read_lines(text_file)
    if not wrong.is_empty():
        yield RawLog(quarantine=wrong, rows_read=wrong.height)
    queries = lines.select((pl.col(LINE) - 1).alias("query_line"), pl.col(RAW).str.strip_chars().alias("query"))
    numbering = _PurchaseNumbering()
    held_out: list[pl.DataFrame] = []
    validating = _validation_queries(qrels["train"], queries, fraction) if fraction and "train" in qrels else None
    for split, file in qrels.items():
        numbering.end_purchase()
        if held_out and split == "test":
            yield _valid_part(held_out, numbering)
        for batch in text_batches(file):
            _parse(batch, queries)
            if split == "train" and validating is not None:
                held_out.append(_hold_out(batch, validating))
            yield batch.part(events=conform(_events(batch.table, split, numbering), EVENT_SCHEMA, str(file)))
    if held_out and "test" not in qrels:
        yield _valid_part(held_out, numbering)
    yield from _items(path)
    if review_ids := sibling(path, "train_review_id.txt"):
        for batch in text_batches(review_ids):
            batch.count(REVIEW_IDS, batch.table.height)
            yield batch.part()


class _PurchaseNumbering:
    """Numbers purchases from 0 in the order of the lines, over batches and files."""

    def __init__(self) -> None:
        self._next, self._last = 0, (None, None)

    def end_purchase(self) -> None:
        """The next line is a purchase of its own, whatever the line before was."""
        self._last = (None, None)

    def __call__(self, table: pl.DataFrame) -> pl.Series:
        """The number of each line's purchase; consecutive lines with the same user and item have the same."""
        if table.is_empty():
            return pl.Series("timestamp", [], dtype=pl.Int64)
        user, item = self._last
        same = (pl.col("user") == pl.col("user").shift(1, fill_value=user)) & (
            pl.col("item") == pl.col("item").shift(1, fill_value=item)
        )
        new = table.select((~same.fill_null(False)).cast(pl.Int64).alias("new"))["new"]
        numbers = (new.cum_sum() + (self._next - 1)).alias("timestamp")
        self._next, self._last = numbers[-1] + 1, (table["user"][-1], table["item"][-1])
        return numbers


def _fraction(options: dict) -> float:
    value = options.get("valid_queries", 0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise UserError(
            f"reader 'product-search': option valid_queries is {value}; expected a fraction below 1, such as 0.2"
        )
    return float(value)


def _parse(batch: Batch, queries: pl.DataFrame) -> None:
    fields = batch.table.with_columns(pl.col(RAW).str.extract_groups(TRIPLE).struct.unnest())
    batch.table = fields.with_columns(
        pl.col("query").alias("query_line").cast(pl.Int64), pl.col("label").cast(pl.Int64)
    ).drop("query")
    batch.refuse(pl.col("user").is_null(), "not a line USER_QUERYLINE 0 ASIN 1")
    batch.table = batch.table.join(queries, on="query_line", how="left", maintain_order="left")
    batch.refuse(pl.col("query").is_null(), "its query is not in query_text.txt")
    batch.leave_out(pl.col("label") <= 0, "label 0")


def _chance(texts: pl.Series) -> np.ndarray:
    """A number from 0 to 1 for each text, always the same: (n,)."""
    return (mix(string_hash(texts)) >> np.uint64(11)) / 2.0**53


def _validation_queries(file: Path, queries: pl.DataFrame, fraction: float) -> list[str]:
    """Up to ``fraction`` of the queries of train, in the order of a hash, such that no product loses its last one."""
    parts = []
    for batch in text_batches(file):
        _parse(batch, queries)
        parts.append(batch.table.select("item", "query").unique())
    pairs = pl.concat(parts).unique()
    texts = pairs["query"].unique().sort()
    texts = texts.gather(np.argsort(_chance(texts), kind="stable"))
    items = dict(pairs.group_by("query").agg("item").iter_rows())
    left = dict(pairs.group_by("item").len().iter_rows())
    held: list[str] = []
    for text in texts:  # a few hundred
        if len(held) + 1 <= fraction * len(texts) and all(left[item] > 1 for item in items[text]):
            held.append(text)
            for item in items[text]:
                left[item] -= 1
    return held


def _hold_out(batch: Batch, validating: list[str]) -> pl.DataFrame:
    """Take the lines of held-out queries out of a batch of train; those that validate are returned."""
    table = batch.table.with_columns(
        pl.Series("held", batch.table["query"].is_in(validating)),
        pl.Series(
            "drawn",
            _chance(batch.table.select(pl.concat_str("user", pl.lit(" "), "item").alias("key"))["key"])
            < VALID_PURCHASES,
        ),
    ).with_columns((pl.col("drawn") & pl.col("held").any().over("user", "item")).alias("out"))
    valid = table.filter(pl.col("out") & pl.col("held"))
    batch.table = table.filter(~(pl.col("out") & pl.col("held")))
    batch.leave_out(pl.col("out"), "another line of a purchase that validates")
    batch.leave_out(pl.col("held"), "its query is held out for validation")
    batch.table = batch.table.drop("held", "drawn", "out")
    return valid.drop("held", "drawn", "out")


def _valid_part(held_out: list[pl.DataFrame], numbering: _PurchaseNumbering) -> RawLog:
    """The validation lines, counted as read where they were read."""
    numbering.end_purchase()
    events = _events(pl.concat(held_out), "valid", numbering)
    numbering.end_purchase()
    return RawLog(events=conform(events, EVENT_SCHEMA, "train.qrels.txt"))


def _events(table: pl.DataFrame, split: str, numbering: _PurchaseNumbering) -> pl.DataFrame:
    return table.select(
        pl.col("user").alias("user_id"),
        pl.col("item").alias("item_id"),
        numbering(table),
        pl.lit("purchase").alias("action"),
        "query",
        pl.lit("search").alias("surface"),
        pl.concat_str("user", pl.lit("_"), "query_line").alias("request_id"),
        pl.lit(split).alias("split"),
    )


def _items(folder: Path) -> Iterator[RawLog]:
    file = sibling(folder, "items.tsv")
    if file is None:
        return
    first = SeenKeys("item_id")
    for batch in delimited_batches(file, "\t"):
        batch.need(("asin", "brand", "categories"), file)
        batch.refuse(blank("asin"), "no asin")
        levels = (
            pl.col("categories").str.split(" > ").list.eval(pl.element().str.strip_chars().filter(pl.element() != ""))
        )
        batch.table = batch.table.select(
            pl.col("asin").alias("item_id"),
            filled("brand").alias("brand"),
            pl.when(levels.list.len() > 0).then(levels).alias("category"),
        )
        batch.keep_first(first, REPEATED_ITEM)
        yield batch.part(items=conform(batch.table, ITEM_SCHEMA, str(file)))
