"""Tuned baselines: each equals a dense reference, and the search chooses by validation and is kept."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.data.histories import Histories
from genrec.errors import UserError
from genrec.evaluation.baseline_rows import Baselines
from genrec.evaluation.baselines import EASE, ImplicitALS, ItemKNN, Popularity, Transitions, search, stack
from genrec.evaluation.metrics import per_request_metrics
from genrec.retrieval.history_model import recency

LISTS = [[0, 1, 2, 0], [1, 2], [3, 0, 1], [2, 3, 4], [4, 0]]
TRAIN = Histories.from_lists(LISTS)


def test_a_repeated_item_counts_by_its_newest_event():
    dense = recency(TRAIN, 5, 0.5).toarray()
    assert dense[0].tolist() == [1.0, 0.25, 0.5, 0.0, 0.0]
    assert recency(TRAIN, 5, 1.0).toarray()[0].tolist() == [1, 1, 1, 0, 0]


def test_ease_equals_its_closed_form():
    had = recency(TRAIN, 5, 1.0).toarray().astype(np.float64)
    inverse = np.linalg.inv(had.T @ had + 2.0 * np.eye(5))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    model = EASE(2.0, decay=0.8).fit(TRAIN, 5)
    np.testing.assert_allclose(model.score(TRAIN), recency(TRAIN, 5, 0.8) @ expected, rtol=1e-4, atol=1e-5)


def test_ease_is_laid_out_as_products_read_it():
    draw = np.random.default_rng(0)
    train = Histories.from_lists([draw.integers(0, 60, 9).tolist() for _ in range(40)])
    assert EASE(2.0).fit(train, 60).matrix.flags["C_CONTIGUOUS"]


def test_als_solves_each_side_exactly():
    model = ImplicitALS(factors=3, alpha=4.0, regularisation=0.5, decay=0.9, iterations=3).fit(TRAIN, 5)
    items = model.items.double().numpy()
    weights = recency(TRAIN, 5, 0.9).toarray()
    for row, scores in zip(weights, model.score(TRAIN), strict=True):
        matrix = items.T @ items + 0.5 * np.eye(3) + (items * (4.0 * row)[:, None]).T @ items
        user = np.linalg.solve(matrix, ((row > 0) * (1 + 4.0 * row)) @ items)
        np.testing.assert_allclose(scores, items @ user, rtol=1e-3, atol=1e-4)


def test_transitions_count_within_the_window():
    moves = np.zeros((5, 5))
    for one in LISTS:
        for lag in (1, 2):
            for before, after in zip(one[:-lag], one[lag:], strict=True):
                moves[before, after] += (before != after) * 0.5 ** (lag - 1)
    users = np.bincount(np.concatenate(LISTS), minlength=5) + 1
    model = Transitions(1.0, window=2, lag_decay=0.5, power=0.5, backward=1.0, cooccurrence=0.0).fit(TRAIN, 5)
    np.testing.assert_allclose(model.matrix.toarray(), (moves + moves.T) / users**0.5, rtol=1e-6)


def test_popularity_halves_with_age():
    times = np.arange(len(TRAIN.items)) * 86_400
    counts = Popularity(2.0).fit(TRAIN, 5, times).counts
    expected = np.bincount(TRAIN.items, 0.5 ** ((times[-1] - times) / 86_400 / 2), minlength=5)
    np.testing.assert_allclose(counts, expected, rtol=1e-6)


def test_the_search_never_does_worse_than_the_defaults_and_is_kept(prepared_run, monkeypatch):
    data, requests = prepared_run.dataset, prepared_run.dataset.requests("valid")
    chosen = search.tuned(ItemKNN, data, requests)
    default = ItemKNN().fit(data.histories(0), data.n_items)
    assert chosen["valid_ndcg@10"] >= round(search.quality(default, requests, data.n_items), 4)
    made = Baselines(prepared_run)
    first = made.chosen
    assert set(first) == {"popularity", "itemknn", "cooccurrence", "ease", "als"} and len(made.notes()) == 5
    monkeypatch.setattr(search, "tuned", lambda *_: pytest.fail("searched again"))
    assert Baselines(prepared_run).chosen == first


def test_a_large_catalogue_tries_fewer_inverses(prepared_run, monkeypatch):
    tried: list[float] = []
    fit = EASE.fit
    monkeypatch.setattr(EASE, "fit", lambda self, *given: (tried.append(self.regularisation), fit(self, *given))[1])
    data, requests = prepared_run.dataset, prepared_run.dataset.requests("valid")
    search.tuned(EASE, data, requests)
    assert {30.0, 1000.0} <= set(tried)
    tried.clear()
    monkeypatch.setattr(search, "LARGE", data.n_items - 1)
    chosen = search.tuned(EASE, data, requests)
    assert len(tried) <= 3 and set(tried) <= {100.0, 200.0, 500.0} and chosen["regularisation"] in tried
    assert set(search.tuned(ItemKNN, data, requests)) == {*ItemKNN.SPACE, "valid_ndcg@10"}


def test_a_dense_model_of_a_large_catalogue_is_left_out(prepared_run, monkeypatch):
    monkeypatch.setattr(search, "MAX_ITEMS", 10)
    assert "ease" not in search.usable(["ease", "als"], prepared_run.dataset)
    with pytest.raises(UserError, match="dense matrix"):
        EASE().fit(TRAIN, 1 << 20)


def test_the_stack_ranks_what_its_sources_propose(prepared_run):
    made = Baselines(prepared_run, fits=False)
    requests = prepared_run.dataset.requests("test")
    rows = {row.model: row for row in made.rows(requests, None, "train", 10)}
    assert list(rows)[-1] == stack.NAME and "SASRec, cross-entropy" not in rows
    sources = made._sources(0, False, networked=False)
    ids, features = sources.candidates(requests)
    assert features.shape[:2] == ids.shape and np.isfinite(features).all()
    for ranked, row, history in zip(rows[stack.NAME].ranked, ids, range(len(requests)), strict=True):
        own = requests.items[requests.offsets[history] : requests.offsets[history + 1]]
        ranked = ranked[ranked >= 0]
        assert set(ranked) <= set(row) and not set(ranked) & set(own) and len(set(ranked)) == len(ranked)
    first = sources.scorers["ItemKNN"](requests)
    name = 2 * list(sources.scorers).index("ItemKNN")
    live = ids >= 0
    np.testing.assert_allclose(features[..., name][live], np.take_along_axis(first, np.maximum(ids, 0), 1)[live])
    assert per_request_metrics(rows[stack.NAME].ranked, requests.targets, [10])["recall@10"].mean() > 0
