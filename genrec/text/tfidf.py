"""Text vectors without a download: TF-IDF, truncated SVD, unit length. Items and queries share the space."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer

from genrec.artifacts import read_json
from genrec.errors import UserError
from genrec.text.encoder import TOKEN_PATTERN, TextEncoder, unit


class TfidfEncoder(TextEncoder):
    """Words and word bigrams, sublinear TF-IDF, truncated SVD. A text without known words maps to the zero vector."""

    name = "tfidf"

    def __init__(self, vocabulary: list[str], idf: np.ndarray, components: np.ndarray):
        self.vocabulary, self.idf, self.components = vocabulary, idf.astype(np.float32), components.astype(np.float32)
        self._counter = _counter(vocabulary={term: index for index, term in enumerate(vocabulary)})

    @property
    def dim(self) -> int:
        return self.components.shape[0]

    @classmethod
    def fit(cls, texts: Sequence[str], dim: int, max_features: int, min_df: int, seed: int) -> TfidfEncoder:
        """Fit on item texts. ``dim`` shrinks to what the texts can carry; texts without words give one constant dimension."""
        counter = _counter(max_features=max_features, min_df=min(min_df, max(1, len(texts) // 2)))
        try:
            counts = counter.fit_transform(texts)
        except ValueError:  # no words at all: a catalogue of bare ids
            return cls(["\0"], np.ones(1), np.zeros((1, 1)))
        vocabulary = counter.get_feature_names_out().tolist()
        frequency = np.asarray((counts > 0).sum(axis=0)).ravel()
        idf = np.log((1 + len(texts)) / (1 + frequency)) + 1
        weighted = _weight(counts, idf)
        rank = min(dim, min(weighted.shape) - 1)
        if rank < 1:
            return cls(vocabulary, idf, np.ones((1, len(vocabulary))))
        return cls(vocabulary, idf, TruncatedSVD(rank, random_state=seed).fit(weighted).components_)

    def encode(self, texts: Sequence[str], role: str = "query") -> np.ndarray:
        """Vectors (n, dim) float32; queries and items are treated alike."""
        if not len(texts):
            return np.zeros((0, self.dim), np.float32)
        return unit(_weight(self._counter.transform(texts), self.idf) @ self.components.T)

    def describe(self) -> dict:
        return {"encoder": self.name}

    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "vocabulary.json").write_text(json.dumps(self.vocabulary, ensure_ascii=False))
        save_file({"idf": self.idf, "components": np.ascontiguousarray(self.components)}, folder / "text.safetensors")

    @classmethod
    def read(cls, folder: Path) -> TfidfEncoder:
        if not (folder / "text.safetensors").is_file():
            raise UserError(f"{folder / 'text.safetensors'} is missing; run genrec tokenize again")
        arrays = load_file(folder / "text.safetensors")
        return cls(read_json(folder / "vocabulary.json"), arrays["idf"], arrays["components"])


def _counter(**options) -> CountVectorizer:
    return CountVectorizer(lowercase=True, token_pattern=TOKEN_PATTERN, ngram_range=(1, 2), dtype=np.float32, **options)


def _weight(counts: csr_matrix, idf: np.ndarray) -> csr_matrix:
    """Sublinear term frequency times idf, unit length rows."""
    weighted = counts.copy().astype(np.float32)
    weighted.data = 1 + np.log(weighted.data)
    weighted = weighted.multiply(idf[None, :]).tocsr()
    norm = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    weighted.data /= np.repeat(np.maximum(norm, 1e-9), np.diff(weighted.indptr))
    return weighted.astype(np.float32)
