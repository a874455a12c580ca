"""Answers within a category: exactly the unrestricted ranking with everything else left out."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrec.errors import UserError
from genrec.inference.filters import Categories, Filters, facet
from genrec.inference.recommender import Recommender

ITEMS = pl.DataFrame({
    "item_id": list("abcdef"),
    "category": [
        ["Beauty", "Hair Care", "Shampoo"], ["Beauty", "Skin"], ["Home", "Hair Care"], None, [],
        ["Beauty", "Hair Care"],
    ],
})  # fmt: skip


@pytest.mark.parametrize(
    ("category", "expected"),
    [
        ("Beauty", "abf"),
        ("hair care", "acf"),
        ("Beauty > Hair Care", "af"),
        (["Beauty", "Hair Care"], "af"),
        ("Beauty>Hair Care > Shampoo", "a"),
        (["Home"], "c"),
        ("Shampoo", "a"),
        ("Hair Care > Beauty", ""),
        ("never heard of", ""),
    ],
)
def test_categories(category, expected):
    assert matching(ITEMS, Filters(category=[category])) == expected


def matching(table: pl.DataFrame, filters: Filters) -> str:
    """The ids of the items that the filters leave."""
    mask = filters.mask(table, Categories(table))
    return "".join(item for item, keep in zip(table["item_id"], mask, strict=True) if keep)


@pytest.mark.parametrize(
    ("category", "message"),
    [("Hair Car", "did you mean 'Hair Care'"), ("Hair Care > Beauty", "no path"), (["Hair Care"], "no path")],
)
def test_unknown_categories(category, message):
    assert message in Categories(ITEMS).problem(category)
    assert Categories(ITEMS).problem("Beauty") is None


@pytest.mark.parametrize("category", [" > ", "", []])
def test_empty_names_are_refused(category):
    with pytest.raises(UserError, match="empty"):
        Categories(ITEMS).mask(category)


def test_a_catalogue_without_categories():
    table = pl.DataFrame({"item_id": ["a"], "category": pl.Series([None], dtype=pl.List(pl.String))})
    assert "no category" in Categories(table).problem("x") and not Categories(table).mask("x").any()


PRICED = ITEMS.with_columns(
    price=pl.Series([1.0, 5.0, 9.5, None, 20.0, 5.0]),
    brand=pl.Series(["x", "y", None, "x", "z", "x"]),
    year=pl.Series([1999, 2001, 2001, None, 1950, 2020]),
    tags=pl.Series([["new"], ["new", "eco"], None, [], ["eco"], ["old"]]),
)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"field": "price", "gte": 5, "lt": 10}, "bcf"),
        ({"field": "price", "gt": 5}, "ce"),
        ({"field": "price", "lte": 1}, "a"),
        ({"field": "brand", "eq": "x"}, "adf"),
        ({"not": {"field": "brand", "eq": "x"}}, "bce"),
        ({"field": "brand", "in": ["y", "z"]}, "be"),
        ({"field": "brand", "exists": False}, "c"),
        ({"field": "price", "exists": True, "lt": 6}, "abf"),
        ({"field": "year", "in": [2001, 1999]}, "abc"),
        ({"field": "year", "eq": 2001.0}, "bc"),
        ({"field": "tags", "in": ["eco"]}, "be"),
        ({"field": "category", "eq": "beauty > hair care"}, "af"),
        (
            {
                "all": [
                    {"field": "brand", "eq": "x"},
                    {"any": [{"field": "price", "lt": 2}, {"field": "year", "gt": 2010}]},
                ]
            },
            "af",
        ),
        ({"not": {"any": [{"field": "brand", "exists": False}, {"field": "category", "eq": "Beauty"}]}}, "de"),
    ],
)
def test_conditions(where, expected):
    assert matching(PRICED, Filters(where=where)) == expected


NESTED: dict = {"field": "price", "lt": 1}
for _ in range(20):
    NESTED = {"not": NESTED}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"field": "prize", "lt": 1}, "did you mean 'price'"),
        ({"field": "price"}, "one or more of"),
        ({"field": "price", "near": 3}, "one or more of"),
        ({"field": "price", "lt": "cheap"}, "with numbers"),
        ({"field": "price", "eq": True}, "with numbers"),
        ({"field": "price", "eq": float("nan")}, "with numbers"),
        ({"field": "brand", "lt": "x"}, "no numbers"),
        ({"field": "brand", "eq": 3}, "with texts"),
        ({"field": "brand", "in": "x"}, "needs a list"),
        ({"field": "brand", "exists": "yes"}, "true or false"),
        ({"both": []}, "not one of field, all, any, not"),
        ({"all": [], "any": []}, "stands beside another"),
        ({"all": []}, "needs a list of conditions"),
        ({"not": 3}, "a condition is an object"),
        ({"any": [{"field": "price", "lt": n} for n in range(200)]}, "more than 100 conditions"),
        (NESTED, "nested more than 10 deep"),
    ],
)
def test_wrong_conditions(where, message):
    with pytest.raises(UserError, match=message):
        matching(PRICED, Filters(where=where))


def test_facets():
    everything = np.ones(len(PRICED), bool)
    assert facet(PRICED, everything, "brand") == {"values": {"x": 3, "y": 1, "z": 1}}
    assert facet(PRICED, everything, "brand", limit=1) == {"values": {"x": 3}}
    assert facet(PRICED, everything, "tags")["values"] == {"new": 2, "eco": 2, "old": 1}
    assert facet(PRICED, everything, "price") == {"min": 1.0, "max": 20.0, "count": 5}
    assert facet(PRICED, np.array([True] + [False] * 5), "category") == {
        "values": {"Beauty": 1, "Hair Care": 1, "Shampoo": 1}
    }
    with pytest.raises(UserError, match="no column 'colour'"):
        facet(PRICED, everything, "colour")


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
        expected = [answer.item_id for answer in everything if answer.item_id in inside]
        actual = [answer.item_id for answer in some]
        assert actual == expected or user is None and query is None and sorted(actual) == sorted(expected)


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
