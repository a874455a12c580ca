"""Plain tables: Parquet, CSV, TSV or JSON lines (text ones also ``.gz`` or ``.zst``), with columns under any names.

The reader for a log of your own: say which of your columns is the user, the item and the time, and it checks the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from functools import partial
from pathlib import Path

import polars as pl

from genrec.data.readers.common import (
    LINE,
    RAW,
    LogSource,
    SeenKeys,
    blank,
    check_options,
    did_you_mean,
    glob_files,
    is_glob,
    join_quarantine,
    line_batches,
    nearest,
    parse_json,
    parse_json_lines,
    parse_record,
    set_aside,
    set_blank_aside,
    split_fields,
)
from genrec.data.readers.sources import text_lists
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
BATCH_ROWS = 1 << 20  # rows of a Parquet file held at a time
YEAR_2200 = 7_258_118_400  # seconds; a log's typical time beyond it is in a smaller unit than it says
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

    Rows without an id or with an unreadable time, and rows that do not fit the file's own format, go to quarantine. Columns
    beyond the contract are kept. Raises ``UserError`` for a wrong option, a missing file or a missing column.
    """
    for source in table_sources(path, options):
        yield from source.parts()


def table_sources(path: Path, options: dict, columns: list[str] | None = None) -> list[LogSource]:
    """The files behind a log, one by one: every event file, by name, then items and users together.

    ``columns``: the event columns that are wanted (None: all); others need not be read.
    """
    settings = _parse_options(options)
    base = path if path.is_dir() else path.parent
    item_files = _files(_under(base, settings.items, "items")) if settings.items else []
    user_files = _files(_under(base, settings.users, "users")) if settings.users else []
    place = _under(base, settings.events, "events") if settings.events else path
    sources = [
        LogSource([file], partial(_read_events, file, settings, columns))
        for file in _files(place, skip={*item_files, *user_files})
    ]
    if item_files or user_files:
        sources.append(
            LogSource([*item_files, *user_files], partial(_read_tables, item_files, user_files, settings), events=False)
        )
    return sources


def _read_tables(item_files: Sequence[Path], user_files: Sequence[Path], settings: TableOptions) -> Iterator[RawLog]:
    for table, aside, rows in _read_keyed(item_files, "item_id", "item_columns", settings.item_columns):
        items = conform(_typed_items(table, settings.category_separator), ITEM_SCHEMA, str(item_files[0]))
        yield RawLog(items=items, quarantine=join_quarantine(aside), rows_read=rows)
    for table, aside, rows in _read_keyed(user_files, "user_id", "user_columns", settings.user_columns):
        users = conform(table, USER_SCHEMA, str(user_files[0]))
        yield RawLog(users=users, quarantine=join_quarantine(aside), rows_read=rows)


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
        if value is not None and not isinstance(value, (str, Path)):
            raise UserError(f"reader 'table': option {key} must be a path, not {value!r}")
    if settings.timestamp_unit not in TIMESTAMP_UNITS:
        tail = did_you_mean(str(settings.timestamp_unit), TIMESTAMP_UNITS)
        raise UserError(f"reader 'table': unknown timestamp_unit {settings.timestamp_unit!r}; {tail}")
    if not isinstance(settings.category_separator, str) or not settings.category_separator:
        raise UserError("reader 'table': option category_separator must be a non-empty text")
    return settings


def _under(base: Path, name: str, option: str) -> Path:
    place = base / name
    if not is_glob(str(name)) and not place.exists():
        raise UserError(f"{place}: no such file or folder (option {option} of reader 'table')")
    return place


