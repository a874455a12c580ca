"""Plain tables: Parquet, CSV, TSV or JSON lines (text ones also ``.gz`` or ``.zst``), with columns under any names.

The reader for a log of your own: say which of your columns is the user, the item and the time, and it checks the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from functools import partial
from pathlib import Path

import polars as pl

from genrec.data.readers.toolkit import (
    LINE,
    YEAR_2200,
    Batch,
    LogSource,
    SeenKeys,
    check_options,
    delimited_batches,
    did_you_mean,
    files_at,
    is_glob,
    parquet_batches,
    parts_of,
    text_lists,
)
from genrec.data.readers.toolkit.files import COMPRESSED
from genrec.data.readers.toolkit.json_lines import parse_json, parse_json_lines
from genrec.data.readers.toolkit.lines import line_batches
from genrec.data.readers.toolkit.options import nearest
from genrec.data.schema import (
    EVENT_SCHEMA,
    ITEM_SCHEMA,
    REQUIRED_EVENT_COLUMNS,
    USER_SCHEMA,
    RawLog,
    conform,
    json_text,
)
from genrec.errors import UserError

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
}
SEPARATORS = {"csv": ",", "tsv": "\t"}
UNITS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
TIMESTAMP_UNITS = (*UNITS_PER_SECOND, "iso")
WITH_OFFSET = ("%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%d %H:%M%:z")
WITHOUT_OFFSET = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M")


@dataclass
class TableOptions:
    """The options of the ``table`` reader. Paths are relative to the data path when that is a folder, else to its folder."""

    events: str | None = None
    """Events: a file, a folder of files or a pattern; the data path itself when not given."""
    items: str | None = None
    """Items: a file, a folder or a pattern (optional)."""
    users: str | None = None
    """Users: a file, a folder or a pattern (optional)."""
    columns: dict[str, str] = field(default_factory=dict)
    """The contract's event column -> the file's column; a column not listed is looked for under its own name."""
    item_columns: dict[str, str] = field(default_factory=dict)
    """The same for items."""
    user_columns: dict[str, str] = field(default_factory=dict)
    """The same for users."""
    category_separator: str = "|"
    """What separates the levels of a category path held as text."""
    timestamp_unit: str = "s"
    """The unit of numeric times (s, ms, us, ns), or ``iso`` for text such as ``2024-05-01T12:30:00Z`` (UTC without an offset)."""


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
    settings = _parse_options(options)
    base = path if path.is_dir() else path.parent
    item_files = _files(_under(base, settings.items, "items")) if settings.items else []
    user_files = _files(_under(base, settings.users, "users")) if settings.users else []
    event_path = _under(base, settings.events, "events") if settings.events else path
    sources = [
        LogSource([file], partial(_read_events, file, settings, columns))
        for file in _files(event_path, skip={*item_files, *user_files})
    ]
    if item_files or user_files:
        sources.append(
            LogSource([*item_files, *user_files], partial(_read_tables, item_files, user_files, settings), events=False)
        )
    return sources


def _read_tables(item_files: Sequence[Path], user_files: Sequence[Path], settings: TableOptions) -> Iterator[RawLog]:
    for batch in _keyed_batches(item_files, "item_id", "item_columns", settings.item_columns):
        items = conform(_typed_items(batch.table, settings.category_separator), ITEM_SCHEMA, str(item_files[0]))
        yield batch.part(items=items)
    for batch in _keyed_batches(user_files, "user_id", "user_columns", settings.user_columns):
        yield batch.part(users=conform(batch.table, USER_SCHEMA, str(user_files[0])))


def _parse_options(options: dict) -> TableOptions:
    check_options("table", options, [entry.name for entry in dataclass_fields(TableOptions)])
    settings = TableOptions(**options)
    for key, schema in (("columns", EVENT_SCHEMA), ("item_columns", ITEM_SCHEMA), ("user_columns", None)):
        mapping = getattr(settings, key) or {}
        if not hasattr(mapping, "items") or not all(isinstance(theirs, str) for theirs in mapping.values()):
            raise UserError(f"reader 'table': option {key} must map column names to column names, not {mapping!r}")
        setattr(settings, key, dict(mapping))
        for ours in mapping if key == "columns" else ():
            if ours not in schema:
                raise UserError(
                    f"reader 'table': columns.{ours} is no column of the contract; {did_you_mean(ours, list(schema))}"
                )
    for key in ("events", "items", "users"):
        value = getattr(settings, key)
        if value is not None and not isinstance(value, str | Path):
            raise UserError(f"reader 'table': option {key} must be a path, not {value!r}")
    if settings.timestamp_unit not in TIMESTAMP_UNITS:
        tail = did_you_mean(str(settings.timestamp_unit), TIMESTAMP_UNITS)
        raise UserError(f"reader 'table': unknown timestamp_unit {settings.timestamp_unit!r}; {tail}")
    if not isinstance(settings.category_separator, str) or not settings.category_separator:
        raise UserError("reader 'table': option category_separator must be a non-empty text")
    return settings


def _under(base: Path, name: str, option: str) -> Path:
    path = base / name
    if not is_glob(str(name)) and not path.exists():
        raise UserError(f"{path}: no such file or folder (option {option} of reader 'table')")
    return path


def file_format(path: Path) -> str | None:
    """parquet, csv, tsv or json by the file's name, or None for any other."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] in COMPRESSED
    if compressed:
        suffixes.pop()
    kind = FORMATS.get(suffixes[-1]) if suffixes else None
    return None if compressed and kind == "parquet" else kind


