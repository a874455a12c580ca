"""The interface of text encoders. ``genrec.text.factory`` fits and loads them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from genrec.artifacts.folders import fingerprint, write_json
from genrec.config.load import to_dict
from genrec.config.schema import TextConfig
from genrec.data.words import SPACELESS, TOKEN_PATTERN

DESCRIPTION = "encoder.json"
ROLES = ("query", "item")
__all__ = [
    "ROLES",
    "SPACELESS",
    "TOKEN_PATTERN",
    "TextEncoder",
    "encoder_key",
    "heads_and_bodies",
    "item_texts",
    "unit",
]


class TextEncoder(ABC):
    """Maps texts to unit vectors (n, dim) float32; a text without known words maps to the zero vector."""

    name: str

    @property
    @abstractmethod
    def dim(self) -> int:
        """Dimension of the vectors."""

    @abstractmethod
    def encode(self, texts: Sequence[str], role: str = "query") -> np.ndarray:
        """Vectors (n, dim) float32 of texts that are queries or items.

        Models with prefixes treat the two differently.
        """

    def encode_items(self, items: pl.DataFrame) -> np.ndarray:
        """Vectors (n, dim) float32 of a table with the items' columns."""
        return self.encode(item_texts(items), "item")

    @abstractmethod
    def describe(self) -> dict:
        """JSON-ready settings that ``load`` needs besides the files of ``save``; holds ``encoder``, the kind."""

    def save(self, folder: Path) -> None:
        """Write everything ``load`` needs into an existing folder.

        Weights of ``hf`` and ``minilm`` stay where they are.
        """
        write_json(folder / DESCRIPTION, self.describe())

    def pack(self, folder: Path) -> None:  # noqa: B027 (most encoders have nothing to add)
        """Copy the files that ``save`` leaves out into ``folder``, which is then complete."""


def encoder_key(config: TextConfig) -> str:
    """A fingerprint of the settings that change vectors."""
    return fingerprint(to_dict(config))


_HEAD = pl.concat_str(
    [
        pl.col("title").fill_null(""),
        pl.col("brand").fill_null(""),
        pl.col("category").list.join(" ", ignore_nulls=True).fill_null(""),
    ],
    separator=" ",
).alias("head")
_BODY = pl.col("text").fill_null("").alias("body")


def item_texts(items: pl.DataFrame) -> list[str]:
    """One text per item: title, brand, category words and text."""
    return items.select(pl.concat_str([_HEAD, _BODY], separator=" "))["head"].to_list()


def heads_and_bodies(items: pl.DataFrame) -> tuple[list[str], list[str]]:
    """What an item's text begins with, title, brand and category words, and its long ``text``: two lists (n,).

    An item with a text alone has that as its head.
    """
    texts = items.select(_HEAD, _BODY)
    bare = pl.col("head").str.strip_chars() == ""
    texts = texts.select(
        pl.when(bare).then("body").otherwise("head").alias("head"), pl.when(bare).then(pl.lit("")).otherwise("body")
        .alias("body"),
    )  # fmt: skip
    return texts["head"].to_list(), texts["body"].to_list()


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one, float32; zero rows stay zero."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