def file_format(path: Path) -> str | None:
    """parquet, csv, tsv or json by the file's name, or None for any other."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in (".gz", ".zst")
    if packed:
        suffixes.pop()
    found = FORMATS.get(suffixes[-1]) if suffixes else None
    return None if packed and found == "parquet" else found


def _files(place: Path, skip: set[Path] = frozenset()) -> list[Path]:
    """The table files at a place (file, folder or pattern), by name."""
    if place.is_dir():
        found = [file for file in place.iterdir() if file.is_file() and not file.name.startswith(("_", "."))]
    elif place.exists():  # before patterns: a file may have a bracket in its name
        found = [place]
    else:
        found = glob_files(place)
    known = sorted(file for file in found if file_format(file) and file not in skip)
    if not known:
        raise UserError(f"{place}: no table to read; expected {', '.join(FORMATS)} (text ones also .gz or .zst)")
    return known


def _batches(file: Path, wanted: set[str] | None) -> Iterator[tuple[pl.DataFrame, list[pl.DataFrame], int]]:
    """One file in batches ``(table with the line column, quarantine, data rows)``; at least one, so that its columns are checked.

    Columns that are not ``wanted`` (None: all are) are left out where that saves reading them.
    """
    kind = file_format(file)
    if kind == "parquet":
        yield from _parquet_batches(file, wanted)
    elif kind == "json":
        for lines, wrong in line_batches(file):
            table, broken = parse_json_lines(lines, file.name, None)
            yield table, [wrong, broken], lines.height + wrong.height
    else:
        yield from _csv_batches(file, SEPARATORS[kind])


def _parquet_batches(file: Path, wanted: set[str] | None) -> Iterator[tuple[pl.DataFrame, list[pl.DataFrame], int]]:
    first = 1
    try:
        scan = pl.scan_parquet(file, glob=False)
        if wanted is not None and (names := [name for name in scan.collect_schema() if name in wanted]):
            scan = scan.select(names)
        for table in scan.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
            yield table.with_row_index(LINE, offset=first), [], table.height
            first += table.height
        if first == 1:
            yield pl.DataFrame(schema=scan.collect_schema()).with_row_index(LINE), [], 0
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{file}: not readable as Parquet ({str(error).splitlines()[0]})") from error


def _csv_batches(file: Path, separator: str) -> Iterator[tuple[pl.DataFrame, list[pl.DataFrame], int]]:
    header = None
    early: list[pl.DataFrame] = []  # undecodable lines before the header
    for lines, wrong in line_batches(file, quoted=True):
        if header is None:
            if lines.is_empty():
                early.append(wrong)
                continue
            header = _header(lines[RAW][0], separator, file)
            lines = lines.slice(1)
        table, ragged = split_fields(lines, header, separator, file.name, quoted=True)
        aside, early = [*early, wrong, ragged], []
        rows = table.height + sum(
            part.height for part in aside
        )  # a quoted row may span lines, so rows are counted after the cut
        yield (
            table.with_columns(pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in header),
            aside,
            rows,
        )
    if header is None:
        raise UserError(f"{file}: empty; expected a header line and data")


def _header(line: str, separator: str, file: Path) -> list[str]:
    header = parse_record(line, separator)
    if isinstance(header, str):
        raise UserError(f"{file}: the header line cannot be read: {header}")
    header = [name.strip() for name in header]
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise UserError(f"{file}: the header names column {twice[0]!r} twice; rename one")
    return header


class _Columns:
    """The columns of a file under the contract's names; a required or named column that no row has is a ``UserError``."""

    def __init__(self, mapping: dict[str, str], required: Sequence[str], option: str, file: Path):
        self.option, self.file = option, file
        self.wanted = {ours: mapping.get(ours, ours) for ours in dict.fromkeys([*required, *mapping])}
        self.met: dict[str, None] = {}

    def rename(self, table: pl.DataFrame) -> pl.DataFrame:
        """One batch; a column that it lacks is null there, for JSON rows need not all have every field."""
        have = [name for name in table.columns if name != LINE]
        self.met.update(dict.fromkeys(have))
        if file_format(self.file) != "json":
            self.check()
        taken = {*self.wanted.values(), *self.wanted}
        named = [
            (pl.col(theirs) if theirs in have else pl.lit(None, dtype=pl.String)).alias(ours)
            for ours, theirs in self.wanted.items()
        ]
        return table.select(LINE, *named, *[name for name in have if name not in taken])

    def check(self) -> None:
        """Raise ``UserError`` for the first wanted column that no batch has had so far."""
        have = list(self.met)
        for ours, theirs in self.wanted.items():
            if theirs in have:
                continue
            close = nearest(theirs, have) or nearest(ours, have)
            hint = f"nearest: {close!r}; " if close else ""
            raise UserError(
                f"{self.file}: no column {theirs!r} for {ours}; {hint}the file has: {', '.join(have)}; set {self.option}.{ours}"
            )


