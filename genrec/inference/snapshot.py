"""One state of the catalogue. A change makes a new snapshot, so a reader never sees half of one.

New items are encoded with the fixed text encoder and codebooks; the trie and the dense index grow; nothing is trained.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import polars as pl
import torch

from genrec.catalogue.catalogue import Catalogue
from genrec.catalogue.semantic_ids import SemanticIds
from genrec.data.schema import ITEM_SCHEMA, conform
from genrec.errors import UserError
from genrec.inference.filters import Categories, Filters
from genrec.inference.growth import grow, grown_features, with_text
from genrec.model.network import GenerativeRecommender
from genrec.ranking.candidates import CandidateGenerator
from genrec.ranking.ranker import Ranker
from genrec.retrieval.bm25 import BM25

MASKS = 16  # filters whose masks a snapshot keeps
TEXT_COLUMNS = ("title", "text", "brand", "category")  # what an item's vector is made of


@dataclass(frozen=True)
class AddedItemIds:
    """What ``add_items`` did with each id: ``added`` is new, ``restored`` was removed before, ``unchanged`` existed."""

    added: list[str]
    restored: list[str]
    unchanged: list[str]


@dataclass(frozen=True, eq=False)
class CatalogueSnapshot:
    """The item table (rows are indices), semantic IDs, what ranks them, and the mask (n_items,) of removed items."""

    table: pl.DataFrame
    ids: SemanticIds
    ranker: Ranker
    removed: np.ndarray

    @property
    def n_items(self) -> int:
        """Number of items, removed ones included."""
        return len(self.table)

    @property
    def n_available(self) -> int:
        """Number of items that can be recommended."""
        return int((~self.removed).sum())

    @property
    def catalogue(self) -> Catalogue:
        """Text vectors, codes and trie."""
        return self.ranker.generator.network.catalogue

    @cached_property
    def item_ids(self) -> list[str]:
        """Item ids by index."""
        return self.table["item_id"].to_list()

    @cached_property
    def titles(self) -> list[str | None]:
        """Titles by index."""
        return self.table["title"].to_list()

    @cached_property
    def index(self) -> dict[str, int]:
        """Index by item id."""
        return {item: index for index, item in enumerate(self.item_ids)}

    @cached_property
    def categories(self) -> Categories:
        """Items by category."""
        return Categories(self.table)

    @cached_property
    def available(self) -> torch.Tensor | None:
        """Mask (n_items,) of the items that were not removed; None where none was."""
        return torch.from_numpy(~self.removed) if self.removed.any() else None

    @cached_property
    def _masks(self) -> dict[str, torch.Tensor]:
        return {}

    def mask_of(self, filters: Filters) -> torch.Tensor:
        """Mask (n_items,) of the items that are not removed and satisfy all of ``filters`` but ``blocked``.

        Requests with the same filters get the same tensor, on which searches keep what they derive from it. The masks
        of the last ``MASKS`` filters are kept.
        """
        key = filters.subset
        mask = self._masks.get(key)
        if mask is None:
            mask = torch.from_numpy(filters.mask(self.table, self.categories) & ~self.removed)
            for old in list(self._masks)[: max(len(self._masks) - MASKS + 1, 0)]:
                self._masks.pop(old, None)
            self._masks[key] = mask
        return mask

    def indices(self, item_ids: Sequence[str]) -> np.ndarray:
        """Indices of items; ``UserError`` for the first that is unknown or removed."""
        indices = np.array([self.index.get(item, -1) for item in item_ids], np.int64)
        bad = np.flatnonzero((indices < 0) | self.removed[indices])
        if len(bad):
            raise UserError(f"item '{item_ids[int(bad[0])]}' is not in the catalogue")
        return indices

    def known_indices(self, item_ids: Sequence[str]) -> np.ndarray:
        """Indices of the items that the catalogue has, removed ones included; the others are left out."""
        return np.array([self.index[item] for item in item_ids if item in self.index], np.int64)

    def has(self, item_id: str) -> bool:
        """Whether an item can be recommended."""
        return item_id in self.index and not self.removed[self.index[item_id]]

    def remove(self, item_ids: Sequence[str]) -> CatalogueSnapshot:
        """Without these items; ``UserError`` for an unknown one."""
        removed = self.removed.copy()
        removed[self.indices(item_ids)] = True
        return replace(self, removed=removed)

    def add(self, items: pl.DataFrame) -> tuple[CatalogueSnapshot, AddedItemIds]:
        """With these items (the contract's columns; ``item_id`` required), encoded with the fixed codebooks.

        A removed item comes back with the columns given now; one that exists already stays as it is.
        """
        given = items.columns
        items = self._checked(items, "add_items")
        indices = np.array([self.index.get(item, -1) for item in items["item_id"]], np.int64)
        gone = (indices >= 0) & self.removed[indices]
        existing = items["item_id"].filter(pl.Series((indices >= 0) & ~gone)).to_list()
        restored, new = items.filter(pl.Series(gone)), items.filter(pl.Series(indices < 0))
        snapshot: CatalogueSnapshot = self
        if len(restored):
            removed = self.removed.copy()
            removed[indices[gone]] = False
            snapshot = replace(self, removed=removed)
            snapshot = snapshot.update(restored.select(given)) if len(given) > 1 else snapshot
        if len(new):
            snapshot = snapshot._extended(new)
        return snapshot, AddedItemIds(new["item_id"].to_list(), restored["item_id"].to_list(), existing)

    def update(self, items: pl.DataFrame) -> CatalogueSnapshot:
        """With the given columns of known items replaced; columns that are not given stay.

        A new text gives the item a new text vector and new words. Its codes stay until the next ``genrec tokenize``.
        Raises ``UserError`` for an unknown item.
        """
        items = self._checked(items, "update_items")
        indices = self.indices(items["item_id"].to_list())
        columns = [name for name in items.columns if name != "item_id"]
        rows = pl.Series(indices)
        table = self.table.with_columns(
            self.table[name].scatter(rows, items[name].cast(self.table.schema[name])).alias(name)
            if self.table.schema[name] != pl.List(pl.String)
            else _scattered(self.table[name], indices, items[name]).alias(name)
            for name in columns
        )
        generator, network = self.ranker.generator, self.ranker.generator.network
        ids, lexical = self.ids, generator.lexical
        if set(columns) & set(TEXT_COLUMNS):
            old = self.ids.catalogue
            text = old.text.clone()
            text[torch.from_numpy(indices)] = torch.from_numpy(ids.encode_new(table[indices.tolist()]).text).to(text)
            catalogue = Catalogue(text, old.codes, old.trie)
            ids, network, lexical = replace(ids, catalogue=catalogue), with_text(network, catalogue), BM25().fit(table)
        return self._with(table, ids, network, lexical, self.removed)

    def _checked(self, items: pl.DataFrame, call: str) -> pl.DataFrame:
        for name in items.columns:
            if name not in self.table.columns:
                near = difflib.get_close_matches(name, self.table.columns, n=1, cutoff=0.0)[0]
                raise UserError(f"{call}: unknown column '{name}'; did you mean '{near}'?")
        if "item_id" not in items.columns:
            raise UserError(f"{call}: column 'item_id' is missing; the table has {', '.join(items.columns)}")
        items = conform(items, ITEM_SCHEMA, call) if call == "add_items" else _conformed(items, self.table, call)
        if items["item_id"].null_count() or (items["item_id"] == "").any():
            raise UserError(f"{call}: a row has no item_id; every item needs one")
        double = items.filter(pl.col("item_id").is_duplicated())
        if len(double):
            raise UserError(f"{call}: item '{double['item_id'][0]}' comes twice; name each item once")
        return items

    def _extended(self, new: pl.DataFrame) -> CatalogueSnapshot:
        ids = self.ids.append(new).ids
        new = new.cast({name: self.table.schema[name] for name in new.columns})
        table = pl.concat([self.table, new], how="diagonal")
        removed = np.concatenate([self.removed, np.zeros(len(new), bool)])
        generator = self.ranker.generator
        lexical = None if generator.lexical is None else generator.lexical.grow(table.tail(len(new)))
        return self._with(table, ids, grow(generator.network, ids.catalogue), lexical, removed)

    def _with(
        self,
        table: pl.DataFrame,
        ids: SemanticIds,
        network: GenerativeRecommender,
        lexical: BM25 | None,
        removed: np.ndarray,
    ) -> CatalogueSnapshot:
        generator, ranker = self.ranker.generator, copy.copy(self.ranker)
        features = grown_features(generator.features, table, ids)
        ranker.generator = CandidateGenerator(network, features, generator.settings, lexical)
        return CatalogueSnapshot(table, ids, ranker, removed)


def _scattered(column: pl.Series, indices: np.ndarray, values: pl.Series) -> pl.Series:
    """A column of lists with some values replaced, which ``Series.scatter`` does not offer."""
    source = np.arange(len(column))
    source[indices] = len(column) + np.arange(len(values))
    return pl.concat([column, values.cast(column.dtype)])[source.tolist()]


def _conformed(items: pl.DataFrame, table: pl.DataFrame, call: str) -> pl.DataFrame:
    """Only the given columns, in the table's types."""
    try:
        return items.cast({name: table.schema[name] for name in items.columns})
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{call}: {' '.join(str(error).split())[:200]}") from error
