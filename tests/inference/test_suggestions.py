"""Query suggestions: known queries only, by what the network retrieves for them and for the history."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genrec.data.dataset import TRAIN
from genrec.errors import UserError
from genrec.inference.completion import NONE, Completer
from genrec.inference.recommender import Recommender, Suggestion
from genrec.inference.suggestions import Suggester


@pytest.fixture(scope="module")
def model(trained_run) -> Recommender:
    return Recommender.load(trained_run.folder, "train")


def test_suggestions(model):
    data = model.dataset
    events = np.asarray(data.queries)[np.asarray(data.split) == TRAIN]
    known = {data.query_texts[query]: int((events == query).sum()) for query in np.unique(events[events >= 0])}
    got = model.suggest(data.user_ids[0], k=5)
    assert len(got) == 5 and all(isinstance(one, Suggestion) and known[one.query] == one.count for one in got)
    assert [one.score for one in got] == sorted((one.score for one in got), reverse=True)
    assert len(model.suggest(data.user_ids[0], k=10_000)) == len(known), "queries of held-out events only are not known"
    assert got != model.suggest(data.user_ids[1], k=5)


def test_somebody_new_gets_what_is_asked_most(model):
    counts = [one.count for one in model.suggest(k=10_000)]
    assert counts == sorted(counts, reverse=True) and model.suggest(history=[]) == model.suggest()


def test_scores_are_those_of_each_query_alone(model):
    suggester = Suggester(model.ranker, model.dataset, TRAIN)
    settings = model.ranker.settings
    before, settings.batch_size = settings.batch_size, 1
    try:
        one_by_one = Suggester(model.ranker, model.dataset, TRAIN).vectors
    finally:
        settings.batch_size = before
    torch.testing.assert_close(suggester.vectors, one_by_one, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(suggester.vectors.norm(dim=1), torch.ones(len(suggester.texts)))


def test_what_was_asked_can_be_left_out(model):
    items = model.dataset.item_table["item_id"].to_list()
    best = model.suggest(history=[items[0]], k=1)[0].query
    history = [{"item_id": items[0], "query": best}]
    assert best in {one.query for one in model.suggest(history=history, k=10_000)}
    assert best not in {one.query for one in model.suggest(history=history, k=10_000, exclude_asked=True)}


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("STAR", ["star wars", "star trek", "stargate", "death star", "wars of the star"]),
        ("star w", ["star wars", "wars of the star"]),
        ("wars", ["wars of the star", "star wars"]),
        ("wars star", ["star wars", "wars of the star"]),
        ("star wras", ["star wars", "wars of the star"]),
        ("sttar tre", ["star trek"]),
        ("starg", ["stargate"]),
        ("stsrga", ["stargate"]),
        ("caf\u00e9 o", ["cafe olé"]),
        ("\u7535\u5f71", ["\u65b0\u7535\u5f71"]),
        ("zzzz", []),
        ("star zzzz", []),
        ("...", []),
    ],
)  # fmt: skip
def test_what_is_typed_so_far(typed, expected):
    texts = ["Star Wars", "star trek", "stargate", "death star", "wars of the star", "cafe olé", "\u65b0\u7535\u5f71"]
    completer = Completer(texts, np.array([9, 7, 5, 3, 2, 1, 1]))
    level = completer.fit(typed)
    actual = [texts[index].lower() for index in np.argsort(level, kind="stable") if level[index] != NONE]
    assert actual == expected


def test_queries_that_begin_so_come_first(model):
    query = max((one.query for one in model.suggest(k=10_000)), key=lambda text: len(text.split()))
    words = query.split()
    assert len(words) > 1
    last = model.suggest(k=10_000, prefix=words[-1])
    begin = [one.query.lower().startswith(words[-1].lower()) for one in last]
    assert query in {one.query for one in last} and begin == sorted(begin, reverse=True)


def test_errors(model):
    with pytest.raises(UserError, match="k must be at least 1"):
        model.suggest(k=0)
    with pytest.raises(UserError, match="not in the data"):
        model.suggest("nobody")
