"""A BM25 index that grows and is saved."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.errors import UserError
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


@pytest.mark.parametrize("texts", [TEXTS, ["", ""]])
def test_files(texts, tmp_path):
    fitted = BM25(k1=0.9, b=0.4).fit(texts)
    fitted.save(tmp_path / "bm25.npz")
    loaded = BM25.load(tmp_path / "bm25.npz")
    for one, other in ((fitted, loaded), (fitted.grow(["new lamp"]), loaded.grow(["new lamp"]))):
        np.testing.assert_array_equal(one.score([*QUERIES, "new"]), other.score([*QUERIES, "new"]))
    with pytest.raises(UserError, match="not a saved BM25"):
        BM25.load(tmp_path / "missing.npz")
