"""Prices in queries: "lamp under 20 dollars" is a search for "lamp" among the items that cost at most 20."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from genrec.inference.filters import Filters
from genrec.inference.requests import RecommendationRequest

_SIGN = "[$\u20ac\u00a3]"
_UNIT = r"(?:dollars?|usd|bucks|euros?|eur|pounds?|gbp)\b"
_NUMBER = r"(\d{1,9}(?:[.,]\d{1,2})?)"
# A number is a price only with a currency beside it: "under 18" or "over 50" may mean anything.
_AMOUNT = rf"(?:{_SIGN}\s*{_NUMBER}|{_NUMBER}\s*(?:{_SIGN}|{_UNIT}))"
_MOST = re.compile(rf"\b(?:under|below|less than|cheaper than|up to|at most|max(?:imum)?)\s+{_AMOUNT}", re.IGNORECASE)
_LEAST = re.compile(rf"\b(?:over|above|more than|at least|min(?:imum)?)\s+{_AMOUNT}", re.IGNORECASE)
_RANGE = re.compile(
    rf"\b(?:between|from)\s+{_SIGN}?\s*{_NUMBER}\s*(?:{_SIGN}|{_UNIT})?\s+(?:and|to)\s+{_AMOUNT}", re.IGNORECASE
)


@dataclass(frozen=True)
class PricedQuery:
    """A query without its price words; ``least`` and ``most`` bound the price, None for no bound."""

    text: str
    least: float | None = None
    most: float | None = None

    @property
    def priced(self) -> bool:
        """Whether the query names a price."""
        return self.least is not None or self.most is not None


def read_price(query: str) -> PricedQuery:
    """Split a query into words and price bounds."""
    least = most = None
    if match := _RANGE.search(query):
        low, *high = match.groups()
        least, most = _number(low), _number(next(filter(None, high)))
        query = query[: match.start()] + query[match.end() :]
    if match := _MOST.search(query):
        most = _number(next(filter(None, match.groups())))
        query = query[: match.start()] + query[match.end() :]
    if match := _LEAST.search(query):
        least = _number(next(filter(None, match.groups())))
        query = query[: match.start()] + query[match.end() :]
    return PricedQuery(" ".join(query.split()), least, most)


def with_price(request: RecommendationRequest) -> tuple[RecommendationRequest, str | None]:
    """The request with the price words of its query as a filter, and a sentence that says so.

    A query of price words alone becomes a recommendation within the price.
    """
    if request.query is None or request.candidates is not None:  # given candidates are all ranked
        return request, None
    read = read_price(request.query)
    if not read.priced:
        return request, None
    bounds: dict[str, Any] = {"field": "price"}
    bounds |= {"gte": read.least} if read.least is not None else {}
    bounds |= {"lte": read.most} if read.most is not None else {}
    filters = request.filters or Filters()
    where = bounds if filters.where is None else {"all": [filters.where, bounds]}
    note = "price words of the query were read as a filter: price " + " and ".join(
        f"{name} {value:g}" for name, value in (("at least", read.least), ("at most", read.most)) if value is not None
    )
    return replace(request, query=read.text or None, filters=replace(filters, where=where)), note


def _number(text: str) -> float:
    return float(text.replace(",", "."))
