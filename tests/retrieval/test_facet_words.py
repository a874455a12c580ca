"""What facets say of a query: levels of the category, brand and attributes; growth, saving, items without any."""

import numpy as np
import polars as pl
import pytest

from genrec.retrieval.bm25 import BM25
from genrec.retrieval.facet_words import FacetWords
from genrec.retrieval.lexical import LexicalIndex

IDS = np.arange(5)[None]
ENGLISH = BM25(language="english")


@pytest.fixture
def items():
    return pl.DataFrame({
        "item_id": [str(one) for one in range(5)],
        "title": ["Repair", "Mask", "", "Set", "Cap"],
        "text": None,
        "brand": ["Nivea", None, "The Body Shop", "", "Hair"],
        "category": pl.Series(
            [["Beauty", "Hair Care", "Shampoos"], ["Beauty", "Hair Treatments"], None, ["Hair and Care"], []],
            dtype=pl.List(pl.String),
        ),
        "price": None,
        "year": [1995, 1996, None, 1995, None],
    })  # fmt: skip


def match(items, query):
    return FacetWords.of(items, "english").match([query], IDS)[0]


def test_levels_of_the_category_count_by_stem_and_as_a_whole(items):
    words, named, levels, whole, _ = match(items, "shampoo for hair care").T
    np.testing.assert_allclose(words, [1, 1 / 3, 0, 2 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(named, [1, 0, 0, 2 / 3, 0], rtol=1e-6)  # "Hair Treatments" is not named, hair alone is
    np.testing.assert_allclose(levels, [2 / 3, 0, 0, 1, 0], rtol=1e-6)
    assert whole.tolist() == [1, 0, 0, 0, 0]


def test_brand_and_attributes_are_facets_too(items):
    every = match(items, "nivea shampoo 1995")[:, 4]
    np.testing.assert_allclose(every, [1, 0, 0, 1 / 3, 0], rtol=1e-6)
    assert match(items, "body shop")[2].tolist() == [0, 0, 0, 0, 1]  # stop words do not count
    assert match(items, "hair")[4].tolist() == [0, 0, 0, 0, 1]  # a brand is no category


def test_queries_without_words_and_texts_alone_say_nothing(items):
    for query in ("", "!!"):
        assert not match(items, query).any()
    assert not FacetWords.of(["hair care", "shampoo"], "english").match(["hair"], np.array([[0, 1]])).any()
    assert not match(items.with_columns(pl.lit(None).cast(pl.List(pl.String)).alias("category")), "shampoo")[
        :, :4
    ].any()


def test_an_answer_does_not_depend_on_the_other_requests_or_candidates(items):
    facets = FacetWords.of(items, "english")
    together = facets.match(["hair care", "", "nivea 1996"], np.tile(IDS, (3, 1)))
    for row, query in enumerate(["hair care", "", "nivea 1996"]):
        np.testing.assert_array_equal(together[row], facets.match([query], IDS)[0])
        for item in range(5):
            np.testing.assert_array_equal(together[row, item], facets.match([query], np.array([[item]]))[0, 0])


def test_the_index_saves_grows_and_refits_facets(items, tmp_path):
    index = LexicalIndex.fit(items, settings=ENGLISH)
    expected = index.facet_match(["hair care shampoos", "nivea"], np.tile(IDS, (2, 1)))
    assert expected[0, 0, 3] == 1 and expected[1, 0, 4] == 1
    index.save(tmp_path / "index.npz")
    for other in (
        LexicalIndex.load(tmp_path / "index.npz"),
        LexicalIndex.fit(items[:2], settings=ENGLISH).grow(items[2:]),
        index.without(np.array([False, True])),
        index.refit(items),
    ):
        actual = other.facet_match(["hair care shampoos", "nivea"], np.tile(IDS, (2, 1)))
        np.testing.assert_array_equal(actual, expected)
    grown = LexicalIndex.fit(items[:2], settings=ENGLISH).grow(items[2:])
    grown.save(tmp_path / "grown.npz")  # added items are not saved
    assert len(LexicalIndex.load(tmp_path / "grown.npz").facets) == 2


def test_facets_are_read_as_the_catalogue_writes_them(items):
    index = LexicalIndex.fit(items, np.ones(5), ENGLISH)
    assert index.read("shampos").corrected == "shampoos"
    assert index.facet_match(["shampos"], IDS)[0, 0, 3] == 1
