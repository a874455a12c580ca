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
from genrec.catalogue.growing import append_rows
from genrec.catalogue.semantic_ids import SemanticIds
from genrec.data.ids import NULL_WORDS, id_text
from genrec.data.readers.table.items import typed_items
from genrec.data.readers.table.options import TableOptions
from genrec.data.schema import ITEM_SCHEMA, conform
from genrec.errors import UserError
from genrec.inference.filters import Categories, Filters
from genrec.inference.growth import grow, refreshed, with_decoder_of, with_text
from genrec.ranking.candidates import CandidateGenerator
from genrec.ranking.ranker import Ranker

CHUNKS = 64  # of the item table, before they are joined
MASKS = 16  # filters whose masks a snapshot keeps
TEXT_COLUMNS = ("title", "text", "brand", "category")  # what an item's vector is made of


@dataclass(frozen=True)
class AddedItemIds:
    """What ``add_items`` did with each id: ``added`` is new, ``restored`` was removed before, ``unchanged`` existed."""

    added: list[str]
    restored: list[str]
    unchanged: list[str]


@dataclass(frozen=True, eq=False)
class ItemNames:
    """Ids and titles by index, and indices by id. Snapshots that follow each other share one, which only grows."""

    ids: list[str]
    titles: list[str | None]
    index: dict[str, int]

    @classmethod
    def of(cls, table: pl.DataFrame) -> ItemNames:
        """The names of an item table."""
        ids = table["item_id"].to_list()
        return cls(ids, table["title"].to_list(), {item: index for index, item in enumerate(ids)})

    def extended(self, size: int, new: pl.DataFrame) -> ItemNames:
        """With ``new`` items behind the first ``size``; a copy where a snapshot that was given up left others there."""
        names = self
        if len(self.ids) > size:
            ids = self.ids[:size]
            names = ItemNames(ids, self.titles[:size], {item: index for index, item in enumerate(ids)})
        added = new["item_id"].to_list()
        names.ids.extend(added)
        names.titles.extend(new["title"].to_list())
        names.index.update((item, size + number) for number, item in enumerate(added))
        return names


