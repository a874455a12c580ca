"""Text vectors without a download: TF-IDF, truncated SVD, unit length. Items and queries share the space."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer

from genrec.artifacts.folders import read_json
from genrec.errors import UserError
from genrec.text.encoder import TOKEN_PATTERN, TextEncoder, unit

FIT_TEXTS = 100_000  # words and directions are learnt from at most so many texts, drawn by seed
BLOCK = 20_000  # texts counted at a time
MAX_TERMS = 50_000  # of words, and of character n-grams: the most frequent
CHARACTERS_READ = 400  # of each text for character n-grams: title, brand and category come first in an item's text


@dataclass
class Terms:
    """One kind of terms: ``words`` (words and word bigrams) or ``characters`` (3 to 5 letters within a word)."""

    kind: str
    vocabulary: list[str]
    idf: np.ndarray

    @classmethod
    def fit(cls, kind: str, texts: Sequence[str], min_df: int, max_terms: int) -> Terms | None:
        """None where the texts hold no term at all."""
        counter = _counter(kind, max_features=max_terms, min_df=min(min_df, max(1, len(texts) // 2)))
        try:
            counts = counter.fit_transform(_read(kind, texts))
        except ValueError:
            return None
        frequency = np.asarray((counts > 0).sum(axis=0)).ravel()
        idf = np.log((1 + len(texts)) / (1 + frequency)) + 1
        return cls(kind, counter.get_feature_names_out().tolist(), idf.astype(np.float32))

    def __post_init__(self) -> None:
        self._counter = _counter(self.kind, vocabulary={term: index for index, term in enumerate(self.vocabulary)})

    def weigh(self, texts: Sequence[str]) -> sp.csr_matrix:
        """(n, terms) float32: sublinear term frequency times idf, unit length rows."""
        weighted = self._counter.transform(_read(self.kind, texts)).astype(np.float32)
        weighted.data = (1 + np.log(weighted.data)) * self.idf[weighted.indices]
        norm = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
        weighted.data /= np.repeat(np.maximum(norm, 1e-9), np.diff(weighted.indptr))
        return weighted.astype(np.float32)


class TfidfEncoder(TextEncoder):
    """Words, word bigrams and character n-grams, one truncated SVD. A text without known terms maps to the zero vector.

    Character n-grams carry ``character_share`` of a text's squared length: they bring typos, plurals and model numbers
    near.
    """

    name = "tfidf"

    def __init__(self, words: Terms, characters: Terms | None, components: np.ndarray, character_share: float):
        self.words, self.characters, self.character_share = words, characters, character_share
        self.components = components.astype(np.float32)

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self.components.shape[0]

    @cached_property
    def _by_term(self) -> np.ndarray:
        """(terms, dim), row by row: a sparse product copies anything else, tens of megabytes for every query."""
        return np.ascontiguousarray(self.components.T)

    @property
    def vocabulary(self) -> list[str]:
        """Words and word bigrams."""
        return self.words.vocabulary

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        dim: int,
        min_df: int,
        seed: int,
        character_share: float = 0.0,
        max_terms: int = MAX_TERMS,
    ) -> TfidfEncoder:
        """Fit on item texts. ``dim`` shrinks to what the texts can carry.

        Texts without words give one constant dimension.
        """
        if len(texts) > FIT_TEXTS:
            chosen = np.sort(np.random.default_rng(seed).choice(len(texts), FIT_TEXTS, replace=False))
            texts = [texts[index] for index in chosen]
        words = Terms.fit("words", texts, min_df, max_terms)
        if words is None:  # a catalogue of bare ids
            return cls(Terms("words", ["\0"], np.ones(1, np.float32)), None, np.zeros((1, 1)), 0.0)
        characters = Terms.fit("characters", texts, min_df, max_terms) if character_share > 0 else None
        encoder = cls(words, characters, np.zeros((1, 1)), character_share if characters else 0.0)
        weighted = encoder._weigh(texts)
        rank = min(dim, min(weighted.shape) - 1)
        encoder.components = np.ones((1, weighted.shape[1]), np.float32)
        if rank >= 1:
            encoder.components = TruncatedSVD(rank, random_state=seed).fit(weighted).components_.astype(np.float32)
        return encoder

    def encode(self, texts: Sequence[str], role: str = "query") -> np.ndarray:
        """Vectors (n, dim) float32; queries and items are treated alike."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for start in range(0, len(texts), BLOCK):
            vectors[start : start + BLOCK] = unit(self._weigh(texts[start : start + BLOCK]) @ self._by_term)
        return vectors

    def _weigh(self, texts: Sequence[str]) -> sp.csr_matrix:
        words = self.words.weigh(texts)
        if self.characters is None:
            return words
        parts = [
            np.float32((1 - self.character_share) ** 0.5) * words,
            np.float32(self.character_share**0.5) * self.characters.weigh(texts),
        ]
        return sp.hstack(parts, format="csr", dtype=np.float32)

    def describe(self) -> dict:
        """Kind and settings, ready for JSON."""
        return {"encoder": self.name, "character_share": self.character_share}

    def save(self, folder: Path) -> None:
        """Write the vocabulary, the IDF weights and the SVD into an existing folder."""
        super().save(folder)
        kinds = [terms for terms in (self.words, self.characters) if terms]
        (folder / "vocabulary.json").write_text(
            json.dumps({terms.kind: terms.vocabulary for terms in kinds}, ensure_ascii=False)
        )
        arrays = {"components": np.ascontiguousarray(self.components)} | {
            f"idf.{terms.kind}": terms.idf for terms in kinds
        }
        save_file(arrays, folder / "text.safetensors")

    @classmethod
    def read(cls, folder: Path, description: dict) -> TfidfEncoder:
        """Read the files that ``save`` wrote. Raises ``UserError`` where they are missing."""
        if not (folder / "text.safetensors").is_file():
            raise UserError(f"{folder / 'text.safetensors'} is missing; run genrec tokenize again")
        arrays, vocabularies = load_file(folder / "text.safetensors"), read_json(folder / "vocabulary.json")
        terms = {kind: Terms(kind, vocabulary, arrays[f"idf.{kind}"]) for kind, vocabulary in vocabularies.items()}
        return cls(terms["words"], terms.get("characters"), arrays["components"], description["character_share"])


def _counter(kind: str, **options) -> CountVectorizer:
    if kind == "characters":
        return CountVectorizer(lowercase=True, analyzer="char_wb", ngram_range=(3, 5), dtype=np.float32, **options)
    return CountVectorizer(lowercase=True, token_pattern=TOKEN_PATTERN, ngram_range=(1, 2), dtype=np.float32, **options)


def _read(kind: str, texts: Sequence[str]) -> Sequence[str]:
    return [text[:CHARACTERS_READ] for text in texts] if kind == "characters" else texts
