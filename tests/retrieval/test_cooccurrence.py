"""Co-occurrence and transition tables of bounded size."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

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


def test_of_equal_values_the_lowest_columns_are_kept():
    values = np.array([[0, 2, 1, 1, 1], [3, 0, 0, 0, 0], [1, 1, 1, 1, 1], [5, 4, 3, 2, 1]], np.float32)
    kept = cooccurrence.strongest_of_rows(sp.csr_matrix(values), 2).toarray()
    np.testing.assert_array_equal(kept, [[0, 2, 1, 0, 0], [3, 0, 0, 0, 0], [1, 1, 0, 0, 0], [5, 4, 0, 0, 0]])


@pytest.mark.parametrize("log", [False, True])
def test_transitions_are_cut_as_a_whole_table_would_be(histories, log):
    moves = histories.transitions(40)
    counts = moves.toarray().astype(np.float64)
    counts = np.log1p(counts) if log else counts
    full = (0.5 * counts + 0.25 * counts.T).astype(np.float32)
    strong = np.zeros(full.shape, bool)
    for row in range(40):
        best = np.argsort(-full[row], kind="stable")[:4]
        strong[row, best] = full[row, best] > 0
    table = cooccurrence._following(moves, log, 4)
    np.testing.assert_array_equal(table.toarray(), np.where(strong | strong.T, full, 0))
