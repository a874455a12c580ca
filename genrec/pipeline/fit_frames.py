"""Fit a model on tables in memory or on files, without a config file: the work behind ``Recommender.fit``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from genrec.console import log_handler
from genrec.errors import UserError
from genrec.pipeline.stages import stage_evaluate, stage_train
from genrec.runs.run import Run

log = logging.getLogger(__name__)
DEFAULTS = {"evaluation.baselines": ["popularity"]}  # others cost as much as the model itself
# Other names that shops and data sets give to the columns of the data contract, in lower case.
ALIASES = {
    "user_id": ("user", "userid", "customer_id", "customerid", "visitorid", "visitor_id", "member_id", "reviewerid"),
    "item_id": ("item", "itemid", "product_id", "productid", "movieid", "article_id", "video_id", "asin", "sku"),
    "timestamp": ("time", "datetime", "date", "event_time", "created_at", "unixreviewtime", "t_dat"),
    "action": ("event", "event_type", "behavior_type", "type"),
    "query": ("search_query", "search_term", "keywords"),
    "title": ("name", "product_name", "prod_name", "item_name"),
    "text": ("description", "detail_desc"),
    "category": ("categories", "genres", "product_category", "category_name"),
    "price": (),
    "brand": ("manufacturer",),
}
EVENTS, ITEMS = (
    ("user_id", "item_id", "timestamp", "action", "query"),
    ("item_id", "title", "text", "category", "price", "brand"),
)
_UNITS = ((1e17, 1_000_000_000), (1e14, 1_000_000), (1e11, 1_000))  # numeric times above this are in 1/n seconds


def fit_frames(
    events: Any, items: Any = None, queries: Any = None, output: str | Path = "runs/fit", **settings: Any
) -> Run:
    """Fit a model and return its run, which ``Recommender.load(output)`` opens too.

    ``events``, ``items`` and ``queries`` are Polars or pandas frames, Arrow tables, or paths of CSV, Parquet or
    JSON-lines files. Events need ``user_id``, ``item_id`` and ``timestamp`` (common other names are recognised), and
    may have ``action`` and ``query``. Items need ``item_id``, and should have ``title``. ``queries`` are further
    events, each with the query that led to its item.

    ``output`` is the run folder; a second call with the same tables only does what is not done yet. ``settings`` are
    those of a config: ``training={"epochs": 5}`` or ``training__epochs=5``. ``UserError`` names a missing column.
    """
    folder = Path(output)
    _show_progress()
    tables = folder / "log"
    tables.mkdir(parents=True, exist_ok=True)
    frames = [_named(_frame(events, "events"), EVENTS, ("user_id", "item_id"), "events")]
    if queries is not None:
        frames.append(_named(_frame(queries, "queries"), EVENTS, ("user_id", "item_id", "query"), "queries"))
    frames = [_with_seconds(frame) for frame in frames]
    pl.concat(frames, how="diagonal_relaxed").sink_parquet(tables / "events.parquet", maintain_order=True)
    given: dict[str, Any] = {"data.reader": "table", "data.path": str(tables), "data.options.events": "events.parquet"}
    if items is not None:
        catalogue = _named(_frame(items, "items"), ITEMS, ("item_id",), "items")
        catalogue.sink_parquet(tables / "items.parquet", maintain_order=True)
        given |= {"data.options.items": "items.parquet", "data.keep_unseen_items": True}
    given |= DEFAULTS | _dotted(settings) | {"output": str(folder.parent), "name": folder.name}
    run = Run.create(None, [f"{key}={json.dumps(value)}" for key, value in given.items()])
    stage_train(run)
    return run


def evaluate(run: Run, split: str = "test") -> pl.DataFrame:
    """The results table of a run: a row per model and kind of request, with its metrics on a split."""
    rows = [
        {"model": row.model, "requests": row.query_kind or "recommendation", "fitted_on": row.fitted_on} | row.metrics
        for row in stage_evaluate(run, split).rows
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def _show_progress() -> None:
    """Log lines of the stages appear in a notebook or script that has not set up logging itself."""
    logger = logging.getLogger("genrec")
    if not logger.hasHandlers():
        logger.addHandler(log_handler())
        logger.setLevel(logging.INFO)
        logging.getLogger("lightning").setLevel(logging.WARNING)


def _frame(table: Any, name: str) -> pl.LazyFrame:
    """A lazy frame of a Polars or pandas frame, an Arrow table or a file."""
    if isinstance(table, pl.LazyFrame):
        return table
    if isinstance(table, pl.DataFrame):
        return table.lazy()
    if isinstance(table, str | Path):
        return _file(Path(table), name)
    try:
        made = pl.from_pandas(table) if hasattr(table, "iloc") else pl.from_arrow(table)
    except (ImportError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise UserError(
            f"{name}: a {type(table).__name__} is no table; give a Polars or pandas frame, an Arrow table or a path"
        ) from error
    assert isinstance(made, pl.DataFrame)
    return made.lazy()


def _file(path: Path, name: str) -> pl.LazyFrame:
    if not path.is_file():
        raise UserError(f"{name}: {path} does not exist")
    kind = path.suffix.lower()
    if kind == ".parquet":
        return pl.scan_parquet(path)
    if kind in (".jsonl", ".ndjson"):
        return pl.scan_ndjson(path)
    if kind in (".csv", ".tsv", ".txt"):
        # All columns as text: an id such as 007 keeps its zeros.
        return pl.scan_csv(path, separator="," if kind == ".csv" else "\t", infer_schema=False)
    raise UserError(f"{name}: {path} is no .csv, .tsv, .parquet, .jsonl or .ndjson file; read it with Polars first")


def _named(frame: pl.LazyFrame, columns: tuple[str, ...], required: tuple[str, ...], name: str) -> pl.LazyFrame:
    """The frame with the contract's column names. ``UserError`` for a required column that is not there."""
    found = frame.collect_schema().names()
    renamed = {}
    for column in columns:
        same = [one for one in found if one.lower() == column] or [
            one for one in found if one.lower() in ALIASES.get(column, ())
        ]
        if column not in found and same:
            renamed[same[0]] = column
    missing = [column for column in required if column not in found and column not in renamed.values()]
    if missing:
        raise UserError(
            f"{name}: no column '{missing[0]}'; the table has {', '.join(found)}. Rename the column that holds it"
        )
    if renamed:
        log.info("%s: %s", name, ", ".join(f"{theirs} is read as {ours}" for theirs, ours in renamed.items()))
    return frame.rename(renamed)


