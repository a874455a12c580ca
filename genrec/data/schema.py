"""The data contract: the tables a reader must produce, column by column.

``events`` (one row per thing a person did, in the order of the log)

=============  =============  ==========================================================================
column         type           meaning
=============  =============  ==========================================================================
``user_id``    String         who; required
``item_id``    String         what; required
``timestamp``  Int64          seconds since 1970, UTC; required
``action``     String         a stage of the feedback chain (``impression`` < ``click`` < ``purchase`` ...)
``query``      String, null   the words searched; null for a recommendation
``surface``    String, null   where it happened (``feed``, ``search``, ...)
``request_id`` String, null   groups events answered by one request
=============  =============  ==========================================================================

``items``: ``item_id`` String, ``title`` String, ``text`` String, ``brand`` String, ``category`` List(String) from
general to specific, ``price`` Float64 (any currency, one per log), then any further attribute columns. All but
``item_id`` may be null.

``users`` (optional): ``user_id`` String, then attribute columns.

``impressions`` (optional): the items presented per request: ``request_id``, ``user_id``, ``item_id``, ``timestamp``,
``position``, ``action``, and, where the logging policy drew the item, ``propensity`` Float64 in (0, 1], the chance
that it stood in its slot.

Columns beyond these are kept: one true/false column per feedback (``click``, ``long_view``, ``like`` ... ``hate``)
where the log has them; ``action`` is then the deepest stage of the chain that the person reached.

``judgments`` (optional): graded relevance of an item for a query, for evaluation only: ``query_id``, ``query``,
``item_id``, ``label`` (the log's word), ``gain`` (from 0, higher is better), ``split``.

``quarantine``: ``source`` String (file), ``line`` Int64 (from 1), ``reason`` String. A bad row goes here; it never
kills the job and never vanishes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TypeVar

import polars as pl
from polars.datatypes import DataTypeClass

from genrec.errors import UserError

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)
PolarsType = pl.DataType | DataTypeClass

EVENT_SCHEMA: dict[str, pl.DataType] = {
    "user_id": pl.String(),
    "item_id": pl.String(),
    "timestamp": pl.Int64(),
    "action": pl.String(),
    "query": pl.String(),
    "surface": pl.String(),
    "request_id": pl.String(),
}
REQUIRED_EVENT_COLUMNS = ("user_id", "item_id", "timestamp")
ITEM_SCHEMA: dict[str, pl.DataType] = {
    "item_id": pl.String(),
    "title": pl.String(),
    "text": pl.String(),
    "brand": pl.String(),
    "category": pl.List(pl.String()),
    "price": pl.Float64(),
}
USER_SCHEMA: dict[str, pl.DataType] = {"user_id": pl.String()}
IMPRESSION_SCHEMA: dict[str, pl.DataType] = {
    "request_id": pl.String(),
    "user_id": pl.String(),
    "item_id": pl.String(),
    "timestamp": pl.Int64(),
    "position": pl.Int64(),
    "action": pl.String(),
}
PROPENSITY = "propensity"  # optional column of impressions
JUDGMENT_SCHEMA: dict[str, pl.DataType] = {
    "query_id": pl.String(),
    "query": pl.String(),
    "item_id": pl.String(),
    "label": pl.String(),
    "gain": pl.Float64(),
    "split": pl.String(),
}
QUARANTINE_SCHEMA: dict[str, pl.DataType] = {"source": pl.String(), "line": pl.Int64(), "reason": pl.String()}


def empty(schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """An empty table of a schema."""
    return pl.DataFrame(schema=schema)


def conform(table: pl.DataFrame, schema: dict[str, pl.DataType], source: str) -> pl.DataFrame:
    """Add missing optional columns as nulls, cast to the contract's types and put its columns first.

    Further columns are kept behind them. Raises ``UserError`` when a column cannot be cast.
    """
    columns = []
    for name, dtype in schema.items():
        if name not in table.columns:
            columns.append(pl.lit(None, dtype=dtype).alias(name))
            continue
        columns.append(pl.col(name).cast(dtype, strict=True))
    extra = [pl.col(name) for name in table.columns if name not in schema]
    try:
        return table.select(columns + extra)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{source}: a column does not fit the data contract ({str(error).splitlines()[0]})") from error


@dataclass
class RawLog:
    """One part of what a reader yields: tables that satisfy the contract, and the rows that did not.

    A log is the parts' tables one below the other, in order. Memory is bounded by the largest part, so a reader of a
    format that can be large yields one part per file or per batch of lines. ``rows_read`` counts the data rows of
    every file behind this part. ``chain`` names the feedback chain from shallow to deep where the format has one (the
    same in every part). ``filtered`` counts rows that a stated rule or option left out, by rule: nothing vanishes
    uncounted.
    """

    events: pl.DataFrame = field(default_factory=lambda: empty(EVENT_SCHEMA))
    items: pl.DataFrame = field(default_factory=lambda: empty(ITEM_SCHEMA))
    users: pl.DataFrame | None = None
    impressions: pl.DataFrame | None = None
    quarantine: pl.DataFrame = field(default_factory=lambda: empty(QUARANTINE_SCHEMA))
    rows_read: int = 0
    judgments: pl.DataFrame | None = None
    chain: tuple[str, ...] = ()
    filtered: dict[str, int] = field(default_factory=dict)


def json_text(column: str) -> pl.Expr:
    """A column of lists or objects as their JSON text; null stays null."""
    # Only objects can be encoded: the column becomes the one field of an object, whose wrapping is cut off again.
    wrapped = pl.struct(pl.col(column).alias("v")).struct.json_encode()
    return pl.when(pl.col(column).is_not_null()).then(wrapped.str.slice(len('{"v":')).str.head(-1)).alias(column)


def stack(tables: Sequence[Frame]) -> Frame:
    """Tables one below the other; a column that one of them lacks is null there.

    A column whose types have nothing in common (a list here, a text there) becomes text, lists and objects as JSON: a
    value must not be lost because another part of the log holds another kind.
    """
    schemas = [table.collect_schema() for table in tables]
    types: dict[str, list[pl.DataType]] = {}
    for schema in schemas:
        for name, dtype in schema.items():
            if dtype not in types.setdefault(name, []):
                types[name].append(dtype)
    mixed = [name for name, dtypes in types.items() if len(dtypes) > 1 and not _have_common_type(dtypes)]
    if mixed:
        as_text = [
            [
                json_text(name) if schema[name].is_nested() else pl.col(name).cast(pl.String, strict=False)
                for name in mixed
                if name in schema
            ]
            for schema in schemas
        ]
        tables = [table.with_columns(columns) for table, columns in zip(tables, as_text, strict=True)]
    return pl.concat(tables, how="diagonal_relaxed")


def _have_common_type(dtypes: Sequence[pl.DataType]) -> bool:
    if not all(_alike(*pair) for pair in combinations(dtypes, 2)):
        return False  # the engine would turn an object into a text without its names, and fail on a list
    try:
        pl.concat([pl.DataFrame(schema={"column": dtype}) for dtype in dtypes], how="diagonal_relaxed")
    except pl.exceptions.PolarsError:
        return False
    return True


def _alike(one: PolarsType, other: PolarsType) -> bool:
    """Whether two types are of one build: lists of the like, objects whose common fields are alike, or both plain."""
    if pl.Null in (one, other):
        return True
    if isinstance(one, pl.Struct) and isinstance(other, pl.Struct):
        fields = {entry.name: entry.dtype for entry in other.fields}
        return all(_alike(entry.dtype, fields[entry.name]) for entry in one.fields if entry.name in fields)
    if isinstance(one, pl.List | pl.Array) and isinstance(other, pl.List | pl.Array):
        return _alike(one.inner, other.inner)
    return not one.is_nested() and not other.is_nested()


def join_parts(parts: Iterable[RawLog]) -> RawLog:
    """All parts of a log as one, in order: for small logs and tests. Tables that no part has stay None."""
    whole = RawLog()
    tables: dict[str, list[pl.DataFrame]] = {
        name: [] for name in ("events", "items", "users", "impressions", "judgments", "quarantine")
    }
    for part in parts:
        for name, collected in tables.items():
            if getattr(part, name) is not None:
                collected.append(getattr(part, name))
        whole.rows_read += part.rows_read
        whole.chain = part.chain or whole.chain
        whole.filtered = {
            rule: whole.filtered.get(rule, 0) + part.filtered.get(rule, 0)
            for rule in {**whole.filtered, **part.filtered}
        }
    for name, collected in tables.items():
        if collected:
            setattr(whole, name, stack(collected))
    return whole
