"""KuaiRand (Pure, 1K, 27K) in the published CSV files: short videos shown in the feed, with every kind of feedback.

Files, told by their names (plain, ``.gz`` or ``.zst``; several parts of a kind are read in the order of their names):

- ``log_standard_*.csv``: one row for each shown video. ``user_id``, ``video_id`` and ``time_ms`` are required; ``is_click``,
  ``long_view``, ``is_like``, ``is_comment``, ``is_follow``, ``is_forward``, ``is_hate``, ``is_profile_enter``, ``is_rand`` become
  true/false columns without their ``is_`` (``is_rand`` keeps it), ``play_time_ms``, ``duration_ms``, ``profile_stay_time`` and
  ``comment_stay_time`` whole numbers, ``tab`` the surface ("tab 1"). ``date`` and ``hourmin`` are dropped: ``time_ms`` is the truth
  and they say the same more coarsely;
- ``log_random_*.csv``: the same for videos drawn at random (``is_rand`` = 1), read as option ``logs`` says;
- ``video_features_basic_*.csv`` -> items: ``tag`` and ``video_type`` make the category ("NORMAL", then the tags), the other columns
  are kept as attributes;
- ``user_features_*.csv`` -> users, all columns;
- ``video_features_statistic_*.csv``: never read, its rows are counted. It sums up the days of the log, test days included;
- ``train_sequences_upto_*.tsv`` (a digest of the log before its first day, found beside the reduced copies of Pure): for each user the
  last 50 shown videos in order, those liked and those viewed long, and one time, that of the last. See option ``history``.

The chain is impression < click < long_view < like < comment < follow < forward: the rarer the deed, the deeper. ``action`` is the
deepest stage reached, even where a shallower one is missing (a video can be liked without a click). ``hate`` is no stage but a
negative: a hated row stays in ``impressions`` with its flag and never becomes an event.

Every log row is one row of ``impressions``; events repeat those at or above ``min_action``. Rows read = impressions (of a history: its
users) + items + users + quarantine + filtered. ``timestamp`` is ``time_ms // 1000``; rows keep the order of the file, which is the
order of ``time_ms``, and ``time_ms`` stays as a column.

Options: ``logs`` (standard, random or all; default standard), ``min_action`` (a stage, default click), ``history`` (default false: the
digest has one time for up to 50 videos, so what it gives is an order and no clock, which would mislead a time-aware model; true puts its
videos before the log, all at the time of their last, ``surface`` "history"; a video counts as viewed long or liked at its last showings,
as many as the digest lists; whether it was clicked is not known, so one that was neither is an impression only).

Source: Gao et al., "KuaiRand: an unbiased sequential recommendation dataset with randomly exposed videos", CIKM 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import polars as pl

from genrec.data.readers.common import LINE, LogSource, SeenKeys, check_options, parts_of, set_aside
from genrec.data.readers.feedback import (
    choice,
    events_of,
    files_by_kind,
    flags,
    headed_batches,
    id_columns,
    left_out,
    milliseconds,
    part,
    stage,
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
HISTORY_LISTS = {"shown": "last50_watched_video_ids", "like": "liked_video_ids", "long_view": "long_viewed_video_ids"}


def read_kuairand(path: Path, options: dict) -> Iterator[RawLog]:
    """Read the files of KuaiRand at a folder, a file or a glob, one part for each batch of lines.

    Raises ``UserError`` for a wrong option, no file of the layout, no log of the wanted kind, or a missing column.
    """
    yield from parts_of(kuairand_sources(path, options))


def kuairand_sources(path: Path, options: dict, columns: list[str] | None = None) -> list[LogSource]:
    """Every log file by itself (the sequences before the log, where they are wanted, first), then everything that is no event."""
    check_options("kuairand", options, ("logs", "min_action", "history"))
    logs = choice("kuairand", options, "logs", LOGS, "standard")
    least = choice("kuairand", options, "min_action", CHAIN, "click")
    history = switch("kuairand", options, "history", False)
    found = files_by_kind(path, FILES, "kuairand")
    wanted = [kind for kind in ("standard", "random") if logs in (kind, "all")]
    unwanted = [file for kind in ("standard", "random") if kind not in wanted for file in found[kind]]
    if unwanted and not any(found[kind] for kind in wanted):
        raise UserError(f"{path}: no log_{wanted[0]}_*.csv there; set option logs to one of {', '.join(LOGS)}")
    sources = [LogSource([file], partial(_history, file, least)) for file in found["history"] if history]
    sources += [LogSource([file], partial(_log, file, least)) for kind in wanted for file in found[kind]]
    aside = {
        "video_features_statistic sums up the days of the log": found["statistics"], f"log left out by option logs={logs}": unwanted,
        "train_sequences left out by option history=false": [] if history else found["history"],
    }  # fmt: skip
    beside = [*found["items"], *found["users"], *(file for files in aside.values() for file in files)]
    return (
        [*sources, LogSource(beside, partial(_tables, found["items"], found["users"], aside), events=False)]
        if beside
        else sources
    )


def _tables(items: list[Path], users: list[Path], aside: dict[str, list[Path]]) -> Iterator[RawLog]:
    yield from _keyed(items, "video_id", "item_id")
    yield from _keyed(users, "user_id", "user_id")
    for rule, files in aside.items():
        yield from left_out(files, rule)


def _keyed(files: list[Path], theirs: str, ours: str) -> Iterator[RawLog]:
    """Items or users: the first row of each id."""
    seen = SeenKeys(ours)
    for file in files:
        own = [name for name in ITEM_SCHEMA if ours == "item_id"]
        for table, aside in headed_batches(file, ",", [theirs], own=own):
            table = id_columns(table.rename({theirs: ours}), [ours], file.name, aside)
            table = seen.first_rows(table, file.name, aside).drop(LINE)
            numbers = ITEM_NUMBERS if ours == "item_id" else USER_NUMBERS
            table = table.with_columns(whole(name) for name in numbers if name in table.columns)
            if ours == "user_id":
                yield part(aside, table.height, users=conform(table, USER_SCHEMA, str(file)))
                continue
            yield part(aside, table.height, items=conform(table.with_columns(_category(table)), ITEM_SCHEMA, str(file)))


def _category(table: pl.DataFrame) -> pl.Expr:
    levels = [pl.concat_list(pl.col("video_type"))] if "video_type" in table.columns else []
    if "tag" in table.columns:
        tags = pl.col("tag").str.split(",").list.eval(pl.element().str.strip_chars())
        levels.append(pl.coalesce(tags, pl.lit([], dtype=pl.List(pl.String))))
    if not levels:
        return pl.lit(None, dtype=pl.List(pl.String)).alias("category")
    joined = pl.concat_list(levels).list.drop_nulls().list.eval(pl.element().filter(pl.element() != ""))
    return pl.when(joined.list.len() > 0).then(joined).alias("category")


def _log(file: Path, least: str) -> Iterator[RawLog]:
    own = [
        name
        for name in (*EVENT_SCHEMA, *IMPRESSION_SCHEMA, *CHAIN, *FLAGS)
        if name not in ("user_id", "long_view", "is_rand")
    ]
    for table, aside in headed_batches(file, ",", ["user_id", "video_id", "time_ms"], quoted=False, own=own):
        table = id_columns(table, ["user_id", "video_id"], file.name, aside)
        table = table.with_columns(milliseconds("time_ms").alias("time_ms"))
        table = set_aside(
            table, pl.col("time_ms").is_null(), file.name, "time_ms is no time in milliseconds (2000 to 2200)", aside
        )
        table = flags(table, FLAGS, file.name, aside)
        surface = pl.format("tab {}", pl.col("tab")) if "tab" in table.columns else pl.lit(None, dtype=pl.String)
        table = table.rename({"video_id": "item_id"}).with_columns(
            (pl.col("time_ms") // 1000).alias("timestamp"),
            stage(table, CHAIN),
            surface.alias("surface"),
            *[whole(name) for name in NUMBERS if name in table.columns],
        )
        dropped = [name for name in (LINE, "date", "hourmin", "tab") if name in table.columns]
        shown = conform(table.drop(dropped), IMPRESSION_SCHEMA, str(file))
        events = events_of(shown, CHAIN, least, str(file), extra=["time_ms"])
        yield part(aside, shown.height, events=events, impressions=shown, chain=CHAIN)


def _history(file: Path, least: str) -> Iterator[RawLog]:
    seen = SeenKeys("user_id")
    for table, aside in headed_batches(file, "\t", ["user_id", "last_time_ms", *HISTORY_LISTS.values()]):
        table = id_columns(table, ["user_id"], file.name, aside)
        table = table.with_columns(milliseconds("last_time_ms").alias("time_ms"))
        table = set_aside(
            table,
            pl.col("time_ms").is_null(),
            file.name,
            "last_time_ms is no time in milliseconds (2000 to 2200)",
            aside,
        )
        ids = [pl.col(theirs).str.extract_all(r"\S+").alias(ours) for ours, theirs in HISTORY_LISTS.items()]
        table = table.select(LINE, "user_id", "time_ms", *ids)
        table = set_aside(table, pl.col("shown").is_null(), file.name, f"no {HISTORY_LISTS['shown']}", aside)
        table = seen.first_rows(table, file.name, aside)
        shown = _history_rows(table)
        events = events_of(shown, CHAIN, least, str(file), extra=["time_ms"])
        yield part(aside, table.height, events=events, impressions=shown, chain=CHAIN)


def _history_rows(table: pl.DataFrame) -> pl.DataFrame:
    """One row for each shown video of each user, oldest first."""
    rows = table.select("user_id", "time_ms", pl.col("shown").alias("item_id")).explode("item_id")
    # The digest does not say which showing was liked: the last ones are taken, as many as it lists.
    from_end = (pl.int_range(pl.len(), 0, -1).over("user_id", "item_id")).alias("from_end")
    rows = rows.with_columns(from_end)
    for name in ("like", "long_view"):
        listed = table.select("user_id", pl.col(name).alias("item_id")).explode("item_id").drop_nulls()
        counts = listed.group_by("user_id", "item_id").agg(pl.len().alias("listed"))
        rows = rows.join(counts, on=["user_id", "item_id"], how="left", maintain_order="left")
        rows = rows.with_columns((pl.col("from_end") <= pl.col("listed")).fill_null(False).alias(name)).drop("listed")
    rows = rows.drop("from_end").with_columns(
        (pl.col("time_ms") // 1000).alias("timestamp"), stage(rows, CHAIN), pl.lit("history").alias("surface")
    )
    return conform(rows, IMPRESSION_SCHEMA, "history")