def _files(path: Path, skip: set[Path] = frozenset()) -> list[Path]:
    """The table files at a path (file, folder or pattern), by name."""
    known = [file for file in files_at(path) if file_format(file) and file not in skip]
    if not known:
        raise UserError(f"{path}: no table to read; expected {', '.join(FORMATS)} (text ones also .gz or .zst)")
    return known


def _batches(file: Path, names: set[str] | None) -> Iterator[Batch]:
    """One file in batches, at least one, so that its columns are checked.

    Columns that are not in ``names`` (None: all are) are left out where that saves reading them.
    """
    kind = file_format(file)
    if kind == "parquet":
        yield from parquet_batches(file, names)
    elif kind == "json":
        for lines, wrong in line_batches(file):
            table, broken = parse_json_lines(lines, file.name, None)
            yield Batch(table, lines.height + wrong.height, file.name, [wrong, broken])
    else:
        yield from delimited_batches(file, SEPARATORS[kind], quoted=True)


class _Columns:
    """The columns of a file under the contract's names; a required or named column that no row has is a ``UserError``."""

    def __init__(self, mapping: dict[str, str], required: Sequence[str], option: str, file: Path):
        self.option, self.file = option, file
        self.names = {ours: mapping.get(ours, ours) for ours in dict.fromkeys([*required, *mapping])}
        self.met: dict[str, None] = {}

    def rename(self, table: pl.DataFrame) -> pl.DataFrame:
        """One batch; a column that it lacks is null there, for JSON rows need not all have every field."""
        have = [name for name in table.columns if name != LINE]
        self.met.update(dict.fromkeys(have))
        if file_format(self.file) != "json":
            self.check()
        taken = {*self.names.values(), *self.names}
        named = [
            (pl.col(theirs) if theirs in have else pl.lit(None, dtype=pl.String)).alias(ours)
            for ours, theirs in self.names.items()
        ]
        return table.select(LINE, *named, *[name for name in have if name not in taken])

    def check(self) -> None:
        """Raise ``UserError`` for the first named column that no batch has had so far."""
        have = list(self.met)
        for ours, theirs in self.names.items():
            if theirs in have:
                continue
            close = nearest(theirs, have) or nearest(ours, have)
            hint = f"nearest: {close!r}; " if close else ""
            raise UserError(
                f"{self.file}: no column {theirs!r} for {ours}; {hint}the file has: {', '.join(have)}; set {self.option}.{ours}"
            )


def _renamed_batches(
    file: Path, mapping: dict[str, str], required: Sequence[str], option: str, names: list[str] | None = None
) -> Iterator[Batch]:
    columns = _Columns(mapping, required, option, file)
    for batch in _batches(file, None if names is None else {*columns.names.values(), *names}):
        batch.table = columns.rename(batch.table)
        yield batch
    columns.check()


