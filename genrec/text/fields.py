"""The fields of an item that a lexical index reads: title, brand, category, attributes and text."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from genrec.data.attributes import attribute_columns, attribute_texts

FIELDS = ("title", "brand", "category", "attributes", "text")


def item_fields(items: pl.DataFrame | Sequence[str]) -> dict[str, list[str]]:
    """Texts (n_items,) of every field, "" where an item has none; texts alone are one field of weight 1."""
    if not isinstance(items, pl.DataFrame):
        return {"whole": list(items)}
    attributes = [attribute_texts(items, name).alias(name) for name in attribute_columns(items)]
    columns = {
        "title": items["title"].fill_null(""),
        "brand": items["brand"].fill_null(""),
        "category": items["category"].list.join(" ", ignore_nulls=True).fill_null(""),
        "attributes": pl.DataFrame(attributes).select(pl.concat_str(pl.all(), separator=" ")).to_series()
        if attributes
        else pl.repeat("", len(items), eager=True),
        "text": items["text"].fill_null(""),
    }
    return {name: columns[name].to_list() for name in FIELDS}