def _with_seconds(frame: pl.LazyFrame) -> pl.LazyFrame:
    """``timestamp`` as whole seconds since 1970, whatever it was; the order of the rows where there is none."""
    schema = frame.collect_schema()
    if "timestamp" not in schema.names():
        log.warning("events: no column 'timestamp': the order of the rows counts as their order in time")
        return frame.with_row_index("timestamp").with_columns(pl.col("timestamp").cast(pl.Int64))
    column, kind = pl.col("timestamp"), schema["timestamp"]
    if kind == pl.String:
        text = frame.select("timestamp").collect()["timestamp"]
        numbers = text.cast(pl.Float64, strict=False)
        if numbers.null_count() == text.null_count():
            column, kind = column.cast(pl.Float64), pl.Float64()
        else:
            try:
                text.str.to_datetime(time_zone="UTC" if _has_offset(text) else None)
            except pl.exceptions.PolarsError as error:
                example = text.drop_nulls()[0] if text.null_count() < len(text) else None
                raise UserError(
                    f"events: timestamp {example!r} is neither a number nor a date that is recognised; convert it first"
                ) from error
            column = column.str.to_datetime(time_zone="UTC" if _has_offset(text) else None)
            kind = pl.Datetime()
    if kind == pl.Date or isinstance(kind, pl.Datetime):
        return frame.with_columns(column.cast(pl.Datetime("us")).dt.epoch("s").alias("timestamp"))
    largest = frame.select(column.cast(pl.Float64).abs().max()).collect().item()
    divisor = next((parts for limit, parts in _UNITS if largest is not None and largest > limit), 1)
    whole = column if kind.is_integer() else column.cast(pl.Float64).floor().cast(pl.Int64)
    return frame.with_columns((whole // divisor).alias("timestamp"))


def _has_offset(text: pl.Series) -> bool:
    return bool(text.drop_nulls().head(1).str.contains(r"(Z|[+-]\d\d:?\d\d)$").any())


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key: from nested mappings, from ``section__key`` and from dotted keys themselves."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        key = prefix + name.replace("__", ".")
        flat |= _dotted(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return flat
