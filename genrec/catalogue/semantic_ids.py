"""The tokenize folder, loaded: codes of the catalogue, and the fixed codebooks that encode new items and queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.numpy import load_file

from genrec.artifacts.folders import open_artifact, read_json
from genrec.catalogue.catalogue import Catalogue
from genrec.catalogue.growing import append_rows, with_room
from genrec.catalogue.trie import CatalogueTrie, build_trie
from genrec.catalogue.trie_growth import extend_trie
from genrec.errors import UserError
from genrec.semantic_ids.collisions import CollisionReport, resolve_collisions
from genrec.semantic_ids.drift import drift_report
from genrec.semantic_ids.quantizers import Codebooks, encode
from genrec.semantic_ids.query_codes import QueryCoder
from genrec.semantic_ids.space import ItemSpace
from genrec.semantic_ids.text_space import TextSpace
from genrec.semantic_ids.tokenize import KIND

ITEM_COLUMNS: dict[str, Any] = {
    "title": pl.String,
    "brand": pl.String,
    "category": pl.List(pl.String),
    "text": pl.String,
}


LARGE = 1 << 17  # items of a catalogue from which added items wait outside the trie
PENDING = 1 / 50  # of the trie's items may wait
OTHER_COLUMNS = {"price": pl.Float64}  # read where it is there


@dataclass
class NewCodes:
    """Codes (m, L) int64 of new items or queries, before collisions.

    ``text`` (m, text_dim) and ``vectors`` (m, d) behind them.

    ``known`` (m,) bool: the text has a word the encoder knows. The others have the code of the zero vector, which has
    no meaning.
    """

    codes: np.ndarray
    text: np.ndarray
    vectors: np.ndarray
    known: np.ndarray


@dataclass
class GrownSemanticIds:
    """A catalogue that grew: ``ids`` holds the new items after the old ones.

    ``collisions``: how collisions of the new items were resolved.
    """

    ids: SemanticIds
    collisions: CollisionReport


@dataclass
class SemanticIds:
    """A tokenize folder, loaded."""

    words: TextSpace
    codebooks: Codebooks
    catalogue: Catalogue
    key: str
    space: ItemSpace
    baseline: dict[str, Any] = field(default_factory=dict)

    @property
    def encoder(self) -> QueryCoder:
        """The text encoder, which also gives queries their codes."""
        return QueryCoder(self.words, self.space, self.codebooks)

    def keywords_of(self, item_id: str) -> list[tuple[str, str]]:
        """(keyword, type) of an item: the words that explain its semantic ID."""
        return self.words.keywords_of(item_id)

    @classmethod
    def load(cls, folder: Path, cache: Path | None = None, trie: CatalogueTrie | None = None) -> SemanticIds:
        """Open a tokenize folder. ``cache``: where a slow text encoder keeps vectors of texts it has seen.

        ``trie``: that of the codes, where it was saved; else it is built.

        Raises ``UserError`` where the folder is not whole, or a codebook belongs to another encoder's vectors.
        """
        manifest = open_artifact(folder, KIND)
        codes = torch.from_numpy(np.load(folder / "codes.npy", allow_pickle=False).astype(np.int64))
        text = _text_vectors(folder / "text.npy")
        codebooks = Codebooks.load(folder / "codebooks.safetensors", manifest["key"])
        space = ItemSpace.from_arrays(load_file(folder / "space.safetensors"))
        trie = build_trie(codes, codebooks.sizes) if trie is None else trie
        catalogue = Catalogue(with_room(text), with_room(codes), trie)
        return cls(
            TextSpace.load(folder, cache),
            codebooks,
            catalogue,
            manifest["key"],
            space,
            read_json(folder / "drift.json"),
        )

    def encode_new(self, items: pl.DataFrame | Sequence[str]) -> NewCodes:
        """Codes of new items (a table with title, brand, category, text, whichever it has) or of texts such as queries.

        The codebooks stay as they are. Co-consumption, which new items lack, is predicted from the text.
        """
        if not len(items):
            empty = np.zeros((0, len(self.codebooks.sizes)), np.int64)
            text, vectors = (
                np.zeros((0, self.encoder.dim), np.float32),
                np.zeros((0, self.codebooks.dimension), np.float32),
            )
            return NewCodes(empty, text, vectors, np.zeros(0, bool))
        if isinstance(items, pl.DataFrame):
            text, enhanced = self.words.item_vectors(_item_columns(items))
        else:
            text, enhanced = self.words.query_vectors(list(items))
        vectors = self.space.vectors(enhanced)
        return NewCodes(encode(self.codebooks, vectors), text, vectors, np.asarray(text.any(1)))

    def append(self, items: pl.DataFrame | Sequence[str]) -> GrownSemanticIds:
        """The catalogue with these items after the old ones, whose codes stay as they are.

        A new item whose code is taken moves to the nearest free one, as `resolve_collisions` says. Earlier rows choose
        first. Nothing on disk changes. In a catalogue of more than ``LARGE`` items the new ones are pending: a new trie
        costs time in proportion to all items. ``merge_due`` says when it is worth it.
        """
        new, old = self.encode_new(items), self.catalogue
        codes = old.codes.numpy()
        # Only items with the same first code can collide. Their vectors are not needed, as they do not move.
        near = codes[np.isin(codes[:, 0], new.codes[:, 0])] if codes.shape[1] > 2 else codes
        vectors = np.concatenate([np.zeros((len(near), self.codebooks.dimension), np.float32), new.vectors])
        moved, report = resolve_collisions(np.concatenate([near, new.codes]), vectors, self.codebooks, fixed=len(near))
        all_codes = append_rows(old.codes, torch.from_numpy(moved[len(near) :]))
        text = append_rows(old.text, torch.from_numpy(new.text).to(old.text.dtype))
        grown = replace(self, catalogue=Catalogue(text, all_codes, old.trie))
        return GrownSemanticIds(grown if grown.waits else grown.merged(), report)

    @property
    def waits(self) -> bool:
        """Whether changes of the catalogue wait outside the trie."""
        return self.catalogue.trie.n_items > LARGE

    def n_waiting(self, removed: np.ndarray) -> int:
        """How many items the trie lacks, and how many it has that are ``removed`` (n_items,)."""
        trie = self.catalogue.trie
        if removed.all():  # a trie has at least one item; searches mask it
            return 0
        wrong = trie.held.cpu().numpy() == removed[: trie.n_items]
        return int(wrong.sum()) + int((~removed[trie.n_items :]).sum())

    def merge_due(self, removed: np.ndarray) -> bool:
        """Whether so many changes wait that they should be ``merged`` into the trie."""
        return self.n_waiting(removed) > PENDING * self.catalogue.trie.n_items

    def merged(self, removed: np.ndarray | None = None) -> SemanticIds:
        """The same with the pending items in the trie, and without those that are ``removed`` (n_items,)."""
        catalogue = self.catalogue
        old, size = catalogue.trie, catalogue.trie.n_items
        if removed is None or removed.all():
            removed = np.append(~old.held.cpu().numpy(), np.zeros(catalogue.n_pending, bool))
        if not self.n_waiting(removed):
            return self
        if removed[size:].any() or (old.held.cpu().numpy() == removed[:size]).any():
            trie = build_trie(catalogue.codes, old.vocab_sizes, torch.from_numpy(~removed))
        else:
            trie, _ = extend_trie(old, catalogue.codes[size:])
        return replace(self, catalogue=Catalogue(catalogue.text, catalogue.codes, trie))

    def drift_report(self, items: pl.DataFrame | Sequence[str]) -> dict[str, Any]:
        """Do the codebooks still fit these new items? See ``genrec.semantic_ids.drift``; ``retokenize`` is the answer.

        Items already appended count as growth only: give those that came since the codebooks were fitted.
        """
        new = self.encode_new(items)
        return drift_report(self.codebooks, self.baseline, self.catalogue.codes.numpy(), new.codes, new.vectors) | {
            "without_known_words": float(1 - new.known.mean()) if len(new.known) else 0.0
        }


def _text_vectors(path: Path) -> torch.Tensor:
    """Text vectors as they were written; half precision says that there are many, and these are memory-mapped."""
    mapped = np.load(path, mmap_mode="c", allow_pickle=False)
    return torch.from_numpy(mapped if mapped.dtype == np.float16 else np.array(mapped))


def _item_columns(items: pl.DataFrame) -> pl.DataFrame:
    """The columns that texts are made of, null where the table has none; a category may be one string."""
    if not set(items.columns) & set(ITEM_COLUMNS):
        raise UserError(
            f"new items have columns {', '.join(items.columns)}; expected at least one of {', '.join(ITEM_COLUMNS)}"
        )
    columns = []
    for name, kind in ITEM_COLUMNS.items():
        column = pl.col(name) if name in items.columns else pl.lit(None, dtype=kind)
        if name == "category" and name in items.columns and items.schema[name] == pl.String:
            column = pl.concat_list(column)
        columns.append(column.cast(kind).alias(name))
    columns += [
        pl.lit(None, dtype=kind).alias(name) for name, kind in OTHER_COLUMNS.items() if name not in items.columns
    ]
    return items.with_columns(columns)


def read_items(path: Path) -> pl.DataFrame:
    """New items from a Parquet, CSV or JSON-lines file. Raises ``UserError`` where it is missing or none of these."""
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        ".parquet": pl.read_parquet,
        ".csv": pl.read_csv,
        ".jsonl": pl.read_ndjson,
        ".ndjson": pl.read_ndjson,
    }
    if not path.is_file():
        raise UserError(f"items file not found: {path}")
    if path.suffix not in readers:
        raise UserError(f"{path}: expected a file that ends in {', '.join(readers)}")
    try:
        return readers[path.suffix](path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:200]})") from error
