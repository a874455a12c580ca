"""From a path to batches of rows: what the readers of published data sets share.

A ``Batch`` is some rows of one file with its own account: the rows read, the rows put into quarantine, and the rows that a named rule
left out. What is still in ``table`` at the end is kept, so every row is in exactly one of the three.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from genrec.data.readers import common
from genrec.data.readers.common import (
    LINE,
    RAW,
    SeenKeys,
    blank,
    did_you_mean,
    join_quarantine,
    line_batches,
    parse_json_lines,
    set_aside,
    split_fields,
)
from genrec.data.schema import RawLog
from genrec.errors import UserError

PACKED = (".gz", ".zst")
BATCH_BYTES = common.BATCH_BYTES
PARQUET_ROWS = 50_000
REPEATED_ITEM = "repeated item_id; its first row is kept"
REPEATED_JUDGMENT = "repeated judgment; its first row is kept"
REPEATED_REQUEST = "repeated request; its first row is kept"
REPEATED_USER = "repeated user_id; its first row is kept"


@dataclass
class Batch:
    """Some rows of one file (text columns under the file's names, and ``LINE``), and what became of the others."""

    table: pl.DataFrame
    rows: int
    source: str
    aside: list[pl.DataFrame] = field(default_factory=list)
    filtered: dict[str, int] = field(default_factory=dict)

    def refuse(self, bad: pl.Expr, reason: str) -> None:
        """Put the rows that are ``bad`` into quarantine."""
        self.table = set_aside(self.table, bad, self.source, reason, self.aside)

    def leave_out(self, rows: pl.Expr | pl.Series, rule: str) -> None:
        """Drop rows by a named rule, and count them."""
        kept = self.table.filter(~rows.fill_null(False))
        self.count(rule, self.table.height - kept.height)
        self.table = kept

    def keep_first(self, seen: SeenKeys, rule: str) -> None:
        """Leave out, by a named rule, the rows whose key was met before."""
        self.leave_out(~seen.fresh(self.table), rule)

    def count(self, rule: str, rows: int) -> None:
        """Count rows that a rule left out."""
        if rows:
            self.filtered[rule] = self.filtered.get(rule, 0) + rows

    def part(self, **tables) -> RawLog:
        """The part of the log that these rows make; ``tables`` are its fields."""
        return RawLog(quarantine=join_quarantine(self.aside), rows_read=self.rows, filtered=self.filtered, **tables)


def files_at(path: Path, subfolders: bool = False) -> list[Path]:
    """The files at a path, by name: of a folder (and of its ``subfolders``), the file itself, or those that match a pattern.

    Hidden files and those that start with ``_`` are passed over in a folder. Empty when there is none.
    """
    if path.is_dir():
        found = [*path.iterdir(), *(path.glob("*/*") if subfolders else ())]
        return sorted(file for file in found if file.is_file() and not file.name.startswith((".", "_")))
    if path.is_file():
        return [path]
    if any(sign in str(path) for sign in "*?["):
        root = Path(path.anchor)
        return sorted(file for file in root.glob(str(path.relative_to(path.anchor))) if file.is_file())
    return []


def plain_name(file: Path) -> str:
    """The file's name without ``.gz`` or ``.zst``."""
    return file.name.removesuffix(file.suffix) if file.suffix in PACKED else file.name


def sibling(folder: Path, name: str) -> Path | None:
    """The file ``name`` in a folder, plain or packed, if it is there."""
    return next((folder / (name + suffix) for suffix in ("", *PACKED) if (folder / (name + suffix)).is_file()), None)


def text_batches(file: Path) -> Iterator[Batch]:
    """Lines as they are, in batches: columns ``LINE`` and ``RAW``."""
    for lines, wrong in line_batches(file, batch_bytes=BATCH_BYTES):
        yield Batch(lines, lines.height + wrong.height, file.name, [wrong])


def json_batches(file: Path, schema: dict[str, pl.DataType]) -> Iterator[Batch]:
    """JSON objects, one a line, in batches; columns as ``schema`` says."""
    for lines, wrong in line_batches(file, batch_bytes=BATCH_BYTES):
        table, broken = parse_json_lines(lines, file.name, schema)
        yield Batch(table, lines.height + wrong.height, file.name, [wrong, broken])


def delimited_batches(
    file: Path,
    separator: str,
    quoted: bool = False,
    columns: Sequence[str] | None = None,
    is_header: Callable[[list[str]], bool] | None = None,
    optional: int = 0,
) -> Iterator[Batch]:
    """Rows of fields in batches, every field as text.

    The first line holds the names of the columns, unless ``columns`` gives them (of which a file may lack the last ``optional`` ones);
    then it is a data row too, unless ``is_header`` (which gets its fields) says that it names the columns. Raises ``UserError`` for a
    header that names a column twice and for an empty file that should have one.
    """
    header: list[str] | None = None
    before: list[pl.DataFrame] = []
    for lines, wrong in line_batches(file, quoted=quoted, batch_bytes=BATCH_BYTES):
        if header is None:
            if lines.is_empty():
                before.append(wrong)
                continue
            first = [name.strip().strip('"') for name in lines[RAW][0].split(separator)]
            named = columns is None or (is_header is not None and is_header(first))
            header = _named(first, file) if named else list(columns)[: max(len(first), len(columns) - optional)]
            lines = lines.slice(int(named))
        table, ragged = split_fields(lines, header, separator, file.name, quoted)
        aside, before = [*before, wrong, ragged], []
        # A quoted row may span lines, so rows are counted after the cut.
        yield Batch(table, table.height + sum(part.height for part in aside), file.name, aside)
    if header is None and columns is None:
        raise UserError(f"{file}: empty; expected a header line and data")
    if before:
        yield Batch(
            pl.DataFrame(schema={LINE: pl.Int64, **dict.fromkeys(columns or (), pl.String)}),
            sum(map(len, before)),
            file.name,
            before,
        )


def _named(header: list[str], file: Path) -> list[str]:
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{file}: the header names column {twice!r} twice; rename one")
    return header


def parquet_batches(file: Path, columns: Sequence[str], source: str | None = None) -> Iterator[Batch]:
    """Rows of a Parquet file in batches, those of ``columns`` that it has; a row's line is its number from 1."""
    try:
        scan = pl.scan_parquet(file)
        chosen = [name for name in scan.collect_schema().names() if name in columns]
        rows = scan.select(pl.len()).collect().item()
        for start in range(0, rows, PARQUET_ROWS):
            table = scan.select(chosen).slice(start, PARQUET_ROWS).collect()
            table = table.insert_column(
                0, pl.int_range(start + 1, start + 1 + table.height, eager=True, dtype=pl.Int64).alias(LINE)
            )
            yield Batch(table, table.height, source or file.name)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{file}: not readable as Parquet ({str(error).splitlines()[0]})") from error


def need(batch: Batch, names: Sequence[str], file: Path) -> None:
    """Raise ``UserError`` for the first column that a file lacks."""
    have = [name for name in batch.table.columns if name != LINE]
    for name in names:
        if name not in have:
            raise UserError(f"{file}: no column {name!r}; {did_you_mean(name, have)}")


def filled(column: str) -> pl.Expr:
    """A text column without its outer spaces; null where nothing is left."""
    return pl.when(~blank(column)).then(pl.col(column).str.strip_chars())


def text_lists(column: pl.Series) -> pl.Series:
    """JSON lists of texts, held as text, as lists; a plain text becomes a list of one, null an empty list."""
    text = column.fill_null("[]").alias("text").to_frame()
    listed = pl.col("text").str.starts_with("[")
    lists = pl.when(listed).then(pl.col("text")).otherwise(pl.lit("[]")).str.json_decode(pl.List(pl.String))
    try:
        return text.select(pl.when(listed).then(lists).otherwise(pl.concat_list("text")).alias(column.name)).to_series()
    except pl.exceptions.PolarsError:  # a text that only looks like a list, or a list of other things
        return pl.Series(column.name, [_as_texts(value) for value in text["text"]], dtype=pl.List(pl.String))


def _as_texts(value: str) -> list[str]:
    try:
        found = json.loads(value)
    except ValueError:
        return [value]
    if not isinstance(found, list):
        return [value]
    return [
        part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in found if part is not None
    ]
