"""Amazon Reviews 2014 in the original files: ``reviews_*.json(.gz)`` and ``meta_*.json(.gz)``.

Review lines are strict JSON; meta lines are Python literals (strict JSON is accepted as well). A review is a purchase. Events
keep the file order, which is the published sequence order: times have day resolution, so order must break the ties.

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

from genrec.data.readers.common import (
    LINE,
    RAW,
    LogSource,
    SeenKeys,
    blank,
    check_options,
    glob_files,
    join_quarantine,
    line_batches,
    parse_json_lines,
    parts_of,
    set_aside,
)
from genrec.data.schema import EVENT_SCHEMA, ITEM_SCHEMA, QUARANTINE_SCHEMA, RawLog, conform
from genrec.errors import UserError

# As text, so that a value of a wrong type reaches our own check instead of becoming a silent null.
REVIEW_FIELDS = {"reviewerID": pl.String(), "asin": pl.String(), "unixReviewTime": pl.String(), "overall": pl.String()}


def read_amazon_2014(path: Path, options: dict) -> Iterator[RawLog]:
    """Read ``reviews_*`` files and, if there are any, ``meta_*`` files, in parts: the events by file, then the items.

    ``path`` is the folder that holds them, one review file, or a pattern (also over folders).
    """
    yield from parts_of(amazon_2014_sources(path, options))


def amazon_2014_sources(path: Path, options: dict, columns: list[str] | None = None) -> list[LogSource]:
    """Every review file by itself, then all meta files."""
    check_options("amazon-2014", options, ())
    reviews, metas = _files(path, "reviews_"), _files(path, "meta_")
    if not reviews:
        raise UserError(
            f"{path}: no reviews_*.json or reviews_*.json.gz; reader 'amazon-2014' needs the folder that holds one"
        )
    sources = [LogSource([file], partial(_read_reviews, file)) for file in reviews]
    return [*sources, LogSource(metas, partial(_read_metas, metas), events=False)] if metas else sources


def _files(place: Path, start: str) -> list[Path]:
    """The JSON files at a place (folder, file or pattern) whose names start so, by name."""
    found = place.iterdir() if place.is_dir() else [place] if place.exists() else glob_files(place)
    return sorted(
        file
        for file in found
        if file.name.startswith(start) and file.name.removesuffix(".gz").removesuffix(".zst").endswith(".json")
    )


def _read_reviews(file: Path) -> Iterator[RawLog]:
    for lines, wrong in line_batches(file):
        table, broken = parse_json_lines(lines, file.name, REVIEW_FIELDS)
        aside = [wrong, broken]
        table = set_aside(table, blank("reviewerID"), file.name, "no reviewerID", aside)
        table = set_aside(table, blank("asin"), file.name, "no asin", aside)
        table = table.with_columns(pl.col("unixReviewTime").cast(pl.Int64, strict=False).alias("timestamp"))
        table = set_aside(
            table, pl.col("timestamp").is_null(), file.name, "unixReviewTime is not a whole number of seconds", aside
        )
        events = table.select(
            pl.col("reviewerID").alias("user_id"),
            pl.col("asin").alias("item_id"),
            "timestamp",
            pl.lit("purchase").alias("action"),
            pl.lit("feed").alias("surface"),
            pl.col("overall").cast(pl.Float64, strict=False).alias("rating"),
        )
        if events["rating"].null_count() == events.height:
            events = events.drop("rating")
        events = conform(events, EVENT_SCHEMA, str(file))
        yield RawLog(events, quarantine=join_quarantine(aside), rows_read=lines.height + wrong.height)


def _read_metas(files: Sequence[Path]) -> Iterator[RawLog]:
    seen = SeenKeys("item_id")  # across files too: two categories may list one product
    for file in files:
        yield from _read_meta(file, seen)


def _read_meta(file: Path, seen: SeenKeys) -> Iterator[RawLog]:
    for lines, wrong in line_batches(file):
        rows: list[dict] = []
        broken: list[tuple[str, int, str]] = []
        for number, raw in lines.select(LINE, RAW).iter_rows():  # items, not events: a loop is fine here
            value = _literal(raw)
            if not isinstance(value, dict):
                broken.append((file.name, number, "neither a Python literal nor JSON with an object on the line"))
            elif not isinstance(value.get("asin"), str) or not value["asin"].strip():
                broken.append((file.name, number, "no asin"))
            else:
                rows.append({LINE: number, **_item(value)})
        aside = [wrong, pl.DataFrame(broken, schema=QUARANTINE_SCHEMA, orient="row")]
        table = seen.first_rows(pl.DataFrame(rows, schema={LINE: pl.Int64, **ITEM_SCHEMA}), file.name, aside)
        yield RawLog(
            items=conform(table.drop(LINE), ITEM_SCHEMA, str(file)),
            quarantine=join_quarantine(aside),
            rows_read=lines.height + wrong.height,
        )


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
        value = " ".join(str(part) for part in value)
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
