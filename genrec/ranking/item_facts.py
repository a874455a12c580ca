"""Attributes of items as arrays, which candidate features compare: brand, category, price and text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from genrec.catalogue.growing import append_rows


@dataclass
class ItemFacts:
    """Attributes of each item.

    ``brand``, ``category`` and ``path`` (n_items,): int64 codes, -1 unknown. ``price`` (n_items,): its logarithm, NaN
    unknown. ``text`` (n_items, text_dim): unit vectors, perhaps a memory map in half precision.
    """

    brand: np.ndarray
    category: np.ndarray
    path: np.ndarray
    price: np.ndarray
    text: np.ndarray

    @classmethod
    def from_table(cls, items: pl.DataFrame, text: np.ndarray) -> ItemFacts:
        """``items`` in item id order. ``category`` is the most specific level, ``path`` the whole category path."""
        codes = {name: item_codes(values) for name, values in _fact_texts(items).items()}
        return cls(codes["brand"], codes["category"], codes["path"], _log_prices(items), np.asarray(text))

    def grown(self, new: pl.DataFrame, text: np.ndarray) -> ItemFacts:
        """The facts with those of ``new`` items behind them; ``text`` is that of all."""
        added = {name: item_codes(values) for name, values in _fact_texts(new).items()}
        codes = {name: append_rows(getattr(self, name), values) for name, values in added.items()}
        price = append_rows(self.price, _log_prices(new))
        return ItemFacts(codes["brand"], codes["category"], codes["path"], price, text)


def _fact_texts(items: pl.DataFrame) -> dict[str, pl.Series]:
    """Brand, most specific category, and category path of each item, as texts."""
    levels = category_levels(items)
    return {
        "brand": items["brand"],
        "category": levels.list.last(),
        "path": levels.list.join("\x1f", ignore_nulls=True),
    }


def _log_prices(items: pl.DataFrame) -> np.ndarray:
    price = items["price"].cast(pl.Float64).to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(price > 0, np.log(price), np.nan)


def category_levels(items: pl.DataFrame) -> pl.Series:
    """The category path of each item, general to specific; null where none is known."""
    known = items["category"].dtype == pl.List(pl.String)
    return items["category"] if known else pl.Series("category", [None] * len(items), dtype=pl.List(pl.String))


def item_codes(values: pl.Series) -> np.ndarray:
    """Equal texts get equal codes, of this table and any other; nothing known is -1: (n,) int64.

    A code is a hash of 63 bits: among 10^7 distinct texts two are equal with a probability of 10^-5.
    """
    known = values.is_not_null() & (values != "")
    codes = (values.hash(seed=0).to_numpy() >> np.uint64(1)).astype(np.int64)
    return np.where(known.fill_null(False).to_numpy(), codes, -1)
