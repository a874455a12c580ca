"""The facets of an item, short texts with a meaning of their own: its brand, each level of its category, its year."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from genrec.data.attributes import attribute_columns

CATEGORY = "category"


def item_facets(items: pl.DataFrame | Sequence[str]) -> dict[str, pl.DataFrame]:
    """The facets of each field as ``item`` (its row) and ``text``, in the order of items; texts alone have none."""
    if not isinstance(items, pl.DataFrame):
        return {}
    return {name: _facets(items[name]) for name in (CATEGORY, "brand", *attribute_columns(items))}


def _facets(column: pl.Series) -> pl.DataFrame:
    table = pl.DataFrame({"item": pl.int_range(len(column), eager=True), "text": column})
    if isinstance(column.dtype, pl.List):
        table = table.explode("text")
    return table.with_columns(pl.col("text").cast(pl.String)).filter(pl.col("text").is_not_null())
