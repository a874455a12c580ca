"""Amazon Reviews 2018 in the original JSON lines: ``NAME.json`` or ``NAME_5.json`` (5-core) with ``meta_NAME.json``.

Each plain, ``.gz`` or ``.zst``. The path is a folder, one review file or a pattern; the meta file of a review file is
read when it lies beside it.

=============  ===================  =====================================================================
events         from                 meaning
=============  ===================  =====================================================================
``user_id``    ``reviewerID``       required
``item_id``    ``asin``             required
``timestamp``  ``unixReviewTime``   seconds, of day resolution; the file order breaks ties
``action``                          "purchase": a review stands for one
``surface``                         "feed"
``rating``     ``overall``          1 to 5, null when it is not a number
``verified``   ``verified``         whether the shop knows of the purchase
=============  ===================  =====================================================================

Items: ``title``, ``brand``, ``category`` (one path), ``text`` (``description``, then ``feature``) and ``price`` (of a
range, its lower end); HTML entities in titles, brands and categories are resolved. Review texts, styles, images and
links to other products are not read.

Source: Ni, Li, McAuley, "Justifying recommendations using distantly-labeled reviews and fine-grained aspects", EMNLP
2019.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl

from genrec.data.readers.amazon2014 import REVIEW_FIELDS
from genrec.data.readers.toolkit import (
    REPEATED_ITEM,
    Batch,
    LogSource,
    SeenKeys,
    blank,
    check_options,
    files_at,
    filled,
    json_batches,
    plain_name,
    sibling,
    text_lists,
)
from genrec.data.schema import EVENT_SCHEMA, ITEM_SCHEMA, RawLog, conform
from genrec.errors import UserError

OPTIONS = ("min_rating", "verified_only")
META_FIELDS = ("asin", "title", "brand", "category", "price", "description", "feature")
YEAR_5138 = 100_000_000_000  # as seconds; the same number of milliseconds is the year 1973
PRICE = r"^\s*\$?\s*([\d,]+(?:\.\d+)?)\s*(?:-\s*\$?\s*[\d,]+(?:\.\d+)?\s*)?$"


@dataclass(frozen=True)
class ReviewOptions:
    """The options of the readers of Amazon 2018 and 2023."""

    min_rating: float = 0
    """Keep reviews with at least this many stars; the others, and those without a rating, are left out."""
    verified_only: bool = False
    """Keep reviews whose purchase the shop knows of."""

    @classmethod
    def parse(cls, reader: str, options: dict) -> ReviewOptions:
        """Raise ``UserError`` for an unknown option or one of a wrong type."""
        check_options(reader, options, OPTIONS)
        settings = cls(**options)
        if isinstance(settings.min_rating, bool) or not isinstance(settings.min_rating, (int, float)):
            raise UserError(f"reader {reader!r}: option min_rating must be a number, not {settings.min_rating!r}")
        if not isinstance(settings.verified_only, bool):
            raise UserError(
                f"reader {reader!r}: option verified_only must be true or false, not {settings.verified_only!r}"
            )
        return settings


def amazon_2018_sources(path: Path, options: dict, columns: list[str] | None = None) -> list[LogSource]:
    """Every review file by itself, then all meta files.

    Options: ``min_rating`` and ``verified_only``, as ``ReviewOptions`` says. An item that a later line repeats keeps
    its first line. Raises ``UserError`` when there is no review file, and when two files hold the reviews of one
    category.
    """
    settings = ReviewOptions.parse("amazon-2018", options)
    reviews = _review_files(path)
    sources = [LogSource([file], partial(_read_reviews, file, settings)) for file in reviews.values()]
    metas = _meta_files(reviews)
    return (
        [*sources, LogSource(metas, partial(meta_parts, metas, META_FIELDS, "asin", _items), events=False)]
        if metas
        else sources
    )


def _read_reviews(file: Path, settings: ReviewOptions) -> Iterator[RawLog]:
    for batch in json_batches(file, {**REVIEW_FIELDS, "verified": pl.String()}):
        clean_reviews(batch, ("reviewerID", "asin", "unixReviewTime", "overall"), settings)
        yield batch.part(events=conform(batch.table, EVENT_SCHEMA, str(file)))


def meta_parts(
    files: Sequence[Path], fields: Sequence[str], key: str, items: Callable[[pl.DataFrame], pl.DataFrame]
) -> Iterator[RawLog]:
    """The items of meta files (JSON lines), in parts.

    ``key`` is the field of the id; ``items`` turns the ``fields`` into the columns of the data contract.
    """
    first = SeenKeys("item_id")
    for file in files:
        for batch in json_batches(file, dict.fromkeys(fields, pl.String())):
            batch.refuse(blank(key), f"no {key}")
            batch.table = items(batch.table)
            batch.keep_first(first, REPEATED_ITEM)
            yield batch.part(items=conform(batch.table, ITEM_SCHEMA, str(file)))


def amazon_2018_files(path: Path) -> list[Path]:
    """Every file that is read for a path: of one review file also its meta file."""
    reviews = _review_files(path)
    return [*reviews.values(), *_meta_files(reviews)]


def _review_files(path: Path) -> dict[str, Path]:
    """Category -> its review file."""
    reviews: dict[str, Path] = {}
    for file in files_at(path):
        match = re.fullmatch(r"(?!meta_)(.+?)(?:_5)?\.json", plain_name(file))
        if match and match[1] in reviews:
            raise UserError(
                f"{reviews[match[1]]} and {file.name} both hold reviews of {match[1]}; give one of them as the path"
            )
        if match:
            reviews[match[1]] = file
    if not reviews:
        raise UserError(
            f"{path}: no NAME.json or NAME_5.json (plain, .gz or .zst); reader 'amazon-2018' needs such a review file"
        )
    return reviews


def _meta_files(reviews: dict[str, Path]) -> list[Path]:
    siblings = [sibling(file.parent, f"meta_{name}.json") for name, file in reviews.items()]
    return [file for file in siblings if file]


def clean_reviews(
    batch: Batch, fields: tuple[str, str, str, str], settings: ReviewOptions, milliseconds: bool = False
) -> None:
    """Turn reviews (text columns) into events, in place; bad rows go to quarantine, options count what they leave out.

    ``fields`` are the file's names for user, item, time and rating; a column ``verified`` holds "true" or "false"
    where there is one.
    """
    user, item, time, rating = fields
    batch.refuse(blank(user), f"no {user}")
    batch.refuse(blank(item), f"no {item}")
    number = pl.col(time).str.strip_chars().cast(pl.Int64, strict=False)
    unit = "milliseconds" if milliseconds else "seconds"
    outside = number < YEAR_5138 if milliseconds else number >= YEAR_5138
    batch.refuse(number.is_null() | outside, f"{time} is not a whole number of {unit} since 1970")
    columns = [
        pl.col(user).alias("user_id"),
        pl.col(item).alias("item_id"),
        (number // 1000 if milliseconds else number).alias("timestamp"),
        pl.lit("purchase").alias("action"),
        pl.lit("feed").alias("surface"),
        pl.col(rating).str.strip_chars().cast(pl.Float64, strict=False).alias("rating"),
    ]
    if "verified" in batch.table.columns:
        columns.append((pl.col("verified").str.to_lowercase() == "true").alias("verified"))
    batch.table = batch.table.select(columns)
    if settings.min_rating > 0:
        kept = (pl.col("rating") >= settings.min_rating).fill_null(False)
        batch.leave_out(~kept, "min_rating")
    if settings.verified_only:
        batch.leave_out(~pl.col("verified").fill_null(False), "verified_only")


def _items(table: pl.DataFrame) -> pl.DataFrame:
    return table.select(
        pl.col("asin").alias("item_id"),
        _resolved(table["title"]),
        joined_texts(table, ("description", "feature")),
        _resolved(table["brand"]),
        category_path(table["category"]),
        first_price("price"),
    )


def _resolved(column: pl.Series) -> pl.Series:
    """A text column with HTML entities (``&amp;``) as the characters they stand for."""
    column = column.to_frame().select(filled(column.name).alias(column.name)).to_series()
    return pl.Series(column.name, [html.unescape(text) if text else None for text in column], dtype=pl.String)


def joined_texts(table: pl.DataFrame, columns: tuple[str, ...]) -> pl.Series:
    """The column ``text``: the paragraphs (JSON lists) of several columns as one text; null where all are empty."""
    lists = table.select(text_lists(table[name]) for name in columns)
    text = pl.concat_list(pl.all()).list.drop_nulls().list.join(" ").str.strip_chars()
    return lists.select(pl.when(text != "").then(text).alias("text"))["text"]


def category_path(column: pl.Series) -> pl.Series:
    """The column ``category``: the levels of a path (JSON), entities resolved; null where none is left."""
    paths = ([html.unescape(level).strip() for level in path if level] for path in text_lists(column))
    levels = [[level for level in path if level] or None for path in paths]
    return pl.Series("category", levels, dtype=pl.List(pl.String))


def first_price(column: str) -> pl.Expr:
    """A price such as "$1,299.00"; of a range its lower end; null for anything else."""
    return (
        pl.col(column)
        .str.extract(PRICE)
        .str.replace_all(",", "", literal=True)
        .cast(pl.Float64, strict=False)
        .alias("price")
    )
