"""Text vectors of items and queries: encoder and core keywords in one object."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from safetensors.numpy import load_file, save_file

from genrec.artifacts.folders import read_json, write_json
from genrec.config.schema import Config
from genrec.data.dataset import TRAIN, Dataset
from genrec.errors import UserError
from genrec.semantic_ids.keywords import KeywordDictionary, fuse
from genrec.text.encoder import TextEncoder
from genrec.text.factory import fit_encoder, load_encoder

log = logging.getLogger(__name__)
ITEM_KEYWORDS, VECTORS = "keywords.parquet", "keyword_vectors.safetensors"


def text_cache(config: Config) -> Path | None:
    """The folder of vectors by content; none for TF-IDF, which is faster than reading them."""
    if config.text.encoder == "tfidf":
        return None
    return Path(config.output) / "text-cache"


@dataclass
class TextSpace:
    """Maps texts to vectors e (by ``encoder``), and e to e' by their keywords.

    ``keywords``: None where they are off. ``keyword_vectors``: (keywords, d).

    ``item_keywords``: item_id, keyword, type of the catalogue; empty where
    they are off.
    """

    encoder: TextEncoder
    keywords: KeywordDictionary | None
    keyword_vectors: np.ndarray
    item_keywords: pl.DataFrame

    @classmethod
    def fit(cls, config: Config, dataset: Dataset) -> TextSpace:
        """From the items' table and, for the rank of keywords, the training events."""
        items, settings = dataset.item_table, config.semantic_ids
        encoder = fit_encoder(config.text, items, config.seed, text_cache(config))
        none = pl.DataFrame(schema={"item_id": pl.String, "keyword": pl.String, "type": pl.String})
        space = cls(encoder, None, np.zeros((0, encoder.dim), np.float32), none)
        if settings.keywords:
            space.keywords = KeywordDictionary.build(items, clicked_pairs(dataset), config.seed)
            space.keyword_vectors = encoder.encode(space.keywords.display_forms, "item")
            space.keyword_vectors[~space.keywords.has_words] = 0
            space.item_keywords = space.keywords.as_table(space.keywords.of_items(items), items["item_id"])
            log.info("tokenize: %s", space.summary(items))
        return space

    def item_vectors(self, items: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Vectors e and e' of items, known or new: twice (n, d) float32."""
        plain = self.encoder.encode_items(items)
        if self.keywords is None:
            return plain, plain
        return plain, fuse(plain, self.keywords.of_items(items), self.keyword_vectors)

    def query_vectors(self, queries: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors e and e' of queries: twice (n, d) float32."""
        plain = self.encoder.encode(queries, "query")
        if self.keywords is None:
            return plain, plain
        return plain, fuse(plain, self.keywords.of_texts(queries), self.keyword_vectors)

    def keywords_of(self, item_id: str) -> list[tuple[str, str]]:
        """(keyword, type) of an item of the catalogue, the order of no meaning.

        Empty where keywords are off or none was found.
        """
        return self._by_item.get(item_id, [])

    def names_of(self, item_ids: pl.Series) -> pl.Series | None:
        """The keywords of each of these items as a list, price bands left out; None where keywords are off."""
        if self.keywords is None:
            return None
        words = self.item_keywords.filter(pl.col("type") != "price")
        lists = words.group_by("item_id", maintain_order=True).agg("keyword")
        items = pl.DataFrame({"item_id": item_ids})
        return items.join(lists, on="item_id", how="left", maintain_order="left")["keyword"].fill_null([])

    @cached_property
    def _by_item(self) -> dict[str, list[tuple[str, str]]]:
        grouped = self.item_keywords.group_by("item_id", maintain_order=True).agg(
            pl.struct("keyword", "type").alias("keywords")
        )
        return {item: [(entry["keyword"], entry["type"]) for entry in words] for item, words in grouped.iter_rows()}

    def summary(self, items: pl.DataFrame) -> str:
        """One line for a person: how many keywords, and those of one item."""
        assert self.keywords is not None
        counts = self.item_keywords.group_by("item_id").len()
        line = f"{len(self.keywords)} keywords, {len(self.item_keywords) / max(len(items), 1):.1f} an item, "
        line += f"{len(items) - len(counts)} items without"
        if not len(counts):
            return line
        item = counts.sort("len", "item_id", descending=[True, False])["item_id"][0]
        title = items.filter(pl.col("item_id") == item)["title"][0] or item
        return f"{line}; e.g. '{title[:60]}': " + ", ".join(
            f"{keyword} ({kind})" for keyword, kind in self.keywords_of(item)
        )

    def save(self, folder: Path) -> None:
        """Write encoder, keyword dictionary and the items' keywords (``keywords.parquet``) into an existing folder."""
        self.encoder.save(folder)
        self.item_keywords.write_parquet(folder / ITEM_KEYWORDS)
        write_json(folder / "text_space.json", {"keywords": self.keywords is not None})
        if self.keywords is not None:
            self.keywords.save(folder)
            save_file({"vectors": np.ascontiguousarray(self.keyword_vectors)}, folder / VECTORS)

    @classmethod
    def load(cls, folder: Path, cache: Path | None = None) -> TextSpace:
        """Read the files that ``save`` wrote. ``cache`` as in ``TextEncoder.load``.

        Raises ``UserError`` when a part is missing or does not fit.
        """
        encoder, settings = load_encoder(folder, cache), read_json(folder / "text_space.json")
        for name in (ITEM_KEYWORDS, *((VECTORS,) if settings["keywords"] else ())):
            if not (folder / name).is_file():
                raise UserError(f"{folder / name} is missing; run genrec tokenize again")
        keywords = KeywordDictionary.load(folder) if settings["keywords"] else None
        vectors = load_file(folder / VECTORS)["vectors"] if keywords else np.zeros((0, encoder.dim), np.float32)
        if vectors.shape != (len(keywords or ()), encoder.dim):
            raise UserError(
                f"{folder / VECTORS}: shape {vectors.shape} does not fit its dictionary and encoder; run genrec "
                f"tokenize again"
            )
        return cls(encoder, keywords, vectors, pl.read_parquet(folder / ITEM_KEYWORDS))


def clicked_pairs(dataset: Dataset) -> pl.DataFrame:
    """``query`` and ``item`` (row of the items' table) of training events that came from a search."""
    rows = np.flatnonzero((np.asarray(dataset.split) == TRAIN) & (np.asarray(dataset.queries) >= 0))
    queries, items = np.asarray(dataset.queries)[rows], np.asarray(dataset.items)[rows]
    return pl.DataFrame({"query": dataset.texts_of(queries), "item": items.astype(np.int64)})
