"""Price words of queries become exact filters."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.inference.query_prices import PricedQuery, read_price
from genrec.inference.recommender import Recommender
from genrec.inference.requests import RecommendationRequest


@pytest.mark.parametrize(
    ("query", "read"),
    [
        ("lamp under 20 dollars", PricedQuery("lamp", None, 20.0)),
        ("red lamp under $19.99", PricedQuery("red lamp", None, 19.99)),
        ("lamps over 50€ for desks", PricedQuery("lamps for desks", 50.0, None)),
        ("lamp between $10 and $20", PricedQuery("lamp", 10.0, 20.0)),
        ("Lamp BELOW 5,50 euros", PricedQuery("Lamp", None, 5.5)),
        ("up to 30 usd", PricedQuery("", None, 30.0)),
        ("over $5 under $9 cup", PricedQuery("cup", 5.0, 9.0)),
        ("under 18", PricedQuery("under 18")),  # no currency, no price
        ("under the dollar tree", PricedQuery("under the dollar tree")),
        ("lamp", PricedQuery("lamp")),
    ],
)
def test_price_words_are_read(query, read):
    assert read_price(query) == read


def test_price_words_restrict_the_answers(trained_run):
    model = Recommender.load(trained_run.folder)
    table = model.snapshot.table
    prices = dict(zip(table["item_id"], table["price"], strict=True))
    limit = round(float(np.median([price for price in prices.values() if price is not None])), 2)
    word = model.ranker.generator.lexical.vocabularies[0].words[-1]
    actual, alone = model.ask(
        [
            RecommendationRequest(query=f"{word} under {limit} dollars", k=5),
            RecommendationRequest(query=f"under ${limit}", k=5),
        ]
    )
    for response in (actual, alone):
        assert len(response.items) == 5 and all(prices[one.item_id] <= limit for one in response.items)
        assert response.notes == [f"price words of the query were read as a filter: price at most {limit:g}"]
    assert not actual.no_match and alone.source == "popular"
