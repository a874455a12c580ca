"""A catalogue that changes while it answers: snapshots that are replaced as a whole, so that a reader never sees half a change.

New items are encoded with the fixed text encoder and codebooks; the trie and the dense index grow; nothing is trained. What training
alone could have given a new item (its id vector, its co-occurrences, its popularity) is absent, as for any cold item.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import polars as pl
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from genrec.catalogue.catalogue import Catalogue
from genrec.catalogue.semantic_ids import SemanticIds
from genrec.catalogue.trie import CatalogueTrie
from genrec.data.schema import ITEM_SCHEMA, conform
from genrec.errors import UserError
from genrec.model.network import GenerativeRecommender
from genrec.ranking.candidates import CandidateGenerator
from genrec.ranking.features import CandidateFeatures, ItemFacts
from genrec.ranking.ranker import Ranker
from genrec.retrieval.bm25 import BM25


@dataclass(frozen=True)
class AddedItemIds:
    """What ``add_items`` did with each id: ``added`` is new, ``restored`` had been removed, ``unchanged`` was there already."""

    added: list[str]
    restored: list[str]
    unchanged: list[str]


@dataclass(frozen=True, eq=False)
class CatalogueSnapshot:
    """One state of the catalogue: the item table (rows are item indices), their semantic IDs, what ranks them, and which are removed."""

    table: pl.DataFrame
    ids: SemanticIds
    ranker: Ranker
    removed: np.ndarray

    @property
    def n_items(self) -> int:
        return len(self.table)

    @property
    def catalogue(self) -> Catalogue:
        return self.ranker.generator.network.catalogue

    @cached_property
    def item_ids(self) -> list[str]:
        return self.table["item_id"].to_list()

    @cached_property
    def titles(self) -> list[str | None]:
        return self.table["title"].to_list()

    @cached_property
    def index(self) -> dict[str, int]:
        return {item: place for place, item in enumerate(self.item_ids)}

    @cached_property
    def categories(self) -> dict[str, np.ndarray]:
        """Items by category name, whatever its depth in the path."""
        rows = (
            self.table.select(pl.int_range(pl.len()).alias("item"), "category")
            .explode("category")
            .drop_nulls("category")
        )
        return {
            name: np.asarray(items)
            for name, items in rows.group_by("category", maintain_order=True).agg("item").iter_rows()
        }

    def in_category(self, name: str) -> np.ndarray:
        """The items of a category; ``UserError`` with the nearest name for an unknown one."""
        found = self.categories.get(name)
        if found is None:
            near = difflib.get_close_matches(name, list(self.categories), n=1, cutoff=0.0)
            raise UserError(
                f"category '{name}' is not in the catalogue" + (f"; did you mean '{near[0]}'?" if near else "")
            )
        return found

    def places(self, item_ids: list[str]) -> np.ndarray:
        """Indices of items; ``UserError`` for the first that is unknown or removed."""
        places = np.array([self.index.get(item, -1) for item in item_ids], np.int64)
        bad = np.flatnonzero((places < 0) | self.removed[places])
        if len(bad):
            raise UserError(f"item '{item_ids[int(bad[0])]}' is not in the catalogue")
        return places

    def known_places(self, item_ids: Sequence[str]) -> np.ndarray:
        """Indices of the items that the catalogue has; the others are left out."""
        return np.array([self.index[item] for item in item_ids if item in self.index], np.int64)

    def remove(self, item_ids: list[str]) -> CatalogueSnapshot:
        """Without these items; ``UserError`` for an unknown one."""
        removed = self.removed.copy()
        removed[self.places(item_ids)] = True
        return replace(self, removed=removed)

    def add(self, items: pl.DataFrame) -> tuple[CatalogueSnapshot, AddedItemIds]:
        """With these items (the contract's columns; ``item_id`` required), encoded with the fixed codebooks."""
        items = self._checked(items)
        places = np.array([self.index.get(item, -1) for item in items["item_id"]], np.int64)
        known = items["item_id"].to_list()
        restored = [item for item, place in zip(known, places, strict=True) if place >= 0 and self.removed[place]]
        unchanged = [item for item, place in zip(known, places, strict=True) if place >= 0 and not self.removed[place]]
        removed = self.removed.copy()
        removed[places[places >= 0]] = False
        new = items.filter(pl.Series(places < 0))
        snapshot = replace(self, removed=removed)
        if len(new):
            snapshot = snapshot._extended(new)
        return snapshot, AddedItemIds(new["item_id"].to_list(), restored, unchanged)

    def _checked(self, items: pl.DataFrame) -> pl.DataFrame:
        for name in items.columns:
            if name not in self.table.columns:
                near = difflib.get_close_matches(name, self.table.columns, n=1, cutoff=0.0)[0]
                raise UserError(f"add_items: unknown column '{name}'; did you mean '{near}'?")
        if "item_id" not in items.columns:
            raise UserError(f"add_items: column 'item_id' is missing; the table has {', '.join(items.columns)}")
        items = conform(items, ITEM_SCHEMA, "add_items")
        if items["item_id"].null_count() or (items["item_id"] == "").any():
            raise UserError("add_items: a row has no item_id; every item needs one")
        double = items.filter(pl.col("item_id").is_duplicated())
        if len(double):
            raise UserError(f"add_items: item '{double['item_id'][0]}' comes twice; name each item once")
        return items

    def _extended(self, new: pl.DataFrame) -> CatalogueSnapshot:
        generator, ids = self.ranker.generator, self.ids.append(new).ids
        network = grow(generator.network, ids.catalogue)
        table = pl.concat(
            [self.table, new.cast({name: self.table.schema[name] for name in new.columns})], how="diagonal"
        )
        ranker = copy.copy(self.ranker)
        ranker.generator = CandidateGenerator(
            network, _grown_evidence(generator.evidence, table, ids), generator.settings, BM25().fit(table)
        )
        return CatalogueSnapshot(table, ids, ranker, np.concatenate([self.removed, np.zeros(len(new), bool)]))


def _grown_evidence(old: CandidateFeatures, table: pl.DataFrame, ids: SemanticIds) -> CandidateFeatures:
    """The evidence over a longer item table: nothing was counted of the new items, but what their columns say is known."""
    counted = copy.copy(old.cooccurrence)
    counted.similar, counted.following = (widen(part, len(table)) for part in (counted.similar, counted.following))
    # An event's key is item x (span + 1) + seconds, so items behind the old ones change no key.
    asked = old.asked.widen(len(table)) if old.asked else None
    return CandidateFeatures(
        counted, ItemFacts.from_table(table, ids.catalogue.text.numpy()), old.keys, old.origin, old.span, asked
    )


def widen(matrix: sp.csr_matrix, n: int) -> sp.csr_matrix:
    """A square sparse matrix with empty rows and columns behind its own; the values are shared, not copied."""
    indptr = np.concatenate([matrix.indptr, np.full(n - matrix.shape[0], matrix.indptr[-1], matrix.indptr.dtype)])
    return sp.csr_matrix((matrix.data, matrix.indices, indptr), shape=(n, n))


@torch.no_grad()
def grow(network: GenerativeRecommender, catalogue: Catalogue) -> GenerativeRecommender:
    """The network over a catalogue that begins with its own items and goes on with new ones.

    Every weight that does not belong to an item, a code or a trie node is shared with ``network``. New items have a zero id vector, new
    nodes a zero vector of their own, and codes that no trained item had a zero code vector; the answers about old items alone are as before,
    except that probability now also goes to the new ones.
    """
    shared: dict[int, object] = {id(part): part for part in (*network.parameters(), *network.buffers())}
    catalogue = catalogue.share().to(network.catalogue.codes.device)
    clone = copy.deepcopy(network, shared | {id(network.catalogue): catalogue})
    _grow_items(clone, network, catalogue)
    if network.decoder is not None:
        _grow_decoder(clone, network.catalogue.trie, catalogue.trie)
    return clone.eval()


def _grow_items(clone: GenerativeRecommender, network: GenerativeRecommender, catalogue: Catalogue) -> None:
    encoder, old = clone.item_encoder, network.catalogue
    starts = encoder.code_rows[0] - old.codes[0]  # the code table's first row of each level
    if encoder.codes is not None:
        sizes = torch.cat([starts[1:], starts.new_tensor([encoder.codes.num_embeddings])]) - starts
        rows, missing = _code_rows(catalogue.codes, starts, sizes, encoder.codes.num_embeddings)
        encoder.codes = nn.EmbeddingBag.from_pretrained(_with_zeros(encoder.codes.weight, int(missing)), mode="sum")
        encoder.code_rows = rows
    if clone.anchor_tables is not None:
        clone.anchor_tables.grow(catalogue.n_items)
    if encoder.ids is not None:
        encoder.ids = nn.Embedding.from_pretrained(_with_zeros(encoder.ids.weight, catalogue.n_items - old.n_items))


def _grow_decoder(clone: GenerativeRecommender, old: CatalogueTrie, new: CatalogueTrie) -> None:
    decoder = clone.decoder
    device = decoder.code_row.device
    first = old.item_path[0]  # a trained item's nodes: each has a row of the code table
    starts = decoder.code_row[first] - old.node_code[first]
    sizes = torch.cat([starts[1:], decoder.code_row[:1]]) - starts  # the root's row comes right after the last level
    level = torch.repeat_interleave(torch.arange(new.depth, device=device), new.level_start.diff()[1:])
    rows, missing = _code_rows(new.node_code[1:], starts[level], sizes[level], decoder.codes.num_embeddings)
    decoder.code_row = torch.cat([decoder.code_row[:1], rows])
    decoder.codes = nn.Embedding.from_pretrained(_with_zeros(decoder.codes.weight, int(missing)))
    if decoder.nodes is not None:
        weight = decoder.nodes.weight.new_zeros(new.n_nodes, decoder.nodes.weight.shape[1])
        weight[0] = decoder.nodes.weight[0]
        weight[new.item_path[: old.n_items].flatten()] = decoder.nodes.weight[old.item_path.flatten()]
        decoder.nodes = nn.Embedding.from_pretrained(weight)


def _code_rows(codes: Tensor, starts: Tensor, sizes: Tensor, zero_row: int) -> tuple[Tensor, bool]:
    """Rows of a code table, and whether some code has none: these point to ``zero_row``, just behind the table."""
    known = codes < sizes
    return torch.where(known, codes + starts, zero_row), not bool(known.all())


def _with_zeros(weight: Tensor, rows: int) -> Tensor:
    return torch.cat([weight.detach(), weight.new_zeros(rows, weight.shape[1])])
