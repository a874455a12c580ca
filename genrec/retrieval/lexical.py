"""The lexical side of search.

BM25F over item fields, queries read with typos, prefixes and synonyms, and a judgement whether a query names anything.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp

from genrec.errors import UserError
from genrec.retrieval.bm25 import BM25, HEAD, FieldCounts
from genrec.retrieval.facet_words import N_FEATURES as FACET_FEATURES
from genrec.retrieval.facet_words import FacetWords
from genrec.retrieval.match_judge import MatchJudge
from genrec.retrieval.query_reading import QueryReader, ReadQuery
from genrec.retrieval.synonyms import Synonyms
from genrec.retrieval.title_words import TitleWords
from genrec.retrieval.vocabulary import Vocabulary
from genrec.text.fields import item_fields

REMEMBERED = 1 << 14  # queries whose reading is kept
MATCHED = 1 << 8  # queries whose matching items are kept: a request reads them several times


@dataclass(frozen=True)
class Match:
    """How a query matches the catalogue: its reading, the probability that it names something, and the verdict.

    ``no_match``: the query names nothing, or nothing that any item has.
    """

    read: ReadQuery
    probability: float
    no_match: bool


class LexicalIndex:
    """Matches queries with the words of items. Immutable: ``grow``, ``refit`` and ``without`` make new ones.

    ``popularity`` (n,) are training events per item of the fit: of misspelt and half-typed words the more wanted one
    counts. ``titles``: the words of titles in their order, and ``facets``: brand, levels of the category, attributes;
    without them they say nothing of a query.
    """

    def __init__(
        self,
        index: BM25,
        vocabularies: Sequence[Vocabulary],
        popularity: np.ndarray,
        synonyms: Synonyms | None = None,
        logged: frozenset[str] = frozenset(),
        judge: MatchJudge | None = None,
        titles: TitleWords | None = None,
        facets: FacetWords | None = None,
    ):
        self.titles, self.facets = titles, facets
        self.index, self.vocabularies, self.popularity = index, list(vocabularies), popularity
        self.synonyms: Synonyms = synonyms or {}
        self.logged = logged
        self.judge = judge or MatchJudge()
        self.reader = QueryReader(index, self.vocabularies, popularity, self.synonyms, logged)
        self._read: dict[str, ReadQuery] = {}
        self._judged: dict[str, Match] = {}
        self._matched: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @classmethod
    def fit(
        cls,
        items: pl.DataFrame | Sequence[str],
        popularity: np.ndarray | None = None,
        settings: BM25 | None = None,
    ) -> LexicalIndex:
        """Index ``items``: a table with the items' columns in item id order, or one text per item.

        ``settings``: an index whose k1, b, weights and language are used.
        """
        settings = settings or BM25()
        index = BM25(settings.k1, settings.b, settings.weights, settings.language)
        if index.language == "auto":
            from genrec.text.analysis import detect_language

            index.language = detect_language(text for texts in item_fields(items).values() for text in texts[:1000])
        facets = FacetWords.of(items, index.language)
        return cls.of(index, FieldCounts.of(item_fields(items)), popularity, facets)

    @classmethod
    def of(
        cls,
        index: BM25,
        counted: FieldCounts,
        popularity: np.ndarray | None = None,
        facets: FacetWords | None = None,
    ) -> LexicalIndex:
        """The same from counted words, which ``index`` has not seen yet."""
        n_items = next(iter(counted.counts.values())).shape[0]
        popularity = np.zeros(n_items, np.float32) if popularity is None else popularity.astype(np.float32)
        index.index(counted, np.log1p(popularity))
        return cls(index, [_vocabulary(index, counted, popularity)], popularity, titles=counted.titles, facets=facets)

    @property
    def n_items(self) -> int:
        """Items of the fit and added ones."""
        return self.index.n_items

    def grow(self, items: pl.DataFrame | Sequence[str]) -> LexicalIndex:
        """A version with more items behind the known ones, at a cost that follows their number alone, amortised."""
        counted = FieldCounts.of(item_fields(items))
        index = self.index.grow(items)
        added = np.zeros(index.n_items - self.n_items, np.float32)
        vocabularies = [*self.vocabularies, _vocabulary(index, counted, added)]
        while len(vocabularies) > 2 and len(vocabularies[-2]) <= len(vocabularies[-1]):
            vocabularies[-2:] = [vocabularies[-2].joined(vocabularies[-1])]
        titles = None if self.titles is None or counted.titles is None else self.titles.grown(counted.titles)
        facets = None if self.facets is None else self.facets.grown(FacetWords.of(items, index.language))
        return LexicalIndex(
            index, vocabularies, self.popularity, self.synonyms, self.logged, self.judge, titles, facets
        )

    def refit(self, items: pl.DataFrame) -> LexicalIndex:
        """The same settings over changed items, as many as before."""
        popularity = np.concatenate([self.popularity, np.zeros(len(items) - len(self.popularity), np.float32)])
        fitted = LexicalIndex.fit(items, popularity, self.index)
        fitted.index.removed = self.index.removed
        return LexicalIndex(
            fitted.index, fitted.vocabularies, popularity, self.synonyms, self.logged, self.judge, fitted.titles,
            fitted.facets,
        )  # fmt: skip

    def without(self, removed: np.ndarray) -> LexicalIndex:
        """A version whose queries do not find the ``removed`` (n_items,) items: words that others lack are unknown."""
        index = copy.copy(self.index)
        index.removed = removed if removed.any() else None
        return LexicalIndex(
            index, self.vocabularies, self.popularity, self.synonyms, self.logged, self.judge, self.titles, self.facets
        )

    def read(self, text: str) -> ReadQuery:
        """How the catalogue's words read a query."""
        read = self._read.get(text)
        if read is None:
            if len(self._read) >= REMEMBERED:
                self._read.clear()
            read = self._read[text] = self.reader.read(text)
        return read

    def match(self, text: str) -> Match:
        """How a query matches the catalogue."""
        judged = self._judged.get(text)
        if judged is None:
            if len(self._judged) >= REMEMBERED:
                self._judged.clear()
            read = self.read(text)
            scores = self._matching(text)[1]
            probability = self.judge.probability(read, float(scores.max(initial=0.0)))
            judged = Match(read, probability, probability < self.judge.threshold)
            self._judged[text] = judged
        return judged

    def _matching(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Items (n,) that match a query, and their scores; of long lists only the best. Not to be written to."""
        matched = self._matched.get(text)
        if matched is None:
            if len(self._matched) >= MATCHED:
                self._matched.clear()
            matched = self._matched[text] = self.index.match(self.read(text).groups)
        return matched

    def knows(self, query: str) -> bool:
        """Whether an item has a word of the query, as typed or as corrected."""
        return bool(self.read(query).groups)

    def score(self, queries: Sequence[str]) -> np.ndarray:
        """(B, n_items) float32: exact scores. A query without known words scores 0 everywhere."""
        return self.sparse_scores(queries, None).toarray()

    def sparse_scores(self, queries: Sequence[str], limit: int | None) -> sp.csr_matrix:
        """Scores as a sparse matrix (B, n_items). With a ``limit``, of long lists only the best items; see ``BM25``."""
        matches = {
            text: self._matching(text) if limit == HEAD else self.index.match(self.read(text).groups, limit)
            for text in dict.fromkeys(queries)
        }
        parts = [matches[text] for text in queries]
        offsets = np.cumsum([0, *(len(ids) for ids, _ in parts)])
        ids = np.concatenate([ids for ids, _ in parts]) if parts else np.zeros(0, np.int64)
        scores = np.concatenate([values for _, values in parts]) if parts else np.zeros(0, np.float32)
        return sp.csr_matrix((scores, ids, offsets), shape=(len(queries), self.n_items))

    def score_at(self, queries: Sequence[str], ids: np.ndarray) -> np.ndarray:
        """Exact scores (B, K) float32 of items (B, K)."""
        result = np.zeros(ids.shape, np.float32)
        for row, text in enumerate(queries):
            groups = self.read(text).groups if text else []
            if groups:
                result[row] = self.index.score_at(groups, ids[row])
        return result

    def title_match(self, queries: Sequence[str], ids: np.ndarray) -> np.ndarray:
        """How much of each query the titles of items (B, K) say as typed: see ``TitleWords.match``."""
        if self.titles is None:
            return np.zeros((*ids.shape, 3), np.float32)
        return self.titles.match(queries, ids)

    def facet_match(self, queries: Sequence[str], ids: np.ndarray) -> np.ndarray:
        """What of each query, as read, the facets of items (B, K) say: see ``FacetWords.match``."""
        if self.facets is None:
            return np.zeros((*ids.shape, FACET_FEATURES), np.float32)
        return self.facets.match([(self.read(text).corrected or text) if text else "" for text in queries], ids)

    def save(self, path: Path) -> None:
        """Write an npz file that ``load`` reads: the items of the fit, without added ones."""
        settings, arrays = self.index.state()
        words = self.vocabularies[0]
        document = {
            "index": settings,
            "synonyms": self.synonyms,
            "logged": sorted(self.logged),
            "judge": self.judge.state(),
        }
        stored: dict[str, Any] = {f"index_{name}": values for name, values in arrays.items()} | {
            "document": np.frombuffer(json.dumps(document).encode(), np.uint8),
            "words": np.frombuffer("\n".join(words.words).encode(), np.uint8),
            "word_terms": words.terms,
            "word_mass": words.mass,
            "popularity": self.popularity[: self.index.n_fitted],
            **({} if self.titles is None else self.titles.first(self.index.n_fitted).state()),
            **({} if self.facets is None else self.facets.first(self.index.n_fitted).state()),
        }
        with open(path, "wb") as file:
            np.savez(file, **stored)

    @classmethod
    def load(cls, path: Path) -> LexicalIndex:
        """Read the file that ``save`` wrote. Raises ``UserError`` where it is missing or another kind of file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            document = json.loads(bytes(arrays["document"]).decode())
            indexed = {name[6:]: values for name, values in arrays.items() if name.startswith("index_")}
            popularity = arrays["popularity"]
            index = BM25.from_state(document["index"], indexed, np.log1p(popularity))
            words = bytes(arrays["words"]).decode().split("\n") if len(arrays["word_terms"]) else []
            vocabulary = Vocabulary(words, arrays["word_terms"], arrays["word_mass"])
            synonyms = {
                term: [(other, float(weight)) for other, weight in others]
                for term, others in document["synonyms"].items()
            }
            judge = MatchJudge.from_state(document["judge"])
            titles = TitleWords.from_state(arrays) if "title_words" in arrays else None
            facets = FacetWords.from_state(arrays, index.language) if "item_facets" in arrays else None
            return cls(index, [vocabulary], popularity, synonyms, frozenset(document["logged"]), judge, titles, facets)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: not a saved lexical index ({error}); run genrec train again") from error


def _vocabulary(index: BM25, counted: FieldCounts, popularity: np.ndarray) -> Vocabulary:
    """The counted words with their terms, and how much each is wanted."""
    if not counted.words:
        return Vocabulary([], np.zeros(0, np.int64), np.zeros(0, np.float32))
    mass = counted.presence().T @ (1.0 + popularity)
    return Vocabulary(counted.words, index._rows(counted.words), np.asarray(mass))
