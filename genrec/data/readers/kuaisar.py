"""KuaiSAR: what the same people saw in the feed and in search of a short-video app, in the published CSV files.

Files, known by their names (plain, ``.gz`` or ``.zst``); columns by their headers, those not named as required may be
missing:

- ``rec_inter*.csv``, surface "feed": ``user_id``, ``item_id`` and ``timestamp`` (milliseconds) are required;
  ``click``, ``like``, ``follow``, ``forward``, ``search`` (a search began while watching) and ``search_item_related``
  are true/false, ``playing_time`` and ``duration_ms`` milliseconds;
- ``src_inter*.csv``, surface "search": ``user_id``, ``item_id``, ``search_session_id`` and
  ``search_session_timestamp`` (milliseconds) are required; ``keyword`` (a list of anonymous word ids, "[20, 34, 3]")
  is the query, its ids as words ("20 34 3"); ``click_cnt`` above 0 is a click; ``search_source`` and ``item_type``
  are kept. ``request_id`` is user and search session;
- ``item_features*.csv`` -> items: the word ids of ``caption`` are the title (the same words as the queries'), the
  levels of the category come from ``first_level_category_name`` ... ``fourth_level_category_name`` (the English ones
  where the file has them), without "UNKNOWN", "empty" and their Chinese words; the rest are attributes;
- ``user_features*.csv`` -> users, all columns;
- ``social_network*.csv``: not read, its rows are counted.

A log without the column of milliseconds is read by its text column (``time``, ``search_session_time``, "2023-05-22
15:53:20"), which is Beijing time (UTC+8).

The chain is impression < click < like < follow < forward; ``action`` is the deepest stage reached. Every log row is
one row of ``impressions`` (with ``query`` and ``surface``); events repeat those at or above ``min_action``. Rows read
= impressions + items + users + quarantine + filtered.

Options: ``min_action`` (a stage, default click).

Source: Sun et al., "KuaiSAR: a unified search and recommendation dataset", CIKM 2023.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import polars as pl

from genrec.data.readers.toolkit import (
    LINE,
    YEAR_2000,
    YEAR_2200,
    Batch,
    LogSource,
    SeenKeys,
    check_options,
    choice,
    deepest_stage,
    delimited_batches,
    events_of,
    files_by_kind,
    finite,
    id_lists,
    milliseconds,
    parse_flags,
    skipped_files,
    whole,
)
from genrec.data.schema import EVENT_SCHEMA, IMPRESSION_SCHEMA, ITEM_SCHEMA, USER_SCHEMA, RawLog, conform
from genrec.errors import UserError

CHAIN = ("impression", "click", "like", "follow", "forward")
FILES = {
    "feed": r"rec_inter.*\.csv",
    "search": r"src_inter.*\.csv",
    "items": r"item_features.*\.csv",
    "users": r"user_features.*\.csv",
    "network": r"social_network.*\.csv",
}
FEED_FLAGS = {name: name for name in (*CHAIN[1:], "search", "search_item_related")}
TIMES = {"feed": ("timestamp", "time"), "search": ("search_session_timestamp", "search_session_time")}
MADE = {*EVENT_SCHEMA, *IMPRESSION_SCHEMA, "time_ms", *CHAIN}
LEVELS = ("first", "second", "third", "fourth")
NO_LEVEL = ("unknown", "empty", "空", "未知", "0")
BEIJING = 8 * 3600  # seconds ahead of UTC


def kuaisar_sources(path: Path, options: dict, columns: list[str] | None = None) -> list[LogSource]:
    """Every log file by itself, then the tables without events.

    Raises ``UserError`` for a wrong option, no file of the layout, or a missing column.
    """
    check_options("kuaisar", options, ("min_action",))
    min_action = choice("kuaisar", options, "min_action", CHAIN, "click")
    files = files_by_kind(path, FILES, "kuaisar")
    sources = [
        LogSource([file], partial(_log, file, kind, min_action)) for kind in ("feed", "search") for file in files[kind]
    ]
    tables = [*files["items"], *files["users"], *files["network"]]
    return [*sources, LogSource(tables, partial(_tables, files), events=False)] if tables else sources


def _tables(files: dict[str, list[Path]]) -> Iterator[RawLog]:
    seen_items, seen_users = SeenKeys("item_id"), SeenKeys("user_id")
    for file in files["items"]:
        reserved = [name for name in ITEM_SCHEMA if name != "item_id"]
        for batch in delimited_batches(file, ",", required=["item_id"], reserved=reserved):
            batch.clean_ids("item_id")
            _to_items(batch)
            batch.refuse_repeats(seen_items)
            yield batch.part(items=conform(batch.table.drop(LINE), ITEM_SCHEMA, str(file)))
    for file in files["users"]:
        for batch in delimited_batches(file, ",", required=["user_id"]):
            batch.clean_ids("user_id")
            batch.refuse_repeats(seen_users)
            yield batch.part(users=conform(batch.table.drop(LINE), USER_SCHEMA, str(file)))
    yield from skipped_files(files["network"], "social_network is not read")


def _to_items(batch: Batch) -> None:
    _replace_words(batch, "caption", "title")
    columns = []
    for level in LEVELS:
        names = [f"{level}_level_category_name_en", f"{level}_level_category_name"]
        columns += [name for name in names if name in batch.table.columns][:1]
    if columns:
        known = [pl.when(~pl.col(name).str.to_lowercase().is_in(NO_LEVEL)).then(pl.col(name)) for name in columns]
        levels = pl.concat_list(known).list.drop_nulls()
        batch.table = batch.table.with_columns(pl.when(levels.list.len() > 0).then(levels).alias("category"))


def _replace_words(batch: Batch, theirs: str, ours: str) -> None:
    """Replace a list of word ids ("[20, 34]") by a text ("20 34"), where the file has the column."""
    if theirs in batch.table.columns:
        words = id_lists(theirs)
        batch.refuse(pl.col(theirs).is_not_null() & words.is_null(), f"{theirs} is no list of word ids")
        text = pl.when(words.list.len() > 0).then(words.list.join(" "))
        batch.table = batch.table.with_columns(text.alias(ours)).drop(theirs)


def _log(file: Path, kind: str, min_action: str) -> Iterator[RawLog]:
    keys = ["user_id", "item_id"] + (["search_session_id"] if kind == "search" else [])
    reserved = sorted(MADE - {*keys, "timestamp"} - (set(FEED_FLAGS) if kind == "feed" else set()))
    for batch in delimited_batches(file, ",", required=keys, reserved=reserved):
        batch.clean_ids(*keys)
        _add_times(batch, kind, file)
        if kind == "feed":
            parse_flags(batch, FEED_FLAGS)
            numbers = [name for name in ("playing_time", "duration_ms") if name in batch.table.columns]
            batch.table = batch.table.with_columns(finite(name) for name in numbers)
        else:
            _add_search(batch)
        table = batch.table.with_columns(deepest_stage(batch.table, CHAIN), pl.lit(kind).alias("surface"))
        impressions = conform(table.drop(LINE), IMPRESSION_SCHEMA, str(file))
        events = events_of(impressions, CHAIN, min_action, str(file), extra=["time_ms"])
        yield batch.part(events=events, impressions=impressions, chain=CHAIN)


def _add_times(batch: Batch, kind: str, file: Path) -> None:
    """Add ``time_ms`` and ``timestamp``, and drop the log's own columns of the time."""
    number, text = TIMES[kind]
    if number in batch.table.columns:
        value, reason = milliseconds(number), f"{number} is no time in milliseconds (2000 to 2200)"
    elif text in batch.table.columns:
        clock = pl.col(text).str.strip_chars().str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False)
        since = clock.dt.epoch("s") - BEIJING
        value = pl.when(since.is_between(YEAR_2000, YEAR_2200)).then(since * 1000)
        reason = f"{text} is no date and time (2000 to 2200)"
    else:
        have = ", ".join(name for name in batch.table.columns if name != LINE)
        raise UserError(f"{file}: no column {number!r} (or {text!r}); the file has: {have[:300]}")
    batch.table = batch.table.with_columns(value.alias("time_ms"))
    batch.refuse(pl.col("time_ms").is_null(), reason)
    batch.table = batch.table.drop([name for name in (number, text) if name in batch.table.columns])
    batch.table = batch.table.with_columns((pl.col("time_ms") // 1000).alias("timestamp"))


def _add_search(batch: Batch) -> None:
    """Add the columns of a search row: request, query and click."""
    request = pl.concat_str("user_id", "search_session_id", separator="/").alias("request_id")
    batch.table = batch.table.with_columns(request).drop("search_session_id")
    _replace_words(batch, "keyword", "query")
    if "click_cnt" in batch.table.columns:
        clicks = whole("click_cnt")
        batch.refuse(pl.col("click_cnt").is_not_null() & ~(clicks >= 0).fill_null(False), "click_cnt is no count")
        batch.table = batch.table.with_columns(clicks.alias("click_cnt"), (clicks > 0).alias("click"))
