"""What is asked of a recommender: a person (a stored user or a given history), perhaps a query, filters, and how long the list is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl

from genrec.data.dataset import VALID, Dataset, Requests
from genrec.errors import UserError
from genrec.inference.snapshot import CatalogueSnapshot

EVENT_FIELDS: dict[str, type] = {"item_id": str, "timestamp": int, "action": str, "query": str}
_NO_TIME = np.iinfo(np.int64).min
History = Sequence[str | Mapping[str, Any]]


@dataclass(frozen=True)
class Filters:
    """What an answer may hold. ``category``: any of these names, at any depth of an item's path; ``in_stock``: only these ids; ``blocked``:
    none of these. Ids that the catalogue does not have are ignored; an unknown category is a ``UserError``. ``None`` does not filter.
    """

    category: Sequence[str] | None = None
    in_stock: Sequence[str] | None = None
    blocked: Sequence[str] | None = None

    @property
    def subset(self) -> tuple:
        """A key of ``category`` and ``in_stock``: requests with the same key share one mask."""
        return tuple(None if names is None else tuple(names) for names in (self.category, self.in_stock))

    def mask(self, snapshot: CatalogueSnapshot) -> np.ndarray:
        """Items of ``category`` and ``in_stock``: (n_items,) bool."""
        mask = np.ones(snapshot.n_items, bool)
        if self.category is not None:
            mask &= _mask(snapshot, [snapshot.in_category(name) for name in self.category])
        if self.in_stock is not None:
            mask &= _mask(snapshot, [snapshot.known_places(self.in_stock)])
        return mask


@dataclass(frozen=True)
class Diversity:
    """At most ``at_most`` items with the same first ``levels`` codes stand at the head of the list; what is too many moves to its end."""

    levels: int = 1
    at_most: int = 2

    def __post_init__(self) -> None:
        if self.levels < 1 or self.at_most < 1:
            raise UserError(f"diversity: levels and at_most must be at least 1, are {self.levels} and {self.at_most}")


@dataclass(frozen=True)
class RecommendationRequest:
    """One request. ``history``: item ids, oldest first, or {item_id, timestamp, action, query}; it stands in place of what is known of ``user``.

    ``candidates``: rank only these. ``timestamp``: seconds; later events of a stored user are not read.
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


class EventSource(Protocol):
    """What the builder asks of an event store."""

    def events_of(self, users: Sequence[str]) -> pl.DataFrame:
        """Stored events: ``user_id`` and ``EVENT_FIELDS``, oldest first per user."""


Histories = Sequence[History | None] | pl.Series


@dataclass(frozen=True)
class _Events:
    """Events of some requests, as columns (n,): the request's ``rows``, ``items`` (-1: not in the catalogue), ``stamps`` (``_NO_TIME`` where
    unknown), ``actions`` (places in the chain) and ``queries`` (texts or None).
    """

    rows: np.ndarray
    items: np.ndarray
    stamps: np.ndarray
    actions: np.ndarray
    queries: list[str | None]


