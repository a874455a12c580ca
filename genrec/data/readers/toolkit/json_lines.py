"""JSON objects, one a line, and JSON values held as text in a column."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from genrec.data.readers.toolkit.batches import LINE, Batch, quarantine
from genrec.data.readers.toolkit.delimited import nulls_for_blanks
from genrec.data.readers.toolkit.lines import RAW, line_batches
from genrec.data.schema import QUARANTINE_SCHEMA, empty

# A JSON list of whole numbers or of plain texts.
_ELEMENT = r'(?:-?\d+|"[^"\\,]*[^"\\,\s][^"\\,]*")'
_LIST = rf"^\s*\[\s*(?:{_ELEMENT}(?:\s*,\s*{_ELEMENT})*)?\s*\]\s*$"


def json_batches(file: Path, fields: Sequence[str] | Mapping[str, pl.DataType]) -> Iterator[Batch]:
    """A file of JSON objects, one a line, in batches: only ``fields``, as text or as the types given.

    As text, a list or an object comes as its JSON text, and a field that is missing or blank is null.
    """
    schema: dict[str, pl.DataType] = {name: pl.String() for name in fields}
    schema |= fields if isinstance(fields, Mapping) else {}
    texts = [name for name, dtype in schema.items() if dtype == pl.String]
    for lines, wrong in line_batches(file):
        table, broken = parse_json_lines(lines, file.name, schema)
        yield Batch(nulls_for_blanks(table, texts), lines.height + wrong.height, file.name, [wrong, broken])


def parse_json_lines(
    lines: pl.DataFrame, source: str, schema: dict[str, pl.DataType] | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """JSON objects, one a line, as a table; a line that is not one goes to quarantine.

    With a ``schema`` only those fields are read, with these types; without, types are inferred from all lines. Returns
    ``(table, quarantine)``; ``table`` starts with ``LINE``.
    """
    none = empty(QUARANTINE_SCHEMA)
    if lines.is_empty():
        return pl.DataFrame(schema={LINE: pl.Int64(), **(schema or {})}), none
    table = _fast_json(lines, schema)
    if table is not None:
        return table, none
    reasons = pl.Series("reason", [_json_problem(raw) for raw in lines[RAW]], dtype=pl.String)
    bad = quarantine(source, lines.with_columns(reasons).filter(reasons.is_not_null()), pl.col("reason"))
    good = lines.filter(reasons.is_null())
    if good.is_empty():
        return pl.DataFrame(schema={LINE: pl.Int64(), **(schema or {})}), bad
    table = _fast_json(good, schema)
    if table is None:  # valid objects that the fast parser refuses (NaN, types that change from line to line)
        rows = [json.loads(raw) for raw in good[RAW]]
        # As text: a column whose type changes from line to line has no other common type.
        names = list(schema) if schema else list(dict.fromkeys(key for row in rows for key in row))
        texts = {name: [_as_text(row.get(name)) for row in rows] for name in names}
        table = pl.DataFrame(texts, schema=dict.fromkeys(names, pl.String())).insert_column(0, good[LINE])
    return table, bad


def parse_json(text: str) -> object:
    """The value of a JSON text, or None for text that is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _as_text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _fast_json(lines: pl.DataFrame, schema: dict[str, pl.DataType] | None) -> pl.DataFrame | None:
    content = "\n".join(lines[RAW].to_list()).encode()
    try:
        table = pl.read_ndjson(content, schema=schema, infer_schema_length=None)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    # Two objects on one line would shift every later line number; the slow path finds them.
    return table.insert_column(0, lines[LINE]) if table.height == lines.height else None


def _json_problem(raw: str) -> str | None:
    try:
        value = json.loads(raw)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair, which is no text"
    except (ValueError, RecursionError) as error:
        return f"broken JSON ({str(error)[:80]})"
    return None if isinstance(value, dict) else "not a JSON object"


def text_lists(column: pl.Series) -> pl.Series:
    """Lists of texts, written as JSON or as Python does, as lists; a plain text becomes a list of one, null none."""
    text = column.fill_null("[]").alias("text").to_frame()
    listed = pl.col("text").str.starts_with("[")
    lists = pl.when(listed).then(pl.col("text")).otherwise(pl.lit("[]")).str.json_decode(pl.List(pl.String))
    try:
        return text.select(pl.when(listed).then(lists).otherwise(pl.concat_list("text")).alias(column.name)).to_series()
    except pl.exceptions.PolarsError:  # a text that only looks like a list, or a list of other things
        return pl.Series(column.name, [_text_list(value) for value in text["text"]], dtype=pl.List(pl.String))


def _text_list(value: str) -> list[str]:
    parsed = parse_json(value)
    if parsed is None and value.startswith("["):  # a frame saved as CSV: ['Home', 'Lamps']
        try:
            parsed = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return [value]
    if not isinstance(parsed, list):
        return [value]
    return [text for element in parsed if (text := _as_text(element)) is not None]


def id_lists(column: str) -> pl.Expr:
    """A text column of JSON lists of ids ("[3, 14]") as List(String); null where it is no list of these."""
    text = pl.col(column)
    inner = text.str.strip_chars(" \t[]")
    ids = inner.str.split(",").list.eval(pl.element().str.strip_chars(' \t"'))
    ids = pl.when(inner == "").then(pl.lit([], dtype=pl.List(pl.String))).otherwise(ids)
    return pl.when(text.str.contains(_LIST)).then(ids)
