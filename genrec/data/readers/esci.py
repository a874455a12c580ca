"""ESCI, the Amazon shopping queries data: graded relevance of products for real queries. It has no users and no events.

The path is a folder, a file or a pattern. Files are known by their name: judgments have ``examples`` or ``judgments``
in it, products ``products``. As published (Parquet, or CSV with the same columns) or as JSON lines, CSV and
tab-separated tables (plain, ``.gz`` or ``.zst``) with the columns on the right:

============  =========================================================  ==========================
judgments     published files                                            other tables
============  =========================================================  ==========================
``query``     ``query``                                                  ``query``
``query_id``  ``query_id``                                               else the query itself
``item_id``   ``product_id``                                             ``asin``
``label``     ``esci_label``, as E, S, C or I (words are understood)     ``gain``: 100, 10, 1 or 0
``gain``      E 1, S 0.1, C 0.01, I 0                                    the same
``split``     ``split``                                                  else null
============  =========================================================  ==========================

Items: ``item_id`` (``product_id`` or ``asin``), ``title``, ``text`` (bullet points, then description), ``brand``,
``category`` and ``price`` where given, and the further column ``color``. Columns may carry the prefix ``product_``.

Source: Reddy et al., "Shopping queries dataset: a large-scale ESCI benchmark for improving product search", arXiv
2206.06588.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from genrec.data.readers.amazon2018 import category_path
from genrec.data.readers.toolkit import (
    REPEATED_ITEM,
    REPEATED_JUDGMENT,
    Batch,
    SeenKeys,
    blank,
    check_options,
    delimited_batches,
    did_you_mean,
    files_at,
    filled,
    json_batches,
    parquet_batches,
    plain_name,
)
from genrec.data.schema import ITEM_SCHEMA, JUDGMENT_SCHEMA, RawLog, conform
from genrec.errors import UserError

OPTIONS = ("locale", "version")
DEFAULT_LOCALE = "us"
VERSIONS = ("small", "large")
GAINS = {"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0}
WORDS = {
    "exact": "E",
    "substitute": "S",
    "complement": "C",
    "irrelevant": "I",
    **{letter.lower(): letter for letter in GAINS},
}
POINTS = {100.0: "E", 10.0: "S", 1.0: "C", 0.0: "I"}
JUDGMENT_COLUMNS = tuple(
    [
        "query",
        "query_id",
        "product_id",
        "asin",
        "product_locale",
        "esci_label",
        "gain",
        "small_version",
        "large_version",
        "split",
    ]
)
PRODUCT_COLUMNS = tuple(
    [
        "product_id",
        "product_title",
        "product_description",
        "product_bullet_point",
        "product_brand",
        "product_color",
        "product_locale",
        "asin",
        "title",
        "description",
        "bullet_points",
        "brand",
        "color",
        "category",
        "price",
    ]
)


def read_esci(path: Path, options: dict) -> Iterator[RawLog]:
    """Read judgments, then products, in parts; ``events`` stays empty.

    Options: ``locale`` ("us" unless given; one product id may stand for different texts in several, and a row that
    states none is kept) and ``version`` ("small" or "large", the published subsets; all judgments unless given). Rows
    of other locales or versions are left out and counted. A judgment or product that a later row repeats keeps its
    first row. Raises ``UserError`` for a wrong option, one that the files cannot answer, and a path without judgments
    and products.
    """
    check_options("esci", options, OPTIONS)
    locale, version = options.get("locale"), options.get("version")
    if locale is not None and not isinstance(locale, str):
        raise UserError(f"reader 'esci': option locale must be a text such as 'us', not {locale!r}")
    if version is not None and version not in VERSIONS:
        raise UserError(f"reader 'esci': unknown version {version!r}; {did_you_mean(str(version), VERSIONS)}")
    files = files_at(path)
    judgments = [file for file in files if any(word in file.name for word in ("examples", "judgments"))]
    products = [file for file in files if "products" in file.name]
    if not judgments and not products:
        raise UserError(
            f"{path}: no file with 'examples', 'judgments' or 'products' in its name; reader 'esci' needs one"
        )
    pairs = SeenKeys("pair")
    for file in judgments:
        for batch in _batches(file, JUDGMENT_COLUMNS):
            _only(batch, file, locale, version)
            _to_judgments(batch, file, pairs)
            yield batch.part(judgments=conform(batch.table, JUDGMENT_SCHEMA, str(file)))
    first = SeenKeys("item_id")
    for file in products:
        for batch in _batches(file, PRODUCT_COLUMNS):
            _only(batch, file, locale, None)
            _to_items(batch, file)
            batch.keep_first(first, REPEATED_ITEM)
            yield batch.part(items=conform(batch.table, ITEM_SCHEMA, str(file)))


def _batches(file: Path, columns: tuple[str, ...]) -> Iterator[Batch]:
    """Batches of a file of any of the formats, all columns as text."""
    name = plain_name(file)
    if name.endswith(".parquet"):
        for batch in parquet_batches(file, columns):
            batch.table = batch.table.with_columns(pl.col(column).cast(pl.String) for column in batch.table.columns[1:])
            yield batch
    elif name.endswith((".jsonl", ".ndjson", ".json")):
        yield from json_batches(file, dict.fromkeys(columns, pl.String()))
    elif name.endswith((".csv", ".tsv", ".txt")):
        yield from delimited_batches(file, "," if name.endswith(".csv") else "\t", quoted=name.endswith(".csv"))
    else:
        raise UserError(f"{file}: not a table that reader 'esci' knows; expected .parquet, .csv, .tsv or .ndjson")


def _complete(batch: Batch, file: Path, columns: tuple[str, ...], either: tuple[tuple[str, ...], ...]) -> None:
    """Add the columns that the file lacks as nulls; ``UserError`` when it has none of the names that mean the same."""
    have = batch.table.columns
    for names in either:
        if not any(name in have for name in names):
            batch.need(names[:1], file)
    batch.table = batch.table.with_columns(
        pl.lit(None, dtype=pl.String).alias(name) for name in columns if name not in have
    )


def _only(batch: Batch, file: Path, locale: str | None, version: str | None) -> None:
    """Leave out what is not of the locale and the version."""
    requested = {"product_locale": locale, f"{version}_version": version}
    for column, value in requested.items():
        if value is not None and column not in batch.table.columns:
            raise UserError(
                f"{file}: no column {column!r} to choose by, which {value!r} asks for; leave that option out"
            )
    if "product_locale" in batch.table.columns:
        if locale is not None:
            batch.refuse(blank("product_locale"), "no product_locale")
        batch.leave_out(pl.col("product_locale") != (locale or DEFAULT_LOCALE), "locale")
    if version is not None:
        number = pl.col(f"{version}_version").cast(pl.Float64, strict=False)
        batch.refuse(number.is_null(), f"{version}_version is neither 0 nor 1")
        batch.leave_out(number != 1, "version")


def _to_judgments(batch: Batch, file: Path, pairs: SeenKeys) -> None:
    _complete(batch, file, JUDGMENT_COLUMNS, (("query",), ("product_id", "asin"), ("esci_label", "gain")))
    item = pl.coalesce(filled("product_id"), filled("asin"))
    batch.refuse(blank("query"), "no query")
    batch.refuse(item.is_null(), "no product_id or asin")
    word = (
        pl.col("esci_label")
        .str.strip_chars()
        .str.to_lowercase()
        .replace_strict(WORDS, default=None, return_dtype=pl.String)
    )
    points = pl.col("gain").str.strip_chars().cast(pl.Float64, strict=False)
    letter = (
        pl.when(blank("esci_label"))
        .then(points.replace_strict(POINTS, default=None, return_dtype=pl.String))
        .otherwise(word)
    )
    batch.refuse(letter.is_null(), "its label is none of E, S, C and I (as gain: 100, 10, 1 and 0)")
    batch.table = batch.table.select(
        pl.coalesce(filled("query_id"), filled("query")).alias("query_id"),
        filled("query").alias("query"),
        item.alias("item_id"),
        letter.alias("label"),
        letter.replace_strict(GAINS, return_dtype=pl.Float64).alias("gain"),
        filled("split").alias("split"),
    ).with_columns(pl.concat_str("query_id", "item_id", separator="\x1f").alias("pair"))
    batch.keep_first(pairs, REPEATED_JUDGMENT)
    batch.table = batch.table.drop("pair")


def _to_items(batch: Batch, file: Path) -> None:
    _complete(batch, file, PRODUCT_COLUMNS, (("product_id", "asin"),))
    item = pl.coalesce(filled("product_id"), filled("asin"))
    batch.refuse(item.is_null(), "no product_id or asin")

    def either(*names: str) -> pl.Expr:
        return pl.coalesce(filled(name) for name in names)

    points, description = either("product_bullet_point", "bullet_points"), either("product_description", "description")
    text = pl.concat_str(points, description, separator="\n", ignore_nulls=True)
    batch.table = batch.table.select(
        item.alias("item_id"),
        either("product_title", "title").alias("title"),
        pl.when(text != "").then(text).alias("text"),
        either("product_brand", "brand").alias("brand"),
        category_path(batch.table["category"]),
        pl.col("price").cast(pl.Float64, strict=False),
        either("product_color", "color").alias("color"),
    )
