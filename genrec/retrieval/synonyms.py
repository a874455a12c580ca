"""Words that people search with and words that the items they then choose have: synonyms from training searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import scipy.sparse as sp

from genrec.data.dataset import TRAIN, Dataset
from genrec.text.analysis import analyzer, words_of

MIN_CHOICES = 5  # searches with a word that ended at items with the other
MIN_SHARE = 0.3  # of the word's searches that did
MIN_LIFT = 5.0  # times as often as over all searches
PER_WORD = 3
WEIGHT = 0.5  # of the most certain synonym, against the word itself

Synonyms = Mapping[str, Sequence[tuple[str, float]]]
"""Term -> further terms that it may stand for, with weights."""


@dataclass(frozen=True)
class QueryChoices:
    """Distinct (query, item) pairs of training searches and their number: ``texts`` (Q,), the rest (P,)."""

    texts: list[str]
    query: np.ndarray
    item: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset) -> QueryChoices:
        """Count the searches of the training split; nothing later is read."""
        searches = np.flatnonzero((np.asarray(dataset.split) == TRAIN) & (np.asarray(dataset.queries) >= 0))
        pairs = pl.DataFrame(
            {"query": np.asarray(dataset.queries)[searches].astype(np.int64), "item": dataset.items[searches]}
        )
        counted = pairs.group_by("query", "item", maintain_order=True).len()
        used, query = np.unique(counted["query"].to_numpy(), return_inverse=True)
        texts = [dataset.query_texts[index] for index in used.tolist()]
        return cls(texts, query, counted["item"].to_numpy().astype(np.int64), counted["len"].to_numpy())


def query_terms(texts: Sequence[str], language: str) -> tuple[list[str], sp.csr_matrix]:
    """The distinct content terms of queries and which query has which: (Q, n_terms) of 1."""
    reader = analyzer(language)
    index: dict[str, int] = {}
    rows, columns = [], []
    for row, text in enumerate(texts):
        terms = {index.setdefault(stem, len(index)) for stem in reader.stems(reader.content(words_of(text)))}
        rows += [row] * len(terms)
        columns += sorted(terms)
    entries = np.asarray(rows, np.int64), np.asarray(columns, np.int64)
    return list(index), sp.csr_matrix((np.ones(len(rows), np.float32), entries), (len(texts), len(index)))


def find_synonyms(
    choices: QueryChoices, terms: Mapping[str, int], segment: sp.csr_matrix, language: str
) -> dict[str, list[tuple[str, float]]]:
    """Synonyms among the ``terms`` of a lexical index, whose ``segment`` (terms, items) says which item has which.

    A term t is a synonym of a query's term q where many of the searches with q end at items that have t and lack q: at
    least ``MIN_SHARE`` of them, ``MIN_LIFT`` times as many as over all searches.
    """
    if not len(choices.texts) or not segment.nnz:
        return {}
    names, has = query_terms(choices.texts, language)
    item_terms = segment.T.tocsr()
    item_terms = sp.csr_matrix(
        (np.ones(item_terms.nnz, np.float32), item_terms.indices, item_terms.indptr), item_terms.shape
    )
    shape = len(choices.texts), item_terms.shape[0]
    chosen = sp.csr_matrix((choices.count.astype(np.float32), (choices.query, choices.item)), shape)
    searches = np.asarray((has.T @ chosen).sum(axis=1)).ravel()  # with each query term
    base = np.asarray(item_terms.T @ np.asarray(chosen.sum(axis=0)).ravel()).ravel() / max(float(chosen.sum()), 1.0)
    own = np.array([terms.get(name, -1) for name in names], np.int64)
    term_names = list(terms)
    result: dict[str, list[tuple[str, float]]] = {}
    by_word = (has.T @ chosen).tocsr()  # (query terms, items)
    for word in np.flatnonzero(searches >= MIN_CHOICES).tolist():
        span = slice(by_word.indptr[word], by_word.indptr[word + 1])
        items, counts = by_word.indices[span], by_word.data[span]
        if own[word] >= 0:
            lacking = np.asarray(item_terms[items][:, [own[word]]].todense()).ravel() == 0
            items, counts = items[lacking], counts[lacking]
        if len(items) < 2:  # one item alone says nothing about words
            continue
        sums = np.asarray(item_terms[items].T @ counts).ravel()
        share = sums / searches[word]
        good = np.flatnonzero((sums >= MIN_CHOICES) & (share >= MIN_SHARE) & (share >= MIN_LIFT * base))
        good = good[np.argsort(-share[good], kind="stable")][:PER_WORD]
        if len(good):
            result[names[word]] = [(term_names[term], round(float(WEIGHT * share[term]), 4)) for term in good.tolist()]
    return result
