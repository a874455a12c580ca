"""Slates requests and feedback rates against plain loops; what a row may know of itself and of the future: nothing."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec.data.dataset import SPLITS, TRAIN
from genrec.data.impressions import load_impressions
from genrec.data.rates import KEYS, FeedbackRates, n_features
from genrec.errors import UserError

STAGES = ["click", "cart"]


@pytest.fixture(scope="module")
def shown(prepared_run):
    return load_impressions(prepared_run.dataset, STAGES)


def test_every_row_that_was_shown_is_there_once(prepared_run, shown):
    table = prepared_run.dataset.impressions
    assert shown.offsets[-1] == len(table) and len(shown) == table.select("user", "timestamp", "request_id").n_unique()
    deep = table["action"].replace_strict({"impression": 0, "click": 1, "cart": 2, "purchase": 3}).to_numpy()
    assert (
        np.array_equal(shown.reached, np.stack([deep >= 1, deep >= 2], 1))
        and 0 < shown.reached[:, 1].mean() < shown.reached[:, 0].mean()
    )
    texts = [prepared_run.dataset.query_texts[query] if query >= 0 else None for query in shown.queries[shown.owner]]
    assert [
        text for text, wanted in zip(texts, table["query"], strict=True) if text is not None and text != wanted
    ] == [] and any(texts)


def test_a_request_sees_what_its_user_did_strictly_before(prepared_run, shown):
    data = prepared_run.dataset
    for place in np.random.default_rng(0).choice(len(shown), 60, replace=False):
        user = shown.users[place]
        stamps = np.asarray(data.timestamps[data.offsets[user] : data.offsets[user + 1]])
        assert shown.before[place] - data.offsets[user] == (stamps < shown.times[place]).sum()
    asked = np.array([5, 700, 3])
    requests = shown.histories(data, asked)
    for row, place in enumerate(asked):
        mine = slice(requests.offsets[row], requests.offsets[row + 1])
        past = slice(data.offsets[shown.users[place]], shown.before[place])
        assert (
            np.array_equal(requests.items[mine], data.items[past])
            and (requests.timestamps[mine] < shown.times[place]).all()
        )


def test_no_training_row_is_later_than_what_is_held_out(prepared_run, shown):
    """leave-last-out: training rows of a user end where its training events end."""
    data = prepared_run.dataset
    known = data.known_lengths(TRAIN)
    last = np.asarray(data.timestamps)[np.maximum(data.offsets[:-1] + known - 1, 0)]
    first_held_out = int(np.asarray(data.timestamps)[np.asarray(data.split) > TRAIN].min())
    train = shown.split == SPLITS["train"]
    users = shown.users[train]
    assert ((shown.times[train] <= last[users]) | (shown.times[train] < first_held_out)).all()
    assert set(shown.split) == {0, 1, 2} and (shown.before[train] <= data.offsets[users] + known[users]).all()


def test_taking_requests_keeps_their_rows(shown):
    some = np.array([9, 2, 40])
    few = shown.take(some)
    place, owner, lane = shown.rows(some)
    assert np.array_equal(few.items, shown.items[place]) and np.array_equal(few.owner, owner)
    assert np.array_equal(few.features(np.arange(len(place))), shown.features(place))
    assert np.array_equal(lane[few.offsets[:-1]], [0, 0, 0])


@pytest.fixture(scope="module")
def counted():
    rng = np.random.default_rng(4)
    n = 300
    table = pl.DataFrame({
        "user": rng.integers(0, 8, n), "item": rng.integers(0, 10, n), "timestamp": rng.integers(100, 160, n), "surface": rng.choice(["a", "b"], n),
    })  # fmt: skip
    reached = rng.random((n, 2)) < [0.5, 0.2]
    brands, categories = np.array([0, 0, 1, 1, -1, 2, 2, 2, 0, 1]), np.array([0, 1, 0, 1, 2, 2, -1, 0, 1, 0])
    return table, reached, brands, categories, FeedbackRates(table, brands, categories, reached, until=150)


def test_rates_count_what_was_strictly_earlier(counted):
    table, reached, brands, categories, rates = counted
    users, items, times = (table[name].to_numpy() for name in ("user", "item", "timestamp"))
    surfaces = rates.surface_codes(table)
    found = rates.features(users, items, surfaces, times).reshape(len(users), len(KEYS), 3)
    assert found.shape[1] * 3 == n_features(2)
    known = times < 150
    mean = reached[known].mean(0)
    logit = lambda rate: np.log(rate / (1 - rate))
    for row in range(0, 300, 7):
        same = {
            "item": items == items[row], "user": users == users[row], "surface": surfaces == surfaces[row],
            "brand": (brands[items] == brands[items[row]]) & (brands[items[row]] >= 0),
            "category": (categories[items] == categories[items[row]]) & (categories[items[row]] >= 0),
        }  # fmt: skip
        same["user_category"], same["item_surface"] = same["user"] & same["category"], same["item"] & same["surface"]
        for place, name in enumerate(KEYS):
            before = same[name] & known & (times < times[row])
            rate = (reached[before].sum(0) + 10 * mean) / (before.sum() + 10)
            np.testing.assert_allclose(found[row, place, :2], logit(rate) - logit(mean), atol=1e-5)
            assert found[row, place, 2] == pytest.approx(np.log1p(before.sum()) / 4, abs=1e-6)


def test_no_row_knows_its_own_outcome_or_a_later_one(counted):
    table, reached, brands, categories, rates = counted
    users, items, times = (table[name].to_numpy() for name in ("user", "item", "timestamp"))
    surfaces = rates.surface_codes(table)
    row = int(np.flatnonzero(times == 130)[0])
    changed = reached.copy()
    changed[times >= 130] = ~changed[times >= 130]
    other = FeedbackRates.__new__(FeedbackRates)
    other.__dict__.update(
        FeedbackRates(table, brands, categories, changed, until=150).__dict__, mean=rates.mean
    )  # the prior is the log's
    early = times <= 130
    ask = lambda one, rows: one.features(users[rows], items[rows], surfaces[rows], times[rows])
    np.testing.assert_array_equal(ask(other, early), ask(rates, early))
    assert early[row] and not np.array_equal(ask(other, ~early), ask(rates, ~early))
    # what lies behind the cut is never counted, however late the request
    late = FeedbackRates(table, brands, categories, np.where(times[:, None] >= 150, ~reached, reached), until=150)
    np.testing.assert_array_equal(
        late.features(users, items, surfaces, times + 1000), rates.features(users, items, surfaces, times + 1000)
    )


def test_nobody_known_and_nothing_known_count_nothing(counted):
    rates = counted[-1]
    found = rates.features(np.array([-1]), np.array([4]), np.array([-1]), np.array([10**9])).reshape(len(KEYS), 3)
    for name in ("user", "surface", "brand", "user_category", "item_surface"):
        assert np.abs(found[KEYS.index(name)]).max() < 1e-6
    assert (found[KEYS.index("item")] != 0).any()


def test_rows_without_known_feedback_are_left_out(prepared_run):
    data = prepared_run.dataset
    table = data.impressions.with_columns(
        click=pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.col("action") != "impression")
    )
    half = load_impressions(_With(data, table), STAGES)
    assert half.offsets[-1] == -(-len(table) // 2)


class _With:
    """A dataset with another table of impressions."""

    def __init__(self, data, table):
        self._data, self.impressions = data, table

    def __getattr__(self, name):
        return getattr(self._data, name)


def test_a_log_without_impressions_and_an_unknown_stage(prepared_run):
    assert load_impressions(_With(prepared_run.dataset, None), STAGES) is None
    with pytest.raises(UserError, match="no action 'long_view'; it has impression, click"):
        load_impressions(prepared_run.dataset, ["click", "long_view"])
