"""Histories of requests: what the data, the event store and the request itself say, as one ragged table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from genrec.data.dataset import VALID, Dataset, Requests
from genrec.data.ids import id_text
from genrec.data.situation import Situation
from genrec.data.times import LATEST, checked_seconds, recognise
from genrec.errors import UserError
from genrec.inference.requests import Attributes, History, StoredUsers
from genrec.inference.snapshot import CatalogueSnapshot

EVENT_FIELDS: dict[str, type] = {"item_id": str, "timestamp": int, "action": str, "query": str}
_NO_TIME = np.iinfo(np.int64).min


@dataclass(frozen=True)
class _Events:
    """Events of some requests, as columns (n,).

    ``rows``: the request of each event; ``items`` (-1: not in the catalogue); ``times`` (``_NO_TIME``: unknown);
    ``actions``: position in the feedback chain; ``queries``: texts or None.
    """

    rows: np.ndarray
    items: np.ndarray
    times: np.ndarray
    actions: np.ndarray
    queries: list[str | None]


def build_requests(
    data: Dataset,
    snapshot: CatalogueSnapshot,
    users: Sequence[str | None],
    times: np.ndarray,
    queries: Sequence[str | None],
    histories: Sequence[History | None] | pl.Series | None = None,
    stored: StoredUsers | None = None,
    strict: bool = True,
    situation: np.ndarray | None = None,
) -> Requests:
    """N requests of ``users``, ``times`` (seconds, nan for unknown), ``queries`` and perhaps given ``histories``.

    A known user's history is what the data know of them up to the request's time, never a test event (see
    ``_known``), then what the store holds. A given history (a list, or a row of a column of lists) replaces both. An
    event without a time takes that of the event before it. Items that are not in the catalogue are left out.
    ``strict`` raises ``UserError`` with the row for a user that nobody knows; otherwise such a user has no history.
    Attributes belong to what the data know of a user; ``situation`` (N, F) is what the requests state, see
    ``stated_situations``.

    Plain NumPy: a single request passes here on its way to the network, and one call of a table engine costs more
    than all of this.
    """
    for late in times[(times < 0) | (times > LATEST)][:1]:
        checked_seconds(float(late), "timestamp")
    given = _is_given(histories, len(users))
    known = _known_users(data, users, given, stored)
    sources = _sources(data, snapshot, users, times, known, given, histories, stored, strict)
    rows, items, stamps, actions = (
        np.concatenate([getattr(source, name) for source in sources]) for name in ("rows", "items", "times", "actions")
    )
    texts = [text for source in sources for text in source.queries]
    features = snapshot.ranker.generator.features
    now = features.origin + features.span  # a request without a time is at the present, and the log ends there
    stamps = _filled(rows, stamps, items >= 0, now)
    order = np.lexsort((stamps, rows))  # stable: ties stay in the order of the sources, then as they came
    late = ~given[rows] & (stamps > times[rows])  # False where the time is nan
    order = order[((items >= 0) & ~late)[order]]
    rows, items, stamps, actions = rows[order], items[order], stamps[order], actions[order]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(users)))]).astype(np.int64)
    table, event_queries, request_queries = _numbered([texts[event] for event in order.tolist()], queries)
    last = stamps[np.maximum(offsets[1:] - 1, 0)] if len(stamps) else np.zeros(len(users), np.int64)
    when = np.where(np.isnan(times), np.where(np.diff(offsets) > 0, last, now), times).astype(np.int64)
    targets = np.full(len(users), -1, np.int64)
    return Requests(
        offsets,
        items,
        stamps,
        actions,
        event_queries,
        when,
        request_queries,
        targets,
        table,
        known,
        situation=situation,
    )


def stated_situations(
    snapshot: CatalogueSnapshot, attributes: Sequence[Attributes | None], surfaces: Sequence[str | None]
) -> np.ndarray | None:
    """What requests state of the fields that the network reads (N, F), see ``Situation.stated``; None without any.

    Raises ``UserError`` for a name that it does not read.
    """
    if not any(attributes) and all(surface is None for surface in surfaces):
        return None
    reader = snapshot.ranker.situation
    situation = Situation(()) if reader is None else reader.situation
    return np.stack([situation.stated(*one) for one in zip(attributes, surfaces, strict=True)])


def _is_given(histories: Sequence[History | None] | pl.Series | None, n: int) -> np.ndarray:
    """Which of n requests come with a history of their own."""
    if isinstance(histories, pl.Series):
        return histories.is_not_null().to_numpy()
    return np.array([history is not None for history in histories]) if histories is not None else np.zeros(n, bool)


def _known_users(
    data: Dataset, users: Sequence[str | None], given: np.ndarray, stored: StoredUsers | None
) -> np.ndarray:
    """The data's index of the users whose data may be read, -1 for others (N,): a given history replaces these data."""
    erased = set() if stored is None else stored.erased
    index = [
        -1 if skip or user is None or user in erased else data.user_index.get(user, -1)
        for user, skip in zip(users, given.tolist(), strict=True)
    ]
    return np.array(index, np.int64)


