"""Bodies of answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from genrec.inference.reasons import Reason
from genrec.serving.schemas import Mode


class Item(BaseModel):
    """One answer."""

    item_id: str
    title: str | None
    score: float
    propensity: float | None = Field(
        None, description="With exploration: the item's chance to stand in its slot, given those before. Send it back."
    )
    attributes: dict[str, Any] | None = None
    reason: Reason | None = None


class Facet(BaseModel):
    """The most frequent values of a column and their counts, or the range of numbers."""

    values: dict[str, int] | None = None
    min: float | None = None
    max: float | None = None
    count: int | None = None


class Listing(BaseModel):
    """Answers, best first, and how they were made."""

    recommendation_id: str = Field(description="Name it in impressions and events.")
    items: list[Item]
    mode: Mode
    source: Literal["model", "popular"] = Field(description="`popular`: nothing is known of the person, and no query.")
    bundle: str = Field(description="The key of the bundle that gave the answer.")
    n_proven: int = Field(description="How many of the first answers are provably the exact best.")
    no_match: bool = Field(
        description="The query names nothing of the catalogue; the items are those of a request without a query."
    )
    match: float = Field(description="Probability that the query names something of the catalogue.")
    corrected: str | None = Field(description="The query as it was read where words were misspelt or half typed.")
    next_offset: int | None = Field(description="The offset of the next page; null where there is none.")
    next_cursor: str | None = Field(description="The cursor of the next page; null where there is none.")
    notes: list[str] = Field(description="What of the request was left aside.")
    facets: dict[str, Facet] | None = None


class Problem(BaseModel):
    """Every answer that is not a success has this form."""

    error: str
    message: str


class Listings(BaseModel):
    """One answer or problem per request, in order."""

    answers: list[Listing | Problem]


class Baselines(BaseModel):
    """Lists of simple methods, best first."""

    popular: list[Item]
    bm25: list[Item] | None = Field(None, description="Only for a query.")


class SuggestedQuery(BaseModel):
    """A query, and how often it was logged."""

    query: str
    score: float
    count: int


class Suggestions(BaseModel):
    """Queries, best first."""

    suggestions: list[SuggestedQuery]


class Event(BaseModel):
    """One event of a history."""

    item_id: str
    title: str | None
    timestamp: int
    action: str | None
    query: str | None


class Events(BaseModel):
    """Events, oldest first."""

    events: list[Event]


class RejectedEvent(BaseModel):
    """An event that was not kept, or was kept with a doubt."""

    index: int
    problem: Literal["unknown_item", "unknown_action", "repeated", "conflict"]
    kept: bool


class Accepted(BaseModel):
    """How many events were kept, and remarks on single ones."""

    accepted: int = Field(description="Events that are stored now; repeated ones count.")
    rejected: int
    details: list[RejectedEvent]


class Shown(BaseModel):
    """How many impressions were kept."""

    accepted: int


class AddedItems(BaseModel):
    """What became of each item."""

    added: int
    restored: int
    unchanged: int


class Updated(BaseModel):
    """How many items were updated."""

    updated: int


class Removed(BaseModel):
    """How many were removed."""

    removed: int


class Erased(Removed):
    """How many stored events of a user were removed."""

    in_bundle: bool = Field(
        description="The bundle holds events of the user, which are not read any more; export again to erase them."
    )


class ItemRecord(BaseModel):
    """An item's columns and codes."""

    item_id: str
    title: str | None
    text: str | None
    brand: str | None
    category: list[str] | None
    price: float | None
    codes: list[int]
    model_config = ConfigDict(extra="allow")


class Bundle(BaseModel):
    """The key of a bundle."""

    bundle: str


class Description(Bundle):
    """What a bundle holds."""

    name: str = Field(description="The name of the run it was made from.")
    fitted_on: str
    items: int = Field(description="Items that can be recommended.")
    users: int = Field(description="Users whose histories the bundle holds.")
    columns: dict[str, str] = Field(description="Item columns and their types, for `fields`, `facets` and filters.")
    modes: list[Mode]
    suggestions: bool = Field(description="Whether there are logged queries to suggest.")


class Health(BaseModel):
    """The process lives."""

    status: Literal["ok"]
    version: str


class Ready(Bundle):
    """Requests are welcome."""

    status: Literal["ready"]
    canary: str | None = Field(description="The key of the canary's bundle, if there is one.")
    store: str
