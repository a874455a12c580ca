"""Parquet files in batches of rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import polars as pl

from genrec.data.readers.toolkit.batches import LINE, Batch
from genrec.errors import UserError

BATCH_ROWS = 1 << 20


def parquet_batches(
    file: Path, columns: Collection[str] | None = None, source: str | None = None, batch_rows: int | None = None
) -> Iterator[Batch]:
    """Rows of a Parquet file in batches, at least one: of ``columns`` (None: all) those that it has.

    A row's line is its number from 1; ``source`` names the file in quarantine (default: its name).
    """
    first, source = 1, source or file.name
    try:
        scan = pl.scan_parquet(file, glob=False)
        if columns is not None and (names := [name for name in scan.collect_schema() if name in columns]):
            scan = scan.select(names)
        for table in scan.collect_batches(chunk_size=batch_rows or BATCH_ROWS, maintain_order=True):
            yield Batch(_numbered(table, first), table.height, source)
            first += table.height
        if first == 1:
            yield Batch(_numbered(pl.DataFrame(schema=scan.collect_schema()), 1), 0, source)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{file}: not readable as Parquet ({str(error).splitlines()[0]})") from error


def _numbered(table: pl.DataFrame, first: int) -> pl.DataFrame:
    return table.with_row_index(LINE, offset=first).with_columns(pl.col(LINE).cast(pl.Int64))
