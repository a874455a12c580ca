"""A batch of rows with its own account: every row read is kept, left out by a named rule, or quarantined.

A row that cannot be read goes to quarantine with its file, its line and the reason. No reader lets a parser guess
(fill in a missing field, drop a surplus one, replace a byte).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from genrec.data.ids import IdMap
from genrec.data.readers.toolkit.options import did_you_mean
from genrec.data.schema import QUARANTINE_SCHEMA, RawLog, empty
from genrec.errors import UserError

LINE = "__line__"  # the line a row came from, counted from 1; no log has a column of this name
REPEATED_ITEM = "repeated item_id; its first row is kept"
REPEATED_JUDGMENT = "repeated judgment; its first row is kept"
REPEATED_REQUEST = "repeated request; its first row is kept"
REPEATED_USER = "repeated user_id; its first row is kept"


def blank(column: str) -> pl.Expr:
    """True where a text column is null, empty or only spaces."""
    return pl.col(column).is_null() | (pl.col(column).str.strip_chars() == "")


def quarantine(source: str, lines: pl.DataFrame, reason: str | pl.Expr) -> pl.DataFrame:
    """A quarantine table for the rows of ``lines``, a table with ``LINE``; the reason is a text or an expression."""
    reason = pl.lit(reason) if isinstance(reason, str) else reason
    return lines.select(
        pl.lit(source).alias("source"), pl.col(LINE).cast(pl.Int64).alias("line"), reason.alias("reason")
    )


def join_quarantine(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """All quarantine tables as one, sorted by file and line."""
    return pl.concat([empty(QUARANTINE_SCHEMA), *tables]).sort("source", "line", maintain_order=True)


class SeenKeys:
    """The keys met so far in a table read in batches, so that a repeated key is found. Exact; holds every key."""

    def __init__(self, key: str):
        self.key, self._ids = key, IdMap()

    def is_new(self, table: pl.DataFrame) -> pl.Series:
        """True where the key (text, no nulls) comes for the first time, over all batches and files: (n,) Boolean."""
        known = len(self._ids)
        codes, _ = self._ids.encode(table[self.key])
        return pl.Series("is_new", codes >= known) & table[self.key].is_first_distinct()


@dataclass
class Batch:
    """Some rows of one file and the account of the others.

    Attributes:
        table: the rows that are still kept, with the line column ``LINE``.
        rows: how many data rows were read for this batch.
        source: the file's name, as quarantine names it.
        rejected: quarantine tables so far.
        filtered: rows left out, by rule.
    """

    table: pl.DataFrame
    rows: int
    source: str
    rejected: list[pl.DataFrame] = field(default_factory=list)
    filtered: dict[str, int] = field(default_factory=dict)

    def refuse(self, bad: pl.Expr | pl.Series, reason: str | pl.Expr) -> None:
        """Quarantine the rows that are ``bad``."""
        marked = self.table.select(bad.fill_null(False).alias("bad"))["bad"]
        if marked.any():
            self.rejected.append(quarantine(self.source, self.table.filter(marked), reason))
            self.table = self.table.filter(~marked)

    def refuse_blank(self, key: str) -> None:
        """Quarantine the rows whose text column ``key`` holds nothing."""
        if may_be_blank(self.table[key]):
            self.refuse(blank(key), f"no {key}")

    def refuse_repeats(self, seen: SeenKeys) -> None:
        """Quarantine the rows whose key was met before."""
        self.refuse(~seen.is_new(self.table), f"repeated {seen.key}; its first row is kept")

    def clean_ids(self, *keys: str) -> None:
        """Quarantine rows without one of the ids; ids lose the spaces around them and the ".0" of a float column."""
        for key in keys:
            self.refuse_blank(key)
        self.table = self.table.with_columns(
            pl.col(key).str.strip_chars().str.replace(r"^(\d+)\.0+$", "$1") for key in keys
        )

    def leave_out(self, rows: pl.Expr | pl.Series, rule: str) -> None:
        """Drop rows by a named rule and count them."""
        kept = self.table.filter(~rows.fill_null(False))
        self.count(rule, self.table.height - kept.height)
        self.table = kept

    def keep_first(self, seen: SeenKeys, rule: str) -> None:
        """Leave out, by a named rule, the rows whose key was met before."""
        self.leave_out(~seen.is_new(self.table), rule)

    def count(self, rule: str, rows: int) -> None:
        """Count rows that a rule left out."""
        if rows:
            self.filtered[rule] = self.filtered.get(rule, 0) + rows

    def need(self, names: Sequence[str], file: Path) -> None:
        """Raise ``UserError`` for the first of the columns that the file lacks."""
        have = [name for name in self.table.columns if name != LINE]
        for name in names:
            if name not in have:
                raise UserError(f"{file}: no column {name!r}; {did_you_mean(name, have)}")

    def part(self, **tables: Any) -> RawLog:
        """The part of the log that these rows make; ``tables`` are its fields."""
        return RawLog(quarantine=join_quarantine(self.rejected), rows_read=self.rows, filtered=self.filtered, **tables)


def may_be_blank(column: pl.Series) -> bool:
    """Whether a text column may hold null, empty or blank values: a cheap test before the exact one."""
    low, high = column.min(), column.max()
    # Texts sort by their bytes: between "!" and "~" none is empty or starts with a space of any script.
    return bool(column.null_count()) or not (
        isinstance(low, str) and low >= "!" and isinstance(high, str) and high < "\x7f"
    )


@dataclass(frozen=True)
class LogSource:
    """A section of a log that can be read by itself: ``files``, and ``parts()`` that reads them.

    ``events=False`` marks tables (items, users) that are separate from the events and may change without touching them.
    """

    files: list[Path]
    parts: Callable[[], Iterator[RawLog]]
    events: bool = True


def parts_of(sources: Iterable[LogSource]) -> Iterator[RawLog]:
    """The parts of all sources, one after another."""
    for source in sources:
        yield from source.parts()