def _texts(table: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """Ids and other text columns as text; a whole number held as a float (a column with gaps) loses its ``.0``, a list becomes JSON."""
    casts = []
    for name in columns:
        if name not in table.columns or table[name].dtype == pl.String:
            continue
        column = pl.col(name)
        if table[name].dtype.is_float():
            whole = column.cast(pl.Int64, strict=False)
            column = pl.when(whole == column).then(whole.cast(pl.String)).otherwise(column.cast(pl.String))
        elif table[name].dtype.is_nested():
            column = json_text(name)
        casts.append(column.cast(pl.String).alias(name))
    return table.with_columns(casts)


def _nested_columns(table: pl.DataFrame, file: Path) -> set[str]:
    """The columns that may hold lists or objects: those of such a type, and text from JSON, where a list among texts came as text."""
    json = file_format(file) == "json"
    return {name for name, dtype in table.schema.items() if dtype.is_nested() or (json and dtype == pl.String)}


def _refuse_lists(batch: Batch, key: str) -> None:
    """Quarantine the rows whose id (text) is a list or an object, written as JSON."""
    looks = batch.table[key].str.contains(r"^\s*[\[{]")
    if looks.any():
        ids = batch.table.filter(looks)[key].unique()
        lists = [
            text for text in ids if isinstance(parse_json(text), list | dict)
        ]  # "[deleted]" is an id like any other
        batch.refuse(pl.col(key).is_in(lists), f"{key} is a list or an object")


def _read_events(file: Path, settings: TableOptions, names: list[str] | None) -> Iterator[RawLog]:
    unit = settings.timestamp_unit
    for batch in _renamed_batches(file, settings.columns, REQUIRED_EVENT_COLUMNS, "columns", names):
        nested = _nested_columns(batch.table, file)
        has_nested_time = batch.table["timestamp"].dtype.is_nested()
        batch.table = _texts(batch.table, [name for name in EVENT_SCHEMA if name != "timestamp" or has_nested_time])
        for key in ("user_id", "item_id"):
            batch.refuse_blank(key)
            if key in nested:
                _refuse_lists(batch, key)
        try:
            batch.table = batch.table.with_columns(_seconds(batch.table["timestamp"].dtype, unit).alias("timestamp"))
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{file}: the times cannot be read as {unit!r} ({str(error).splitlines()[0]})") from error
        expected = "an ISO date and time" if unit == "iso" else f"a number ({unit})"
        batch.refuse(pl.col("timestamp").is_null(), f"the time is not {expected}")
        typical = batch.table["timestamp"].median()
        if typical is not None and typical > YEAR_2200:
            raise UserError(
                f"{file}: read as {unit!r} the times lie beyond the year 2200; set timestamp_unit to ms, us or ns"
            )
        yield batch.part(events=conform(batch.table.drop(LINE), EVENT_SCHEMA, str(file)))


def _seconds(dtype: pl.DataType, unit: str) -> pl.Expr:
    """The column ``timestamp`` of this type as whole seconds since 1970 UTC; null where it cannot be read."""
    column = pl.col("timestamp")
    if dtype.is_temporal():  # typed times need no unit
        return column.cast(pl.Datetime("us", getattr(dtype, "time_zone", None))).dt.epoch("s")
    if unit == "iso":
        return _iso_seconds(column.cast(pl.String))
    if dtype.is_integer():
        return column.cast(pl.Int64, strict=False) // UNITS_PER_SECOND[unit]
    real = column.cast(pl.Float64, strict=False)
    real = pl.when(real.is_finite()).then(real).cast(pl.Int64, strict=False)
    # Whole numbers first: a 64-bit float cannot hold nanoseconds exactly.
    whole = real if dtype.is_float() else pl.coalesce(column.cast(pl.Int64, strict=False), real)
    return whole // UNITS_PER_SECOND[unit]


def _iso_seconds(column: pl.Expr) -> pl.Expr:
    text = column.str.strip_chars().str.replace("T", " ", literal=True).str.replace("Z$", "+00:00")
    text = text.str.replace(r"([+-]\d\d)(\d\d)$", "$1:$2")
    # A day alone ("2024-05-01") ends like an offset would not: it has no clock time before it.
    text = pl.when(text.str.len_chars() == 10).then(pl.concat_str([text, pl.lit(" 00:00")])).otherwise(text)
    zoned = [text.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False) for form in WITH_OFFSET]
    plain = [
        text.str.to_datetime(form, time_unit="us", strict=False).dt.replace_time_zone("UTC") for form in WITHOUT_OFFSET
    ]
    return pl.coalesce([*zoned, *plain]).dt.epoch("s")


def _keyed_batches(files: Sequence[Path], key: str, option: str, mapping: dict[str, str]) -> Iterator[Batch]:
    """Items or users in batches: one row for each key, over all files."""
    seen = SeenKeys(key)
    for file in files:
        for batch in _renamed_batches(file, mapping, [key], option):
            nested = _nested_columns(batch.table, file)
            batch.table = _texts(batch.table, [key, "title", "text", "brand"] if key == "item_id" else [key])
            batch.refuse_blank(key)
            if key in nested:
                _refuse_lists(batch, key)
            batch.refuse_repeats(seen)
            batch.table = batch.table.drop(LINE)
            yield batch


def _typed_items(table: pl.DataFrame, separator: str) -> pl.DataFrame:
    if "category" in table.columns:
        if isinstance(table["category"].dtype, pl.Struct):
            table = table.with_columns(json_text("category"))
        if table["category"].dtype == pl.String:
            levels = pl.col("category").str.split(separator)
            listed = pl.col("category").str.contains(r"^\s*\[.*\]\s*$")  # a list that stood among texts in a JSON file
            if table.select(listed.any()).item():
                levels = pl.when(listed).then(text_lists(table["category"].str.strip_chars())).otherwise(levels)
            levels = levels.list.eval(pl.element().filter(pl.element() != ""))
            table = table.with_columns(pl.when(levels.list.len() > 0).then(levels).alias("category"))
        elif not isinstance(table["category"].dtype, pl.List):
            table = table.with_columns(pl.concat_list(pl.col("category").cast(pl.String)))
    if "price" in table.columns:
        price = json_text("price") if table["price"].dtype.is_nested() else pl.col("price")
        table = table.with_columns(price.cast(pl.Float64, strict=False))
    return table
