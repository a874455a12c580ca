"""Requests to a recommender, and the responses to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import polars as pl

from genrec.errors import UserError
from genrec.inference.exploration import Exploration
from genrec.inference.filters import Filters
from genrec.text.query_tokens import readable

History = Sequence[str | Mapping[str, Any]]
Attributes = Mapping[str, str | int | float | None]


@dataclass(frozen=True)
class Diversity:
    """At most ``at_most`` items with the same first ``levels`` codes lead the list; the others move to its end."""

    levels: int = 1
    at_most: int = 2

    def __post_init__(self) -> None:
        if self.levels < 1 or self.at_most < 1:
            raise UserError(f"diversity: levels and at_most must be at least 1, are {self.levels} and {self.at_most}")


@dataclass(frozen=True)
class RecommendationRequest:
    """One request for a list of items.

    ``history``: item ids, oldest first, or {item_id, timestamp, action, query}; it replaces what is known of
    ``user``. ``timestamp``: seconds; later events of a stored user are not read. ``candidates``: rank only these.
    ``offset``: results left out at the head (paging). ``attributes`` of the person, by name, and the ``surface`` of the
    request: what a model with ``model.situation`` reads; they replace what the data say. ``exploration``: draw some
    slots; a request without history and query is not explored.
    """

    user: str | None = None
    history: History | None = None
    query: str | None = None
    k: int = 10
    mode: str = "fused"
    exclude_seen: bool = True
    timestamp: int | None = None
    filters: Filters | None = None
    diversity: Diversity | None = None
    candidates: tuple[str, ...] | None = None
    offset: int = 0
    attributes: Attributes | None = None
    surface: str | None = None
    exploration: Exploration | None = None

    @property
    def reads_user(self) -> bool:
        """Whether the answer depends on what is known of the user."""
        return self.user is not None and self.history is None


@dataclass(frozen=True)
class Answer:
    """One recommended or matching item.

    ``propensity``: its chance to stand in its slot, given those before; None without exploration.
    """

    item_id: str
    title: str | None
    score: float
    propensity: float | None = None


@dataclass(frozen=True)
class Response:
    """The answers to one request, best first, and how they were made.

    ``source``: ``model``, or ``popular`` for a request without history and query. ``n_proven``: how many of the first
    answers are provably the exact best (``generate`` and ``retrieve``; 0 for an order that has no certificate).
    ``notes``: what of the request was left aside. ``match``: the probability that the query names something of
    the catalogue, 1 for a logged query; ``no_match``: it is too low, and the answers are those of a request without a
    query. ``corrected``: the query as it was read where its words were misspelt, joined, split or half typed.
    """

    items: list[Answer]
    mode: str
    source: str = "model"
    n_proven: int = 0
    notes: list[str] = field(default_factory=list)
    no_match: bool = False
    match: float = 1.0
    corrected: str | None = None


class Answers(list[Answer]):
    """The answers to a search, best first; ``no_match``, ``match`` and ``corrected`` as in ``Response``."""

    def __init__(self, response: Response):
        super().__init__(response.items)
        self.no_match, self.match, self.corrected = response.no_match, response.match, response.corrected


class EventSource(Protocol):
    """What a recommender needs of an event store."""

    def events_of(self, users: Sequence[str]) -> pl.DataFrame:
        """The newest stored events, oldest first per user: user_id, item_id, timestamp, action, query."""

    def items_of(self, users: Sequence[str]) -> dict[str, list[str]]:
        """All distinct items in the stored events of each user."""

    def erased(self, users: Sequence[str]) -> set[str]:
        """Users whose events in the data must not be read any more."""


@dataclass(frozen=True)
class StoredUsers:
    """What the store knows of the users of some requests, read once."""

    events: list[tuple]  # (user_id, item_id, timestamp, action, query), oldest first per user
    items: dict[str, list[str]]
    erased: set[str]

    @classmethod
    def read(cls, store: EventSource | None, users: Sequence[str | None]) -> StoredUsers | None:
        """Read the store; None without a store or users."""
        named = list(dict.fromkeys(user for user in users if user is not None))
        if store is None or not named:
            return None
        return cls(store.events_of(named).rows(), store.items_of(named), store.erased(named))


def query_words(query: str) -> str:
    """The part of a query that is read; ``UserError`` for an empty one."""
    query = readable([query])[0].strip() if query else ""
    if not query:
        raise UserError("the query is empty; give at least one word, or use recommend")
    return query