def build_requests(
    data: Dataset, snapshot: CatalogueSnapshot, users: Sequence[str | None], times: np.ndarray, queries: Sequence[str | None], histories: Histories | None = None,
    store: EventSource | None = None, strict: bool = True,
) -> Requests:  # fmt: skip
    """N requests: ``users``, ``times`` (float seconds, nan where unknown), ``queries``, and optionally given ``histories`` (lists, or a column of lists).

    A known user's history is what the run knows of them up to the request's time, never a test event (see ``_known``), then what the store holds; a given
    history stands in place of both. An event without a time takes that of the event before it. Items that are not in the catalogue are left out.
    ``strict`` raises ``UserError`` with the row for a user that nobody knows; otherwise such a user has no history.

    SimulatedLog in NumPy: a single request passes here on its way to the network, and one call of a table engine costs more than all of this.
    """
    given = np.zeros(len(users), bool)
    if histories is not None:
        given = (
            histories.is_not_null().to_numpy()
            if isinstance(histories, pl.Series)
            else np.array([one is not None for one in histories])
        )
    chain = {name: place for place, name in enumerate(data.actions_chain)}
    asking = [None if skip else user for user, skip in zip(users, given.tolist(), strict=True)]
    index = np.array([data.user_index.get(user, -1) if user is not None else -1 for user in asking], np.int64)
    parts = [_known(data, index, times)]
    if store is not None:
        parts.append(_stored(store, asking, snapshot, chain))
    if histories is not None:
        parts.append(
            _given_column(histories, snapshot, chain)
            if isinstance(histories, pl.Series)
            else _given(histories, snapshot, chain)
        )
    if strict:
        known = index >= 0
        known[np.concatenate([part.rows for part in parts])] = True
        _check_users(asking, known)
    rows, items, stamps, actions = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "items", "stamps", "actions")
    )
    texts = [text for part in parts for text in part.queries]
    evidence = snapshot.ranker.generator.evidence
    now = evidence.origin + evidence.span  # who tells no time means the present, and the log ends there
    order = np.lexsort(
        (_filled(rows, stamps, items >= 0, now), rows)
    )  # stable: ties stay known, stored, given, each as it came
    stamps = _filled(rows, stamps, items >= 0, now)
    late = ~given[rows] & (stamps > times[rows])  # false where the time is nan
    order = order[((items >= 0) & ~late)[order]]
    rows, items, stamps, actions, texts = (
        rows[order],
        items[order],
        stamps[order],
        actions[order],
        [texts[place] for place in order.tolist()],
    )
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(users)))]).astype(np.int64)
    table, numbered, asked = _numbered(texts, queries)
    last = stamps[np.maximum(offsets[1:] - 1, 0)] if len(stamps) else np.zeros(len(users), np.int64)
    when = np.where(np.isnan(times), np.where(np.diff(offsets) > 0, last, now), times).astype(np.int64)
    return Requests(offsets, items, stamps, actions, numbered, when, asked, np.full(len(users), -1, np.int64), table)


def _filled(rows: np.ndarray, stamps: np.ndarray, counted: np.ndarray, now: int) -> np.ndarray:
    """Times with each unknown one replaced by that of its request's event before it, ``now`` where there is none. Rows come part by part."""
    order = np.argsort(rows, kind="stable")
    rows, values = rows[order], stamps[order]
    source = np.where((values != _NO_TIME) & counted[order], np.arange(len(values)), -1)
    source = np.maximum.accumulate(source) if len(source) else source
    first = np.searchsorted(rows, rows)  # where the request's events begin: no time is taken from the request before
    filled = np.where(values != _NO_TIME, values, np.where(source >= first, values[source], now))
    result = np.empty_like(filled)
    result[order] = filled
    return result


