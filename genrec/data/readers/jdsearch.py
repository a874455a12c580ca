"""JDsearch: product searches at JD.com with real, anonymised queries; one line holds the whole behaviour of a person.

The path is a folder, a file or a pattern; tab-separated text with or without a header line, plain, ``.gz`` or ``.zst``:

- ``release_data*.txt`` or ``user_behavior_data*.txt``: ``query``, ``candidate_wid_list``, ``candidate_label_list``,
  ``history_qry_list``, ``history_wid_list``, ``history_type_list``, ``history_time_list``;
- ``product_data*.txt`` or ``product_meta_data*.txt``: ``wid``, ``name``, ``brand_id``, ``brand_name``, then
  ``cate_id_N`` and ``cate_name_N`` for the four levels of the category path, ``shop_id``.

Lists are joined by ``_``; words are anonymous term ids, joined by the control character 0x18 in the file and by a
space here. The time list holds the seconds since the step before, the first 0; the last one leads to the test query,
so it is one longer than the others.

==============  ============================================================================================
events          meaning
==============  ============================================================================================
``user_id``     the file's name without its endings and the number of the line: the data name no people
``item_id``     ``wid``; some are not in the product file
``timestamp``   seconds on the person's own clock, which starts at 0; clocks of two people cannot be compared
``action``      CLICK "click", FLW "follow", CART "cart", ORD "purchase", in this order as the feedback chain;
                candidate labels 1.0 "click", 2.0 "cart", 3.0 "purchase"
``query``       null for a step without one (-1)
``surface``     "search" with a query, else "feed"
``request_id``  the user's id for the test query; null in the history
``split``       "train" for the history, "test" for what the person did with the candidates
==============  ============================================================================================

``impressions``: the candidates of the test query (columns ``query`` and ``split`` as above) with their label as
``action``. The file lists those that were acted on first, so neither position nor order may be used: ``position`` is
null and the rows of a request are in the order of their item ids.

Items: ``title``, ``brand``, ``category`` (term ids, not words), and ``brand_id`` and ``shop_id``.

Source: Liu, Dou, Tang, Xu, "JDsearch: a personalized product search dataset with real queries and full interactions",
SIGIR 2023.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from genrec.data.readers.toolkit import (
    LINE,
    REPEATED_ITEM,
    Batch,
    SeenKeys,
    blank,
    check_options,
    delimited_batches,
    files_at,
    filled,
    plain_name,
)
from genrec.data.schema import EVENT_SCHEMA, IMPRESSION_SCHEMA, ITEM_SCHEMA, RawLog, conform
from genrec.errors import UserError

CHAIN = ("impression", "click", "follow", "cart", "purchase")
TYPES = {"CLICK": "click", "FLW": "follow", "CART": "cart", "ORD": "purchase"}
LABELS = {0.0: "impression", 1.0: "click", 2.0: "cart", 3.0: "purchase"}
BEHAVIOUR = (
    "query",
    "candidate_wid_list",
    "candidate_label_list",
    "history_qry_list",
    "history_wid_list",
    "history_type_list",
    "history_time_list",
)
LEVELS = tuple(f"cate_name_{level}" for level in (1, 2, 3, 4))
PRODUCT = (
    "wid",
    "name",
    "brand_id",
    "brand_name",
    *(f"cate_{kind}_{level}" for level in (1, 2, 3, 4) for kind in ("id", "name")),
    "shop_id",
)
TERMS, NO_QUERY = "\x18", "-1"
HISTORY, CANDIDATES = (
    ("history_qry_list", "history_wid_list", "history_type_list"),
    ("candidate_wid_list", "candidate_label_list"),
)


def read_jdsearch(path: Path, options: dict) -> Iterator[RawLog]:
    """Read behaviour (events and impressions), then products, in parts.

    A line of behaviour is kept whole or goes to quarantine whole, so rows read are people kept, products kept, rows
    in quarantine and rows left out: people with neither history nor candidates, products whose id an earlier line
    has. Raises ``UserError`` when there is no behaviour file.
    """
    check_options("jdsearch", options, ())
    files = files_at(path)
    behaviour = [file for file in files if file.name.startswith(("release_data", "user_behavior_data"))]
    if not behaviour:
        raise UserError(
            f"{path}: no release_data*.txt or user_behavior_data*.txt (plain, .gz or .zst); reader 'jdsearch' needs one"
        )
    for file in behaviour:
        for batch in delimited_batches(
            file, "\t", columns=BEHAVIOUR, is_header=lambda fields: "candidate_wid_list" in fields
        ):
            batch.need(BEHAVIOUR, file)
            _split_lists(batch)
            _check(batch)
            user = pl.concat_str(pl.lit(plain_name(file).split(".")[0] + ":"), LINE)
            people = batch.table.with_columns(user.alias("user_id"), pl.col("times").list.sum().alias("clock"))
            candidates = _candidates(people)
            acted = candidates.filter(pl.col("action") != "impression").with_columns(surface=pl.lit("search"))
            events = (
                pl.concat([_history(people), acted.select("user_id", *EVENTS)])
                .sort("line", maintain_order=True)
                .drop("line")
            )
            yield batch.part(
                events=conform(events, EVENT_SCHEMA, str(file)),
                impressions=conform(candidates.drop("line"), IMPRESSION_SCHEMA, str(file)),
                chain=CHAIN,
            )
    first = SeenKeys("item_id")
    for file in files:
        if file.name.startswith(("product_data", "product_meta_data")):
            for batch in delimited_batches(file, "\t", columns=PRODUCT, is_header=lambda fields: "wid" in fields):
                batch.need(("wid", "name", "brand_name", *LEVELS, "brand_id", "shop_id"), file)
                batch.refuse(blank("wid"), "no wid")
                batch.table = _items(batch.table)
                batch.keep_first(first, REPEATED_ITEM)
                yield batch.part(items=conform(batch.table, ITEM_SCHEMA, str(file)), chain=CHAIN)


EVENTS = ("item_id", "timestamp", "action", "query", "surface", "request_id", "split", "line")


def _split_lists(batch: Batch) -> None:
    """The lists of each line as lists; an empty field is an empty list."""

    def listed(name: str) -> pl.Expr:
        return (
            pl.when(blank(name))
            .then(pl.lit([], dtype=pl.List(pl.String)))
            .otherwise(pl.col(name).str.split("_"))
            .alias(name)
        )

    table = batch.table.with_columns(listed(name) for name in (*HISTORY, *CANDIDATES, "history_time_list"))
    batch.table = table.with_columns(
        pl.col("history_time_list")
        .list.eval(pl.element().str.strip_chars().cast(pl.Int64, strict=False))
        .alias("times"),
        pl.col("candidate_label_list").list.eval(pl.element().cast(pl.Float64, strict=False)).alias("labels"),
    )


def _check(batch: Batch) -> None:
    """Put lines that do not fit together into quarantine."""
    length = {name: pl.col(name).list.len() for name in (*HISTORY, *CANDIDATES, "times")}
    batch.refuse(blank("query"), "no query")
    batch.refuse(
        length["candidate_wid_list"] != length["candidate_label_list"],
        "the lists of candidates and labels differ in length",
    )
    uneven = (length["history_qry_list"] != length["history_wid_list"]) | (
        length["history_type_list"] != length["history_wid_list"]
    )
    batch.refuse(uneven, "the lists of the history differ in length")
    batch.refuse(
        length["times"] != length["history_wid_list"] + 1, "history_time_list is not one longer than the history"
    )
    wrong = pl.col("times").list.eval(pl.element().is_null() | (pl.element() < 0)).list.any()
    batch.refuse(wrong, "a time between steps is not a whole number of seconds")
    unknown = pl.col("history_type_list").list.eval(~pl.element().is_in(list(TYPES))).list.any()
    batch.refuse(unknown, f"a behaviour is none of {', '.join(TYPES)}")
    unknown = pl.col("labels").list.eval(~pl.element().is_in(list(LABELS)).fill_null(False)).list.any()
    batch.refuse(unknown, "a candidate label is none of 0, 1, 2 and 3")
    for name in ("history_wid_list", "candidate_wid_list"):
        batch.refuse(pl.col(name).list.eval(pl.element().str.strip_chars() == "").list.any(), f"an empty id in {name}")
    batch.leave_out(
        (length["history_wid_list"] == 0) & (length["candidate_wid_list"] == 0), "neither history nor candidates"
    )


def _terms(column: str) -> pl.Expr:
    text = pl.col(column).str.replace_all(TERMS, " ", literal=True).str.strip_chars()
    return pl.when((text != "") & (text != NO_QUERY)).then(text)


def _history(people: pl.DataFrame) -> pl.DataFrame:
    steps = people.select(
        "user_id",
        pl.col(LINE).alias("line"),
        pl.col("times").list.head(pl.col("times").list.len() - 1),
        *HISTORY,
    )
    steps = steps.filter(pl.col("history_wid_list").list.len() > 0).explode("times", *HISTORY)
    return steps.select(
        "user_id",
        pl.col("history_wid_list").alias("item_id"),
        pl.col("times").cum_sum().over("user_id").alias("timestamp"),
        pl.col("history_type_list").replace_strict(TYPES, return_dtype=pl.String).alias("action"),
        _terms("history_qry_list").alias("query"),
        pl.when(_terms("history_qry_list").is_null()).then(pl.lit("feed")).otherwise(pl.lit("search")).alias("surface"),
        pl.lit(None, dtype=pl.String).alias("request_id"),
        pl.lit("train").alias("split"),
        "line",
    )


def _candidates(people: pl.DataFrame) -> pl.DataFrame:
    """The candidates of each test query, by item id: their order in the file gives the labels away."""
    rows = people.select("user_id", "clock", LINE, _terms("query").alias("query"), "candidate_wid_list", "labels")
    rows = rows.filter(pl.col("labels").list.len() > 0).explode("candidate_wid_list", "labels")
    return rows.select(
        pl.col("user_id").alias("request_id"),
        "user_id",
        pl.col("candidate_wid_list").alias("item_id"),
        pl.col("clock").alias("timestamp"),
        pl.col("labels").replace_strict(LABELS, return_dtype=pl.String).alias("action"),
        "query",
        pl.lit("test").alias("split"),
        pl.col(LINE).alias("line"),
    ).sort("line", "item_id", maintain_order=True)


def _items(table: pl.DataFrame) -> pl.DataFrame:
    levels = pl.concat_list(_terms(level) for level in LEVELS).list.drop_nulls()
    return table.select(
        pl.col("wid").alias("item_id"),
        _terms("name").alias("title"),
        _terms("brand_name").alias("brand"),
        pl.when(levels.list.len() > 0).then(levels).alias("category"),
        filled("brand_id").alias("brand_id"),
        filled("shop_id").alias("shop_id"),
    )