def _renamed_batches(
    file: Path, mapping: dict[str, str], required: Sequence[str], option: str, wanted: list[str] | None = None
) -> Iterator[tuple[pl.DataFrame, list[pl.DataFrame], int]]:
    columns = _Columns(mapping, required, option, file)
    for table, aside, rows in _batches(file, None if wanted is None else {*columns.wanted.values(), *wanted}):
        yield columns.rename(table), aside, rows
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


def _holds_lists(table: pl.DataFrame, file: Path) -> set[str]:
    """The columns that may hold lists or objects: those of such a type, and text from JSON, where a list beside texts came as text."""
    json = file_format(file) == "json"
    return {name for name, dtype in table.schema.items() if dtype.is_nested() or (json and dtype == pl.String)}


def set_list_aside(table: pl.DataFrame, key: str, source: str, aside: list[pl.DataFrame]) -> pl.DataFrame:
    """The rows of ``table`` whose id (text) is no list or object, written as JSON; the others go to quarantine."""
    looks = table[key].str.contains(r"^\s*[\[{]")
    if not looks.any():
        return table
    ids = table.filter(looks)[key].unique()
    lists = [text for text in ids if isinstance(parse_json(text), (list, dict))]  # "[deleted]" is an id like any other
    return set_aside(table, pl.col(key).is_in(lists), source, f"{key} is a list or an object", aside)


def _read_events(file: Path, settings: TableOptions, wanted: list[str] | None) -> Iterator[RawLog]:
    unit = settings.timestamp_unit
    for table, aside, rows in _renamed_batches(file, settings.columns, REQUIRED_EVENT_COLUMNS, "columns", wanted):
        lists = _holds_lists(table, file)
        table = _texts(
            table, [name for name in EVENT_SCHEMA if name != "timestamp" or table["timestamp"].dtype.is_nested()]
        )
        for key in ("user_id", "item_id"):
            table = set_blank_aside(table, key, file.name, aside)
            table = set_list_aside(table, key, file.name, aside) if key in lists else table
        try:
            table = table.with_columns(_seconds(table["timestamp"].dtype, unit).alias("timestamp"))
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{file}: the times cannot be read as {unit!r} ({str(error).splitlines()[0]})") from error
        expected = "an ISO date and time" if unit == "iso" else f"a number ({unit})"
        table = set_aside(table, pl.col("timestamp").is_null(), file.name, f"the time is not {expected}", aside)
        typical = table["timestamp"].median()
        if typical is not None and typical > YEAR_2200:
            raise UserError(
                f"{file}: read as {unit!r} the times lie beyond the year 2200; set timestamp_unit to ms, us or ns"
            )
        events = conform(table.drop(LINE), EVENT_SCHEMA, str(file))
        yield RawLog(events, quarantine=join_quarantine(aside), rows_read=rows)


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


def _read_keyed(
    files: Sequence[Path], key: str, option: str, mapping: dict[str, str]
) -> Iterator[tuple[pl.DataFrame, list[pl.DataFrame], int]]:
    """Items or users in batches: one row for each key, over all files."""
    seen = SeenKeys(key)
    for file in files:
        for table, aside, rows in _renamed_batches(file, mapping, [key], option):
            lists = _holds_lists(table, file)
            table = _texts(table, [key, "title", "text", "brand"] if key == "item_id" else [key])
            table = set_aside(table, blank(key), file.name, f"no {key}", aside)
            table = set_list_aside(table, key, file.name, aside) if key in lists else table
            yield seen.first_rows(table, file.name, aside).drop(LINE), aside, rows


def _typed_items(table: pl.DataFrame, separator: str) -> pl.DataFrame:
    if "category" in table.columns:
        if isinstance(table["category"].dtype, pl.Struct):
            table = table.with_columns(json_text("category"))
        if table["category"].dtype == pl.String:
            levels = pl.col("category").str.split(separator)
            listed = pl.col("category").str.contains(r"^\s*\[.*\]\s*$")  # a list that stood beside texts in a JSON file
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
