"""Which items an answer may hold, as masks over the catalogue. Masks are applied before anything is proposed, so answers stay exact."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import polars as pl

from genrec.errors import UserError

SEPARATOR = " > "


class Categories:
    """The items of each category of an item table (``category``: levels from general to specific, in item id order)."""

    def __init__(self, items: pl.DataFrame):
        self.n_items = len(items)
        column = (
            items["category"]
            if items["category"].dtype == pl.List(pl.String)
            else pl.Series([None] * len(items), dtype=pl.List(pl.String))
        )
        rows = pl.DataFrame({"item": np.arange(len(items)), "level": column}).explode("level").drop_nulls("level")
        rows = rows.with_columns(pl.col("level").str.strip_chars().alias("level")).with_columns(
            pl.col("level").cum_count().over("item").alias("depth"), pl.col("level").str.to_lowercase().alias("name")
        )
        self._rows = rows
        self.names: list[str] = rows["level"].unique(maintain_order=True).to_list()

    def mask(self, category: str | Sequence[str]) -> np.ndarray:
        """Items of a category: (n_items,) bool.

        One name is a level of any depth. A path, as a list of levels or with " > " between them, is read from the top: "Beauty > Hair Care"
        are the items whose path starts so. Letter case does not matter. Raises ``UserError`` with the nearest name where no item fits.
        """
        levels = category.split(SEPARATOR.strip()) if isinstance(category, str) else list(category)
        levels = [level.strip() for level in levels]
        if not levels or not all(levels):
            raise UserError(
                f"category '{category}' is empty or has an empty level; give a name, or a path such as 'Beauty > Hair Care'"
            )
        wanted = pl.DataFrame({"name": [level.lower() for level in levels], "depth": np.arange(1, len(levels) + 1)})
        path = len(levels) > 1 or not isinstance(category, str)
        if path:
            found = self._rows.join(
                wanted.with_columns(pl.col("depth").cast(self._rows.schema["depth"])), on=["name", "depth"], how="semi"
            )
            found = found.group_by("item").len().filter(pl.col("len") == len(levels))
        else:
            found = self._rows.filter(pl.col("name") == wanted["name"][0])
        if found.is_empty():
            raise UserError(self._unknown(levels))
        mask = np.zeros(self.n_items, bool)
        mask[found["item"].to_numpy()] = True
        return mask

    def _unknown(self, levels: list[str]) -> str:
        known = {name.lower(): name for name in self.names}
        missing = next((level for level in levels if level.lower() not in known), None)
        if missing is None:
            return f"category '{SEPARATOR.join(levels)}' is no path of the catalogue; its levels are there, but not in this order from the top"
        near = difflib.get_close_matches(missing.lower(), list(known), n=1, cutoff=0.0)
        return f"category '{missing}' is not in the catalogue" + (
            f"; did you mean '{known[near[0]]}'?" if near else ": its items have no category"
        )
