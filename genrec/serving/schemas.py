"""Bodies of requests, with their limits and the examples of the OpenAPI document."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, Field, StringConstraints

from genrec.data.ids import plain_id
from genrec.errors import UserError
from genrec.inference.filters import Filters
from genrec.inference.requests import Diversity, RecommendationRequest
from genrec.serving.cursors import read_cursor
from genrec.serving.store import StoredEvent, StoredImpression

MAX_HISTORY = 1000  # newest events of a given history that are read
MAX_EVENTS = 1000
MAX_ITEMS = 10_000
MAX_IDS = 100_000
MAX_LIST = 1000  # offset + k


def stored_id(value: str) -> str:
    """An id as readers of logs take it; ``ValueError`` for a word that means no id, such as ``null``."""
    try:
        return plain_id(value)
    except UserError as error:
        raise ValueError(str(error)) from error


Id = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StoredId = Annotated[Id, AfterValidator(stored_id)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"\S")]
Short = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Count = Annotated[int, Field(strict=True)]
Seconds = Annotated[int, Field(ge=0, le=253_402_300_799, strict=True, description="Seconds since 1970, UTC.")]
Flag = Annotated[bool, Field(strict=True)]
Timeout = Annotated[
    int | None, Field(ge=1, le=3_600_000, strict=True, description="Time for this answer, below the server's budget.")
]
Mode = Literal["fused", "retrieve", "generate", "rank"]


class _FirstError(FailFast):
    """``FailFast`` that can stand in a union, which needs a hash."""

    __hash__ = object.__hash__


FIRST_ERROR = _FirstError()  # a long list with many mistakes is given up at the first one


def _examples(*examples: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": list(examples)})


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=False)


class HistoryEvent(_Body):
    """One action of a person."""

    item_id: Id
    timestamp: Seconds | None = None
    action: Short | None = None
    query: Text | None = None


class FilterBody(_Body):
    """What an answer may hold."""

    category: Annotated[list[Id], FIRST_ERROR] | None = Field(
        None,
        max_length=100,
        description="Any of these: a name at any depth of an item's category path, or a path as 'Beauty > Hair Care'.",
    )
    in_stock: Annotated[list[Id], FIRST_ERROR] | None = Field(None, max_length=MAX_IDS, description="Only these items.")
    blocked: Annotated[list[Id], FIRST_ERROR] | None = Field(
        None, max_length=MAX_IDS, description="None of these items."
    )
    where: dict[str, Any] | None = Field(
        None,
        description=(
            "A condition on item columns: {field, eq|in|gt|gte|lt|lte|exists}, or {all: [...]}, {any: [...]}, "
            "{not: {...}}."
        ),
        examples=[{"all": [{"field": "price", "gte": 5, "lt": 20}, {"not": {"field": "brand", "eq": "Acme"}}]}],
    )

    def filters(self) -> Filters:
        """The filters as the recommender takes them."""
        return Filters(self.category, self.in_stock, self.blocked, self.where)


class DiversityBody(_Body):
    """At most `at_most` items with the same first `levels` codes at the head of the list."""

    levels: Count = Field(1, ge=1, le=32)
    at_most: Count = Field(2, ge=1, le=1000)


def _newest(history: Any) -> Any:
    return history[-MAX_HISTORY:] if isinstance(history, list) else history


class Person(_Body):
    """The person of a request: a stored user, a history in the request (it replaces the stored one), or neither."""

    user_id: Id | None = None
    history: Annotated[list[Id | HistoryEvent], FIRST_ERROR, BeforeValidator(_newest)] | None = Field(
        None, description=f"Item ids or events, oldest first. The newest {MAX_HISTORY} are read."
    )
    timestamp: Seconds | None = None

    def events(self) -> list[str | dict] | None:
        """The given history as the recommender takes it."""
        if self.history is None:
            return None
        return [event if isinstance(event, str) else event.model_dump() for event in self.history]


class Situated(Person):
    """The person of a request, and what is known of the moment."""

    attributes: dict[Short, Annotated[str, StringConstraints(max_length=256)] | int | float | None] | None = Field(
        None,
        max_length=64,
        description="Of the person, by name, for a model that reads them; they replace those of a stored user.",
    )
    surface: Short | None = Field(None, description="Where the answer is shown, as the log names it.")


class Pages(Situated):
    """A list with pages."""

    k: Count = Field(10, ge=1, le=MAX_LIST)
    offset: Count = Field(
        0, ge=0, le=MAX_LIST, description="Results to leave out at the head: the next page's is `next_offset`."
    )
    cursor: str | None = Field(
        None, max_length=1024, description="`next_cursor` of the page before; it replaces `offset`."
    )
    timeout_ms: Timeout = None
    mode: Mode = "fused"
    filters: FilterBody | None = None
    diversity: DiversityBody | None = None
    fields: list[Short] | None = Field(None, max_length=50, description="Item columns to return as `attributes`.")
    facets: list[Short] | None = Field(
        None, max_length=20, description="Item columns to count among all items that the filters leave."
    )
    reasons: Flag = Field(False, description="Name the history items and words that each result is related to.")

    def start(self) -> tuple[int, str | None]:
        """Where the page starts, and the bundle that gave the page before. ``UserError`` for a wrong cursor."""
        return (self.offset, None) if self.cursor is None else read_cursor(self, self.cursor)

    def request(self, query: str | None, exclude_seen: bool) -> RecommendationRequest:
        """The request behind the body."""
        offset, _ = self.start()
        if offset + self.k > MAX_LIST:
            raise UserError(f"offset + k may be {MAX_LIST} at most, is {offset + self.k}")
        diversity = None if self.diversity is None else Diversity(self.diversity.levels, self.diversity.at_most)
        filters = None if self.filters is None else self.filters.filters()
        return RecommendationRequest(
            self.user_id, self.events(), query, self.k, self.mode, exclude_seen, self.timestamp, filters, diversity,
            offset=offset, attributes=self.attributes, surface=self.surface,
        )  # fmt: skip


class RecommendBody(Pages):
    """What does this person want next?"""

    exclude_seen: Flag = True
    model_config = _examples({"history": ["item-1", "item-2"], "k": 5}, {"user_id": "u1", "k": 10})

    def to_request(self) -> RecommendationRequest:
        """The request behind the body."""
        return self.request(None, self.exclude_seen)


class SearchBody(Pages):
    """What does this person mean by this query?"""

    query: Text
    exclude_seen: Flag = False
    model_config = _examples({"query": "warm scarf", "user_id": "u1", "k": 5})

    def to_request(self) -> RecommendationRequest:
        """The request behind the body."""
        return self.request(self.query.strip(), self.exclude_seen)


class RankBody(Situated):
    """The best order of these candidates for this person (and query).

    Unknown candidates are left out and named in `notes`.
    """

    candidates: Annotated[list[Id], FIRST_ERROR] = Field(min_length=1, max_length=1000)
    query: Text | None = None
    mode: Mode = "fused"
    timeout_ms: Timeout = None
    fields: list[Short] | None = Field(None, max_length=50, description="Item columns to return as `attributes`.")
    reasons: Flag = False
    model_config = _examples({"candidates": ["item-1", "item-2", "item-3"], "history": ["item-4"]})

    def to_request(self) -> RecommendationRequest:
        """The request behind the body."""
        chosen = tuple(dict.fromkeys(self.candidates))
        query = None if self.query is None else self.query.strip()
        return RecommendationRequest(
            self.user_id, self.events(), query, len(chosen), self.mode, False, self.timestamp, candidates=chosen,
            attributes=self.attributes, surface=self.surface,
        )  # fmt: skip


class RecommendPart(RecommendBody):
    """A recommendation among several requests."""

    kind: Literal["recommend"]


class SearchPart(SearchBody):
    """A search among several requests."""

    kind: Literal["search"]


class RankPart(RankBody):
    """A ranking among several requests."""

    kind: Literal["rank"]


class RequestsBody(_Body):
    """Several requests, answered together."""

    requests: Annotated[
        list[Annotated[RecommendPart | SearchPart | RankPart, Field(discriminator="kind")]], FIRST_ERROR
    ] = Field(min_length=1, max_length=32)
    model_config = _examples(
        {"requests": [{"kind": "recommend", "user_id": "u1"}, {"kind": "search", "query": "warm scarf"}]}
    )


class BaselinesBody(_Body):
    """What simple methods answer, to compare with."""

    query: Text | None = None
    k: Count = Field(10, ge=1, le=MAX_LIST)
    filters: FilterBody | None = None
    fields: list[Short] | None = Field(None, max_length=50)
    model_config = _examples({"query": "warm scarf", "k": 5})


class SimilarBody(_Body):
    """The items nearest to one item."""

    item_id: Id
    k: Count = Field(10, ge=1, le=MAX_LIST)
    filters: FilterBody | None = None
    fields: list[Short] | None = Field(None, max_length=50)
    model_config = _examples({"item_id": "item-1", "k": 5})


ListingBody = RecommendBody | SearchBody | RankBody | SimilarBody


class SuggestBody(Person):
    """The logged queries that this person is likely to search next."""

    prefix: str = Field("", max_length=256, description="What is typed so far, typos allowed.")
    k: Count = Field(10, ge=1, le=100)
    model_config = _examples({"history": ["item-1"], "prefix": "wa"})


class ExplainBody(Person):
    """Why is this item recommended to this person (with this query)?"""

    item_id: Id
    query: Text | None = None
    model_config = _examples({"item_id": "item-3", "history": ["item-1"], "query": "warm scarf"})


class WalkBody(Person):
    """How does the beam walk down the code tree for this person (and query)?"""

    query: Text | None = None
    width: Count = Field(8, ge=1, le=50)
    exclude_seen: Flag = False
    blocked: Annotated[list[Id], FIRST_ERROR] = Field([], max_length=MAX_LIST, description="None of these items.")
    model_config = _examples({"history": ["item-1"], "width": 8})


class EventBody(HistoryEvent):
    """An action of a user. With an `event_id` it may be sent again safely.

    Ids are read as logs are: without outer spaces; `null`, `undefined` and the like are refused.
    """

    user_id: StoredId
    item_id: StoredId
    event_id: Id | None = None
    surface: Short | None = None
    recommendation_id: Short | None = Field(None, description="The answer that this action followed.")

    def stored(self) -> StoredEvent:
        """The event to keep; without a time it happened now."""
        when = int(time.time()) if self.timestamp is None else self.timestamp
        return StoredEvent(
            self.user_id,
            self.item_id,
            when,
            self.action,
            self.query,
            self.event_id,
            self.surface,
            self.recommendation_id,
        )


class EventsBody(_Body):
    """Events to remember; durable once acknowledged, and read by the very next answer."""

    events: Annotated[list[EventBody], FIRST_ERROR] = Field(min_length=1, max_length=MAX_EVENTS)
    model_config = _examples({"events": [{"user_id": "u1", "item_id": "item-1", "action": "click"}]})


class ImpressionsBody(_Body):
    """The impressions of an answer, best position first."""

    recommendation_id: Short
    user_id: Id
    items: Annotated[list[Id], FIRST_ERROR] = Field(min_length=1, max_length=1000)
    propensities: Annotated[list[Annotated[float, Field(gt=0, le=1)]], FIRST_ERROR] | None = Field(
        None, max_length=1000, description="Those of the answer, for each item, where the server explores."
    )
    timestamp: Seconds | None = None
    model_config = _examples({"recommendation_id": "0f3a", "user_id": "u1", "items": ["item-1", "item-2"]})

    def stored(self) -> list[StoredImpression]:
        """The impressions to keep; without a time they happened now. ``UserError`` for too few propensities."""
        when = int(time.time()) if self.timestamp is None else self.timestamp
        propensities: Sequence[float | None] = self.propensities or [None] * len(self.items)
        if len(propensities) != len(self.items):
            raise UserError(f"propensities: {len(propensities)} for {len(self.items)} items; give one for each item")
        return [
            StoredImpression(self.recommendation_id, self.user_id, item, when, position, propensity)
            for position, (item, propensity) in enumerate(zip(self.items, propensities, strict=True), 1)
        ]


class ItemColumns(BaseModel):
    """The columns of an item; further ones are those that the bundle's items have."""

    title: str | None = Field(None, max_length=2000)
    text: str | None = Field(None, max_length=20_000)
    brand: str | None = Field(None, max_length=500)
    category: list[Annotated[str, StringConstraints(max_length=256)]] | None = Field(None, max_length=20)
    price: float | None = Field(None, allow_inf_nan=False, strict=True)
    model_config = ConfigDict(extra="allow", **_examples({"title": "Blue wool scarf", "category": ["Scarves"]}))


class ItemBody(ItemColumns):
    """An item to add."""

    item_id: Id


class ItemsBody(_Body):
    """Items to add: encoded with the fixed codebooks and visible at once."""

    items: Annotated[list[ItemBody], FIRST_ERROR] = Field(min_length=1, max_length=MAX_ITEMS)
    model_config = _examples({"items": [{"item_id": "new-1", "title": "Blue wool scarf", "category": ["Scarves"]}]})
