"""Semantic IDs of queries: codes of their text vectors by the items' fixed codebooks, as in OneSearch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from genrec.semantic_ids.quantizers import Codebooks, encode
from genrec.semantic_ids.space import ItemSpace
from genrec.semantic_ids.text_space import TextSpace
from genrec.text.encoder import TextEncoder


class QueryCoder(TextEncoder):
    """A text encoder that also knows the codebooks.

    One pass over a query's text gives its vector and its code.
    """

    def __init__(self, words: TextSpace, space: ItemSpace, codebooks: Codebooks):
        self.words, self.space, self.codebooks = words, space, codebooks
        self.name = words.encoder.name

    @property
    def dim(self) -> int:
        """Dimension of the text vectors."""
        return self.words.encoder.dim

    def encode(self, texts: Sequence[str], role: str = "query") -> np.ndarray:
        """Text vectors (n, dim) float32."""
        return self.words.encoder.encode(texts, role)

    def encode_items(self, items: pl.DataFrame) -> np.ndarray:
        """Text vectors (n, dim) float32 of a table of items."""
        return self.words.encoder.encode_items(items)

    def encode_queries(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Text vectors (n, dim) float32 and codes (n, levels) int64.

        Codes are -1 for a text without known words, as the codes of the zero vector have no meaning.
        """
        if not len(texts):
            return np.zeros((0, self.dim), np.float32), np.zeros((0, len(self.codebooks.sizes)), np.int64)
        text, enhanced = self.words.query_vectors(texts)
        codes = encode(self.codebooks, self.space.vectors(enhanced))
        return text, np.where(enhanced.any(1, keepdims=True), codes, -1)

    def describe(self) -> dict:
        """The settings of the text encoder."""
        return self.words.encoder.describe()

    def save(self, folder: Path) -> None:
        """Write the text encoder into an existing folder."""
        self.words.encoder.save(folder)
