"""Recent popularity counts what came before a request, decayed, and never what came later."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.errors import UserError
from genrec.retrieval.recent import HALF_LIFE, KEPT, MOMENTS, RecentPopularity


def events(n: int, n_items: int, span: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.zipf(1.5, n) % n_items, 1_000 + draw.integers(0, span, n)


@pytest.mark.parametrize(("n_items", "span"), [(40, 100_000), (400, 7), (400, 1)])
def test_counts_are_those_of_the_events_before_the_moment(n_items, span):
    items, times = events(3000, n_items, span)
    popular = RecentPopularity.fit(items, times, n_items)
    until = np.array([times.min() - 5, times.min(), 1_000 + span // 2, times.max(), times.max() + 1, 10**10])
    actual = popular.scores(until).toarray()
    assert not actual[:2].any()
    half = max((times.max() + 1 - times.min()) / HALF_LIFE, 1)
    for row, time in zip(actual, until, strict=True):
        known = popular.times[popular.times <= time]
        if len(known):
            before = times < known[-1]
            weights = 0.5 ** ((known[-1] - times[before]) / half)
            expected = np.bincount(items[before], weights, minlength=n_items)
            found = np.flatnonzero(row)
            np.testing.assert_allclose(row[found], expected[found], rtol=1e-4)
            assert len(found) == min(KEPT, (expected > 0).sum())
            assert row[found].min(initial=np.inf) >= np.sort(expected)[::-1][:KEPT][-1] * 0.999


def test_later_events_change_nothing_for_an_earlier_request():
    items, times = events(2000, 50, 10_000)
    popular = RecentPopularity.fit(items, times, 50)
    late = times >= popular.times[MOMENTS // 2]
    items[late] = (items[late] + 7) % 50  # other items, at the same times
    other = RecentPopularity.fit(items, times, 50)
    same, rest = slice(0, MOMENTS // 2 + 1), slice(MOMENTS // 2 + 2, None)
    assert (popular.table[same] != other.table[same]).nnz == 0
    assert (popular.table[rest] != other.table[rest]).nnz > 0


def test_saved_counts_are_the_same_and_old_ones_are_refused():
    popular = RecentPopularity.fit(*events(500, 30, 5_000), 30)
    again = RecentPopularity.from_state(popular.state(), 31)  # the catalogue has grown by one item
    assert again.table.shape == (MOMENTS, 31) and (again.table[:, :30] != popular.table).nnz == 0
    assert np.array_equal(again.times, popular.times)
    with pytest.raises(UserError, match="genrec train"):
        RecentPopularity.from_state({}, 30)


def test_an_empty_log_proposes_nothing():
    popular = RecentPopularity.fit(np.zeros(0, np.int64), np.zeros(0, np.int64), 5)
    assert popular.scores(np.array([0, 100])).nnz == 0
