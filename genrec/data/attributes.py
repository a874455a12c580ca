"""Which further columns of an item table hold attributes whose values a person may type."""

from __future__ import annotations

import polars as pl

CONTRACT = ("item_id", "title", "text", "brand", "category", "price")
LONGEST_ATTRIBUTE = 60.0  # mean characters of a text column that still is an attribute, not another text


def attribute_columns(items: pl.DataFrame) -> list[str]:
    """Columns beyond the contract with short texts, lists of short texts, or whole numbers such as a year."""
    return [name for name in items.columns if name not in CONTRACT and _is_attribute(items[name])]


def attribute_texts(items: pl.DataFrame, name: str) -> pl.Series:
    """The values of an attribute column as one text per item, "" where an item has none."""
    column = items[name]
    if column.dtype == pl.List(pl.String):
        column = column.list.join(" ", ignore_nulls=True)
    return column.cast(pl.String).fill_null("")


def _is_attribute(column: pl.Series) -> bool:
    if column.dtype.is_integer():
        return True
    if column.dtype == pl.List(pl.String):
        column = column.list.join(" ", ignore_nulls=True)
    if column.dtype != pl.String:
        return False
    filled = column.drop_nulls()
    if not len(filled):
        return False
    length = filled.str.len_chars().mean()
    return isinstance(length, float) and length <= LONGEST_ATTRIBUTE and not filled.str.contains("://").any()
