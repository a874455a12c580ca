"""Neighbour tables against counting by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec.data.histories import Histories
from genrec.retrieval import neighbours
from genrec.retrieval.neighbours import (
    cooccurrence_neighbours,
    cooccurring_items,
    strength,
    strongest,
    top_of_category_and_brand,
    users_by_items,
)


@pytest.fixture
def histories():
    rng = np.random.default_rng(0)
    return Histories.from_lists([rng.integers(0, 12, rng.integers(1, 9)) for _ in range(40)])


def test_neighbours_count_what_a_loop_counts(histories):
    n = 12
    together, after, users = np.zeros((n, n)), np.zeros((n, n)), np.zeros(n)
    for row in range(len(histories)):
        items = histories.items[histories.offsets[row] : histories.offsets[row + 1]]
        for one in set(items.tolist()):
            users[one] += 1
            for other in set(items.tolist()) - {one}:
                together[one, other] += 1
        for one, other in zip(items, items[1:], strict=False):
            after[one, other] += one != other
    table = cooccurrence_neighbours(histories, n, n)
    score = strength(together, after, after.T, 1 / np.sqrt(np.outer(users + 1, users + 1)))
    np.testing.assert_array_equal(table.users, users)
    for item in range(n):
        live = table.ids[item] >= 0
        neighbours = table.ids[item][live]
        assert set(neighbours.tolist()) == set(np.flatnonzero(score[item]).tolist())
        expected = np.stack([together[item], after[item], after[:, item]], -1)[neighbours]
        np.testing.assert_array_equal(table.counts[item][live], expected)
        assert (np.diff(score[item][neighbours]) <= 1e-6).all()


def test_a_narrow_table_is_the_head_of_a_wide_one(histories):
    wide, narrow = cooccurrence_neighbours(histories, 12, 12), cooccurrence_neighbours(histories, 12, 3)
    np.testing.assert_array_equal(narrow.ids, wide.ids[:, :3])
    np.testing.assert_array_equal(narrow.counts, wide.counts[:, :3])


def test_top_of_category_and_brand_holds_the_most_frequent_items():
    items = pl.DataFrame(
        {
            "category": [["a", "x"], ["a", "x"], ["a", "x"], ["a", "y"], None, ["a", "x"]],
            "brand": ["p", "q", None, "p", "p", ""],
        },
        schema={"category": pl.List(pl.String), "brand": pl.String},
    )
    actual = top_of_category_and_brand(items, np.array([5, 1, 3, 2, 0, 4], np.float32), 4)
    assert actual[1].tolist() == [0, 5, -1, -1]  # category x without itself, most had first; nobody else has brand q
    assert actual[0].tolist() == [5, 2, 3, -1]  # brand p: item 3; item 4 was had by nobody
    assert actual[4].tolist() == [-1, -1, 0, 3]
    assert actual[5].tolist() == [0, 2, -1, -1]


def test_neighbours_do_not_depend_on_the_blocks(histories, monkeypatch):
    whole = cooccurrence_neighbours(histories, 12, 5)
    monkeypatch.setattr(neighbours, "PAIRS", 40)
    assert len(list(cooccurring_items(users_by_items(histories, 12)))) > 3
    blocks = cooccurrence_neighbours(histories, 12, 5)
    np.testing.assert_array_equal(blocks.ids, whole.ids)
    np.testing.assert_array_equal(blocks.counts, whole.counts)


def test_strongest_of_each_row():
    scores, indptr = np.array([3, 1, 2, 5, 5, 4, 9.0]), np.array([0, 3, 3, 6, 7])
    assert strongest(scores, indptr, 1).tolist() == [0, 3, 4, 6]  # ties stay
    assert strongest(scores, indptr, 2).tolist() == [0, 2, 3, 4, 6]
    assert strongest(scores, indptr, 0).tolist() == []
