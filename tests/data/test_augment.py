"""Shuffled windows: the same events, times in place, the same in every batch, and nothing from behind the window."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from genrec.data.augment import Shuffle, shuffled

TIMES = np.array([0, 1, 1, 1, 2, 5, 5, 9, 9, 9, 9, 12] * 20)
LOG = SimpleNamespace(items=np.arange(240), actions=np.arange(240) * 2, queries=np.arange(240) * 3, timestamps=TIMES)
START, STOP = np.arange(0, 240, 12), np.arange(0, 240, 12) + 10  # the last two events of each belong to nobody here


def test_ties_only_move_among_themselves():
    actual, begin = shuffled(LOG, START, STOP, Shuffle(1.0, 0.0, 5))
    for position, start in zip(begin, START, strict=True):
        part = actual.items[position : position + 10] - start
        assert (
            part[0] == 0
            and part[4] == 4
            and set(part[1:4]) == {1, 2, 3}
            and set(part[5:7]) == {5, 6}
            and set(part[7:]) == {7, 8, 9}
        )
    assert np.array_equal(actual.timestamps.reshape(20, 10), TIMES.reshape(20, 12)[:, :10])
    assert not np.array_equal(actual.items, np.sort(actual.items))
    assert np.array_equal(actual.actions, actual.items * 2) and np.array_equal(actual.queries, actual.items * 3)


def test_whole_windows_are_permuted_within_themselves():
    actual, begin = shuffled(LOG, START, STOP, Shuffle(0.0, 1.0, 5))
    for position, start in zip(begin, START, strict=True):
        assert set(actual.items[position : position + 10]) == set(range(start, start + 10))
    assert (actual.items.reshape(20, 10)[:, 0] != START).any()


def test_shares_and_draws():
    def moved(shuffle):
        items = shuffled(LOG, START, STOP, shuffle)[0].items.reshape(20, 10)
        return (items != START[:, None] + np.arange(10)).any(1)

    assert not moved(Shuffle(0.0, 0.0, 1)).any()
    assert 0 < moved(Shuffle(0.0, 0.5, 1)).sum() < 20
    one, two = (shuffled(LOG, START, STOP, Shuffle(0.0, 1.0, draw))[0].items for draw in (1, 2))
    assert not np.array_equal(one, two)


def test_a_window_is_shuffled_alike_in_any_batch():
    whole, begin = shuffled(LOG, START, STOP, Shuffle(1.0, 0.5, 3))
    alone, _ = shuffled(LOG, START[7:8], STOP[7:8], Shuffle(1.0, 0.5, 3))
    assert np.array_equal(whole.items[begin[7] : begin[7] + 10], alone.items)
