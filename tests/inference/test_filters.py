"""Answers within a category: exactly the unrestricted ranking with everything else left out."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec.errors import UserError
from genrec.inference.filters import Categories
from genrec.inference.recommender import Recommender

ITEMS = pl.DataFrame({
    "item_id": list("abcdef"),
    "category": [["Beauty", "Hair Care", "Shampoo"], ["Beauty", "Skin"], ["Home", "Hair Care"], None, [], ["Beauty", "Hair Care"]],
})  # fmt: skip


@pytest.mark.parametrize(
    ("category", "wanted"),
    [("Beauty", "abf"), ("hair care", "acf"), ("Beauty > Hair Care", "af"), (["Beauty", "Hair Care"], "af"), ("Beauty>Hair Care > Shampoo", "a"),
     (["Home"], "c"), ("Shampoo", "a")],
)  # fmt: skip
def test_masks(category, wanted):
    assert [item for item, keep in zip("abcdef", Categories(ITEMS).mask(category), strict=True) if keep] == list(wanted)


@pytest.mark.parametrize(
    ("category", "message"),
    [
        ("Hair Car", "did you mean 'Hair Care'"),
        ("Hair Care > Beauty", "no path"),
        (" > ", "empty"),
        ("", "empty"),
        (["Hair Care"], "no path"),
    ],
)
def test_unknown_categories(category, message):
    with pytest.raises(UserError, match=message):
        Categories(ITEMS).mask(category)


def test_a_catalogue_without_categories():
    with pytest.raises(UserError, match="no category"):
        Categories(pl.DataFrame({"item_id": ["a"], "category": pl.Series([None], dtype=pl.List(pl.String))})).mask("x")


@pytest.fixture(scope="module")
def model(trained_run) -> Recommender:
    return Recommender.load(trained_run.folder, "train")


@pytest.mark.parametrize("mode", ["retrieve", "generate"])
@pytest.mark.parametrize("query", [None, "known"])
def test_restricted_answers_are_the_unrestricted_ones_without_the_rest(model, mode, query):
    data = model.dataset
    category = data.item_table["category"][int(np.argmax(data.item_counts(0)))][-1]
    inside = set(data.item_table["item_id"].filter(pl.Series(Categories(data.item_table).mask(category))))
    for user in (data.user_ids[2], None):
        ask = {"user": user, "mode": mode, "k": data.n_items, "exclude_seen": False}
        ask_query = (lambda **more: model.search(data.query_texts[0], **more)) if query else model.recommend
        everything, some = ask_query(**ask), ask_query(**ask, category=category)
        assert 0 < len(inside) < data.n_items and {answer.item_id for answer in some} == inside
        wanted = [answer.item_id for answer in everything if answer.item_id in inside]
        got = [answer.item_id for answer in some]
        assert got == wanted or user is None and query is None and sorted(got) == sorted(wanted)


def test_fused_answers_stay_inside(model):
    data = model.dataset
    category = data.item_table["category"][5][-1]
    inside = set(data.item_table["item_id"].filter(pl.Series(Categories(data.item_table).mask(category))))
    for answers in (
        model.recommend(data.user_ids[1], category=category),
        model.search(data.query_texts[3], category=category, k=50),
    ):
        assert answers and {answer.item_id for answer in answers} <= inside
    assert {answer.item_id for answer in model.search(data.query_texts[3], category=category, k=50)} == inside
    with pytest.raises(UserError, match="not in the catalogue"):
        model.recommend(category="never heard of")


def test_hostile_queries_are_answered(model):
    for query in ("\ud800 lamp", "a\x00b", "!!!", "🫖", "x" * 100_000, "\u202e lamp"):
        assert len(model.search(query, k=3)) == 3
    for query in ("", "  ", "\n"):
        with pytest.raises(UserError, match="empty"):
            model.search(query)
