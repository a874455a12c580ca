"""What is asked of a recommender: a person (a stored user or a given history), perhaps a query, filters, and how long the list is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl

from genrec.data.dataset import VALID, Dataset, Requests
from genrec.errors import UserError
from genrec.serving.living import Shelf

EVENT_FIELDS = {"item_id": pl.String, "timestamp": pl.Int64, "action": pl.String, "query": pl.String}
_EVENTS = {"row": pl.Int64, "source": pl.Int8, **EVENT_FIELDS}
_KNOWN, _STORED, _GIVEN = 0, 1, 2


@dataclass(frozen=True)
class Filters:
    """What an answer may hold. ``category``: any of these names, at any depth of an item's path; ``in_stock``: only these ids; ``blocked``:
    none of these. Ids that the catalogue does not have are ignored; an unknown category is a ``UserError``. ``None`` does not filter."""

    category: Sequence[str] | None = None
    in_stock: Sequence[str] | None = None
    blocked: Sequence[str] | None = None

    def hidden(self, shelf: Shelf) -> np.ndarray:
        """Items that must not be shown: (n_items,) bool."""
        hidden = np.zeros(shelf.n_items, bool)
        if self.category is not None:
            hidden |= ~_mask(shelf, [shelf.in_category(name) for name in self.category])
        if self.in_stock is not None:
            hidden |= ~_mask(shelf, [_known_places(shelf, self.in_stock)])
        if self.blocked is not None:
            hidden |= _mask(shelf, [_known_places(shelf, self.blocked)])
        return hidden


@dataclass(frozen=True)
class Diversity:
    """At most ``at_most`` items with the same first ``levels`` codes stand at the head of the list; what is too many moves to its end."""

    levels: int = 1
    at_most: int = 2

    def __post_init__(self) -> None:
        if self.levels < 1 or self.at_most < 1:
            raise UserError(f"diversity: levels and at_most must be at least 1, are {self.levels} and {self.at_most}")


@dataclass(frozen=True)
class Question:
    """One request. ``history``: item ids, oldest first, or {item_id, timestamp, action, query}; it stands in place of what is known of ``user``.

    ``candidates``: rank only these. ``timestamp``: seconds; later events of a stored user are not read.
    """

    user: str | None = None
    history: Sequence[str | Mapping[str, Any]] | None = None
    query: str | None = None
    k: int = 10
    mode: str = "fused"
    exclude_seen: bool = True
    timestamp: int | None = None
    filters: Filters | None = None
    diversity: Diversity | None = None
    candidates: tuple[str, ...] | None = None


class EventSource(Protocol):
    """What the builder asks of an event store."""

    def events_of(self, users: Sequence[str]) -> pl.DataFrame:
        """Stored events: ``user_id`` and ``EVENT_FIELDS``, oldest first per user."""


def history_series(histories: Sequence[Sequence[str | Mapping[str, Any]] | None]) -> pl.Series:
    """Given histories as one column of lists of events."""
    rows = [None if row is None else [{"item_id": event} if isinstance(event, str) else dict(event) for event in row] for row in histories]
    for row in rows:
        for event in row or ():
            unknown = set(event) - set(EVENT_FIELDS)
            if unknown or not event.get("item_id"):
                problem = f"unknown field '{min(unknown)}'" if unknown else "no item_id"
                raise UserError(f"history: an event has {problem}; an event has {', '.join(EVENT_FIELDS)}")
    try:
        return pl.Series("history", rows, dtype=pl.List(pl.Struct(EVENT_FIELDS)))
    except (pl.exceptions.PolarsError, TypeError, OverflowError) as error:
        raise UserError(f"history: an event's field has the wrong type ({str(error).splitlines()[0]})") from error


def build_requests(
    data: Dataset, shelf: Shelf, table: pl.DataFrame, histories: pl.Series | None, store: EventSource | None, strict: bool = True
) -> Requests:
    """Requests of a table with nullable ``user_id``, ``timestamp`` and ``query``, and optionally given ``histories``.

    A known user's history is what the run knows of them up to the request's time, never a test event, then what the store holds; a given
    history stands in place of both. An event without a time takes that of the event before it. Items that are not in the catalogue are left out.
    ``strict`` raises ``UserError`` with the row for a user that nobody knows; otherwise such a user has no history.
    """
    times = table["timestamp"].to_numpy().astype(np.float64)  # nan where unknown
    users = table["user_id"] if "user_id" in table.columns else pl.Series([None] * len(table), dtype=pl.String)
    if histories is not None:
        users = users.set(histories.is_not_null(), None)
    parts = [_known(data, users), *([_stored(store, users)] if store else []), *([_given(histories)] if histories is not None else [])]
    if strict:
        _check_users(data, users, parts)
    chain = {name: place for place, name in enumerate(data.actions_chain)}
    limits = pl.DataFrame({"row": np.arange(len(table)), "limit": table["timestamp"].cast(pl.Int64)})
    events = (
        pl.concat(parts)
        .join(limits, on="row", how="left", maintain_order="left")
        .filter((pl.col("source") == _GIVEN) | (pl.col("timestamp") <= pl.col("limit")).fill_null(True))
        .join(shelf.places_of_ids, on="item_id", how="inner", maintain_order="left")
        .sort("row", "source", maintain_order=True)
        .with_columns(pl.col("timestamp").forward_fill().over("row").fill_null(0))
        .with_columns(
            pl.col("action").replace_strict(chain, default=0, return_dtype=pl.Int64).fill_null(0),
            pl.col("query").str.strip_chars().replace("", None),
        )
        .sort("row", "timestamp", maintain_order=True)
    )
    lengths = np.bincount(events["row"].to_numpy(), minlength=len(table))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    stamps = events["timestamp"].to_numpy()
    asked = table["query"].str.strip_chars().replace("", None)
    searched = events["query"]
    texts = pl.concat([searched.alias("query"), asked.alias("query")]).drop_nulls().unique(maintain_order=True)
    queries, request_queries = (
        part.replace_strict(texts, np.arange(len(texts)), default=-1, return_dtype=pl.Int64).fill_null(-1).to_numpy() for part in (searched, asked)
    )
    last = stamps[np.maximum(offsets[1:] - 1, 0)] if len(stamps) else np.zeros(len(table), np.int64)
    when = np.where(np.isnan(times), np.where(lengths > 0, last, 0), times).astype(np.int64)
    return Requests(
        offsets, events["item"].to_numpy(), stamps, events["action"].to_numpy(), queries, when, request_queries,
        np.full(len(table), -1, np.int64), texts.to_list(),
    )  # fmt: skip


def _places_of(data: Dataset, users: pl.Series) -> np.ndarray:
    return np.array([data.user_index.get(user, -1) for user in users], np.int64)


def _check_users(data: Dataset, users: pl.Series, parts: list[pl.DataFrame]) -> None:
    """``UserError`` for the first user that neither the data nor the store knows."""
    known = _places_of(data, users) >= 0
    known[np.concatenate([part["row"].to_numpy() for part in parts])] = True
    unknown = np.flatnonzero(~known & users.is_not_null().to_numpy())
    if len(unknown):
        place = int(unknown[0])
        raise UserError(f"row {place + 1}: user '{users[place]}' is not in the data; give a history instead, or no user")


def _known(data: Dataset, users: pl.Series) -> pl.DataFrame:
    """Events of the data's users, never one of the test split."""
    index = _places_of(data, users)
    if not (index >= 0).any():
        return pl.DataFrame(schema=_EVENTS)
    lengths = np.where(index >= 0, data.known_lengths(VALID)[index], 0)
    row = np.repeat(np.arange(len(index)), lengths)
    event = np.repeat(data.offsets[index] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    items, stamps, actions, queries = (
        np.asarray(column[event]).astype(np.int64) for column in (data.items, data.timestamps, data.actions, data.queries)
    )
    chain = pl.Series(data.actions_chain, dtype=pl.String)
    return pl.DataFrame(
        {"row": row, "source": np.full(len(row), _KNOWN), "item_id": data.item_table["item_id"][items], "timestamp": stamps,
         "action": chain[actions], "query": data.texts_of(queries)}, schema=_EVENTS,
    )  # fmt: skip


def _stored(store: EventSource, users: pl.Series) -> pl.DataFrame:
    asked = pl.DataFrame({"row": np.arange(len(users)), "user_id": users}).drop_nulls("user_id")
    if not len(asked):
        return pl.DataFrame(schema=_EVENTS)
    events = store.events_of(asked["user_id"].unique(maintain_order=True).to_list())
    joined = asked.join(events, on="user_id", how="inner", maintain_order="left_right")
    return joined.select("row", pl.lit(_STORED).alias("source"), *EVENT_FIELDS).cast(_EVENTS)


def _given(histories: pl.Series) -> pl.DataFrame:
    """Events of given histories: lists of item ids, or of {item_id, timestamp, action, query}, all but the first nullable."""
    if not isinstance(histories.dtype, pl.List):
        raise UserError(f"column 'history' must hold lists of item ids or of {{item_id, timestamp, action, query}}, not {histories.dtype}")
    events = pl.DataFrame({"row": np.arange(len(histories)), "item_id": histories}).explode("item_id").drop_nulls("item_id")
    if isinstance(events["item_id"].dtype, pl.Struct):
        events = events.select("row", pl.col("item_id").alias("event")).unnest("event")
        if "item_id" not in events.columns:
            raise UserError(f"column 'history': its entries have no field item_id, only {', '.join(events.columns[1:])}")
    events = events.with_columns(pl.lit(None).alias(name) for name in EVENT_FIELDS if name not in events.columns)
    return events.select("row", pl.lit(_GIVEN).alias("source"), *EVENT_FIELDS).cast(_EVENTS)


def _known_places(shelf: Shelf, item_ids: Sequence[str]) -> np.ndarray:
    return np.array([shelf.index[item] for item in item_ids if item in shelf.index], np.int64)


def _mask(shelf: Shelf, places: Sequence[np.ndarray]) -> np.ndarray:
    mask = np.zeros(shelf.n_items, bool)
    for part in places:
        mask[part] = True
    return mask
