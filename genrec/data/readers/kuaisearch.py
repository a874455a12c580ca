"""KuaiSearch: product searches of a short-video shop, in the published JSON lines.

Files, known by a word in their names (``.jsonl`` or ``.json``; plain, ``.gz`` or ``.zst``); keys that are not named
are not read:

- ``*items*``: ``item_id``, ``item_title``, ``brand_name``, ``category_level1_name`` ... ``category_level3_name``
  ("UNKNOWN" is none) -> items; the ids of brand, seller and levels and ``seller_name`` are attributes;
- ``*users*``: ``user_id``, ``gender``, ``age_bucket``, ``fre_country``, ``fre_province``, ``fre_city`` -> users;
- ``*recall*``: one search a line: ``user_id``, ``session_id``, ``time_index``, ``query``, ``impressed_item_ids``,
  ``clicked_item_ids``, ``purchased_item_ids``, ``split``;
- ``*rank*``: one impression of a search per line: ``target_item_id``, ``target_item_price``, ``is_clicked``,
  ``is_purchased``, ``search_entrance`` and, as above, ``user_id``, ``session_id``, ``time_index``, ``query``,
  ``split``. The items that a person clicked and bought before (without times, and repeated on every line) and the
  counts of 30 days are not read;
- ``*relevance*``: ``query``, ``item_title``, ``brand``, ``seller_name``, ``attr_value``, ``score`` (0 to 3) ->
  ``judgments``, the score as gain. Its products have no ids: each becomes an item "relevance-..." named by a hash of
  its texts, ``attr_value`` as its text.

Recall and rank tell of the same searches, rank only of some and with more columns, so one of them is read (option
``requests``) and the rows of the other are counted as filtered.

The chain is impression < click < purchase. ``impressions`` has a row for each item of the list, with ``query``,
``split``, ``click`` and ``purchase``, and with recall its ``position`` (from 0). Events are the items
clicked or bought, also those outside the list. ``request_id`` is user, session and time.
``timestamp`` is ``time_index`` as it stands: a relative time whose unit and origin are not published, so take it as
an order, not as a clock.

Rows read = items (of the items file) + users + searches (recall: rows of ``impressions`` at position 0; rank: all its
rows) + judgments + quarantine + filtered.

Options: ``requests`` (recall or rank, default recall), ``min_action`` (a stage, default click), ``relevance``
(default true: whether the judgments and their products are read).

Source: "KuaiSearch", arXiv 2602.11518 (data: benchen4395/KuaiSearch, MIT).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import polars as pl

from genrec.data.readers.toolkit import (
    LINE,
    Batch,
    SeenKeys,
    blank,
    check_options,
    choice,
    deepest_stage,
    events_of,
    files_by_kind,
    finite,
    id_lists,
    json_batches,
    parse_flags,
    skipped_files,
    switch,
    whole,
)
from genrec.data.schema import IMPRESSION_SCHEMA, ITEM_SCHEMA, JUDGMENT_SCHEMA, USER_SCHEMA, RawLog, conform
from genrec.errors import UserError

CHAIN = ("impression", "click", "purchase")
FILES = {kind: rf"(.*[_-])?{kind}([_-].*)?\.jsonl?" for kind in ("items", "users", "recall", "rank", "relevance")}
LEVELS = tuple(f"category_level{level}_name" for level in (1, 2, 3))
ITEM_ATTRIBUTES = (
    "brand_id",
    "seller_id",
    "seller_name",
    "category_level1_id",
    "category_level2_id",
    "category_level3_id",
)
ITEM_FIELDS = ("item_id", "item_title", "brand_name", *LEVELS, *ITEM_ATTRIBUTES)
USER_FIELDS = ("user_id", "gender", "age_bucket", "fre_country", "fre_province", "fre_city")
REQUEST_FIELDS = ("user_id", "session_id", "time_index", "query", "split")
LISTS = {"impression": "impressed_item_ids", "click": "clicked_item_ids", "purchase": "purchased_item_ids"}
RANK_FIELDS = ("target_item_id", "target_item_price", "is_clicked", "is_purchased", "search_entrance")
RELEVANCE_FIELDS = ("query", "item_title", "brand", "seller_name", "attr_value", "score")


def read_kuaisearch(path: Path, options: dict) -> Iterator[RawLog]:
    """Read the files of KuaiSearch at a folder, a file or a pattern, one part for each batch of lines.

    Raises ``UserError`` for a wrong option, no file of the layout, or no file of the requested searches.
    """
    check_options("kuaisearch", options, ("requests", "min_action", "relevance"))
    requests = choice("kuaisearch", options, "requests", ("recall", "rank"), "recall")
    min_action = choice("kuaisearch", options, "min_action", CHAIN, "click")
    relevance = switch("kuaisearch", options, "relevance", True)
    files = files_by_kind(path, FILES, "kuaisearch")
    other = "rank" if requests == "recall" else "recall"
    if files[other] and not files[requests]:
        raise UserError(f"{path}: no {requests} file there but {files[other][0].name}; set option requests to {other}")
    yield from _items(files["items"])
    yield from _users(files["users"])
    yield from skipped_files(files[other], f"{other} left out by option requests={requests}", header=False)
    for file in files[requests]:
        yield from (_recall if requests == "recall" else _rank)(file, min_action)
    if relevance:
        yield from _relevance(files["relevance"])
    else:
        yield from skipped_files(files["relevance"], "relevance left out by option relevance=false", header=False)


def _items(files: Sequence[Path]) -> Iterator[RawLog]:
    seen = SeenKeys("item_id")
    for file in files:
        for batch in json_batches(file, ITEM_FIELDS):
            batch.clean_ids("item_id")
            batch.refuse_repeats(seen)
            levels = pl.concat_list([_known(name) for name in LEVELS]).list.drop_nulls()
            items = batch.table.select(
                "item_id",
                pl.col("item_title").alias("title"),
                _known("brand_name").alias("brand"),
                pl.when(levels.list.len() > 0).then(levels).alias("category"),
                *ITEM_ATTRIBUTES,
            )
            yield batch.part(items=conform(items, ITEM_SCHEMA, str(file)))


def _known(column: str) -> pl.Expr:
    return pl.when(pl.col(column).str.to_uppercase() != "UNKNOWN").then(pl.col(column))


def _users(files: Sequence[Path]) -> Iterator[RawLog]:
    seen = SeenKeys("user_id")
    for file in files:
        for batch in json_batches(file, USER_FIELDS):
            batch.clean_ids("user_id")
            batch.refuse_repeats(seen)
            yield batch.part(users=conform(batch.table.drop(LINE), USER_SCHEMA, str(file)))


def _add_request(batch: Batch) -> None:
    """What recall and rank have in common: ids, time, request and query."""
    batch.clean_ids("user_id", "session_id")
    batch.table = batch.table.with_columns(whole("time_index").alias("timestamp"))
    batch.refuse(~(pl.col("timestamp") >= 0).fill_null(False), "time_index is not a whole number from 0")
    request = pl.concat_str("user_id", "session_id", "timestamp", separator="/")
    batch.table = batch.table.with_columns(request.alias("request_id"), pl.lit("search").alias("surface"))
    batch.table = batch.table.drop("time_index", "session_id")


def _recall(file: Path, min_action: str) -> Iterator[RawLog]:
    for batch in json_batches(file, (*REQUEST_FIELDS, *LISTS.values())):
        _add_request(batch)
        for name, theirs in LISTS.items():
            ids = id_lists(theirs)
            batch.refuse(pl.col(theirs).is_not_null() & ids.is_null(), f"{theirs} is no list of ids")
            listed = pl.coalesce(ids, pl.lit([], dtype=pl.List(pl.String)))
            batch.table = batch.table.with_columns(listed.alias(name)).drop(theirs)
        batch.refuse(pl.col("impression").list.len() == 0, "no impressed_item_ids")
        table = batch.table.drop(LINE).with_row_index("row")
        rows = table.with_columns(pl.int_ranges(0, pl.col("impression").list.len()).alias("position"))
        rows = _add_stages(rows.explode("impression", "position").rename({"impression": "item_id"}), table)
        stages = CHAIN if min_action == "impression" else CHAIN[1:]
        items = pl.concat_list(stages).list.unique(maintain_order=True)
        acted = table.with_columns(items.alias("item_id")).explode("item_id").filter(pl.col("item_id").is_not_null())
        events = events_of(_add_stages(acted, table), CHAIN, min_action, str(file), extra=["split"])
        yield batch.part(events=events, impressions=conform(rows, IMPRESSION_SCHEMA, str(file)), chain=CHAIN)


def _add_stages(rows: pl.DataFrame, requests: pl.DataFrame) -> pl.DataFrame:
    """Add ``click``, ``purchase`` and ``action`` to one row for each item of a request."""
    rows = rows.drop(name for name in LISTS if name in rows.columns)
    for name in CHAIN[1:]:
        acted = requests.select("row", pl.col(name).alias("item_id")).explode("item_id").drop_nulls().unique()
        acted = acted.with_columns(pl.lit(True).alias(name))
        rows = rows.join(acted, on=["row", "item_id"], how="left", maintain_order="left")
        rows = rows.with_columns(pl.col(name).fill_null(False))
    return rows.with_columns(deepest_stage(rows, CHAIN)).drop("row")


def _rank(file: Path, min_action: str) -> Iterator[RawLog]:
    for batch in json_batches(file, (*REQUEST_FIELDS, *RANK_FIELDS)):
        _add_request(batch)
        batch.clean_ids("target_item_id")
        parse_flags(batch, {"click": "is_clicked", "purchase": "is_purchased"})
        table = batch.table.rename({"target_item_id": "item_id"}).with_columns(
            deepest_stage(batch.table, CHAIN), finite("target_item_price").alias("price")
        )
        impressions = conform(table.drop(LINE, "target_item_price"), IMPRESSION_SCHEMA, str(file))
        events = events_of(impressions, CHAIN, min_action, str(file), extra=["split"])
        yield batch.part(events=events, impressions=impressions, chain=CHAIN)


def _relevance(files: Sequence[Path]) -> Iterator[RawLog]:
    seen = SeenKeys("item_id")
    for file in files:
        for batch in json_batches(file, RELEVANCE_FIELDS):
            for name in ("query", "item_title"):
                batch.refuse(blank(name), f"no {name}")
            score = whole("score")
            batch.refuse(~score.is_between(0, 3).fill_null(False), "score is no grade from 0 to 3")
            table = batch.table
            texts = table.select("item_title", "brand", "seller_name", "attr_value")
            table = table.with_columns(
                pl.Series("item_id", [f"relevance-{_digest(row)}" for row in texts.iter_rows()], dtype=pl.String),
                pl.Series("query_id", [f"relevance-{_digest((query,))}" for query in table["query"]], dtype=pl.String),
                score.cast(pl.String).alias("label"),
                score.cast(pl.Float64).alias("gain"),
            )
            judgments = table.select("query_id", "query", "item_id", "label", "gain")
            items = table.filter(seen.is_new(table)).select(
                "item_id",
                pl.col("item_title").alias("title"),
                "brand",
                pl.col("attr_value").alias("text"),
                "seller_name",
            )
            yield batch.part(
                judgments=conform(judgments, JUDGMENT_SCHEMA, str(file)), items=conform(items, ITEM_SCHEMA, str(file))
            )


def _digest(texts: Sequence[str | None]) -> str:
    """The same short name for the same texts on every machine."""
    return blake2b("\x1f".join(text or "" for text in texts).encode(), digest_size=8).hexdigest()
