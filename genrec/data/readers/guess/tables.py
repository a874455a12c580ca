"""The tables of a log: files with the same columns, and a sample of their rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from genrec.data.readers.table.columns import expose
from genrec.data.readers.table.formats import table_batches
from genrec.data.readers.table.layout import Layout, layout_of, looks_like_data
from genrec.data.readers.toolkit import LINE
from genrec.errors import UserError

SAMPLE_ROWS = 5_000
MAX_FILES = 40


@dataclass
class Table:
    """A group of files with the same columns: their layout, a sample of the first one, and the roles of its columns."""

    files: list[Path]
    layout: Layout
    sample: pl.DataFrame
    header: list[str] | None
    """The names given to the columns of a file without a header line."""
    columns: dict[str, str] = field(default_factory=dict)
    items: dict[str, str] = field(default_factory=dict)
    joined: dict[str, list[str]] = field(default_factory=dict)
    """A column of the sample made of several of the file -> their names."""
    flags: dict[str, str] = field(default_factory=dict)
    """True/false columns and the action that each speaks of."""
    doubts: list[str] = field(default_factory=list)

    def distinct(self, name: str) -> float:
        """The fraction of distinct values of a column in the sample."""
        column = self.sample[name].drop_nulls()
        return column.n_unique() / max(len(column), 1)

    def is_key(self, name: str) -> bool:
        """Whether a column has another value in (nearly) every row."""
        return self.distinct(name) > 0.9


@dataclass
class Guess:
    """A config for a log, what was decided, and what is unsure."""

    reader: str
    path: Path
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def sampled_tables(files: Sequence[Path], guess: Guess) -> list[Table]:
    """The tables of some files; a file that cannot be read becomes a doubt. ``UserError`` where none can."""
    tables: dict[tuple[str, ...], Table] = {}
    for file in files[:MAX_FILES]:
        try:
            table = _sampled(file)
        except UserError as error:
            guess.doubts.append(f"{file.name} was passed over: {str(error).removeprefix(f'{file}: ')[:150]}")
            continue
        if table.sample.is_empty():
            continue
        key = (table.layout.kind, *(name for name in table.sample.columns))
        if key in tables and table.header is None and folder_of(file) == folder_of(tables[key].files[0]):
            tables[key].files.append(file)
        else:
            tables[(*key, str(file)) if key in tables else key] = table
    if not tables:
        raise UserError(f"{guess.path}: no table with rows can be read there; {'; '.join(guess.doubts[:2])}")
    return list(tables.values())


def folder_of(file: Path) -> Path:
    """The folder of a file; for one in a partition (``day=2024-05-01``), the folder of all partitions."""
    return next((parent for parent in file.parents if "=" not in parent.name), file.parent)


def _sampled(file: Path) -> Table:
    layout = layout_of(file)
    names: list[str] | None = None
    if layout.kind == "text":
        first = next(
            iter(table_batches(file, layout, [f"column_{n}" for n in range(1, _width(file, layout) + 1)], None))
        )
        rows = first.table.drop(LINE)
        if looks_like_data([value or "" for value in rows.row(0)] if rows.height else [], rows):
            names = list(rows.columns)
    batch = next(iter(table_batches(file, layout, names, None)))
    batch.table = batch.table.head(SAMPLE_ROWS)
    for leaf in list(_leaves(batch.table.drop(LINE).schema)):
        if leaf not in batch.table.columns and "." in leaf:
            expose(batch, leaf)
    return Table([file], layout, batch.table.drop(LINE).head(SAMPLE_ROWS), names)


def _width(file: Path, layout: Layout) -> int:
    plain = Layout("text", "\x00", False, layout.encoding, layout.skip)
    extra = int(layout.sections)
    for batch in table_batches(file, plain, ["line"], None):
        lines = batch.table["line"].drop_nulls()
        if layout.sections:
            lines = lines.filter(lines.str.contains(layout.separator, literal=True))
        if len(lines):
            last, first = lines[-1].count(layout.separator) + 1, len(_fields(lines[0], layout.separator))
            return extra + (first if layout.quoted else last)
    raise UserError(f"{file}: empty")


def _fields(line: str, separator: str) -> list[str]:
    return re.split(re.escape(separator) + r'(?=(?:[^"]*"[^"]*")*[^"]*$)', line)


def _leaves(schema: Any, prefix: str = "") -> Iterable[str]:
    """Dotted names of the plain fields of a schema; key-value lists, whose rows are no records, are passed over."""
    for name, dtype in schema.items():
        inner = dtype.inner if isinstance(dtype, pl.List) else dtype
        if isinstance(inner, pl.Struct):
            fields = {entry.name: entry.dtype for entry in inner.fields}
            if isinstance(dtype, pl.List) and {"key", "value"} <= {*fields}:
                continue
            yield from _leaves(fields, f"{prefix}{name}.")
        else:
            yield prefix + name
