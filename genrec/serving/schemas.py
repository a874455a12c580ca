"""Bodies of requests and answers, with their limits and the examples of the OpenAPI document."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from genrec.inference.requests import Diversity, Filters, RecommendationRequest
from genrec.serving.store import StoredEvent

MAX_HISTORY = 1000
MAX_ITEMS = 10_000
MAX_IDS = 100_000
Id = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"\S")]
Short = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Seconds = Annotated[int, Field(ge=0, le=253_402_300_799, strict=True, description="Seconds since 1970, UTC.")]
Mode = Literal["fused", "retrieve", "generate", "rank"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=False)


class HistoryEvent(_Body):
    """One thing a person did."""

    item_id: Id
    timestamp: Seconds | None = None
    action: Short | None = None
    query: Text | None = None


class FilterBody(_Body):
    """What an answer may hold."""

    category: list[Id] | None = Field(
        None, max_length=100, description="Any of these, at any depth of an item's category path."
    )
    in_stock: list[Id] | None = Field(None, max_length=MAX_IDS, description="Only these items.")
    blocked: list[Id] | None = Field(None, max_length=MAX_IDS, description="None of these items.")


class DiversityBody(_Body):
    """At most `at_most` items with the same first `levels` codes at the head of the list."""

    levels: int = Field(1, ge=1, le=32)
    at_most: int = Field(2, ge=1, le=1000)


class Person(_Body):
    """Who asks: a stored user, a history sent along (it stands in place of the stored one), or nobody."""

    user_id: Id | None = None
    history: list[Id | HistoryEvent] | None = Field(
        None, max_length=MAX_HISTORY, description="Item ids or events, oldest first."
    )
    timestamp: Seconds | None = None

    def events(self) -> list[str | dict] | None:
        """The given history as the recommender takes it."""
        if self.history is None:
            return None
        return [event if isinstance(event, str) else event.model_dump() for event in self.history]


class _Listing(Person):
    k: int = Field(10, ge=1, le=1000)
    mode: Mode = "fused"
    filters: FilterBody | None = None
    diversity: DiversityBody | None = None

    def question(self, query: str | None, exclude_seen: bool) -> RecommendationRequest:
        """The question behind the body."""
        filters = None if self.filters is None else Filters(**self.filters.model_dump())
        diversity = None if self.diversity is None else Diversity(**self.diversity.model_dump())
        return RecommendationRequest(
            self.user_id, self.events(), query, self.k, self.mode, exclude_seen, self.timestamp, filters, diversity
        )


class RecommendBody(_Listing):
    """What does this person want next?"""

    exclude_seen: bool = True
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"history": ["item-1", "item-2"], "k": 5}, {"user_id": "u1", "k": 10}]}
    )


class SearchBody(_Listing):
    """What does this person mean by this query?"""

    query: Text
    exclude_seen: bool = False
    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "warm scarf", "user_id": "u1", "k": 5}]})


class RankBody(Person):
    """The best order of these candidates for this person (and query)."""

    candidates: list[Id] = Field(min_length=1, max_length=1000)
    query: Text | None = None
    mode: Mode = "fused"
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"candidates": ["item-1", "item-2", "item-3"], "history": ["item-4"]}]}
    )

    def question(self) -> RecommendationRequest:
        """The question behind the body."""
        chosen = tuple(dict.fromkeys(self.candidates))
        return RecommendationRequest(
            self.user_id, self.events(), self.query, len(chosen), self.mode, False, self.timestamp, candidates=chosen
        )


class ExplainBody(Person):
    """Why would this person (with this query) be shown this item?"""

    item_id: Id
    query: Text | None = None
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"item_id": "item-3", "history": ["item-1"], "query": "warm scarf"}]}
    )


class WalkBody(Person):
    """How does the beam walk down the code tree for this person (and query)?"""

    query: Text | None = None
    width: int = Field(8, ge=1, le=50)
    model_config = ConfigDict(json_schema_extra={"examples": [{"history": ["item-1"], "width": 8}]})


class EventBody(HistoryEvent):
    """Something a user did. With an `event_id` it may be sent again safely."""

    user_id: Id
    event_id: Id | None = None

    def stored(self) -> StoredEvent:
        """The event to keep; without a time it happened now."""
        when = int(time.time()) if self.timestamp is None else self.timestamp
        return StoredEvent(self.user_id, self.item_id, when, self.action, self.query, self.event_id)


class EventsBody(_Body):
    """Events to remember; durable once acknowledged, and read by the very next answer."""

    events: list[EventBody] = Field(min_length=1, max_length=MAX_HISTORY)
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"events": [{"user_id": "u1", "item_id": "item-1", "action": "click"}]}]}
    )


class ItemBody(_Body):
    """An item to add."""

    item_id: Id
    title: str | None = Field(None, max_length=2000)
    text: str | None = Field(None, max_length=20_000)
    brand: str | None = Field(None, max_length=500)
    category: list[Annotated[str, StringConstraints(max_length=256)]] | None = Field(None, max_length=20)
    price: float | None = Field(None, allow_inf_nan=False)


class ItemsBody(_Body):
    """Items to add: encoded with the fixed codebooks and visible at once."""

    items: list[ItemBody] = Field(min_length=1, max_length=MAX_ITEMS)
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"items": [{"item_id": "new-1", "title": "Blue wool scarf", "category": ["Scarves"]}]}]
        }
    )


class Item(BaseModel):
    """One answer."""

    item_id: str
    title: str | None
    score: float


class Listing(BaseModel):
    """Answers, best first, and the key of the bundle that gave them."""

    items: list[Item]
    bundle: str


class Accepted(BaseModel):
    """How many events were kept (again, for those sent before)."""

    accepted: int


class AddedItems(BaseModel):
    """What became of each item."""

    added: int
    restored: int
    unchanged: int


class Removed(BaseModel):
    """How many were removed."""

    removed: int


class Problem(BaseModel):
    """Every answer that is not a success has this form."""

    error: str
    message: str
