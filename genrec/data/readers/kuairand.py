"""KuaiRand (Pure, 1K, 27K) in the published CSV files: short videos of a feed, with every kind of feedback.

Files, known by their names (plain, ``.gz`` or ``.zst``; several parts of a kind are read in the order of their names):

- ``log_standard_*.csv``: one row per impression. ``user_id``, ``video_id`` and ``time_ms`` are required;
  ``is_click``, ``long_view``, ``is_like``, ``is_comment``, ``is_follow``, ``is_forward``, ``is_hate``,
  ``is_profile_enter``, ``is_rand`` become true/false columns without their ``is_`` (``is_rand`` keeps it),
  ``play_time_ms``, ``duration_ms``, ``profile_stay_time`` and ``comment_stay_time`` whole numbers, ``tab`` the
  surface ("tab 1"). ``date`` and ``hourmin`` are dropped: ``time_ms`` is the truth and they say the same more
  coarsely;
- ``log_random_*.csv``: the same for videos drawn at random (``is_rand`` = 1), read as option ``logs`` says;
- ``video_features_basic_*.csv`` -> items: ``tag`` and ``video_type`` make the category ("NORMAL", then the tags), the
  other columns are kept as attributes;
- ``user_features_*.csv`` -> users, all columns;
- ``video_features_statistic_*.csv``: never read, its rows are counted. It sums up the days of the log, test days
  included;
- ``train_sequences_upto_*.tsv`` (a digest of the log before its first day, part of the reduced copies of Pure):
  for each user the last 50 impressions in order, those liked and those viewed long, and one time, that of the last.
  See option ``history``.

The chain is impression < click < long_view < like < comment < follow < forward: the rarer the deed, the deeper.
``action`` is the deepest stage reached, even where a shallower one is missing (a video can be liked without a click).
``hate`` is no stage but a negative: a hated row stays in ``impressions`` with its flag and never becomes an event.

Every log row is one row of ``impressions``; events repeat those at or above ``min_action``. Rows read = impressions
(of a history: its users) + items + users + quarantine + filtered. ``timestamp`` is ``time_ms // 1000``; rows keep the
order of the file, which is the order of ``time_ms``, and ``time_ms`` stays as a column.

Options: ``logs`` (standard, random or all; default standard), ``min_action`` (a stage, default click), ``history``
(default false: the digest has one time for up to 50 videos, so what it gives is an order and no clock, which would
mislead a time-aware model; true puts its videos before the log, all at the time of their last, ``surface`` "history";
a video counts as viewed long or liked at its last showings, as many as the digest lists; whether it was clicked is
not known, so one that was neither is an impression only).

Source: Gao et al., "KuaiRand: an unbiased sequential recommendation dataset with randomly exposed videos", CIKM 2022.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import polars as pl

from genrec.data.readers.toolkit import (
    LINE,
    LogSource,
    SeenKeys,
    check_options,
    choice,
    deepest_stage,
    delimited_batches,
    events_of,
    files_by_kind,
    milliseconds,
    parse_flags,
    skipped_files,
    switch,
    whole,
)
from genrec.data.schema import EVENT_SCHEMA, IMPRESSION_SCHEMA, ITEM_SCHEMA, USER_SCHEMA, RawLog, conform
from genrec.errors import UserError

CHAIN = ("impression", "click", "long_view", "like", "comment", "follow", "forward")
LOGS = ("standard", "random", "all")
FILES = {
    "standard": r"log_standard.*\.csv",
    "random": r"log_random.*\.csv",
    "items": r"video_features_basic.*\.csv",
    "users": r"user_features.*\.csv",
    "statistics": r"video_features_statistic.*\.csv",
    "history": r"train_sequences_upto.*\.tsv",
}
FLAGS = {
    **{name: f"is_{name}" for name in ("click", "like", "comment", "follow", "forward", "hate", "profile_enter")},
    "long_view": "long_view",
    "is_rand": "is_rand",
}
NUMBERS = ("play_time_ms", "duration_ms", "profile_stay_time", "comment_stay_time")
ITEM_NUMBERS = ("video_duration", "server_width", "server_height")
USER_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
HISTORY_LISTS = {
    "impressions": "last50_watched_video_ids",
    "like": "liked_video_ids",
    "long_view": "long_viewed_video_ids",
}
NO_TIME = "{} is no time in milliseconds (2000 to 2200)"


def kuairand_sources(path: Path, options: dict, columns: list[str] | None = None) -> list[LogSource]:
    """Every log file by itself (first the history, where it is requested), then the tables without events.

    Raises ``UserError`` for a wrong option, no file of the layout, no log of the requested kind, or a missing column.
    """
    check_options("kuairand", options, ("logs", "min_action", "history"))
    logs = choice("kuairand", options, "logs", LOGS, "standard")
    min_action = choice("kuairand", options, "min_action", CHAIN, "click")
    history = switch("kuairand", options, "history", False)
    files = files_by_kind(path, FILES, "kuairand")
    read = [kind for kind in ("standard", "random") if logs in (kind, "all")]
    unread = [file for kind in ("standard", "random") if kind not in read for file in files[kind]]
    if unread and not any(files[kind] for kind in read):
        raise UserError(f"{path}: no log_{read[0]}_*.csv there; set option logs to one of {', '.join(LOGS)}")
    sources = [LogSource([file], partial(_history, file, min_action)) for file in files["history"] if history]
    sources += [LogSource([file], partial(_log, file, min_action)) for kind in read for file in files[kind]]
    skipped = {
        "video_features_statistic sums up the days of the log": files["statistics"],
        f"log left out by option logs={logs}": unread,
        "train_sequences left out by option history=false": [] if history else files["history"],
    }
    tables = [*files["items"], *files["users"], *(file for group in skipped.values() for file in group)]
    if tables:
        sources.append(LogSource(tables, partial(_tables, files["items"], files["users"], skipped), events=False))
    return sources


def _tables(items: Sequence[Path], users: Sequence[Path], skipped: dict[str, list[Path]]) -> Iterator[RawLog]:
    seen_items, seen_users = SeenKeys("item_id"), SeenKeys("user_id")
    for file in items:
        for batch in delimited_batches(file, ",", required=["video_id"], reserved=list(ITEM_SCHEMA)):
            batch.table = batch.table.rename({"video_id": "item_id"})
            batch.clean_ids("item_id")
            batch.refuse_repeats(seen_items)
            numbers = [whole(name) for name in ITEM_NUMBERS if name in batch.table.columns]
            table = batch.table.drop(LINE).with_columns(*numbers, _category(batch.table))
            yield batch.part(items=conform(table, ITEM_SCHEMA, str(file)))
    for file in users:
        for batch in delimited_batches(file, ",", required=["user_id"]):
            batch.clean_ids("user_id")
            batch.refuse_repeats(seen_users)
            table = batch.table.drop(LINE)
            table = table.with_columns(whole(name) for name in USER_NUMBERS if name in table.columns)
            yield batch.part(users=conform(table, USER_SCHEMA, str(file)))
    for rule, files in skipped.items():
        yield from skipped_files(files, rule)


def _category(table: pl.DataFrame) -> pl.Expr:
    levels = [pl.concat_list(pl.col("video_type"))] if "video_type" in table.columns else []
    if "tag" in table.columns:
        tags = pl.col("tag").str.split(",").list.eval(pl.element().str.strip_chars())
        levels.append(pl.coalesce(tags, pl.lit([], dtype=pl.List(pl.String))))
    if not levels:
        return pl.lit(None, dtype=pl.List(pl.String)).alias("category")
    joined = pl.concat_list(levels).list.drop_nulls().list.eval(pl.element().filter(pl.element() != ""))
    return pl.when(joined.list.len() > 0).then(joined).alias("category")


def _log(file: Path, min_action: str) -> Iterator[RawLog]:
    own = {"user_id", "long_view", "is_rand"}
    reserved = [name for name in (*EVENT_SCHEMA, *IMPRESSION_SCHEMA, *CHAIN, *FLAGS) if name not in own]
    required = ["user_id", "video_id", "time_ms"]
    for batch in delimited_batches(file, ",", quoted=False, required=required, reserved=reserved):
        batch.clean_ids("user_id", "video_id")
        batch.table = batch.table.with_columns(milliseconds("time_ms").alias("time_ms"))
        batch.refuse(pl.col("time_ms").is_null(), NO_TIME.format("time_ms"))
        parse_flags(batch, FLAGS)
        table = batch.table
        surface = pl.format("tab {}", pl.col("tab")) if "tab" in table.columns else pl.lit(None, dtype=pl.String)
        table = table.rename({"video_id": "item_id"}).with_columns(
            (pl.col("time_ms") // 1000).alias("timestamp"),
            deepest_stage(table, CHAIN),
            surface.alias("surface"),
            *[whole(name) for name in NUMBERS if name in table.columns],
        )
        table = table.drop(LINE, *[name for name in ("date", "hourmin", "tab") if name in table.columns])
        impressions = conform(table, IMPRESSION_SCHEMA, str(file))
        events = events_of(impressions, CHAIN, min_action, str(file), extra=["time_ms"])
        yield batch.part(events=events, impressions=impressions, chain=CHAIN)


def _history(file: Path, min_action: str) -> Iterator[RawLog]:
    seen = SeenKeys("user_id")
    required = ["user_id", "last_time_ms", *HISTORY_LISTS.values()]
    for batch in delimited_batches(file, "\t", required=required):
        batch.clean_ids("user_id")
        batch.table = batch.table.with_columns(milliseconds("last_time_ms").alias("time_ms"))
        batch.refuse(pl.col("time_ms").is_null(), NO_TIME.format("last_time_ms"))
        ids = [pl.col(theirs).str.extract_all(r"\S+").alias(ours) for ours, theirs in HISTORY_LISTS.items()]
        batch.table = batch.table.select(LINE, "user_id", "time_ms", *ids)
        batch.refuse(pl.col("impressions").is_null(), f"no {HISTORY_LISTS['impressions']}")
        batch.refuse_repeats(seen)
        impressions = _history_rows(batch.table)
        events = events_of(impressions, CHAIN, min_action, str(file), extra=["time_ms"])
        yield batch.part(events=events, impressions=impressions, chain=CHAIN)


def _history_rows(table: pl.DataFrame) -> pl.DataFrame:
    """One row for each impression of each user, oldest first."""
    rows = table.select("user_id", "time_ms", pl.col("impressions").alias("item_id")).explode("item_id")
    # The digest does not say which showing was liked: the last ones are taken, as many as it lists.
    rows = rows.with_columns(pl.int_range(pl.len(), 0, -1).over("user_id", "item_id").alias("from_end"))
    for name in ("like", "long_view"):
        listed = table.select("user_id", pl.col(name).alias("item_id")).explode("item_id").drop_nulls()
        counts = listed.group_by("user_id", "item_id").agg(pl.len().alias("listed"))
        rows = rows.join(counts, on=["user_id", "item_id"], how="left", maintain_order="left")
        rows = rows.with_columns((pl.col("from_end") <= pl.col("listed")).fill_null(False).alias(name)).drop("listed")
    rows = rows.drop("from_end").with_columns(
        (pl.col("time_ms") // 1000).alias("timestamp"), deepest_stage(rows, CHAIN), pl.lit("history").alias("surface")
    )
    return conform(rows, IMPRESSION_SCHEMA, "history")