def _numbered(searched: Sequence[str | None], asked: Sequence[str | None]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The distinct texts of two columns (without outer spaces, in order of appearance), and each column as indices into them, -1 for none."""
    numbers: dict[str, int] = {}
    columns = (
        np.array(
            [numbers.setdefault(text.strip(), len(numbers)) if text and text.strip() else -1 for text in column],
            np.int64,
        )
        for column in (searched, asked)
    )
    first, second = columns
    return list(numbers), first, second


def _check_users(users: Sequence[str | None], known: np.ndarray) -> None:
    """``UserError`` for the first user that neither the data nor the store knows."""
    for row, user in enumerate(users):
        if user is not None and not known[row]:
            raise UserError(f"row {row + 1}: user '{user}' is not in the data; give a history instead, or no user")


def _known(data: Dataset, index: np.ndarray, times: np.ndarray) -> _Events:
    """Events of the data's users (-1: nobody), never one of the test split.

    A validation event at the very time of a request is what it asks for and not shown, unless a test event of the user has that time too:
    then the request is taken to be at that one.
    """
    if not (index >= 0).any():
        none = np.zeros(0, np.int64)
        return _Events(none, none, none, none, [])
    lengths = np.where(index >= 0, data.known_lengths(VALID)[index], 0)
    rows = np.repeat(np.arange(len(index)), lengths)
    event = np.repeat(data.offsets[index] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    own = (np.asarray(data.split[event]) == VALID) & (np.asarray(data.timestamps[event]) == times[rows])
    if own.any():
        after = data.offsets[index] + lengths  # the first test event, where there is one
        tested = np.where(
            after < data.offsets[index + 1], np.asarray(data.timestamps[np.minimum(after, len(data.items) - 1)]), -1
        )
        shown = ~own | (tested == times)[rows]
        rows, event = rows[shown], event[shown]
    items, stamps, actions, queries = (
        np.asarray(column[event]).astype(np.int64)
        for column in (data.items, data.timestamps, data.actions, data.queries)
    )
    return _Events(
        rows, items, stamps, actions, [data.query_texts[query] if query >= 0 else None for query in queries.tolist()]
    )


def _stored(
    store: EventSource, users: Sequence[str | None], snapshot: CatalogueSnapshot, chain: dict[str, int]
) -> _Events:
    lanes: dict[str, list[int]] = {}
    for row, user in enumerate(users):
        if user is not None:
            lanes.setdefault(user, []).append(row)
    kept = store.events_of(list(lanes)).rows() if lanes else []
    events = [(row, *event) for user, *event in kept for row in lanes[user]]
    return _columns(events, snapshot, chain)


def _given(histories: Sequence[History | None], snapshot: CatalogueSnapshot, chain: dict[str, int]) -> _Events:
    """Events of given histories: item ids, or {item_id, timestamp, action, query}, all but the first nullable."""
    events = []
    for row, history in enumerate(histories):
        for event in history or ():
            fields = {"item_id": event} if isinstance(event, str) else event
            unknown = set(fields) - set(EVENT_FIELDS)
            if unknown or not fields.get("item_id"):
                problem = f"unknown field '{min(unknown)}'" if unknown else "no item_id"
                raise UserError(f"history: an event has {problem}; an event has {', '.join(EVENT_FIELDS)}")
            values = [fields.get(name) for name in EVENT_FIELDS]
            for (name, kind), value in zip(EVENT_FIELDS.items(), values, strict=True):
                if value is not None and not (
                    isinstance(value, kind) or (kind is int and isinstance(value, np.integer))
                ):
                    raise UserError(
                        f"history: field '{name}' has the wrong type; expected {kind.__name__}, found {value!r:.40}"
                    )
            if values[1] is not None and not 0 <= values[1] < 2**53:
                raise UserError(f"history: timestamp {values[1]!r:.40} is no number of seconds since 1970")
            events.append((row, *values))
    return _columns(events, snapshot, chain)


def _columns(events: list[tuple], snapshot: CatalogueSnapshot, chain: dict[str, int]) -> _Events:
    """Events (row, item id, time, action, query) as columns."""
    rows = np.array([event[0] for event in events], np.int64)
    items = np.array([snapshot.index.get(event[1], -1) for event in events], np.int64)
    stamps = np.array([_NO_TIME if event[2] is None else event[2] for event in events], np.int64)
    return _Events(
        rows,
        items,
        stamps,
        np.array([chain.get(event[3], 0) for event in events], np.int64),
        [event[4] for event in events],
    )


def _given_column(histories: pl.Series, snapshot: CatalogueSnapshot, chain: dict[str, int]) -> _Events:
    """The same of a column of lists, as a request file has it: without a loop over its events."""
    if not isinstance(histories.dtype, pl.List):
        raise UserError(
            f"column 'history' must hold lists of item ids or of {{item_id, timestamp, action, query}}, not {histories.dtype}"
        )
    events = (
        pl.DataFrame({"row": np.arange(len(histories)), "item_id": histories}).explode("item_id").drop_nulls("item_id")
    )
    if isinstance(events["item_id"].dtype, pl.Struct):
        events = events.select("row", pl.col("item_id").alias("event")).unnest("event")
        if "item_id" not in events.columns:
            raise UserError(
                f"column 'history': its entries have no field item_id, only {', '.join(events.columns[1:])}"
            )
    events = events.with_columns(pl.lit(None).alias(name) for name in EVENT_FIELDS if name not in events.columns)
    events = events.with_columns(
        pl.col("item_id")
        .cast(pl.String)
        .replace_strict(snapshot.table["item_id"], np.arange(snapshot.n_items), default=-1, return_dtype=pl.Int64),
        pl.col("timestamp").cast(pl.Int64).fill_null(_NO_TIME),
        pl.col("action").cast(pl.String).replace_strict(chain, default=0, return_dtype=pl.Int64).fill_null(0),
        pl.col("query").cast(pl.String),
    )
    columns = (events[name].to_numpy() for name in ("row", "item_id", "timestamp", "action"))
    return _Events(*columns, events["query"].to_list())


def _mask(snapshot: CatalogueSnapshot, places: Sequence[np.ndarray]) -> np.ndarray:
    mask = np.zeros(snapshot.n_items, bool)
    for part in places:
        mask[part] = True
    return mask
