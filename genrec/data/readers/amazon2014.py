"""Amazon Reviews 2014 in the original files: ``reviews_*.json(.gz)`` and ``meta_*.json(.gz)``.

Review lines are strict JSON; meta lines are Python literals (strict JSON is accepted as well). A review is a
purchase. Events keep the file order, which is the published sequence order: times have day resolution, so order must
break the ties.

Source: McAuley, Targett, Shi, van den Hengel, "Image-based recommendations on styles and substitutes", SIGIR 2015.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import polars as pl

from genrec.data.readers.toolkit import (
    LINE,
    RAW,
    Batch,
    LogSource,
    SeenKeys,
    check_options,
    files_at,
    json_batches,
    plain_name,
    text_batches,
)
from genrec.data.schema import EVENT_SCHEMA, ITEM_SCHEMA, QUARANTINE_SCHEMA, RawLog, conform
from genrec.errors import UserError

# As text, so that a value of a wrong type reaches our own check instead of becoming a silent null.
REVIEW_FIELDS = {"reviewerID": pl.String(), "asin": pl.String(), "unixReviewTime": pl.String(), "overall": pl.String()}


def amazon_2014_sources(path: Path, options: dict, columns: list[str] | None = None) -> list[LogSource]:
    """Every review file by itself, then all meta files.

    ``path`` is the folder that holds them, one review file, or a pattern (also over folders).
    """
    check_options("amazon-2014", options, ())
    reviews, metas = _files(path, "reviews_"), _files(path, "meta_")
    if not reviews:
        raise UserError(
            f"{path}: no reviews_*.json or reviews_*.json.gz; reader 'amazon-2014' needs the folder that holds one"
        )
    sources = [LogSource([file], partial(_read_reviews, file)) for file in reviews]
    return [*sources, LogSource(metas, partial(_read_metas, metas), events=False)] if metas else sources


def _files(path: Path, prefix: str) -> list[Path]:
    """The JSON files at a path whose names start with ``prefix``."""
    return [file for file in files_at(path) if file.name.startswith(prefix) and plain_name(file).endswith(".json")]


def _read_reviews(file: Path) -> Iterator[RawLog]:
    for batch in json_batches(file, REVIEW_FIELDS):
        batch.refuse_blank("reviewerID")
        batch.refuse_blank("asin")
        batch.table = batch.table.with_columns(pl.col("unixReviewTime").cast(pl.Int64, strict=False).alias("timestamp"))
        batch.refuse(pl.col("timestamp").is_null(), "unixReviewTime is not a whole number of seconds")
        events = batch.table.select(
            pl.col("reviewerID").alias("user_id"),
            pl.col("asin").alias("item_id"),
            "timestamp",
            pl.lit("purchase").alias("action"),
            pl.lit("feed").alias("surface"),
            pl.col("overall").cast(pl.Float64, strict=False).alias("rating"),
        )
        if events["rating"].null_count() == events.height:
            events = events.drop("rating")
        yield batch.part(events=conform(events, EVENT_SCHEMA, str(file)))


def _read_metas(files: Sequence[Path]) -> Iterator[RawLog]:
    seen = SeenKeys("item_id")  # across files too: two categories may list one product
    for file in files:
        for batch in text_batches(file):
            _parse_items(batch)
            batch.refuse_repeats(seen)
            yield batch.part(items=conform(batch.table.drop(LINE), ITEM_SCHEMA, str(file)))


def _parse_items(batch: Batch) -> None:
    rows: list[dict] = []
    broken: list[tuple[str, int, str]] = []
    for line, raw in batch.table.select(LINE, RAW).iter_rows():  # items, not events: a loop is fine here
        value = _literal(raw)
        if not isinstance(value, dict):
            broken.append((batch.source, line, "neither a Python literal nor JSON with an object on the line"))
        elif not isinstance(value.get("asin"), str) or not value["asin"].strip():
            broken.append((batch.source, line, "no asin"))
        else:
            rows.append({LINE: line, **_item(value)})
    batch.rejected.append(pl.DataFrame(broken, schema=QUARANTINE_SCHEMA, orient="row"))
    batch.table = pl.DataFrame(rows, schema={LINE: pl.Int64(), **ITEM_SCHEMA})


def _literal(raw: str) -> object:
    """The value on a meta line, or None when it is neither a Python literal nor JSON."""
    if not raw.lstrip().startswith("{'"):
        try:
            return json.loads(raw)
        except ValueError:
            pass  # a Python literal may open with a double quote too
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a title is not the user's concern
            return ast.literal_eval(raw.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _item(value: dict) -> dict:
    return {
        "item_id": value["asin"],
        "title": _text(value.get("title")),
        "text": _text(value.get("description")),
        "brand": _text(value.get("brand")),
        "category": _first_path(value.get("categories")),
        "price": _number(value.get("price")),
    }


def _text(value: object) -> str | None:
    if isinstance(value, (list, tuple)):  # later copies of the data hold descriptions as a list of paragraphs
        value = " ".join(str(paragraph) for paragraph in value)
    text = str(value).strip() if value is not None else ""
    return text or None


def _first_path(value: object) -> list[str] | None:
    if not isinstance(value, (list, tuple)) or not value:
        return None
    path = value[0] if isinstance(value[0], (list, tuple)) else value
    levels = [str(level) for level in path if str(level).strip()]
    return levels or None


def _number(value: object) -> float | None:
    try:
        return float(str(value).lstrip("$").replace(",", "")) if value is not None else None
    except ValueError:
        return None