def _sources(
    data: Dataset,
    snapshot: CatalogueSnapshot,
    users: Sequence[str | None],
    times: np.ndarray,
    index: np.ndarray,
    given: np.ndarray,
    histories: Sequence[History | None] | pl.Series | None,
    stored: StoredUsers | None,
    strict: bool,
) -> list[_Events]:
    """The events of the requests by where they come from: data, store, the requests themselves.

    ``index`` (N,) and ``given`` (N,): see ``_known_users`` and ``_is_given``.
    """
    chain = {name: level for level, name in enumerate(data.actions_chain)}
    readers = [None if skip else user for user, skip in zip(users, given.tolist(), strict=True)]
    sources = [_known(data, index, times)]
    if stored is not None:
        sources.append(_stored(stored, readers, snapshot, chain))
    if isinstance(histories, pl.Series):
        sources.append(_given_column(histories, snapshot, chain))
    elif histories is not None:
        sources.append(_given(histories, snapshot, chain))
    if strict:
        known = index >= 0
        known[np.concatenate([source.rows for source in sources])] = True
        _check_users(readers, known)
    return sources


def read_events(snapshot: CatalogueSnapshot, requests: Requests, chain: Sequence[str]) -> list[dict[str, Any]]:
    """The events of requests: item_id, title, timestamp, action (of the feedback ``chain``) and query of each."""
    columns = (requests.items, requests.timestamps, requests.actions, requests.queries)
    return [
        {
            "item_id": snapshot.item_ids[item],
            "title": snapshot.titles[item],
            "timestamp": time,
            "action": chain[action] if 0 <= action < len(chain) else None,
            "query": requests.query_texts[query] if query >= 0 else None,
        }
        for item, time, action, query in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _filled(rows: np.ndarray, times: np.ndarray, counted: np.ndarray, now: int) -> np.ndarray:
    """Replace each unknown time by that of its request's event before it, ``now`` where there is none.

    Rows come source by source.
    """
    order = np.argsort(rows, kind="stable")
    rows, values = rows[order], times[order]
    source = np.where((values != _NO_TIME) & counted[order], np.arange(len(values)), -1)
    source = np.maximum.accumulate(source) if len(source) else source
    first = np.searchsorted(rows, rows)  # where the request's events begin: no time is taken from the request before
    filled = np.where(values != _NO_TIME, values, np.where(source >= first, values[source], now))
    result = np.empty_like(filled)
    result[order] = filled
    return result


def _numbered(
    event_queries: Sequence[str | None], request_queries: Sequence[str | None]
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The distinct texts of two columns (stripped, in order of appearance), and each column as indices into them."""
    numbers: dict[str, int] = {}

    def column(texts: Sequence[str | None]) -> np.ndarray:
        return np.array(
            [numbers.setdefault(text.strip(), len(numbers)) if text and text.strip() else -1 for text in texts],
            np.int64,
        )

    first, second = column(event_queries), column(request_queries)
    return list(numbers), first, second


def _check_users(users: Sequence[str | None], known: np.ndarray) -> None:
    """``UserError`` for the first user that neither the data nor the store knows."""
    for row, user in enumerate(users):
        if user is not None and not known[row]:
            raise UserError(f"row {row + 1}: user '{user}' is not in the data; give a history instead, or no user")


def _known(data: Dataset, index: np.ndarray, times: np.ndarray) -> _Events:
    """Events of the data's users (-1: nobody), never one of the test split.

    A validation event at the very time of a request is its target and stays hidden, unless a test event of the user
    has that time too: then the request is taken to be at that one.
    """
    if not (index >= 0).any():
        none = np.zeros(0, np.int64)
        return _Events(none, none, none, none, [])
    lengths = np.where(index >= 0, data.known_lengths(VALID)[index], 0)
    rows = np.repeat(np.arange(len(index)), lengths)
    event = np.repeat(data.offsets[index] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    target = (np.asarray(data.split[event]) == VALID) & (np.asarray(data.timestamps[event]) == times[rows])
    if target.any():
        after = data.offsets[index] + lengths  # the first test event, where there is one
        last = np.minimum(after, len(data.items) - 1)
        tested = np.where(after < data.offsets[index + 1], np.asarray(data.timestamps[last]), -1)
        visible = ~target | (tested == times)[rows]
        rows, event = rows[visible], event[visible]
    items, stamps, actions, queries = (
        np.asarray(column[event]).astype(np.int64)
        for column in (data.items, data.timestamps, data.actions, data.queries)
    )
    texts = [data.query_texts[query] if query >= 0 else None for query in queries.tolist()]
    return _Events(rows, items, stamps, actions, texts)


def _stored(
    stored: StoredUsers, users: Sequence[str | None], snapshot: CatalogueSnapshot, chain: dict[str, int]
) -> _Events:
    rows: dict[str, list[int]] = {}
    for row, user in enumerate(users):
        if user is not None:
            rows.setdefault(user, []).append(row)
    events = [(row, *event) for user, *event in stored.events for row in rows.get(user, ())]
    return _columns(events, snapshot, chain)


def _given(histories: Sequence[History | None], snapshot: CatalogueSnapshot, chain: dict[str, int]) -> _Events:
    """Events of given histories: item ids, or {item_id, timestamp, action, query}, all but the first nullable."""
    if all(isinstance(event, str) and event for history in histories for event in history or ()):
        return _plain(histories, snapshot)
    events = []
    for row, history in enumerate(histories):
        for event in history or ():
            fields = {"item_id": event} if isinstance(event, str) else event
            unknown = set(fields) - set(EVENT_FIELDS)
            if unknown or not fields.get("item_id"):
                problem = f"unknown field '{min(unknown)}'" if unknown else "no item_id"
                raise UserError(f"history: an event has {problem}; an event has {', '.join(EVENT_FIELDS)}")
            values = [_checked(name, kind, fields.get(name)) for name, kind in EVENT_FIELDS.items()]
            events.append((row, *values))
    return _columns(events, snapshot, chain)


def _plain(histories: Sequence[History | None], snapshot: CatalogueSnapshot) -> _Events:
    """``_given`` for histories of item ids alone, as most requests bring them: ten times as fast."""
    items = [snapshot.index_of(str(event)) for history in histories for event in history or ()]
    n, rows = len(items), np.repeat(np.arange(len(histories)), [len(history or ()) for history in histories])
    return _Events(rows, np.array(items, np.int64), np.full(n, _NO_TIME), np.zeros(n, np.int64), [None] * n)


def _checked(name: str, kind: type, value: object) -> object:
    """The value of an event's field; ``UserError`` for one of the wrong type."""
    if value is None:
        return None
    if not isinstance(value, kind) and not (kind is int and isinstance(value, np.integer)):
        given = f"{value!r:.40}"
        raise UserError(f"history: field '{name}' has the wrong type; expected {kind.__name__}, found {given}")
    if isinstance(value, int | np.integer):
        checked_seconds(float(value), "history: timestamp")
    return value


def _columns(events: list[tuple], snapshot: CatalogueSnapshot, chain: dict[str, int]) -> _Events:
    """Events (row, item id, time, action, query) as columns."""
    return _Events(
        np.array([event[0] for event in events], np.int64),
        np.array([snapshot.index_of(event[1]) for event in events], np.int64),
        np.array([_NO_TIME if event[2] is None else event[2] for event in events], np.int64),
        np.array([chain.get(event[3], 0) for event in events], np.int64),
        [event[4] for event in events],
    )


def _given_column(histories: pl.Series, snapshot: CatalogueSnapshot, chain: dict[str, int]) -> _Events:
    """The same of a column of lists, as a request file has it: without a loop over its events."""
    if not isinstance(histories.dtype, pl.List):
        raise UserError(
            "column 'history' must hold lists of item ids or of {item_id, timestamp, action, query}, "
            f"not {histories.dtype}"
        )
    events = pl.DataFrame({"row": np.arange(len(histories)), "item_id": histories}).explode("item_id")
    events = events.drop_nulls("item_id")
    if isinstance(events["item_id"].dtype, pl.Struct):
        events = events.select("row", pl.col("item_id").alias("event")).unnest("event")
        if "item_id" not in events.columns:
            names = ", ".join(events.columns[1:])
            raise UserError(f"column 'history': its entries have no field item_id, only {names}")
    events = events.with_columns(pl.lit(None).alias(name) for name in EVENT_FIELDS if name not in events.columns)
    catalogue = snapshot.table["item_id"], np.arange(snapshot.n_items)
    events = events.with_columns(
        id_text(events["item_id"], "history").replace_strict(*catalogue, default=-1, return_dtype=pl.Int64),
        recognise(events["timestamp"], "history").seconds(events["timestamp"]).fill_null(_NO_TIME),
        pl.col("action").cast(pl.String).replace_strict(chain, default=0, return_dtype=pl.Int64).fill_null(0),
        pl.col("query").cast(pl.String),
    )
    rows, items, times, actions = (events[name].to_numpy() for name in ("row", "item_id", "timestamp", "action"))
    return _Events(rows, items, times, actions, events["query"].to_list())
