"""Events, items and users out of plain tables, batch by batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from genrec.data.readers.table.catalogue import CategoryTree, items_of, read_catalogue
from genrec.data.readers.table.columns import Columns
from genrec.data.readers.table.items import as_text
from genrec.data.readers.table.joins import Join, named_batches
from genrec.data.readers.table.layout import is_empty, table_files
from genrec.data.readers.table.options import TableOptions, parse_options
from genrec.data.readers.table.rows import (
    clean_ids,
    history_events,
    history_of,
    leave_out_low_ratings,
    recognised,
    to_actions,
    to_seconds,
    unpack_items,
)
from genrec.data.readers.toolkit import LINE, Batch, LogSource, SeenKeys, is_glob, reaches
from genrec.data.schema import EVENT_SCHEMA, IMPRESSION_SCHEMA, PROPENSITY, REQUIRED_EVENT_COLUMNS, RawLog, conform
from genrec.data.times import TimeNotation
from genrec.errors import UserError

log = logging.getLogger(__name__)
ROW_STEP = 1 << 16  # items of a row in a file without times
FILE_STEP = 1 << 31  # rows of a file without times are numbered from this times the file's index


def table_sources(path: Path, options: dict, columns: list[str] | None = None) -> list[LogSource]:
    """The files behind a log, one by one: every event file, by name, then items and users together.

    ``columns``: the event columns that are needed (None: all); others need not be read.

    Rows without an id or with an unreadable time, and rows that do not fit the file's own format, go to quarantine.
    Columns beyond the contract are kept. Raises ``UserError`` for a wrong option, a missing file or a missing column.
    """
    settings = parse_options(options)
    base = path if path.is_dir() else path.parent
    item_files = table_files(_under(base, settings.items, "items")) if settings.items else []
    user_files = table_files(_under(base, settings.users, "users")) if settings.users else []
    joined = {base / join["file"] for join in (*settings.joins, *settings.item_joins) if "file" in join}
    if settings.category_tree and "file" in settings.category_tree:
        joined.add(base / settings.category_tree["file"])
    impressions = table_files(_under(base, settings.impressions, "impressions")) if settings.impressions else []
    others = {*item_files, *user_files, *impressions, *joined}
    sources: list[LogSource] = []
    for entry, own in settings.entries():
        event_path = path if entry is None else _under(base, str(entry), "events")
        files = table_files(event_path)
        files = files if event_path.is_file() else [file for file in files if file not in others]
        if not files:
            raise UserError(
                f"{event_path}: no events; every file there is a table of items or users, set option events"
            )
        for file in files:
            if len(files) > 1 and is_empty(file):
                log.warning("%s: empty, passed over", file)
                continue
            index = len(sources)
            also = [base / join["file"] for join in own.joins]
            sources.append(LogSource([file, *also], partial(_read_events, file, own, columns, base, index)))
    sources += [LogSource([file], partial(_read_impressions, file, settings)) for file in impressions]
    if item_files or user_files:
        tables = [*settings.item_joins, *([settings.category_tree] if settings.category_tree else [])]
        also = [base / entry["file"] for entry in tables if "file" in entry]
        parts = partial(read_catalogue, item_files, user_files, settings, base)
        sources.append(LogSource([*item_files, *also, *user_files], parts, events=False))
    return sources


def _under(base: Path, name: str, option: str) -> Path:
    path = base / name
    if not is_glob(name) and not path.exists():
        raise UserError(f"{path}: no such file or folder (option {option} of reader 'table')")
    return path


def _read_events(
    file: Path, settings: TableOptions, needed: list[str] | None, base: Path, index: int
) -> Iterator[RawLog]:
    ordered_rows = settings.timestamp_unit == "order" and "timestamp" not in settings.columns
    required = [name for name in REQUIRED_EVENT_COLUMNS if not (ordered_rows and name == "timestamp")]
    columns = Columns(settings.columns, required, "columns", file, late=False)
    renamed = {theirs: ours for ours, theirs in settings.columns.items() if isinstance(theirs, str)}
    mapping = {
        ours: renamed.get(theirs, theirs) if isinstance(theirs, str) else theirs
        for ours, theirs in settings.item_columns.items()
    }
    items = Columns({**mapping, "item_id": "item_id"}, ["item_id"], "item_columns", file, late=True)
    sources, joins = columns.sources, [Join(base, entry, settings) for entry in settings.joins]
    if needed is not None and sources is not None and not settings.reads_items and not joins:
        sources = {*sources, *needed, *(settings.action_flags or ()), "quantity", "rating"}
    else:
        sources = None
    notation: TimeNotation | None = None
    seen, people = SeenKeys("item_id"), SeenKeys("user_id")
    tree = CategoryTree(base, settings) if settings.category_tree and settings.reads_items else None
    for batch in named_batches(file, settings, columns, settings.names, sources, joins):
        if ordered_rows and "timestamp" not in batch.table.columns:
            batch.table = batch.table.with_columns((pl.col(LINE) + index * FILE_STEP).alias("timestamp"))
        before = history_of(batch, settings, file, people) if "history" in settings.columns else None
        unpack_items(batch, settings)
        if ordered_rows and batch.table[LINE].is_duplicated().any():  # the items of a row follow each other
            place = pl.int_range(pl.len()).over(LINE)
            batch.table = batch.table.with_columns(pl.col("timestamp") * ROW_STEP + place)
        clean_ids(batch, ("user_id", "item_id"), settings, file)
        if notation is None and batch.table["timestamp"].count() and not batch.table["timestamp"].dtype.is_nested():
            notation = recognised(batch.table["timestamp"], settings, file)
        to_seconds(batch, notation or TimeNotation("s"))
        if settings.min_rating is not None:
            leave_out_low_ratings(batch, settings, file)
        to_actions(batch, settings, file)
        catalogue = items_of(batch, items, seen, settings, tree) if settings.reads_items else None
        if before is not None:
            yield RawLog(events=history_events(before, notation or TimeNotation("s"), settings, file))
        yield _event_part(batch, settings, file, catalogue)
    if settings.reads_items:
        items.check()


def _read_impressions(file: Path, settings: TableOptions) -> Iterator[RawLog]:
    """Impressions of a table of their own; ``action`` says what came of each."""
    columns = Columns(settings.columns, [*REQUIRED_EVENT_COLUMNS, "action"], "columns", file, late=False)
    notation: TimeNotation | None = None
    for batch in named_batches(file, settings, columns, settings.names, None, []):
        clean_ids(batch, ("user_id", "item_id"), settings, file)
        if notation is None and batch.table["timestamp"].count():
            notation = recognised(batch.table["timestamp"], settings, file)
        to_seconds(batch, notation or TimeNotation("s"))
        to_actions(batch, settings, file)
        yield batch.part(impressions=_impressions(batch.table, file))


def _impressions(table: pl.DataFrame, file: Path) -> pl.DataFrame:
    known = [name for name in (*IMPRESSION_SCHEMA, "query", "surface", PROPENSITY) if name in table.columns]
    types = {"position": pl.Int64(), PROPENSITY: pl.Float64()}
    numbers = [pl.col(name).cast(types[name], strict=False) for name in types if name in known]
    return conform(table.select(known).with_columns(numbers), IMPRESSION_SCHEMA, str(file))


def _event_part(batch: Batch, settings: TableOptions, file: Path, items: pl.DataFrame | None) -> RawLog:
    table = batch.table.drop(LINE)
    for name in ("query", "surface", "request_id"):
        if name in table.columns:
            text = as_text(table, name)
            table = table.with_columns(text.set(text.is_in(settings.null_words), None))
    tables: dict[str, Any] = {} if items is None else {"items": items}
    if settings.chain and (lowest := settings.lowest_event) is not None:
        tables["chain"] = tuple(settings.chain)
        if settings.chain[0] == "impression":
            tables["impressions"] = _impressions(table, file)
        events = table.filter(reaches(settings.chain, lowest))
        batch.count(f"impressions and other actions below {lowest}", table.height - events.height)
        table = events
    return batch.part(events=conform(table, EVENT_SCHEMA, str(file)), **tables)
