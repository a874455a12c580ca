"""User IDs from behaviour: against a slow reference, and blind to whatever comes after the request."""

from __future__ import annotations

import math

import numpy as np
import pytest

from genrec.data.histories import Histories
from genrec.errors import UserError
from genrec.semantic_ids.user_ids import (
    NO_CODE,
    behaviour_codes,
    clicked_for_query,
    code_weights,
    long_history_vectors,
    recency_weights,
    user_codes,
    with_fallback,
)

SIZES = (9, 5, 4)


@pytest.fixture(scope="module")
def codes():
    rng = np.random.default_rng(0)
    return np.column_stack([rng.integers(0, size, 30) for size in SIZES])


@pytest.fixture(scope="module")
def histories():
    rng = np.random.default_rng(1)
    return Histories.from_lists([rng.integers(0, 30, length) for length in (3, 0, 1, 7, 12, 0, 40)])


def slow_weights(length: int) -> list[float]:
    raised = [math.exp(math.sqrt(i)) for i in range(1, length + 1)]
    return [value / sum(raised) for value in raised]


def rows_of(histories: Histories) -> list[list[int]]:
    return [
        histories.items[start:stop].tolist()
        for start, stop in zip(histories.offsets, histories.offsets[1:], strict=False)
    ]


def test_weights_equal_the_formula_and_favour_the_recent(histories):
    weights = recency_weights(histories)
    np.testing.assert_allclose(
        weights, [value for row in rows_of(histories) for value in slow_weights(len(row))], rtol=1e-9
    )
    assert weights[0] < weights[1] < weights[2]


def test_codes_equal_the_slow_formula(codes, histories):
    found = behaviour_codes(codes, histories)
    for row, items in zip(found, rows_of(histories), strict=True):
        weights = slow_weights(len(items))
        expected = [
            math.ceil(sum(w * codes[i, level] for w, i in zip(weights, items, strict=True)) - 1e-6)
            for level in range(3)
        ]
        assert row.tolist() == (expected if items else [NO_CODE] * 3)


def test_equal_codes_give_that_code_and_codes_stay_in_range(codes, histories):
    same = np.tile([[8, 4, 3]], (30, 1))
    assert (
        behaviour_codes(same, histories)[histories.lengths > 0] == [8, 4, 3]
    ).all()  # a ceiling of 8.0000001 would be 9
    found = behaviour_codes(codes, histories)
    assert (found < SIZES).all() and (found[histories.lengths > 0] >= 0).all()


def test_very_long_histories_stay_finite():
    weights = recency_weights(Histories(np.array([0, 1_000_000]), np.zeros(1_000_000, np.int32)))
    assert np.isfinite(weights).all() and weights.sum() == pytest.approx(1)


def test_short_and_long_views(codes, histories):
    found = user_codes(codes, histories, short=2, long=6)
    assert np.array_equal(found[:, :3], behaviour_codes(codes, histories.last_n(2)))
    assert np.array_equal(found[:, 3:], behaviour_codes(codes, histories.last_n(6)))
    assert not np.array_equal(found[:, :3], found[:, 3:])
    with pytest.raises(UserError, match="short=0"):
        user_codes(codes, histories, short=0)


def test_code_weights_blend_code_vectors(codes, histories):
    tables = [np.random.default_rng(level).normal(size=(size, 4)) for level, size in enumerate(SIZES)]
    for level, matrix in enumerate(code_weights(codes, SIZES, histories)):
        blended = matrix @ tables[level]
        for row, items in zip(blended, rows_of(histories), strict=True):
            expected = sum(
                (w * tables[level][codes[i, level]] for w, i in zip(slow_weights(len(items)), items, strict=True)),
                np.zeros(4),
            )
            np.testing.assert_allclose(row, expected, atol=1e-5)


def test_long_history_sums_centroids_by_behaviour(codes, histories):
    centroids = [
        np.random.default_rng(level).normal(size=(size, 4)).astype(np.float32) for level, size in enumerate(SIZES[:2])
    ]
    actions = np.random.default_rng(3).integers(0, 2, len(histories.items))
    found = long_history_vectors(codes, histories, centroids, actions, n_actions=3, long=5)
    assert found.shape == (7, 3, 2, 4) and (found[:, 2] == 0).all()
    start = 0
    for user, items in enumerate(rows_of(histories)):
        done = actions[start : start + len(items)]
        start += len(items)
        for action in range(2):
            kept = [item for item, kind in zip(items, done, strict=True) if kind == action][-5:]
            for level in range(2):
                expected = sum((centroids[level][codes[item, level]] for item in kept), np.zeros(4))
                np.testing.assert_allclose(found[user, action, level], expected, atol=1e-4)


def test_a_user_without_history_gets_what_others_took_after_the_query(codes):
    queries, items = np.array([4, 4, 4, 7, -1, 4, 4, 7]), np.array([1, 2, 2, 9, 5, 3, 3, 8])
    found = clicked_for_query(np.array([7, 4, 5, -1]), queries, items, count=2)
    assert rows_of(found) == [[9, 8], [3, 2], [], []]  # the most taken last, ties to the lower id
    histories = Histories.from_lists([[], [6], [], []])
    assert rows_of(with_fallback(histories, found)) == [[9, 8], [6], [], []]
    ids = user_codes(codes, histories, fallback=found)
    assert (
        np.array_equal(ids[0, :3], behaviour_codes(codes, Histories.from_lists([[9, 8]]))[0])
        and (ids[2] == NO_CODE).all()
    )


def test_nothing_after_the_request_is_read(prepared_run):
    """Change every event from the request on: the IDs must not move; change one before it: they must."""
    data, codes = prepared_run.dataset, prepared_run.ids.catalogue.codes.numpy()
    events = data.heldout_events("test")
    owner = np.searchsorted(data.offsets, events, side="right") - 1
    queries = np.full(len(events), -1)
    sizes = prepared_run.ids.codebooks.sizes

    def ids() -> list[np.ndarray]:
        histories = data.requests_before(events, queries).histories
        return [user_codes(codes, histories), *(matrix.toarray() for matrix in code_weights(codes, sizes, histories))]

    before, kept = ids(), data.items
    try:
        changed = np.array(kept)
        later = (
            np.arange(len(changed))
            >= events[
                np.minimum(
                    np.searchsorted(owner, np.repeat(np.arange(data.n_users), np.diff(data.offsets))), len(owner) - 1
                )
            ]
        )
        known = np.isin(np.repeat(np.arange(data.n_users), np.diff(data.offsets)), owner)
        changed[later & known] = (changed[later & known] + 7) % data.n_items
        assert (changed != kept).any()
        data.items = changed
        assert all(np.array_equal(one, two) for one, two in zip(before, ids(), strict=True))
        data.items = (np.array(kept) + 7) % data.n_items
        assert not np.array_equal(before[0], ids()[0])
    finally:
        data.items = kept


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda codes: behaviour_codes(codes, Histories.from_lists([[99]])), "outside"),
        (lambda codes: code_weights(codes, (2, 2, 2), Histories.from_lists([[1]])), "do not fit levels of sizes"),
        (lambda codes: with_fallback(Histories.from_lists([[1]]), Histories.from_lists([])), "expected one each"),
        (
            lambda codes: long_history_vectors(
                codes, Histories.from_lists([[1]]), [np.zeros((9, 2))], np.array([3]), 2
            ),
            "numbers from 0 to 1",
        ),
    ],
)
def test_what_does_not_fit_is_named(codes, call, named):
    with pytest.raises(UserError, match=named):
        call(codes)