@dataclass(frozen=True, eq=False)
class CatalogueSnapshot:
    """The item table (rows are indices), semantic IDs, what ranks them, and the mask (n_items,) of removed items.

    ``text_version`` counts the changes of text vectors.
    """

    table: pl.DataFrame
    ids: SemanticIds
    ranker: Ranker
    removed: np.ndarray
    names: ItemNames | None = None
    text_version: int = 0

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
        """Codes, texts and trie on the host; the network has the same on its device."""
        return self.ids.catalogue

    @cached_property
    def _names(self) -> ItemNames:
        return ItemNames.of(self.table) if self.names is None else self.names

    @property
    def item_ids(self) -> list[str]:
        """Item ids by index; behind those of this snapshot there may be some of later ones."""
        return self._names.ids

    @property
    def titles(self) -> list[str | None]:
        """Titles by index, as ``item_ids``."""
        return self._names.titles

    def index_of(self, item_id: str) -> int:
        """The index of an item, -1 where this snapshot does not have it."""
        index = self._names.index.get(item_id, -1)
        return index if index < self.n_items else -1

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

    @cached_property
    def has_prices(self) -> bool:
        """Whether any item has a price."""
        return self.table["price"].count() > 0

    def indices(self, item_ids: Sequence[str]) -> np.ndarray:
        """Indices of items; ``UserError`` for the first that is unknown or removed."""
        indices = np.array([self.index_of(item) for item in item_ids], np.int64)
        bad = np.flatnonzero((indices < 0) | self.removed[indices])
        if len(bad):
            raise UserError(f"item '{item_ids[int(bad[0])]}' is not in the catalogue")
        return indices

    def known_indices(self, item_ids: Sequence[str]) -> np.ndarray:
        """Indices of the items that the catalogue has, removed ones included; the others are left out."""
        indices = [index for item in item_ids if (index := self.index_of(item)) >= 0]
        return np.array(indices, np.int64)

    def has(self, item_id: str) -> bool:
        """Whether an item can be recommended."""
        index = self.index_of(item_id)
        return index >= 0 and not self.removed[index]

    def remove(self, item_ids: Sequence[str]) -> CatalogueSnapshot:
        """Without these items; ``UserError`` for an unknown one.

        Every search masks them at once. They leave the trie at once, too, or from a large one at the next merge.
        """
        removed = self.removed.copy()
        removed[self.indices(item_ids)] = True
        return self._with_removed(removed)

    def add(self, items: pl.DataFrame) -> tuple[CatalogueSnapshot, AddedItemIds]:
        """With these items (the contract's columns; ``item_id`` required), encoded with the fixed codebooks.

        A removed item comes back with the columns given now; one that exists already stays as it is.
        """
        given = items.columns
        items = self._checked(items, "add_items")
        indices = np.array([self.index_of(item) for item in items["item_id"]], np.int64)
        gone = (indices >= 0) & self.removed[indices]
        existing = items["item_id"].filter(pl.Series((indices >= 0) & ~gone)).to_list()
        restored, new = items.filter(pl.Series(gone)), items.filter(pl.Series(indices < 0))
        snapshot: CatalogueSnapshot = self
        if len(restored):
            removed = self.removed.copy()
            removed[indices[gone]] = False
            snapshot = self._with_removed(removed)
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
        generator, ids, ranker, version = self.ranker.generator, self.ids, copy.copy(self.ranker), self.text_version
        lexical = generator.lexical
        if lexical is not None and set(columns) - {"price"}:  # attributes are searched, too
            lexical = lexical.refit(table)
        if set(columns) & set(TEXT_COLUMNS):
            old = self.ids.catalogue
            text = old.text.clone()
            text[torch.from_numpy(indices)] = torch.from_numpy(ids.encode_new(table[indices.tolist()]).text).to(text)
            ids = replace(ids, catalogue=Catalogue(text, old.codes, old.trie))
            network, features = with_text(generator.network, ids.catalogue), refreshed(generator.features, table, ids)
            ranker.generator = CandidateGenerator(network, features, generator.settings, lexical)
            version += 1
        else:
            features = refreshed(generator.features, table, ids)
            ranker.generator = generator.grown(generator.network, features, lexical)
        return CatalogueSnapshot(table, ids, ranker, self.removed, text_version=version)

    def merged(self) -> CatalogueSnapshot:
        """With the pending items in the trie, so that the code search finds them, and without the removed ones."""
        ids = self.ids.merged(self.removed)
        if ids is self.ids:
            return self
        generator, ranker = self.ranker.generator, copy.copy(self.ranker)
        network = grow(generator.network, ids.catalogue)
        ranker.generator = generator.grown(network, generator.features, generator.lexical, new_trie=True)
        return replace(self, ids=ids, ranker=ranker)

    @property
    def merge_due(self) -> bool:
        """Whether so many added and removed items wait that they should be ``merged``."""
        return self.ids.merge_due(self.removed)

    def in_trie(self, item_id: str) -> bool:
        """Whether the code search finds an item."""
        index, trie = self.index_of(item_id), self.catalogue.trie
        return 0 <= index < trie.n_items and bool(trie.held[index])

    def _with_removed(self, removed: np.ndarray) -> CatalogueSnapshot:
        """With other removed items; the trie follows at once, unless the catalogue is so large that changes wait."""
        generator, ranker = self.ranker.generator, copy.copy(self.ranker)
        lexical = None if generator.lexical is None else generator.lexical.without(removed)
        ranker.generator = generator.grown(generator.network, generator.features, lexical)
        snapshot = replace(self, removed=removed, ranker=ranker)
        return snapshot if snapshot.ids.waits else snapshot.merged()

    def with_search_of(self, earlier: CatalogueSnapshot) -> CatalogueSnapshot:
        """This state with the trie of an ``earlier`` one that was merged since, of the same ``text_version``.

        Costs nothing: items added in between stay pending.
        """
        old = self.ids.catalogue
        ids = replace(self.ids, catalogue=Catalogue(old.text, old.codes, earlier.ids.catalogue.trie))
        generator, ranker = self.ranker.generator, copy.copy(self.ranker)
        network = with_decoder_of(generator.network, ids.catalogue, earlier.ranker.generator.network)
        ranker.generator = generator.with_search_of(earlier.ranker.generator, network)
        return replace(self, ids=ids, ranker=ranker)

    def _checked(self, items: pl.DataFrame, call: str) -> pl.DataFrame:
        for name in items.columns:
            if name not in self.table.columns:
                near = difflib.get_close_matches(name, self.table.columns, n=1, cutoff=0.0)[0]
                raise UserError(f"{call}: unknown column '{name}'; did you mean '{near}'?")
        if "item_id" not in items.columns:
            raise UserError(f"{call}: column 'item_id' is missing; the table has {', '.join(items.columns)}")
        stated = items["price"] if "price" in items.columns else None
        items = typed_items(items.with_columns(id_text(items["item_id"], call)), TableOptions(), call)
        if stated is not None:  # a file may hold a few odd prices; who adds an item can mend its price
            odd = stated.filter(items["price"].is_null() & stated.is_not_null())
            odd = odd if odd.dtype != pl.String else odd.filter(~odd.is_in(["", *NULL_WORDS]))
            if len(odd):
                raise UserError(f"{call}: a price does not fit the data contract: {odd[0]!r} is no number")
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
        if table.n_chunks() > CHUNKS:  # amortised; look-ups slow down with the number of chunks
            table = table.rechunk()
        new, removed = table.tail(len(new)), append_rows(self.removed, np.zeros(len(new), bool))
        generator, ranker = self.ranker.generator, copy.copy(self.ranker)
        lexical = None if generator.lexical is None else generator.lexical.grow(new)
        features = generator.features.grown(new, ids.catalogue.text.cpu().numpy())
        new_trie = ids.catalogue.trie is not self.ids.catalogue.trie
        network = grow(generator.network, ids.catalogue, new_trie)
        ranker.generator = generator.grown(network, features, lexical, new_trie)
        names = self._names.extended(self.n_items, new)
        snapshot = CatalogueSnapshot(table, ids, ranker, removed, names, self.text_version)
        if "categories" in self.__dict__:
            snapshot.__dict__["categories"] = self.categories.grown(new)
        return snapshot


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
