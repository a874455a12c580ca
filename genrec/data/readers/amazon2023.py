"""Amazon Reviews 2023: reviews ``NAME.jsonl`` or the published k-core tables ``NAME.csv``, with ``meta_NAME.jsonl``.

Each plain, ``.gz`` or ``.zst``. The path is a folder, one file or a pattern; the meta file of a category is read when
it lies beside its reviews. The tables come whole (``NAME.csv``) or split (``NAME.train.csv``, ``NAME.valid.csv``,
``NAME.test.csv``), with or without a header line ``user_id,parent_asin,rating,timestamp[,history]``; ``history``
repeats earlier rows and is not read.

=============  =====================  =================================================================
events         from                   meaning
=============  =====================  =================================================================
``user_id``    ``user_id``            required
``item_id``    ``parent_asin``        required; variants of a product (``asin``) share it
``timestamp``  ``timestamp``          milliseconds in the file, whole seconds here
``action``                            "purchase": a review stands for one
``surface``                           "feed"
``rating``     ``rating``             1 to 5, null when it is not a number
``verified``   ``verified_purchase``  JSON lines only
``split``      the file's name        split tables only: "train", "valid" or "test"
=============  =====================  =================================================================

Items: ``title``, ``brand`` (``store``, else ``Brand`` in ``details``), ``category`` (``categories``, one path),
``text`` (``description``, then ``features``), ``price``. Review texts and images are not read.

Source: Hou, Li, He, Yan, Chen, McAuley, "Bridging language and items for retrieval and recommendation", arXiv
2403.03952.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import polars as pl

from genrec.data.readers.amazon2018 import (
    ReviewOptions,
    category_path,
    clean_reviews,
    first_price,
    joined_texts,
    meta_parts,
)
from genrec.data.readers.toolkit import (
    LINE,
    Batch,
    LogSource,
    delimited_batches,
    files_at,
    filled,
    json_batches,
    plain_name,
    sibling,
)
from genrec.data.schema import EVENT_SCHEMA, RawLog, conform
from genrec.errors import UserError

REVIEW_FIELDS = ("user_id", "parent_asin", "timestamp", "rating")
META_FIELDS = ("parent_asin", "title", "store", "categories", "price", "description", "features", "details")
TABLE_COLUMNS = ("user_id", "parent_asin", "rating", "timestamp", "history")
SPLITS = ("train", "valid", "test")
NAMES = r"(?!meta_)(?P<name>.+?)(?:\.(?P<kind>jsonl)|\.(?P<split>train|valid|test)\.csv|\.(?P<table>csv))"


def amazon_2023_sources(path: Path, options: dict, columns: list[str] | None = None) -> list[LogSource]:
    """Every review file by itself, then all meta files.

    Options: ``min_rating`` and ``verified_only``, as ``ReviewOptions`` says (the tables do not say which are
    verified). An item that a later line repeats keeps its first line. Raises ``UserError`` when there is no review
    file, and when one category lies there twice.
    """
    settings = ReviewOptions.parse("amazon-2023", options)
    reviews = _review_files(path)
    sources = [
        LogSource([file], partial(_read_reviews, file, split, settings))
        for files in reviews.values()
        for split, file in files
    ]
    metas = _meta_files(reviews)
    return (
        [*sources, LogSource(metas, partial(meta_parts, metas, META_FIELDS, "parent_asin", _items), events=False)]
        if metas
        else sources
    )


def _read_reviews(file: Path, split: str | None, settings: ReviewOptions) -> Iterator[RawLog]:
    for batch in _batches(file, split, settings):
        clean_reviews(batch, REVIEW_FIELDS, settings, milliseconds=True)
        if split:
            batch.table = batch.table.with_columns(pl.lit(split).alias("split"))
        yield batch.part(events=conform(batch.table, EVENT_SCHEMA, str(file)))


def amazon_2023_files(path: Path) -> list[Path]:
    """Every file that is read for a path: of one review file also its meta file."""
    reviews = _review_files(path)
    return [*(file for files in reviews.values() for _, file in files), *_meta_files(reviews)]


def _meta_files(reviews: dict[str, list[tuple[str | None, Path]]]) -> list[Path]:
    siblings = [sibling(files[0][1].parent, f"meta_{name}.jsonl") for name, files in reviews.items()]
    return [file for file in siblings if file]


def _review_files(path: Path) -> dict[str, list[tuple[str | None, Path]]]:
    """Category -> its files with their split (None when it is not split), train before valid before test."""
    reviews: dict[str, list[tuple[str | None, Path]]] = {}
    for file in files_at(path):
        match = re.fullmatch(NAMES, plain_name(file))
        if match is None:
            continue
        same = reviews.setdefault(match["name"], [])
        splits = [split for split, _ in same]
        if same and (match["split"] is None or match["split"] in splits or None in splits):
            raise UserError(
                f"{same[0][1]} and {file.name} both hold reviews of {match['name']}; "
                "give one of them (or a pattern) as the path"
            )
        same.append((match["split"], file))
    if not reviews:
        raise UserError(
            f"{path}: no NAME.jsonl, NAME.csv or NAME.train.csv (plain, .gz or .zst); "
            "reader 'amazon-2023' needs such a file"
        )
    order: dict[str | None, int] = {split: index for index, split in enumerate((None, *SPLITS))}
    return {name: sorted(files, key=lambda pair: order[pair[0]]) for name, files in reviews.items()}


def _batches(file: Path, split: str | None, settings: ReviewOptions) -> Iterator[Batch]:
    if plain_name(file).endswith(".jsonl"):
        for batch in json_batches(file, dict.fromkeys((*REVIEW_FIELDS, "verified_purchase"), pl.String())):
            batch.table = batch.table.rename({"verified_purchase": "verified"})
            yield batch
        return
    if settings.verified_only:
        raise UserError(f"{file}: the table does not say which purchases are verified; leave option verified_only out")
    for batch in delimited_batches(
        file, ",", quoted=False, columns=TABLE_COLUMNS, is_header=lambda fields: fields[0] == "user_id", optional=1
    ):
        batch.need(REVIEW_FIELDS, file)
        batch.table = batch.table.select(LINE, *REVIEW_FIELDS)
        yield batch


def _items(table: pl.DataFrame) -> pl.DataFrame:
    return table.select(
        pl.col("parent_asin").alias("item_id"),
        filled("title").alias("title"),
        joined_texts(table, ("description", "features")),
        pl.coalesce(filled("store"), pl.col("details").str.json_path_match("$.Brand")).alias("brand"),
        category_path(table["categories"]),
        first_price("price"),
    )
