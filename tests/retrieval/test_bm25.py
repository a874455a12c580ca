"""BM25F: its formula, cut lists, and an index that grows."""

from __future__ import annotations

import bm25s
import numpy as np
import polars as pl
import pytest

import genrec.retrieval.bm25 as bm25_module
from genrec.retrieval.bm25 import BM25

TEXTS = ["red lamp for the desk", "", "blue lamp", "blue cup cup", "large red chair with red cushions", "desk"]
QUERIES = ["red lamp", "cup", "nothing of it", "desk desk", ""]


def test_added_items_score_as_those_of_the_fit():
    fitted = BM25().fit(TEXTS)
    grown = fitted.grow(TEXTS)
    scores = grown.score(QUERIES)
    np.testing.assert_allclose(scores[:, :6], fitted.score(QUERIES))
    np.testing.assert_allclose(scores[:, 6:], scores[:, :6], rtol=1e-5, atol=1e-7)
    assert fitted.n_items == 6 and fitted.score(QUERIES).shape == (5, 6)  # what grew is another index


def test_growing_one_by_one_equals_growing_at_once():
    new = ["green lamp", "sofa", "sofa lamp", "", "blue sofa", "violet sofa cup", "sofa"]
    queries = [*QUERIES, "sofa", "violet lamp", "green"]
    at_once, steps = BM25().fit(TEXTS).grow(new), BM25().fit(TEXTS)
    for text in new:
        steps = steps.grow([text])
        assert len(steps.segments) <= 4
    np.testing.assert_allclose(steps.score(queries), at_once.score(queries), rtol=1e-6)
    assert np.flatnonzero(at_once.score(["violet"])[0]).tolist() == [11]  # a word has a row of its own
    assert steps.score(["sofa"])[0].argmax() >= 6 and steps.n_items == 13


def test_bare_ids_grow():
    grown = BM25().fit(["", ""]).grow(["red lamp", ""]).grow(["lamp"])
    assert (grown.score(["lamp"])[0] > 0).tolist() == [False, False, True, False, True]


def test_one_field_equals_bm25s():
    """Lucene's BM25 of the library that the project used before, with the words as they are."""
    words = [text.split() for text in TEXTS if text]
    reference = bm25s.BM25(method="lucene", k1=1.4, b=0.6)
    reference.index(words, show_progress=False)
    mine = BM25(k1=1.4, b=0.6, weights={}, language="none").fit([" ".join(text) for text in words])
    for query in ("red", "blue cup", "desk lamp chair"):
        np.testing.assert_allclose(mine.score([query])[0], reference.get_scores(query.split()), rtol=1e-5)


def test_fields_are_weighed_and_added_before_they_saturate():
    items = pl.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "title": ["red lamp", "lamp", "chair"],
            "text": [None, "red red lamp", "red"],
            "brand": [None, None, "Red"],
            "category": [["Light"], ["Light"], []],
            "price": [None, None, 3.0],
            "year": [1990, 1991, 1992],
        },
        schema_overrides={"category": pl.List(pl.String)},
    )
    index = BM25(k1=1.0, b=0.0, weights={"title": 3.0, "brand": 2.0, "text": 0.5}, language="none").fit(items)
    idf = np.log1p((3 - 3 + 0.5) / 3.5)
    frequency = np.array([3.0, 1.0, 2.5])  # 3 x title; 2 x 0.5 text; 2 x brand + 0.5 text
    np.testing.assert_allclose(index.score(["red"])[0], idf * frequency / (1 + frequency), rtol=1e-6)
    assert index.score(["1991"])[0].argmax() == 1  # further columns are searched, too


def test_long_lists_are_cut_to_the_best_items_with_exact_scores(monkeypatch):
    monkeypatch.setattr(bm25_module, "HEAD", 4)
    texts = ["word " + "filler " * (index % 9) + ("rare" if index % 50 == 7 else "") for index in range(100)]
    prior = np.zeros(100)
    prior[63] = 9.0  # as short a text as others, but popular
    index = BM25(language="none").fit(texts, prior)
    exact = index.score(["word rare"])[0]
    ids, scores = index.match(index.groups("word rare"), 4)
    assert {7, 57} < set(ids.tolist()) and 63 in ids and len(ids) < 20
    np.testing.assert_allclose(scores, exact[ids], rtol=1e-6)
    np.testing.assert_allclose(index.score_at(index.groups("word rare"), np.arange(100)), exact, rtol=1e-6)


@pytest.mark.parametrize(
    ("language", "query"),
    [("english", "running shoe"), ("german", "laufender schuh"), ("french", "chaussures rouge"), ("none", "shoes")],
)
def test_forms_of_a_word_match_where_the_language_has_stems(language, query):
    texts = ["red shoes for runs", "schuhe laufend", "chaussure rouges", "blue cup"]
    expected = {"english": 0, "german": 1, "french": 2, "none": 0}[language]
    assert BM25(language=language).fit(texts).score([query])[0].argmax() == expected
    assert BM25(language="none").fit(texts).score(["shoe"]).max() == 0
