"""From a file and its layout to batches of rows, whatever the format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from genrec.data.readers.table.layout import Layout, document_rows, looks_like_data, partition_values
from genrec.data.readers.toolkit import LINE, RAW, Batch, delimited_batches, parquet_batches
from genrec.data.readers.toolkit.json_lines import parse_json_lines
from genrec.data.readers.toolkit.lines import line_batches, open_stream
from genrec.errors import UserError

ARROW_ROWS = 1 << 20


def table_batches(file: Path, layout: Layout, names: Sequence[str] | None, columns: set[str] | None) -> Iterator[Batch]:
    """One file in batches, at least one, so that its columns are checked.

    ``names`` are the columns of a file without a header line. Columns that are not in ``columns`` (None: all are) are
    left out where that saves reading them. Folders written as ``day=2024-05-01`` give a column each.
    """
    constants = {name: value for name, value in partition_values(file).items() if columns is None or name in columns}
    for batch in _raw_batches(file, layout, names, columns):
        added = [pl.lit(value).alias(name) for name, value in constants.items() if name not in batch.table.columns]
        batch.table = batch.table.with_columns(added) if added else batch.table
        yield batch


def _raw_batches(file: Path, layout: Layout, names: Sequence[str] | None, columns: set[str] | None) -> Iterator[Batch]:
    if layout.kind == "parquet":
        yield from parquet_batches(file, columns)
    elif layout.kind == "arrow":
        yield from _arrow(file)
    elif layout.kind == "sequences":
        for lines, wrong in line_batches(file, layout.encoding):
            fields = lines[RAW].str.strip_chars().str.splitn(" ", 2).struct.rename_fields(["user_id", "item_id"])
            table = pl.concat([lines.select(LINE), fields.struct.unnest()], how="horizontal")
            yield Batch(table, lines.height + wrong.height, file.name, [wrong])
    elif layout.kind == "excel":
        yield _excel(file)
    elif layout.kind == "array":
        yield _array(file, layout.encoding)
    elif layout.kind == "json":
        for lines, wrong in line_batches(file, layout.encoding):
            table, broken = parse_json_lines(lines, file.name, None)
            yield Batch(table, lines.height + wrong.height, file.name, [wrong, broken])
    elif names is not None:
        yield from delimited_batches(
            file,
            layout.separator,
            quoted=layout.quoted,
            columns=names,
            encoding=layout.encoding,
            is_header=lambda first: first == list(names),
            skip=layout.skip,
            sections=layout.sections,
        )
    else:
        for number, batch in enumerate(
            delimited_batches(
                file, layout.separator, quoted=layout.quoted, encoding=layout.encoding, skip=layout.skip, repeats=True
            )
        ):
            if number == 0:
                _check_header(file, [name for name in batch.table.columns if name != LINE])
            yield batch


def _check_header(file: Path, header: list[str]) -> None:
    """Refuse a first line that is data, whose values would become the names of columns."""
    if looks_like_data(header):
        raise UserError(
            f"{file}: the first line looks like data ({','.join(header)[:80]}), not like a header; set names to the "
            "list of its columns"
        )


def _excel(file: Path) -> Batch:
    try:
        table = pl.read_excel(file, infer_schema_length=None)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{file}: reading Excel files needs the extra: pip install '.[excel]', or save it as CSV"
        ) from error
    except Exception as error:  # the library names no exception of its own
        raise UserError(f"{file}: not readable as an Excel file ({str(error).splitlines()[0]})") from error
    return Batch(
        table.with_row_index(LINE, offset=2).with_columns(pl.col(LINE).cast(pl.Int64)), table.height, file.name
    )


def _arrow(file: Path) -> Iterator[Batch]:
    try:
        table = pl.scan_ipc(file)
        rows = table.select(pl.len()).collect().item()
        for begin in range(0, max(rows, 1), ARROW_ROWS):
            part = table.slice(begin, ARROW_ROWS).collect().with_row_index(LINE, offset=begin + 1)
            yield Batch(part.with_columns(pl.col(LINE).cast(pl.Int64)), part.height, file.name)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{file}: not readable as an Arrow file ({str(error).splitlines()[0]})") from error


def _array(file: Path, encoding: str) -> Batch:
    """A whole JSON document: a list of objects, or an object that holds one; a row's line is its number in the list."""
    try:
        with open_stream(file) as stream:
            document = json.loads(stream.read().decode(encoding).removeprefix("\ufeff"))
    except (ValueError, OSError, EOFError, RecursionError) as error:
        raise UserError(
            f"{file}: not readable as JSON ({str(error)[:80]}); one object a line would be read row by row"
        ) from error
    if isinstance(document, dict):
        document = document_rows(document)
    texts = [json.dumps(row, ensure_ascii=False) for row in document]
    lines = pl.DataFrame(
        {LINE: pl.int_range(1, len(texts) + 1, eager=True, dtype=pl.Int64), RAW: pl.Series(texts, dtype=pl.String)}
    )
    table, broken = parse_json_lines(lines, file.name, None)
    return Batch(table, lines.height, file.name, [broken])
