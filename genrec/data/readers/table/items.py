"""Titles, categories and prices of items, as exports write them."""

from __future__ import annotations

import html
import logging

import polars as pl

from genrec.data.ids import NULL_WORDS
from genrec.data.readers.table.options import TableOptions
from genrec.data.readers.toolkit import text_lists
from genrec.data.schema import json_text

log = logging.getLogger(__name__)
CATEGORY_SEPARATORS = ("|", ">", "/", ";")
MARKUP = r"<\s*/?\s*[a-zA-Z][^<>]*>"
PRICE = r"^[^\d.,+-]{0,4}([+-]?[\d.,]*\d)(?:[.,]-)?[^\d.,]*(?:[-\u2013].*)?$"
ENTITY = r"&(?:#\d+|#x[0-9a-fA-F]+|[a-zA-Z]{2,8});"


def typed_items(table: pl.DataFrame, settings: TableOptions, source: str) -> pl.DataFrame:
    """Item columns of any type as the data contract has them; what cannot be read as a price is counted and logged."""
    for name in ("title", "text", "brand"):
        if name in table.columns:
            table = table.with_columns(clean_text(_plain_text(table, name)))
    if "category" in table.columns:
        table = table.with_columns(category_lists(table, settings.category_separator, source))
    if "price" in table.columns:
        price = table.select(json_text("price"))["price"] if table["price"].dtype.is_nested() else table["price"]
        numbers = prices(price)
        unread = numbers.is_null() & price.is_not_null()
        if unread.any():
            log.warning(
                "%s: %d of %d prices are no number, such as %r",
                source,
                unread.sum(),
                len(price),
                price.filter(unread)[0],
            )
        table = table.with_columns(numbers)
    return table


def as_text(table: pl.DataFrame, name: str) -> pl.Series:
    """A column as text: whole floats lose their ``.0``, lists and objects become JSON, null words null."""
    column = table[name]
    if column.dtype == pl.String:
        return column
    if column.dtype.is_nested():
        return table.select(json_text(name))[name]
    if column.dtype.is_float():
        whole = pl.col(name).cast(pl.Int64, strict=False)
        text = pl.when(whole == pl.col(name)).then(whole.cast(pl.String)).otherwise(pl.col(name).cast(pl.String))
        return table.select(text.alias(name))[name]
    return column.cast(pl.String, strict=False)


def _plain_text(table: pl.DataFrame, name: str) -> pl.Series:
    column = table[name]
    if isinstance(column.dtype, pl.List) and column.dtype.inner == pl.String:
        return column.list.drop_nulls().list.join(" ")
    return as_text(table, name)


def clean_text(column: pl.Series) -> pl.Series:
    """Texts without markup, entities and words for none; null where nothing is left."""
    name = column.name
    text: pl.Expr = pl.when(~pl.col(name).is_in(list(NULL_WORDS))).then(pl.col(name).str.strip_chars())
    if column.str.contains("<", literal=True).any():
        text = text.str.replace_all(MARKUP, " ").str.replace_all(r"\s+", " ").str.strip_chars()
    column = column.to_frame().select(pl.when(text != "").then(text).alias(name))[name]
    marked = column.str.contains(ENTITY).fill_null(False)
    if marked.any():
        texts = [html.unescape(value) if value else value for value in column.filter(marked)]
        column = column.scatter(marked.arg_true(), texts)
    return column


def category_lists(table: pl.DataFrame, separator: str | None, source: str) -> pl.Series:
    """The column ``category`` as lists of levels, from text with separators, JSON lists, lists or single values."""
    column = table["category"]
    if isinstance(column.dtype, pl.Struct):
        column = table.select(json_text("category"))["category"]
    if isinstance(column.dtype, pl.List):
        levels = pl.col("category").list.eval(pl.element().cast(pl.String).str.strip_chars())
        return _filled_levels(column.to_frame().select(levels)["category"])
    if column.dtype != pl.String:
        return _filled_levels(column.to_frame().select(pl.concat_list(pl.col("category").cast(pl.String)))["category"])
    column = clean_text(column)
    listed = column.str.contains(r"^\s*\[.*\]\s*$").fill_null(False)
    chosen = _separator_of(column.filter(~listed).drop_nulls(), separator, source)
    levels = pl.col("category").str.split(chosen).list.eval(pl.element().str.strip_chars())
    split = column.to_frame().select(levels)["category"]
    if listed.any():
        split = pl.select(
            pl.when(listed).then(text_lists(column.str.strip_chars())).otherwise(split).alias("category")
        )["category"]
    return _filled_levels(split)


def _filled_levels(column: pl.Series) -> pl.Series:
    levels = pl.col("category").list.drop_nulls().list.eval(pl.element().filter(pl.element() != ""))
    return column.to_frame().select(pl.when(levels.list.len() > 0).then(levels).alias("category"))["category"]


def _separator_of(texts: pl.Series, stated: str | None, source: str) -> str:
    """The stated separator, with a warning if it never splits and another would; else the most frequent one."""
    shares = {
        sign: float(texts.str.contains(sign, literal=True).sum()) / max(len(texts), 1) for sign in CATEGORY_SEPARATORS
    }
    best = max(shares, key=lambda sign: shares[sign])
    if stated is None:
        if shares[best] < 0.5 and len(texts) and texts.str.contains(r",\s").mean() >= 0.5:  # type: ignore[operator]
            log.warning("%s: a category such as %r is read as one level; is category_separator ','?", source, texts[0])
        return "|" if shares["|"] or shares[best] < 0.5 else best
    if shares[best] >= 0.5 and not texts.str.contains(stated, literal=True).any():
        log.warning(
            "%s: category_separator %r never splits a category such as %r; is it %r?", source, stated, texts[0], best
        )
    return stated


def prices(column: pl.Series) -> pl.Series:
    """Prices as Float64: numbers, or texts such as ``$1,899``, ``1.299,05 EUR`` or ``10 - 20`` (the lower end)."""
    name = column.name
    if column.dtype != pl.String:
        numbers = column.cast(pl.Float64, strict=False)
        return numbers.to_frame().select(pl.when(pl.col(name).is_finite()).then(pl.col(name)))[name]
    plain = column.str.strip_chars().cast(pl.Float64, strict=False)
    number = column.str.replace_all(r"[\s\u00a0'\u2019]", "").str.extract(PRICE)
    doubtful = plain.is_null()
    # A comma or point before one or two last digits is a decimal sign; what the column does decides where a value does
    # not say.
    commas = (number.str.contains(r",\d{1,2}$") & doubtful).sum()
    decimal_comma = bool(commas > (number.str.contains(r"\.\d{1,2}$") & doubtful).sum())
    frame = pl.DataFrame({"plain": plain, "number": number})
    digits, exact = pl.col("number"), pl.col("plain").is_finite()
    comma_last = digits.str.contains(r",\d*$")
    thousands_comma = digits.str.contains(r"^[+-]?\d{1,3}(?:,\d{3})+$")
    thousands_point = digits.str.contains(r"^[+-]?\d{1,3}(?:\.\d{3})+$") & pl.lit(decimal_comma)
    german = (comma_last & ~thousands_comma) | thousands_point
    as_german = digits.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
    text = pl.when(german).then(as_german).otherwise(digits.str.replace_all(",", "", literal=True))
    value = pl.when(exact & ~thousands_point).then(pl.col("plain")).otherwise(text.cast(pl.Float64, strict=False))
    return frame.select(value.alias(name))[name]
