"""KuaiSAR: what the same people saw in the feed and in search of a short-video app, in the published CSV files.

Files, told by their names (plain, ``.gz`` or ``.zst``); columns by their headers, those not named as required may be missing:

- ``rec_inter*.csv``, surface "feed": ``user_id``, ``item_id`` and ``timestamp`` (milliseconds) are required; ``click``, ``like``,
  ``follow``, ``forward``, ``search`` (a search began while watching) and ``search_item_related`` are true/false, ``playing_time`` and
  ``duration_ms`` milliseconds;
- ``src_inter*.csv``, surface "search": ``user_id``, ``item_id``, ``search_session_id`` and ``search_session_timestamp`` (milliseconds)
  are required; ``keyword`` (a list of anonymous word ids, "[20, 34, 3]") is the query, its ids as words ("20 34 3"); ``click_cnt`` above
  0 is a click; ``search_source`` and ``item_type`` are kept. ``request_id`` is user and search session;
- ``item_features*.csv`` -> items: the word ids of ``caption`` are the title (the same words as the queries'), the levels of the category
  come from ``first_level_category_name`` ... ``fourth_level_category_name`` (the English ones where the file has them), without
  "UNKNOWN", "empty" and their Chinese words; the rest are attributes;
- ``user_features*.csv`` -> users, all columns;
- ``social_network*.csv``: not read, its rows are counted.

A log without the column of milliseconds is read by its text column (``time``, ``search_session_time``, "2023-05-22 15:53:20"), which
is Beijing time (UTC+8).

The chain is impression < click < like < follow < forward; ``action`` is the deepest stage reached. Every log row is one row of
``impressions`` (with ``query`` and ``surface``); events repeat those at or above ``min_action``. Rows read = impressions + items + users +
quarantine + filtered.

Options: ``min_action`` (a stage, default click).

Source: Sun et al., "KuaiSAR: a unified search and recommendation dataset", CIKM 2023.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import polars as pl

from genrec.data.readers.common import LINE, LogSource, SeenKeys, check_options, parts_of, set_aside
from genrec.data.readers.feedback import (
    YEAR_2000,
    YEAR_2200,
    choice,
    events_of,
    files_by_kind,
    finite,
    flags,
    headed_batches,
    id_columns,
    json_list,
    left_out,
    milliseconds,
    part,
    stage,
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


def read_kuaisar(path: Path, options: dict) -> Iterator[RawLog]:
    """Read the files of KuaiSAR at a folder, a file or a glob, one part for each batch of lines.

    Raises ``UserError`` for a wrong option, no file of the layout, or a missing column.
    """
    yield from parts_of(kuaisar_sources(path, options))


def kuaisar_sources(path: Path, options: dict, columns: list[str] | None = None) -> list[LogSource]:
    """Every log file by itself, then everything that is no event."""
    check_options("kuaisar", options, ("min_action",))
    least = choice("kuaisar", options, "min_action", CHAIN, "click")
    found = files_by_kind(path, FILES, "kuaisar")
    sources = [
        LogSource([file], partial(_log, file, kind, least)) for kind in ("feed", "search") for file in found[kind]
    ]
    beside = [*found["items"], *found["users"], *found["network"]]
    return [*sources, LogSource(beside, partial(_tables, found), events=False)] if beside else sources


def _tables(found: dict[str, list[Path]]) -> Iterator[RawLog]:
    seen_items, seen_users = SeenKeys("item_id"), SeenKeys("user_id")
    for file in found["items"]:
        own = [name for name in ITEM_SCHEMA if name != "item_id"]
        for table, aside in headed_batches(file, ",", ["item_id"], own=own):
            table = id_columns(table, ["item_id"], file.name, aside)
            table = _items(table, file.name, aside)
            table = seen_items.first_rows(table, file.name, aside).drop(LINE)
            yield part(aside, table.height, items=conform(table, ITEM_SCHEMA, str(file)))
    for file in found["users"]:
        for table, aside in headed_batches(file, ",", ["user_id"]):
            table = id_columns(table, ["user_id"], file.name, aside)
            table = seen_users.first_rows(table, file.name, aside).drop(LINE)
            yield part(aside, table.height, users=conform(table, USER_SCHEMA, str(file)))
    yield from left_out(found["network"], "social_network is not read")


def _items(table: pl.DataFrame, source: str, aside: list[pl.DataFrame]) -> pl.DataFrame:
    if "caption" in table.columns:
        words = json_list("caption")
        wrong = pl.col("caption").is_not_null() & words.is_null()
        table = set_aside(table, wrong, source, "caption is no list of word ids", aside)
        table = table.with_columns(pl.when(words.list.len() > 0).then(words.list.join(" ")).alias("title")).drop(
            "caption"
        )
    columns = []
    for level in LEVELS:
        names = [f"{level}_level_category_name_en", f"{level}_level_category_name"]
        columns += [name for name in names if name in table.columns][:1]
    if not columns:
        return table
    known = [pl.when(~pl.col(name).str.to_lowercase().is_in(NO_LEVEL)).then(pl.col(name)) for name in columns]
    levels = pl.concat_list(known).list.drop_nulls()
    return table.with_columns(pl.when(levels.list.len() > 0).then(levels).alias("category"))


def _log(file: Path, kind: str, least: str) -> Iterator[RawLog]:
    keys = ["user_id", "item_id"] + (["search_session_id"] if kind == "search" else [])
    own = sorted(MADE - {*keys, "timestamp"} - (set(FEED_FLAGS) if kind == "feed" else set()))
    for table, aside in headed_batches(file, ",", keys, own=own):
        table = id_columns(table, keys, file.name, aside)
        table = _timed(table, kind, file, aside)
        if kind == "feed":
            table = flags(table, FEED_FLAGS, file.name, aside)
            table = table.with_columns(
                finite(name) for name in ("playing_time", "duration_ms") if name in table.columns
            )
        else:
            table = _searched(table, file.name, aside)
        table = table.with_columns(stage(table, CHAIN), pl.lit(kind).alias("surface"))
        shown = conform(table.drop(LINE), IMPRESSION_SCHEMA, str(file))
        events = events_of(shown, CHAIN, least, str(file), extra=["time_ms"])
        yield part(aside, shown.height, events=events, impressions=shown, chain=CHAIN)


def _timed(table: pl.DataFrame, kind: str, file: Path, aside: list[pl.DataFrame]) -> pl.DataFrame:
    """Add ``time_ms`` and ``timestamp``; the log's own columns of the time go."""
    number, text = TIMES[kind]
    if number in table.columns:
        value, reason = milliseconds(number), f"{number} is no time in milliseconds (2000 to 2200)"
    elif text in table.columns:
        clock = pl.col(text).str.strip_chars().str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False)
        since = clock.dt.epoch("s") - BEIJING
        value = pl.when(since.is_between(YEAR_2000, YEAR_2200)).then(since * 1000)
        reason = f"{text} is no date and time (2000 to 2200)"
    else:
        have = ", ".join(name for name in table.columns if name != LINE)
        raise UserError(f"{file}: no column {number!r} (or {text!r}); the file has: {have[:300]}")
    table = table.with_columns(value.alias("time_ms"))
    table = set_aside(table, pl.col("time_ms").is_null(), file.name, reason, aside)
    table = table.drop([name for name in (number, text) if name in table.columns])
    return table.with_columns((pl.col("time_ms") // 1000).alias("timestamp"))


def _searched(table: pl.DataFrame, source: str, aside: list[pl.DataFrame]) -> pl.DataFrame:
    """The columns of a search row: request, query and click."""
    table = table.with_columns(pl.concat_str("user_id", "search_session_id", separator="/").alias("request_id")).drop(
        "search_session_id"
    )
    if "keyword" in table.columns:
        words = json_list("keyword")
        wrong = pl.col("keyword").is_not_null() & words.is_null()
        table = set_aside(table, wrong, source, "keyword is no list of word ids", aside)
        table = table.with_columns(pl.when(words.list.len() > 0).then(words.list.join(" ")).alias("query")).drop(
            "keyword"
        )
    if "click_cnt" in table.columns:
        clicks = whole("click_cnt")
        wrong = pl.col("click_cnt").is_not_null() & ~(clicks >= 0).fill_null(False)
        table = set_aside(table, wrong, source, "click_cnt is no count", aside)
        table = table.with_columns(clicks.alias("click_cnt"), (clicks > 0).alias("click"))
    return table
