"""What titles say of a query: words as typed, their order and neighbourhood; growth, saving, empty titles."""

import numpy as np
import polars as pl
import pytest

from genrec.retrieval.bm25 import FieldCounts
from genrec.retrieval.lexical import LexicalIndex
from genrec.retrieval.title_words import LONGEST

TITLES = ["Olay Daily Exfoliating Body Wash", "Body Daily Lotion", "", "Intensity body", "牛奶巧克力"]


def titles_of(texts):
    return FieldCounts.of({"title": texts}).titles


def match(texts, query):
    return titles_of(texts).match([query], np.arange(len(texts))[None])[0]


def test_words_order_and_neighbours_count_as_typed():
    covered, ordered, adjacent = match(TITLES, "daily body").T
    np.testing.assert_allclose(covered, [1, 1, 0, 0.5, 0])
    np.testing.assert_allclose(ordered, [1, 0, 0, 0, 0])  # "Body Daily" is the other order
    np.testing.assert_allclose(adjacent, [0, 0, 0, 0, 0])
    assert match(TITLES, "body wash")[0].tolist() == [1, 1, 1]
    assert match(TITLES, "intense")[3].tolist() == [0, 0, 0]  # a stem is not the word


def test_a_word_again_counts_where_some_occurrence_is_in_order():
    assert match(["wash body wash"], "body wash")[0].tolist() == [1, 1, 1]
    assert match(["wash body wash"], "wash body")[0].tolist() == [1, 1, 1]


def test_scripts_without_spaces_are_read_by_characters():
    covered = match(TITLES, "巧克力")[:, 0]
    assert covered[4] == 1 and not covered[:4].any()


def test_queries_and_titles_without_words_say_nothing():
    for query in ("", "!!"):
        assert not match(TITLES, query).any()
    assert not match(["", ""], "body wash").any()


def test_only_the_first_words_of_a_long_title_are_kept():
    long = " ".join(f"w{index}" for index in range(LONGEST + 5))
    assert match([long], f"w{LONGEST - 1}")[0, 0] == 1 and match([long], f"w{LONGEST}")[0, 0] == 0


def test_blocks_do_not_change_an_answer(monkeypatch):
    titles, ids = titles_of(TITLES), np.tile(np.arange(5), 7)[None]
    whole = titles.match(["daily body wash"], ids)
    monkeypatch.setattr("genrec.retrieval.title_words.CELLS", 1)
    np.testing.assert_array_equal(titles.match(["daily body wash"], ids), whole)


def test_grown_titles_are_those_of_the_whole_catalogue_and_old_ones_stay():
    old, whole, ids = titles_of(TITLES[:2]), titles_of(TITLES), np.arange(5)[None]
    grown = old.grown(titles_of(TITLES[2:]))
    other = old.grown(titles_of(["Another wash"]))
    np.testing.assert_array_equal(grown.match(["daily body"], ids), whole.match(["daily body"], ids))
    assert len(old) == 2 and len(grown) == 5 and other.match(["another"], np.array([[2]]))[0, 0, 0] == 1


@pytest.fixture
def items():
    lists = pl.List(pl.String)
    return pl.DataFrame({"item_id": [str(one) for one in range(5)], "title": TITLES, "text": None, "brand": None,
                         "category": pl.Series([None] * 5, dtype=lists), "price": None})  # fmt: skip


def test_the_index_saves_grows_and_refits_titles(items, tmp_path):
    ids = np.arange(5)[None]
    index = LexicalIndex.fit(items)
    expected = index.title_match(["body wash"], ids)
    assert expected[0, 0, 0] == 1
    index.save(tmp_path / "index.npz")
    for other in (
        LexicalIndex.load(tmp_path / "index.npz"),
        LexicalIndex.fit(items[:2]).grow(items[2:]),
        index.without(np.array([False, True])),
        index.refit(items),
    ):
        np.testing.assert_array_equal(other.title_match(["body wash"], ids), expected)
    grown = LexicalIndex.fit(items[:2]).grow(items[2:])
    grown.save(tmp_path / "grown.npz")  # added items are not saved
    assert len(LexicalIndex.load(tmp_path / "grown.npz").titles) == 2
