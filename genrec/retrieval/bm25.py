"""BM25F over the fields of items.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), section 3.6: the term
frequencies of all fields, each normalised by its field's length and weighed, are added before they saturate.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import polars as pl
import scipy.sparse as sp

from genrec.errors import UserError
from genrec.retrieval.title_words import TitleWords
from genrec.text.analysis import analyzer, detect_language, words_of
from genrec.text.fields import item_fields

# Relative importance of one occurrence in a field, where no validation searches choose it (chosen on ESCI).
WEIGHTS = {"title": 2.0, "brand": 1.0, "category": 1.0, "attributes": 1.0, "text": 0.1}
HEAD = 1024  # a term's best items that a request reads; a longer list is cut
STATIC = 0.5  # how much the most popular item's weight counts more in what is kept of a long list

Alternatives = Sequence[tuple[int, float]]
"""Terms that may stand for one word of a query, each with a weight; an item counts the best of them."""


@dataclass
class FieldCounts:
    """Occurrences of words in items: ``words`` distinct words, ``counts`` a matrix (n_items, n_words) per field.

    ``titles``: the words of the first field in their order.
    """

    words: list[str]
    counts: dict[str, sp.csr_matrix]
    titles: TitleWords | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Sequence[str]]) -> FieldCounts:
        """Count the words of each field's texts (n_items,)."""
        index: dict[str, int] = {}
        rows = {}
        for field, texts in fields.items():
            columns, offsets = array("q"), array("q", [0])
            for text in texts:
                if text:
                    columns.extend([index.setdefault(word, len(index)) for word in words_of(text)])
                offsets.append(len(columns))
            rows[field] = np.frombuffer(columns, np.int64), np.frombuffer(offsets, np.int64)
        counts, titles = {}, None
        for field, (ids, starts) in rows.items():
            titles = titles or TitleWords.of(list(index), ids, starts)
            matrix = sp.csr_matrix((np.ones(len(ids), np.float32), ids, starts), shape=(len(starts) - 1, len(index)))
            matrix.sum_duplicates()
            counts[field] = matrix
        return cls(list(index), counts, titles)

    def by_term(self, terms: np.ndarray, n_terms: int) -> dict[str, sp.csr_matrix]:
        """The same with words of one term added up: (n_items, n_terms) per field. ``terms`` (n_words,)."""
        join = sp.csr_matrix((np.ones(len(terms), np.float32), (np.arange(len(terms)), terms)), (len(terms), n_terms))
        return {field: (matrix @ join).tocsr() for field, matrix in self.counts.items()}

    def presence(self) -> sp.csr_matrix:
        """Which word an item has in any field: (n_items, n_words) of 1."""
        return _present(self.counts.values())


