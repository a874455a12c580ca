"""Co-occurrence and transition tables of bounded size."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.data.histories import Histories
from genrec.retrieval import cooccurrence
from genrec.retrieval.cooccurrence import CooccurrenceTransition


@pytest.fixture
def histories():
    rng = np.random.default_rng(0)
    return Histories.from_lists([rng.integers(0, 40, rng.integers(1, 9)) for _ in range(90)])


def test_a_table_keeps_the_strongest_neighbours_of_each_item(histories, monkeypatch):
    whole = CooccurrenceTransition().fit(histories, 40)
    monkeypatch.setattr(cooccurrence, "MAX_PAIRS", 120)
    monkeypatch.setattr(cooccurrence, "MIN_NEIGHBOURS", 1)
    table = CooccurrenceTransition().fit(histories, 40)  # 120 / 40 neighbours an item
    full, cut = whole.similar.toarray(), table.similar.toarray()
    for row in range(40):
        best = np.argsort(-full[row], kind="stable")[:3]
        np.testing.assert_array_equal(np.flatnonzero(cut[row]), np.sort(best[full[row, best] > 0]))
    np.testing.assert_array_equal(cut[cut > 0], full[cut > 0])
    full, cut = whole.following.toarray(), table.following.toarray()
    assert ((cut > 0) == (cut > 0).T).all()  # forward moves are told from backward ones
    np.testing.assert_array_equal(cut[cut > 0], full[cut > 0])
    for row in range(40):
        best = np.argsort(-full[row], kind="stable")[:3]
        assert set(best[full[row, best] > 0]) <= set(np.flatnonzero(cut[row]))


@pytest.mark.parametrize(
    "lists", [[[], [], [0, 1, 1, 2], [], [2, 0], [], []], [[0, 1], [1, 2], [2]], [[], []], [[1]], [[0, 1]] * 3 + [[]]]
)
def test_moves_stay_within_a_history(lists):
    expected = np.zeros((3, 3))
    for items in lists:
        for before, after in zip(items, items[1:], strict=False):
            expected[before, after] += before != after
    histories = Histories.from_lists([np.array(items, np.int64) for items in lists])
    np.testing.assert_array_equal(histories.transitions(3).toarray(), expected)
    CooccurrenceTransition().fit(histories, 3)


def test_tables_made_some_rows_at_a_time_are_the_same(histories, monkeypatch):
    monkeypatch.setattr(cooccurrence, "MAX_PAIRS", 200)
    monkeypatch.setattr(cooccurrence, "MIN_NEIGHBOURS", 1)
    whole = CooccurrenceTransition(transitions="log").fit(histories, 40)
    monkeypatch.setattr(cooccurrence, "BLOCK_VALUES", 17)
    blocks = CooccurrenceTransition(transitions="log").fit(histories, 40)
    assert (whole.following != blocks.following).nnz == (whole.similar != blocks.similar).nnz == 0 < whole.following.nnz
