"""CandidateFeatures: equal to a slow reference, blind to the future, and the same after saving."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec.data.dataset import TEST, TRAIN
from genrec.data.histories import Histories
from genrec.errors import UserError
from genrec.ranking.features import HISTORY_FEATURES, ITEM_FEATURES, WINDOWS, CandidateFeatures
from genrec.ranking.item_facts import ItemFacts


@pytest.fixture(scope="module")
def features(prepared_run):
    return CandidateFeatures.build(prepared_run.dataset, prepared_run.ids.catalogue.text.numpy(), TRAIN)


@pytest.fixture(scope="module")
def requested(prepared_run):
    requests = prepared_run.dataset.requests("test")
    items = np.random.default_rng(0).integers(0, prepared_run.dataset.n_items, (len(requests), 9))
    return requests, items


def named(names, columns):
    return dict(zip(names, columns, strict=True))


def test_item_features_count_events_strictly_before_the_request(prepared_run, features, requested):
    data, (requests, items) = prepared_run.dataset, requested
    until = requests.reference_times(False)
    actual = named(ITEM_FEATURES, features.item_features(items, until))
    train = np.asarray(data.split) == TRAIN
    times, had = np.asarray(data.timestamps)[train], np.asarray(data.items)[train]
    width = max((times.max() - times.min()) // WINDOWS[1], 1)
    for row in range(0, len(items), 7):
        for column, item in enumerate(items[row]):
            mine = times[had == item]
            assert np.expm1(actual["popularity"][row, column]) == pytest.approx(len(mine))
            near = ((mine < until[row]) & (mine >= until[row] - width)).sum()
            assert np.expm1(actual["long_popularity"][row, column]) == pytest.approx(near)
            if len(mine):
                assert actual["unborn"][row, column] == (mine.min() > until[row])


def test_history_features_equal_a_loop(prepared_run, features, requested):
    requests, items = requested
    actual = named(HISTORY_FEATURES, features.history_features(items, requests.histories))
    table, facts = prepared_run.dataset.item_table, features.facts
    for row in range(0, len(items), 11):
        past = requests.items[requests.offsets[row] : requests.offsets[row + 1]][::-1][:20].tolist()
        weights = 0.6 ** np.arange(len(past))
        weights /= weights.sum()
        for column, item in enumerate(items[row].tolist()):
            same = np.array(
                [table["brand"][item] is not None and table["brand"][item] == table["brand"][other] for other in past]
            )
            assert actual["brand_share"][row, column] == pytest.approx((same * weights).sum(), abs=1e-5)
            assert actual["brand_last"][row, column] == same[0]
            assert actual["seen"][row, column] == (item in past)
            prices = np.array([facts.price[other] for other in past])
            known = ~np.isnan(prices)
            if known.any() and not np.isnan(facts.price[item]):
                usual = (prices * weights)[known].sum() / weights[known].sum()
                assert actual["price_ratio"][row, column] == pytest.approx(facts.price[item] - usual, abs=1e-4)
            assert actual["last_text"][row, column] == pytest.approx(
                float(facts.text[past[0]] @ facts.text[item]), abs=1e-5
            )


def test_window_counts_do_not_depend_on_the_other_requests(prepared_run, features, requested):
    """Counted for all items once where many requests share a time, else pair by pair."""
    data, (requests, items) = prepared_run.dataset, requested
    train = np.asarray(data.split) == TRAIN
    bought, when = np.asarray(data.items)[train], np.asarray(data.timestamps)[train]
    shared = np.full(len(items), int(np.median(when)))
    for until in (requests.reference_times(False), shared):
        for width in (86_400, 30 * 86_400):
            together = features.window_counts(np.tile(items, 8), until, width)
            for row, time in enumerate(until[:6]):
                inside = bought[(when < time) & (when >= time - width)]
                expected = [(inside == item).sum() for item in items[row]]
                assert together[row, : items.shape[1]].tolist() == expected
                alone = features.window_counts(items[row : row + 1, :2], until[row : row + 1], width)
                assert alone[0].tolist() == expected[:2]


def test_forward_moves_are_recovered_from_their_symmetric_mix(prepared_run, features):
    data = prepared_run.dataset
    counts = np.zeros((data.n_items, data.n_items))
    histories = data.histories(TRAIN)
    for start, stop in zip(histories.offsets[:-1], histories.offsets[1:], strict=True):
        for before, after in zip(histories.items[start : stop - 1], histories.items[start + 1 : stop], strict=True):
            counts[before, after] += before != after
    assert np.allclose(features._moves[0].toarray(), np.log1p(counts), atol=1e-3)
    assert np.allclose(features._moves[1].toarray(), np.log1p(counts).T, atol=1e-3)


def test_later_events_and_heldout_events_change_nothing(prepared_run, features, requested):
    """Counting only train events, and only the request's own past: the test events may hold anything."""
    requests, items = requested
    data = prepared_run.dataset

    class Changed:
        """The same log with other items and times in everything held out."""

        n_items, item_table, split, query_texts = data.n_items, data.item_table, data.split, data.query_texts
        later = np.asarray(data.split) != TRAIN
        items = np.where(later, 0, data.items)
        timestamps = np.where(later, np.asarray(data.timestamps) + 10**6, data.timestamps)
        queries = np.where(later, 0, data.queries)

        def histories(self, last):
            return data.histories(last)

    changed = CandidateFeatures.build(Changed(), prepared_run.ids.catalogue.text.numpy(), TRAIN)
    until = requests.reference_times(False)
    for one, two in zip(features.item_features(items, until), changed.item_features(items, until), strict=True):
        assert np.array_equal(one, two)
    texts = data.query_texts
    assert np.array_equal(features.query_items.score(texts), changed.query_items.score(texts))
    full = CandidateFeatures.build(data, prepared_run.ids.catalogue.text.numpy(), TEST)
    assert not np.array_equal(full.counts, features.counts)  # the perturbation would be seen


def test_a_person_without_history_and_items_without_facts():
    items = pl.DataFrame(
        {
            "item_id": ["a", "b"],
            "brand": [None, ""],
            "category": pl.Series([None, []], dtype=pl.List(pl.String)),
            "price": [None, 0.0],
        },
        schema_overrides={"price": pl.Float64, "brand": pl.String},
    )
    facts = ItemFacts.from_table(items, np.zeros((2, 3)))
    assert facts.brand.tolist() == [-1, -1] and facts.path.tolist() == [-1, -1] and np.isnan(facts.price).all()
    from genrec.retrieval.cooccurrence import CooccurrenceTransition

    table = CooccurrenceTransition(transitions="log").fit(Histories.from_lists([[0, 1]]), 2)
    empty = CandidateFeatures(table, facts, np.array([0, 2], np.int64), 0, 1)
    columns = empty.history_features(np.array([[0, 1]]), Histories.from_lists([[]]))
    assert all(np.isfinite(np.asarray(column, np.float64)).all() for column in columns)


def test_save_and_load(features, requested, tmp_path):
    requests, items = requested
    features.save(tmp_path / "features.npz")
    again = CandidateFeatures.load(tmp_path / "features.npz", features.facts)
    for one, two in zip(
        features.history_features(items, requests.histories),
        again.history_features(items, requests.histories),
        strict=True,
    ):
        assert np.array_equal(one, two)
    (tmp_path / "broken.npz").write_bytes(b"no")
    with pytest.raises(UserError, match="not saved candidate features"):
        CandidateFeatures.load(tmp_path / "broken.npz", features.facts)