class BM25:
    """BM25F in Lucene's form; with a single field it is BM25.

    ``terms`` maps the stems of words to rows of ``segments``: sparse matrices (terms, items) of what a term in a query
    is worth, one for the items of the fit and a few for items added later. A segment may know fewer terms than the
    vocabulary, which all versions of one fit share. ``language``: see ``genrec.text.analysis``.
    """

    def __init__(
        self, k1: float = 1.2, b: float = 0.75, weights: Mapping[str, float] = WEIGHTS, language: str = "auto"
    ):
        if k1 < 0 or not 0 <= b <= 1:
            raise UserError(f"BM25 got k1={k1}, b={b}; expected k1 >= 0 and 0 <= b <= 1")
        self.k1, self.b, self.weights, self.language = k1, b, dict(weights), language
        self.terms: dict[str, int] = {}
        self.segments: list[sp.csr_matrix] = []
        self.heads: list[dict[int, np.ndarray]] = []  # of each segment: best items of terms with long lists
        self.idf = np.zeros(0, np.float32)  # (terms of the fit,)
        self.n_fitted = 0
        self.lengths: dict[str, float] = {}  # mean words of a field
        self.removed: np.ndarray | None = None  # (n,) bool: of the first items, those that no query finds

    @property
    def n_items(self) -> int:
        """Items of the fit and added ones."""
        return sum(segment.shape[1] for segment in self.segments)

    @property
    def starts(self) -> list[int]:
        """The first item of each segment."""
        return list(accumulate((segment.shape[1] for segment in self.segments[:-1]), initial=0))

    def fit(self, items: pl.DataFrame | Sequence[str], prior: np.ndarray | None = None) -> BM25:
        """Index ``items``: a table with the items' columns in item id order, or one text per item.

        ``prior`` (n_items,): popularity, not negative; it decides what is kept of lists longer than ``HEAD``.
        """
        fields = item_fields(items)
        if self.language == "auto":
            self.language = detect_language(text for texts in fields.values() for text in texts[:1000])
        return self.index(FieldCounts.of(fields), prior)

    def index(self, counted: FieldCounts, prior: np.ndarray | None = None) -> BM25:
        """Index counted words; ``language`` must be known."""
        self.terms = {}
        counts = counted.by_term(self._rows(counted.words), len(self.terms))
        self.n_fitted = next(iter(counts.values())).shape[0]
        totals = {field: np.asarray(matrix.sum(axis=1)).ravel() for field, matrix in counts.items()}
        self.lengths = {name: float(total[total > 0].mean()) if total.any() else 1.0 for name, total in totals.items()}
        self.idf = self._idf(np.bincount(_present(counts.values()).indices, minlength=len(self.terms)))
        segment = self._weighed(counts)
        self.segments, self.heads = [segment], [_heads(segment, prior)]
        return self

    def _rows(self, words: Sequence[str]) -> np.ndarray:
        """The row of each word's term; unknown terms get new rows."""
        stems = analyzer(self.language).stems(words)
        return np.array([self.terms.setdefault(stem, len(self.terms)) for stem in stems], np.int64)

    def _weighed(self, counts: Mapping[str, sp.csr_matrix]) -> sp.csr_matrix:
        """What each term is worth in each item: (terms, items)."""
        total: sp.csr_matrix | None = None
        for field, matrix in counts.items():
            length = np.asarray(matrix.sum(axis=1)).ravel()
            damping = 1 - self.b + self.b * length / self.lengths.get(field, 1.0)
            scale = sp.diags((self.weights.get(field, 1.0) / np.maximum(damping, 1e-9)).astype(np.float32))
            part = (scale @ matrix).tocsr()
            total = part if total is None else total + part
        assert total is not None
        result = total.T.tocsr()
        rows = np.repeat(np.arange(result.shape[0]), np.diff(result.indptr))
        result.data = (self.idf_of(rows) * result.data / (self.k1 + result.data)).astype(np.float32)
        result.eliminate_zeros()
        result.sort_indices()
        return result

    def idf_of(self, rows: np.ndarray) -> np.ndarray:
        """Inverse document frequency of term rows; a term that the fit did not know counts as in one item."""
        if not len(self.idf):
            return np.full(len(rows), self._idf(np.ones(1))[0])
        return np.where(rows < len(self.idf), self.idf[np.minimum(rows, len(self.idf) - 1)], self._idf(np.ones(1))[0])

    def _idf(self, frequency: np.ndarray) -> np.ndarray:
        return np.log1p((max(self.n_fitted, 1) - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)

    def grow(self, items: pl.DataFrame | Sequence[str]) -> BM25:
        """A version with more items after the known ones, at a cost that follows their number alone, amortised.

        Word frequencies and mean lengths stay those of the fit. So an old item's scores do not change, and the order in
        which items come does not matter.
        """
        counted = FieldCounts.of(item_fields(items))
        counts = counted.by_term(self._rows(counted.words), len(self.terms))
        grown = copy.copy(self)
        grown.segments, grown.heads = [*self.segments, self._weighed(counts)], [*self.heads, {}]
        while len(grown.segments) > 2 and grown.segments[-2].shape[1] <= grown.segments[-1].shape[1]:
            grown.segments[-2:] = [_joined(*grown.segments[-2:])]
            grown.heads[-2:] = [{}]
        return grown

    def term(self, word: str) -> int:
        """The row of a word's term, -1 where no item has it."""
        row = self.terms.get(analyzer(self.language).stems([word])[0], -1)
        if self.removed is None:
            return row if any(self._length(segment, row) for segment in self.segments) else -1
        return row if any(len(self._listed(number, row, HEAD)) for number in range(len(self.segments))) else -1

    def items_of(self, row: int, limit: int = HEAD) -> np.ndarray:
        """Items that have a term, rising; of a long list the best ``limit``."""
        parts = [start + self._listed(number, row, limit) for number, start in enumerate(self.starts)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    @staticmethod
    def _length(segment: sp.csr_matrix, row: int) -> int:
        return int(segment.indptr[row + 1] - segment.indptr[row]) if 0 <= row < segment.shape[0] else 0

    def _listed(self, number: int, row: int, limit: int | None) -> np.ndarray:
        segment = self.segments[number]
        if not 0 <= row < segment.shape[0]:
            return np.zeros(0, np.int64)
        if limit is not None and row in self.heads[number]:
            best = self._live(number, self.heads[number][row])
            if len(best):
                return best
        return self._live(number, segment.indices[segment.indptr[row] : segment.indptr[row + 1]])

    def _live(self, number: int, items: np.ndarray) -> np.ndarray:
        """The items of a segment that were not removed."""
        if self.removed is None:
            return items
        ids = items + self.starts[number]
        return items[(ids >= len(self.removed)) | ~self.removed[np.minimum(ids, len(self.removed) - 1)]]

    def match(self, groups: Sequence[Alternatives], limit: int | None = HEAD) -> tuple[np.ndarray, np.ndarray]:
        """Items that have a term of a query, rising, and their scores: (n,) int64 and (n,) float32.

        ``groups``: one per word of the query. With a ``limit`` a term with a longer list proposes only its best items;
        the scores of what is proposed are exact.
        """
        ids, scores = [], []
        for number, start in enumerate(self.starts):
            lists = [self._listed(number, row, limit) for group in groups for row, _ in group]
            distinct = _distinct(lists)
            ids.append(distinct.astype(np.int64) + start)
            scores.append(self._scores(number, groups, distinct))
        if not ids:
            raise UserError("BM25 has not been fitted; call fit(items) first")
        return np.concatenate(ids), np.concatenate(scores)

    def score_at(self, groups: Sequence[Alternatives], ids: np.ndarray) -> np.ndarray:
        """Scores (n,) float32 of some items (n,)."""
        result = np.zeros(len(ids), np.float32)
        bounds = [*self.starts, self.n_items]
        for number, (start, stop) in enumerate(pairwise(bounds)):
            own = (ids >= start) & (ids < stop)
            if own.any():
                result[own] = self._scores(number, groups, ids[own] - start)
        return result

    def _scores(self, number: int, groups: Sequence[Alternatives], items: np.ndarray) -> np.ndarray:
        """The sum over groups of the best alternative's weight in each of ``items`` (n,) of one segment."""
        segment = self.segments[number]
        total = np.zeros(len(items), np.float32)
        for group in groups:
            best = np.zeros(len(items), np.float32)
            for row, weight in group:
                listed, values = self._row(segment, row)
                if not len(listed):
                    continue
                position = np.minimum(np.searchsorted(listed, items), len(listed) - 1)
                value = np.where(listed[position] == items, values[position], np.float32(0)) * np.float32(weight)
                best = np.maximum(best, value)
            total += best
        return total

    @staticmethod
    def _row(segment: sp.csr_matrix, row: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= row < segment.shape[0]:
            return np.zeros(0, np.int32), np.zeros(0, np.float32)
        span = slice(segment.indptr[row], segment.indptr[row + 1])
        return segment.indices[span], segment.data[span]

    def score(self, queries: Sequence[str]) -> np.ndarray:
        """(B, n_items) float32, words as they are typed. A query without known words scores 0 everywhere."""
        result = np.zeros((len(queries), self.n_items), np.float32)
        for row, query in enumerate(queries):
            ids, scores = self.match(self.groups(query), None)
            result[row, ids] = scores
        return result

    def groups(self, query: str) -> list[list[tuple[int, float]]]:
        """The terms of a query's words as they are typed; unknown ones are left out."""
        rows = (self.term(word) for word in dict.fromkeys(analyzer(self.language).content(words_of(query))))
        return [[(row, 1.0)] for row in rows if row >= 0]

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        """JSON-ready settings and arrays, without items added later, that ``from_state`` takes back."""
        weights = self.segments[0]
        terms = [""] * weights.shape[0]
        for term, row in self.terms.items():
            if row < len(terms):
                terms[row] = term
        settings = {
            "k1": self.k1,
            "b": self.b,
            "weights": self.weights,
            "language": self.language,
            "lengths": self.lengths,
            "n_items": self.n_fitted,
        }
        arrays = {
            "terms": np.frombuffer("\n".join(terms).encode(), np.uint8),
            "data": weights.data,
            "indices": weights.indices.astype(np.int32),
            "indptr": weights.indptr,
            "idf": self.idf,
        }
        return settings, arrays

    @classmethod
    def from_state(cls, settings: dict, arrays: Mapping[str, np.ndarray], prior: np.ndarray | None = None) -> BM25:
        """Inverse of ``state``."""
        model = cls(settings["k1"], settings["b"], settings["weights"], settings["language"])
        terms = bytes(arrays["terms"]).decode().split("\n")
        shape = len(arrays["indptr"]) - 1, int(settings["n_items"])
        segment = sp.csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), shape=shape)
        model.terms = {term: row for row, term in enumerate(terms[: shape[0]])} if shape[0] else {}
        model.n_fitted, model.lengths, model.idf = shape[1], settings["lengths"], arrays["idf"]
        model.segments, model.heads = [segment], [_heads(segment, prior)]
        return model


def _heads(segment: sp.csr_matrix, prior: np.ndarray | None) -> dict[int, np.ndarray]:
    """Of every term with more than ``HEAD`` items the best ones, rising: by weight and popularity."""
    boost = np.ones(segment.shape[1], np.float32)
    if prior is not None and prior.any():
        boost += STATIC * (prior / prior.max()).astype(np.float32)
    heads = {}
    for row in np.flatnonzero(np.diff(segment.indptr) > HEAD).tolist():
        span = slice(segment.indptr[row], segment.indptr[row + 1])
        ids = segment.indices[span]
        value = segment.data[span] * boost[ids]
        heads[row] = np.sort(ids[np.argpartition(-value, HEAD)[:HEAD]])
    return heads


def _distinct(lists: Sequence[np.ndarray]) -> np.ndarray:
    """The distinct values of rising arrays, rising."""
    if len(lists) < 2:
        return lists[0] if lists else np.zeros(0, np.int64)
    values = np.concatenate(lists)
    values.sort()
    kept = np.empty(len(values), bool)
    kept[:1] = True
    np.not_equal(values[1:], values[:-1], out=kept[1:])
    return values[kept]


def _present(counts: Iterable[sp.csr_matrix]) -> sp.csr_matrix:
    """1 where any of some matrices of one shape has a value."""
    first, *others = counts
    total = first.copy()
    for matrix in others:
        total = (total + matrix).tocsr()
    total.data[:] = 1
    return total


def _joined(left: sp.csr_matrix, right: sp.csr_matrix) -> sp.csr_matrix:
    """Two segments side by side; the first may know fewer terms."""
    indptr = np.concatenate([left.indptr, np.full(right.shape[0] - left.shape[0], left.indptr[-1], left.indptr.dtype)])
    padded = sp.csr_matrix((left.data, left.indices, indptr), shape=(right.shape[0], left.shape[1]))
    joined = sp.hstack([padded, right], format="csr", dtype=np.float32)
    joined.sort_indices()
    return joined
