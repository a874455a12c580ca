"""Fitting the lexical index of a data set.

Validation searches choose the field weights, training searches give synonyms and further known words, and both real and
shuffled queries calibrate the judgement of queries that match nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from genrec.data.dataset import TRAIN, Dataset
from genrec.data.everyday_queries import misspelt
from genrec.retrieval.bm25 import BM25, FieldCounts
from genrec.retrieval.facet_words import FacetWords
from genrec.retrieval.lexical import LexicalIndex
from genrec.retrieval.match_judge import MatchJudge, match_features, shuffled
from genrec.retrieval.sources import SparseScores
from genrec.retrieval.synonyms import QueryChoices, find_synonyms, query_terms
from genrec.text.analysis import detect_language, words_of
from genrec.text.fields import item_fields

log = logging.getLogger(__name__)
SEARCHES = 1000  # validation searches that choose the settings
ITEMS = 100_000  # items among which they are ranked
MIN_SEARCHES = 50  # with fewer the defaults stay
MIN_GAIN = 0.002  # of nDCG@10 that a changed setting must bring
MIN_LOGGED = 3  # training searches that make a word known which no item has
GRID: dict[str, tuple[float, ...]] = {
    "title": (1.0, 4.0),
    "brand": (0.5, 2.0),
    "category": (0.3, 3.0),
    "attributes": (0.3, 3.0),
    "text": (0.3, 1.0),
    "k1": (0.6, 2.0),
    "b": (0.3, 0.5, 0.9),
}


def fit_lexical(dataset: Dataset, language: str, seed: int) -> LexicalIndex:
    """The lexical index of a data set: training events count popularity and synonyms, validation chooses settings."""
    fields = item_fields(dataset.item_table)
    counted = FieldCounts.of(fields)
    popularity = dataset.item_counts(TRAIN)
    if language == "auto":
        language = detect_language(text for texts in fields.values() for text in texts[:1000])
    texts, targets = validation_searches(dataset, seed)
    index = tuned(counted, texts, targets, BM25(language=language), seed)
    choices = QueryChoices.of(dataset)
    lexical = LexicalIndex.of(index, counted, popularity, FacetWords.of(dataset.item_table, language))
    synonyms = find_synonyms(choices, index.terms, index.segments[0], language)
    logged = logged_terms(choices, language, index)
    parts = (index, lexical.vocabularies, lexical.popularity, synonyms, frozenset(logged))
    judge = fit_judge(LexicalIndex(*parts), texts or _titles(dataset, popularity, seed), seed)
    log.info(
        "lexical index: %s words, language %s, k1 %g, b %g, weights %s; %s words with synonyms",
        len(counted.words), language, index.k1, index.b,
        ", ".join(f"{field} {weight:g}" for field, weight in index.weights.items()), len(synonyms),
    )  # fmt: skip
    return LexicalIndex(*parts, judge, lexical.titles, lexical.facets)


def validation_searches(dataset: Dataset, seed: int) -> tuple[list[str], np.ndarray]:
    """Query texts and target items (N,) of validation searches, at most ``SEARCHES`` over all kinds."""
    texts: list[str] = []
    targets = [np.zeros(0, np.int64)]
    kinds = dataset.query_kinds
    rng = np.random.default_rng(seed)
    for kind in kinds:
        requests = dataset.requests("valid", kind)
        chosen = requests.take(np.sort(rng.permutation(len(requests))[: SEARCHES // len(kinds)]))
        texts += chosen.request_texts
        targets.append(chosen.targets.astype(np.int64))
    return texts, np.concatenate(targets)


def tuned(counted: FieldCounts, texts: Sequence[str], targets: np.ndarray, start: BM25, seed: int) -> BM25:
    """The settings with the highest nDCG@10 of the targets, found by changing one after the other; not yet indexed.

    ``texts`` are the searches and ``targets`` (N,) their items.
    """
    if len(texts) < MIN_SEARCHES or not counted.words:
        return start
    n_items = next(iter(counted.counts.values())).shape[0]
    if n_items > ITEMS:
        others = np.random.default_rng(seed).permutation(n_items)[:ITEMS]
        rows, position = np.unique(np.concatenate([targets, others]), return_inverse=True)
        targets = position[: len(targets)]
        counted = replace(counted, counts={field: matrix[rows] for field, matrix in counted.counts.items()})
    best, settings = search_quality(counted, texts, targets, start), start
    for name, values in GRID.items():
        for value in values:
            trial = _changed(settings if settings is not start else start, name, value)
            if name in trial.weights and not counted.counts.get(name, sp.csr_matrix((1, 1))).nnz:
                continue  # a field that no item has
            quality = search_quality(counted, texts, targets, trial)
            if quality > best + MIN_GAIN:
                best, settings = quality, trial
    return BM25(settings.k1, settings.b, settings.weights, settings.language)


def _changed(index: BM25, name: str, value: float) -> BM25:
    if name in index.weights:
        return BM25(index.k1, index.b, {**index.weights, name: value}, index.language)
    k1, b = (value, index.b) if name == "k1" else (index.k1, value)
    return BM25(k1, b, index.weights, index.language)


def search_quality(counted: FieldCounts, texts: Sequence[str], targets: np.ndarray, settings: BM25) -> float:
    """nDCG@10 of the target items (N,) of searches with the words as typed; an equal score counts half a rank."""
    index = BM25(settings.k1, settings.b, settings.weights, settings.language).index(counted)
    groups = [index.groups(text) for text in texts]
    rows = np.repeat(np.arange(len(texts)), [len(one) for one in groups])
    terms = np.array([row for one in groups for ((row, _),) in one], np.int64)
    asked = sp.csr_matrix((np.ones(len(terms), np.float32), (rows, terms)), (len(texts), len(index.terms)))
    matrix = (asked @ index.segments[0]).tocsr()
    target = SparseScores(matrix).at(targets[:, None])[:, 0]
    owner = np.repeat(np.arange(len(texts)), np.diff(matrix.indptr))
    above = np.bincount(owner[matrix.data > target[owner] + 1e-6], minlength=len(texts))
    equal = np.bincount(owner[np.abs(matrix.data - target[owner]) <= 1e-6], minlength=len(texts)) - 1
    rank = above + np.maximum(equal, 0) / 2
    return float(np.where((rank < 10) & (target > 0), 1 / np.log2(rank + 2), 0.0).mean())


def logged_terms(choices: QueryChoices, language: str, index: BM25) -> list[str]:
    """Terms of training searches, at least ``MIN_LOGGED`` of them, that no item has."""
    if not choices.texts:
        return []
    names, has = query_terms(choices.texts, language)
    searches = np.bincount(choices.query, weights=choices.count, minlength=len(choices.texts))
    counts = np.asarray(has.T @ searches).ravel()
    return sorted(name for name, n in zip(names, counts, strict=True) if n >= MIN_LOGGED and name not in index.terms)


def fit_judge(lexical: LexicalIndex, texts: Sequence[str], seed: int) -> MatchJudge:
    """Calibrate the judgement on searches against the same searches with shuffled letters.

    A search with as many words again that nobody knows still names something, and so does one with a misspelt word:
    both count as good, too.
    """
    good = list(dict.fromkeys(text for text in texts if words_of(text)))
    nonsense = shuffled(good, seed)
    mixed = [f"{text} {other}" for text, other in zip(good, nonsense[::-1], strict=True)]
    draws = np.random.default_rng(seed).integers(1 << 30, size=len(good)).tolist()
    wrong = [misspelt(text.lower().split(), draw) for text, draw in zip(good, draws, strict=True)]
    mixed += [" ".join(words) for words in wrong if words]
    return MatchJudge.fit(_features(lexical, good), _features(lexical, nonsense), _features(lexical, mixed))


def _features(lexical: LexicalIndex, texts: Sequence[str]) -> np.ndarray:
    rows = []
    for text in texts:
        read = lexical.read(text)
        rows.append(match_features(read, float(lexical.index.match(read.groups)[1].max(initial=0.0))))
    return np.array(rows).reshape(len(rows), 3)


def _titles(dataset: Dataset, popularity: np.ndarray, seed: int) -> list[str]:
    """Titles drawn by popularity, which stand for searches in a log without any."""
    titles = dataset.item_table["title"].fill_null("").to_list()
    if not popularity.sum():
        return titles[:SEARCHES]
    drawn = np.random.default_rng(seed).choice(len(titles), SEARCHES, p=popularity / popularity.sum())
    return [titles[index] for index in drawn.tolist()]
