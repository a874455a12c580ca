"""Events, items and users out of plain tables, batch by batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from genrec.data.ids import id_text
from genrec.data.readers.table.columns import Columns, explode
from genrec.data.readers.table.formats import layout_of, table_batches, table_files
from genrec.data.readers.table.items import as_text, typed_items
from genrec.data.readers.table.options import TableOptions, parse_options
from genrec.data.readers.toolkit import LINE, Batch, LogSource, SeenKeys, finite, is_glob, parts_of, reaches
from genrec.data.readers.toolkit.json_lines import parse_json
from genrec.data.schema import (
    EVENT_SCHEMA,
    IMPRESSION_SCHEMA,
    ITEM_SCHEMA,
    REQUIRED_EVENT_COLUMNS,
    USER_SCHEMA,
    RawLog,
    conform,
    json_text,
)
from genrec.data.times import YEAR_1990, TimeNotation, recognise, utc
from genrec.errors import UserError

log = logging.getLogger(__name__)
FILE_STEP = 1 << 31  # rows of a file without times are numbered from this times the file's index


def read_table(path: Path, options: dict) -> Iterator[RawLog]:
    """Read events, and items and users where given, from plain tables, in parts.

    Rows without an id or with an unreadable time, and rows that do not fit the file's own format, go to quarantine.
    Columns beyond the contract are kept. Raises ``UserError`` for a wrong option, a missing file or a missing column.
    """
    yield from parts_of(table_sources(path, options))


def table_sources(path: Path, options: dict, columns: list[str] | None = None) -> list[LogSource]:
    """The files behind a log, one by one: every event file, by name, then items and users together.

    ``columns``: the event columns that are needed (None: all); others need not be read.
    """
    settings = parse_options(options)
    base = path if path.is_dir() else path.parent
    item_files = table_files(_under(base, settings.items, "items")) if settings.items else []
    user_files = table_files(_under(base, settings.users, "users")) if settings.users else []
    joined = {base / join["file"] for join in (*settings.joins, *settings.item_joins) if "file" in join}
    others = {*item_files, *user_files, *joined}
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
            index = len(sources)
            also = [base / join["file"] for join in own.joins]
            sources.append(LogSource([file, *also], partial(_read_events, file, own, columns, base, index)))
    if item_files or user_files:
        also = [base / join["file"] for join in settings.item_joins]
        parts = partial(_read_tables, item_files, user_files, settings, base)
        sources.append(LogSource([*item_files, *also, *user_files], parts, events=False))
    return sources


def _under(base: Path, name: str, option: str) -> Path:
    path = base / name
    if not is_glob(name) and not path.exists():
        raise UserError(f"{path}: no such file or folder (option {option} of reader 'table')")
    return path


def _named_batches(
    file: Path,
    settings: TableOptions,
    columns: Columns,
    names: Sequence[str] | None,
    needed: set[str] | None,
    joins: Sequence[_Join],
) -> Iterator[Batch]:
    layout = layout_of(file, settings.format, settings.separator, settings.quoted, settings.encoding)
    columns.late = layout.kind in ("json", "array")
    for batch in table_batches(file, layout, names, needed):
        for join in joins:
            join.look_up(batch)
        columns.rename(batch)
        yield batch
    columns.check()


class _Join:
    """A table whose columns are looked up for each row of another by one column; it is held in memory."""

    def __init__(self, base: Path, entry: dict[str, str], settings: TableOptions):
        if {"file", "on"} - {*entry}:
            raise UserError(f"reader 'table': a join needs 'file' and 'on', not {', '.join(entry)}")
        self.file, self.key = base / entry["file"], entry["on"]
        if not self.file.exists():
            raise UserError(f"{self.file}: no such file (option joins of reader 'table')")
        layout = layout_of(self.file, None, settings.separator, None, settings.encoding)
        table = pl.concat(
            [batch.table.drop(LINE) for batch in table_batches(self.file, layout, None, None)], how="diagonal_relaxed"
        )
        if self.key not in table.columns:
            raise UserError(
                f"{self.file}: no column {self.key!r} to join on; the file has: {', '.join(table.columns)[:300]}"
            )
        table = table.with_columns(id_text(table[self.key], str(self.file)))
        self.table = table.drop_nulls(self.key).unique(self.key, keep="first", maintain_order=True)

    def look_up(self, batch: Batch) -> None:
        """Add the columns to a batch; rows without a match are quarantined, and no match at all is an error."""
        batch.need([self.key], Path(batch.source))
        batch.table = batch.table.with_columns(id_text(batch.table[self.key], batch.source))
        other = self.table.drop(
            [name for name in self.table.columns if name in batch.table.columns and name != self.key]
        )
        joined = batch.table.join(other.with_columns(_met=True), on=self.key, how="left", maintain_order="left")
        if batch.table.height and not joined["_met"].any():
            raise UserError(
                f"{self.file}: no row matches {batch.source} by {self.key}: {list(self.table[self.key].head(3))} "
                f"there, {list(batch.table[self.key].head(3))} here"
            )
        batch.table = joined
        batch.refuse(pl.col("_met").is_null(), f"its {self.key} is not in {self.file.name}")
        batch.table = batch.table.drop("_met")


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
    sources, joins = columns.sources, [_Join(base, entry, settings) for entry in settings.joins]
    if needed is not None and sources is not None and not settings.reads_items and not joins:
        sources = {*sources, *needed, "quantity"}
    else:
        sources = None
    notation: TimeNotation | None = None
    seen = SeenKeys("item_id")
    for batch in _named_batches(file, settings, columns, settings.names, sources, joins):
        if ordered_rows and "timestamp" not in batch.table.columns:
            batch.table = batch.table.with_columns((pl.col(LINE) + index * FILE_STEP).alias("timestamp"))
        _unpack_items(batch, settings)
        _clean_ids(batch, ("user_id", "item_id"), settings, file)
        if notation is None and batch.table["timestamp"].count() and not batch.table["timestamp"].dtype.is_nested():
            notation = _recognised(batch.table["timestamp"], settings, file)
        _to_seconds(batch, notation or TimeNotation("s"))
        _to_actions(batch, settings, file)
        catalogue = _items_of(batch, items, seen, settings) if settings.reads_items else None
        yield _event_part(batch, settings, file, catalogue)
    if settings.reads_items:
        items.check()


def _unpack_items(batch: Batch, settings: TableOptions) -> None:
    """One row for each item, where a field of the file holds several; a label behind an item becomes its action."""
    table = batch.table
    if settings.item_separator is not None and table["item_id"].dtype == pl.String:
        batch.table = table.with_columns(pl.col("item_id").str.strip_chars().str.split(settings.item_separator))
    if isinstance(batch.table["item_id"].dtype, pl.List):
        lists = [
            name
            for name in EVENT_SCHEMA
            if name in batch.table.columns and isinstance(batch.table[name].dtype, pl.List)
        ]
        explode(batch, ["item_id", *(name for name in lists if name != "item_id")])
        batch.leave_out(
            pl.col("item_id").cast(pl.String).fill_null("").str.strip_chars() == "", "an empty element of item_id"
        )
    if settings.item_label is not None:
        item = pl.col("item_id").cast(pl.String)
        label = item.str.split(settings.item_label).list.last()
        bare = item.str.head(item.str.len_chars() - label.str.len_chars() - len(settings.item_label))
        labelled = item.str.contains(settings.item_label, literal=True)
        batch.table = batch.table.with_columns(
            pl.when(labelled).then(bare).otherwise(item).alias("item_id"), pl.when(labelled).then(label).alias("action")
        )


def _clean_ids(batch: Batch, keys: Sequence[str], settings: TableOptions, file: Path) -> None:
    """Ids as text; rows whose id stands for none are left out, those without one go to quarantine."""
    for key in keys:
        dtype = batch.table[key].dtype
        maybe_nested = dtype.is_nested() or dtype == pl.String
        column = batch.table.select(json_text(key))[key] if dtype.is_nested() else id_text(batch.table[key], str(file))
        if settings.strip_leading_zeros:
            column = column.str.replace(r"^0+(.)", "$1")
        batch.table = batch.table.with_columns(column)
        words = column.is_in(settings.null_words)
        if words.any():
            batch.leave_out(pl.Series(words), f"{key} stands for none ({column.filter(words)[0]})")
        batch.refuse_blank(key)
        if maybe_nested:
            _refuse_lists(batch, key)


def _refuse_lists(batch: Batch, key: str) -> None:
    """Quarantine the rows whose id is a list or an object, written as JSON."""
    column = batch.table[key]
    if not column.str.contains("[", literal=True).any() and not column.str.contains("{", literal=True).any():
        return
    looks = column.str.contains(r"^\s*[\[{]")
    ids = column.filter(looks).unique()
    lists = [text for text in ids if isinstance(parse_json(text), list | dict)]  # "[deleted]" is an id like any other
    batch.refuse(pl.col(key).is_in(lists), f"{key} is a list or an object")


def _recognised(column: pl.Series, settings: TableOptions, file: Path) -> TimeNotation:
    notation = recognise(column, str(file), settings.timestamp_unit, settings.timestamp_format)
    seconds = notation.seconds(column)
    low, high = seconds.min(), seconds.max()
    if not isinstance(low, int) or not isinstance(high, int):
        return notation
    if settings.timestamp_unit is None and notation.kind not in ("s", "typed"):
        log.info("%s: times are read as %s, from %s to %s", file.name, notation, utc(low), utc(high))
    if settings.timestamp_unit is None and notation.kind == "order":
        log.warning(
            "%s: times from %d to %d would lie in 1970: they are taken as positions in order; set timestamp_format or "
            "timestamp_unit if they are dates",
            file.name,
            low,
            high,
        )
    elif high < YEAR_1990 and notation.kind != "order":
        log.warning("%s: times lie from %s to %s; check timestamp_unit", file.name, utc(low), utc(high))
    if low == high and column.len() > 2:
        log.warning(
            "%s: the first %d times are all %s: the order is that of the rows", file.name, column.len(), utc(low)
        )
    return notation


def _to_seconds(batch: Batch, notation: TimeNotation) -> None:
    column = batch.table["timestamp"]
    if column.dtype.is_nested():
        column = batch.table.select(json_text("timestamp"))["timestamp"]
    seconds = notation.seconds(column)
    text = column.cast(pl.String, strict=False).fill_null("empty").str.head(40).alias("_written")
    batch.table = batch.table.with_columns(seconds.alias("timestamp"), text)
    expected = "a number" if notation.kind in ("s", "ms", "us", "ns", "order", "excel") else "a date"
    reason = pl.format("the time is not {} ({}): {}", pl.lit(expected), pl.lit(str(notation)), pl.col("_written"))
    batch.refuse(pl.col("timestamp").is_null(), reason)
    batch.table = batch.table.drop("_written")


def _to_actions(batch: Batch, settings: TableOptions, file: Path) -> None:
    """Actions under our names; rows with an action outside the chain and returned goods are left out and counted."""
    if settings.action is not None and "action" not in batch.table.columns:
        batch.table = batch.table.with_columns(pl.lit(settings.action).alias("action"))
    if "action" in batch.table.columns:
        batch.table = batch.table.with_columns(as_text(batch.table, "action"))
        action = pl.col("action").str.strip_chars()
        if settings.actions:
            action = action.replace(settings.actions)
        batch.table = batch.table.with_columns(action)
    if settings.chain:
        if "action" not in batch.table.columns:
            raise UserError(
                f"{file}: option chain needs actions; set columns.action, or action where all rows are of one"
            )
        counts = batch.table["action"].value_counts(sort=True).rows()
        unknown = {name: count for name, count in counts if name not in settings.chain}
        if unknown and len(unknown) == len(counts):
            raise UserError(
                f"{file}: no action of chain {settings.chain} is there; "
                f"the file has: {', '.join(map(str, unknown))[:200]}; "
                "map them by option actions"
            )
        for name in unknown:
            batch.leave_out(pl.col("action").eq_missing(name), f"action {name} is not in the chain")
    quantity = "quantity" if "quantity" in batch.table.columns else None
    if quantity:
        number = (
            finite(quantity)
            if batch.table[quantity].dtype == pl.String
            else pl.col(quantity).cast(pl.Float64, strict=False)
        )
        batch.leave_out(number <= 0, "returned or cancelled (quantity not above 0)")


def _items_of(batch: Batch, columns: Columns, seen: SeenKeys, settings: TableOptions) -> pl.DataFrame:
    """The items of a batch of events that were not met before in the file."""
    own = Batch(batch.table, batch.table.height, batch.source)
    columns.rename(own)
    first = own.table.filter(seen.is_new(own.table)).select(list(columns.names))
    return conform(typed_items(first, settings, batch.source), ITEM_SCHEMA, batch.source)


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
            known = [name for name in (*IMPRESSION_SCHEMA, "query", "surface") if name in table.columns]
            impressions = table.select(known)
            if "position" in known:
                impressions = impressions.with_columns(pl.col("position").cast(pl.Int64, strict=False))
            if "request_id" in known:
                tables["impressions"] = conform(impressions, IMPRESSION_SCHEMA, str(file))
        events = table.filter(reaches(settings.chain, lowest))
        batch.count(f"impressions and other actions below {lowest}", table.height - events.height)
        table = events
    return batch.part(events=conform(table, EVENT_SCHEMA, str(file)), **tables)


def _read_tables(
    item_files: Sequence[Path], user_files: Sequence[Path], settings: TableOptions, base: Path
) -> Iterator[RawLog]:
    if item_files:
        joins = [_Join(base, entry, settings) for entry in settings.item_joins]
        if settings.item_properties:
            yield from _items_from_properties(item_files, settings)
        else:
            for batch in _keyed_batches(item_files, "item_id", settings, joins):
                yield batch.part(
                    items=conform(typed_items(batch.table, settings, batch.source), ITEM_SCHEMA, str(item_files[0]))
                )
    for batch in _keyed_batches(user_files, "user_id", settings, []) if user_files else ():
        yield batch.part(users=conform(batch.table, USER_SCHEMA, str(user_files[0])))


def _keyed_batches(files: Sequence[Path], key: str, settings: TableOptions, joins: Sequence[_Join]) -> Iterator[Batch]:
    """Items or users in batches: one row for each key, over all files."""
    seen = SeenKeys(key)
    items = key == "item_id"
    mapping, names = (
        (settings.item_columns, settings.item_names) if items else (settings.user_columns, settings.user_names)
    )
    for file in files:
        columns = Columns(mapping, [key], "item_columns" if items else "user_columns", file, late=False)
        for batch in _named_batches(file, settings, columns, names, None, joins):
            _clean_ids(batch, (key,), settings, file)
            batch.refuse_repeats(seen)
            batch.table = batch.table.drop(LINE)
            yield batch


def _items_from_properties(files: Sequence[Path], settings: TableOptions) -> Iterator[RawLog]:
    """Items out of rows (item, property, value): the last value of each property that ``item_columns`` names."""
    names = settings.item_properties or {}
    if {"item", "property", "value"} - {*names}:
        raise UserError("reader 'table': option item_properties needs the columns 'item', 'property' and 'value'")
    wanted = {
        ours: theirs for ours, theirs in settings.item_columns.items() if ours != "item_id" and isinstance(theirs, str)
    }
    if not wanted:
        raise UserError(
            "reader 'table': with item_properties, item_columns names the properties to keep, as category: categoryid"
        )
    kept: pl.DataFrame | None = None
    mapping: dict[str, str | list[str]] = {
        "item_id": names["item"],
        "property": names["property"],
        "value": names["value"],
    }
    for file in files:
        columns = Columns(mapping, list(mapping), "item_properties", file, late=False)
        for batch in _named_batches(file, settings, columns, None, None, []):
            _clean_ids(batch, ("item_id",), settings, file)
            batch.table = batch.table.with_columns(as_text(batch.table, "property"), as_text(batch.table, "value"))
            rows = batch.table.filter(pl.col("property").is_in(list(wanted.values()))).select(*mapping)
            batch.count("rows of item properties, joined to one row an item", batch.table.height)
            kept = rows if kept is None else pl.concat([kept, rows])
            kept = kept.unique(["item_id", "property"], keep="last", maintain_order=True)
            yield batch.part()
    assert kept is not None
    wide = kept.pivot("property", index="item_id", values="value", aggregate_function="last")
    lacking = [theirs for theirs in wanted.values() if theirs not in wide.columns]
    if lacking:
        raise UserError(f"{files[0]}: no property {lacking[0]!r}; set item_columns to properties of the file")
    table = wide.select("item_id", *(pl.col(theirs).alias(ours) for ours, theirs in wanted.items()))
    yield RawLog(items=conform(typed_items(table, settings, files[0].name), ITEM_SCHEMA, str(files[0])))
