"""Text vectors without a download: TF-IDF, truncated SVD, unit length. Items and queries share the space."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer

from genrec.artifacts.folders import read_json
from genrec.errors import UserError
from genrec.text.encoder import TOKEN_PATTERN, TextEncoder, heads_and_bodies, item_texts, unit

FIT_TEXTS = 100_000  # words and directions are learnt from at most so many texts, drawn by seed
BLOCK = 20_000  # texts counted at a time
MAX_TERMS = 50_000  # of words, and of character n-grams: the most frequent
BODY_WEIGHT = 0.2  # of a word in an item's long text against one in its title, brand or category
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

    def weigh(
        self, texts: Sequence[str], bodies: Sequence[str] | None = None, body_weight: float = BODY_WEIGHT
    ) -> sp.csr_matrix:
        """(n, terms) float32: sublinear term frequency times idf, unit length rows.

        ``bodies`` (n,) are long texts behind ``texts``; a word there counts ``body_weight``.
        """
        weighted = self._counter.transform(_read(self.kind, texts)).astype(np.float32)
        if bodies is not None and any(bodies):
            if self.kind == "characters":
                bodies = [body[: max(CHARACTERS_READ - len(text), 0)] for text, body in zip(texts, bodies, strict=True)]
            weighted = (weighted + np.float32(body_weight) * self._counter.transform(bodies).astype(np.float32)).tocsr()
        # Below one occurrence the logarithm's tangent at one: values stay positive.
        frequency = np.where(weighted.data < 1, weighted.data, 1 + np.log(np.maximum(weighted.data, 1)))
        weighted.data = frequency * self.idf[weighted.indices]
        norm = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
        weighted.data /= np.repeat(np.maximum(norm, 1e-9), np.diff(weighted.indptr))
        return weighted.astype(np.float32)


class TfidfEncoder(TextEncoder):
    """Words, word bigrams and character n-grams, one truncated SVD. A text without known terms maps to the zero vector.

    Character n-grams carry ``character_share`` of a text's squared length: they bring typos, plurals and model numbers
    near.
    """

    name = "tfidf"

    def __init__(
        self,
        words: Terms,
        characters: Terms | None,
        components: np.ndarray,
        character_share: float,
        body_weight: float = BODY_WEIGHT,
    ):
        self.words, self.characters, self.character_share = words, characters, character_share
        self.body_weight = body_weight
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
        bodies: Sequence[str] | None = None,
    ) -> TfidfEncoder:
        """Fit on item texts. ``dim`` shrinks to what the texts can carry.

        Texts without words give one constant dimension. ``bodies``: long texts behind ``texts``, see ``Terms.weigh``.
        """
        if len(texts) > FIT_TEXTS:
            chosen = np.sort(np.random.default_rng(seed).choice(len(texts), FIT_TEXTS, replace=False))
            texts, bodies = [texts[index] for index in chosen], bodies and [bodies[index] for index in chosen]
        whole = texts if bodies is None else [f"{text} {body}" for text, body in zip(texts, bodies, strict=True)]
        words = Terms.fit("words", whole, min_df, max_terms)
        if words is None:  # a catalogue of bare ids
            return cls(Terms("words", ["\0"], np.ones(1, np.float32)), None, np.zeros((1, 1)), 0.0)
        characters = Terms.fit("characters", whole, min_df, max_terms) if character_share > 0 else None
        encoder = cls(words, characters, np.zeros((1, 1)), character_share if characters else 0.0)
        weighted = encoder._weigh(texts, bodies)
        rank = min(dim, min(weighted.shape) - 1)
        encoder.components = np.ones((1, weighted.shape[1]), np.float32)
        if rank >= 1:
            encoder.components = TruncatedSVD(rank, random_state=seed).fit(weighted).components_.astype(np.float32)
        return encoder

    def encode(self, texts: Sequence[str], role: str = "query") -> np.ndarray:
        """Vectors (n, dim) float32; queries and items are treated alike."""
        return self._vectors(texts)

    def encode_items(self, items: pl.DataFrame) -> np.ndarray:
        """Vectors (n, dim) float32; a word of an item's long text counts ``body_weight``."""
        if self.body_weight == 1:  # also the pairs of words between the two, which earlier versions counted
            return self._vectors(item_texts(items))
        return self._vectors(*heads_and_bodies(items))

    def _vectors(self, texts: Sequence[str], bodies: Sequence[str] | None = None) -> np.ndarray:
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for start in range(0, len(texts), BLOCK):
            rows = slice(start, start + BLOCK)
            vectors[rows] = unit(self._weigh(texts[rows], bodies and bodies[rows]) @ self._by_term)
        return vectors

    def _weigh(self, texts: Sequence[str], bodies: Sequence[str] | None = None) -> sp.csr_matrix:
        words = self.words.weigh(texts, bodies, self.body_weight)
        if self.characters is None:
            return words
        parts = [
            np.float32((1 - self.character_share) ** 0.5) * words,
            np.float32(self.character_share**0.5) * self.characters.weigh(texts, bodies, self.body_weight),
        ]
        return sp.hstack(parts, format="csr", dtype=np.float32)

    def describe(self) -> dict:
        """Kind and settings, ready for JSON."""
        return {"encoder": self.name, "character_share": self.character_share, "body_weight": self.body_weight}

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
        # Encoders of earlier versions were fitted on texts whose words count alike, and new items are read like them.
        weights = description["character_share"], description.get("body_weight", 1.0)
        return cls(terms["words"], terms.get("characters"), arrays["components"], *weights)


def _counter(kind: str, **options) -> CountVectorizer:
    if kind == "characters":
        return CountVectorizer(lowercase=True, analyzer="char_wb", ngram_range=(3, 5), dtype=np.float32, **options)
    return CountVectorizer(lowercase=True, token_pattern=TOKEN_PATTERN, ngram_range=(1, 2), dtype=np.float32, **options)


def _read(kind: str, texts: Sequence[str]) -> Sequence[str]:
    return [text[:CHARACTERS_READ] for text in texts] if kind == "characters" else texts
