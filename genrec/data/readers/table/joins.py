"""Rows of a file under the contract's names, with the columns of other tables looked up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from genrec.data.ids import id_text
from genrec.data.readers.table.columns import Columns
from genrec.data.readers.table.formats import table_batches
from genrec.data.readers.table.layout import layout_of
from genrec.data.readers.table.options import TableOptions
from genrec.data.readers.toolkit import LINE, Batch
from genrec.errors import UserError


def named_batches(
    file: Path,
    settings: TableOptions,
    columns: Columns,
    names: Sequence[str] | None,
    needed: set[str] | None,
    joins: Sequence[Join],
) -> Iterator[Batch]:
    """A file in batches under the contract's names; a column that no batch has had is an error at the end."""
    layout = layout_of(file, settings.format, settings.separator, settings.quoted, settings.encoding)
    columns.late = layout.kind in ("json", "array")
    for batch in table_batches(file, layout, names, needed):
        for join in joins:
            join.look_up(batch)
        columns.rename(batch)
        yield batch
    columns.check()


def read_whole(file: Path, settings: TableOptions) -> pl.DataFrame:
    """A small table as one frame; ``UserError`` where there is no such file."""
    if not file.exists():
        raise UserError(f"{file}: no such file (options of reader 'table')")
    layout = layout_of(file, None, settings.separator, None, settings.encoding)
    batches = [batch.table.drop(LINE) for batch in table_batches(file, layout, None, None)]
    return pl.concat(batches, how="diagonal_relaxed")


class Join:
    """A table whose columns are looked up for each row of another by one column; it is held in memory."""

    def __init__(self, base: Path, entry: dict[str, str], settings: TableOptions):
        if {"file", "on"} - {*entry}:
            raise UserError(f"reader 'table': a join needs 'file' and 'on', not {', '.join(entry)}")
        self.file, self.key = base / entry["file"], entry["on"]
        if not self.file.exists():
            raise UserError(f"{self.file}: no such file (option joins of reader 'table')")
        table = read_whole(self.file, settings)
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
