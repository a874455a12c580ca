"""Requests with what people did with the items they saw: from the log's impressions, or, where it has none, from its events.

A request belongs to the split of the latest thing that was done with it, and to that of its own time: a request that led to a held-out event
is held out, whole. So nothing here that is called training has seen a validation or test event.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import polars as pl

from genrec.data.dataset import TEST, TRAIN, VALID, Dataset, Requests
from genrec.preference.levels import SHOWN, Levels

PART = 20  # rows of a log without request ids that make one request at most ...
PAUSE = 1800  # ... and the pause in seconds that ends one


@dataclass(frozen=True)
class Feedback:
    """N requests in order of time, and M shown items: those of request r are rows ``offsets[r]`` to ``offsets[r + 1]`` - 1.

    ``users``, ``times``, ``split``, ``queries`` (places in ``texts``, -1 none) and ``targets`` (the deepest-going item, -1 if none was clicked)
    are (N,); ``stops`` (N,) is the event of the log at which the person's history ends. ``items`` (M,) and ``stages`` (M,) places in the chain.
    ``shown`` false: the log has no impressions, rows are events. Histories are only copied for ``requests``.
    """

    data: Dataset
    users: np.ndarray
    times: np.ndarray
    split: np.ndarray
    stops: np.ndarray
    queries: np.ndarray
    targets: np.ndarray
    texts: list[str]
    offsets: np.ndarray
    items: np.ndarray
    stages: np.ndarray
    shown: bool

    def __len__(self) -> int:
        return len(self.users)

    @property
    def rows(self) -> np.ndarray:
        """(M,) the request of each row."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def history_lengths(self) -> np.ndarray:
        """(N,) events of the person before each request."""
        return self.stops - np.asarray(self.data.offsets)[self.users]

    @cached_property
    def requests(self) -> Requests:
        """What a model is asked: each with the person's events before it."""
        lengths = self.history_lengths
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.repeat(self.stops - offsets[1:], lengths) + np.arange(offsets[-1])
        data = self.data
        return Requests(
            offsets, np.asarray(data.items)[rows], np.asarray(data.timestamps)[rows], np.asarray(data.actions)[rows], np.asarray(data.queries)[rows],
            self.times, self.queries, self.targets, self.texts,
        )  # fmt: skip

    def take(self, indices: np.ndarray) -> Feedback:
        """The requests at these indices, in their order."""
        lengths = np.diff(self.offsets)[indices]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.repeat(self.offsets[indices] - offsets[:-1], lengths) + np.arange(offsets[-1])
        of_request = {
            name: getattr(self, name)[indices] for name in ("users", "times", "split", "stops", "queries", "targets")
        }
        return replace(self, **of_request, offsets=offsets, items=self.items[rows], stages=self.stages[rows])

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Items and stages (N, K) of each request's rows, -1 behind the last."""
        width = max(int(np.diff(self.offsets).max(initial=0)), 1)
        rows = self.rows
        lane = np.arange(len(rows)) - self.offsets[:-1][rows]
        items, stages = np.full((len(self), width), -1, np.int64), np.full((len(self), width), -1, np.int64)
        items[rows, lane], stages[rows, lane] = self.items, self.stages
        return items, stages


def collect(data: Dataset, levels: Levels) -> Feedback:
    """All feedback of a dataset, train, valid and test."""
    table = data.impressions
    return _of_events(data) if table is None or table.height == 0 else _of_impressions(data, table, levels)


def feedback_chain(data: Dataset) -> list[str]:
    """The dataset's chain; ``impression`` stands first where the log has impressions."""
    chain = list(data.actions_chain)
    return chain if SHOWN in chain or data.impressions is None else [SHOWN, *chain]


def _of_events(data: Dataset) -> Feedback:
    """Every event with a history is a request of one row, itself. Synthetic queries are none of the person's: left out."""
    owner = _owners(data)
    events = np.flatnonzero(np.arange(len(owner)) > np.asarray(data.offsets)[owner])
    times = np.asarray(data.timestamps)[events].astype(np.int64)
    order = np.argsort(times, kind="stable")
    events, times = events[order], times[order]
    queries = (
        np.full(len(events), -1, np.int64)
        if data.info["synthetic_queries"]
        else np.asarray(data.queries)[events].astype(np.int64)
    )
    items = np.asarray(data.items)[events].astype(np.int64)
    return Feedback(
        data, owner[events], times, np.asarray(data.split)[events].astype(np.int64), events, queries, items, data.query_texts,
        np.arange(len(events) + 1), items, np.asarray(data.actions)[events].astype(np.int64), False,
    )  # fmt: skip


def _of_impressions(data: Dataset, table: pl.DataFrame, levels: Levels) -> Feedback:
    user, time = table["user"].to_numpy().astype(np.int64), table["timestamp"].to_numpy().astype(np.int64)
    item = table["item"].to_numpy().astype(np.int64)
    places = pl.Series(levels.chain)
    stage = (
        table["action"]
        .replace_strict(places, np.arange(len(places)), default=0, return_dtype=pl.Int64)
        .fill_null(0)
        .to_numpy()
    )
    request = _request_numbers(table, user, time)
    # The table is sorted by user, time and request; a request's rows stand together.
    first = np.flatnonzero(np.diff(request, prepend=-1))
    users, times = user[first], time[first]
    by_events = _split_by_events(data, levels, user, item, time, stage, request, len(first))
    queries, texts = _queries(data, table, first)
    deepest = np.maximum.reduceat(stage, first)
    best = _first_at(stage == deepest[request], request)
    found = Feedback(
        data, users, times, np.maximum(_split_by_time(data, users, times), by_events), _history_ends(data, users, times), queries,
        np.where(deepest >= levels.click, item[best], -1), texts, np.append(first, len(request)), item, stage, True,
    )  # fmt: skip
    return found.take(np.argsort(times, kind="stable"))


def _owners(data: Dataset) -> np.ndarray:
    """(n_events,) the user of each event."""
    return np.repeat(np.arange(data.n_users), np.diff(data.offsets))


def _request_numbers(table: pl.DataFrame, user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """(M,) rising numbers of requests: the log's own, or, where it has none, a user's rows up to a pause, ``PART`` at most."""
    new_user = np.diff(user, prepend=-1) != 0
    names = table["request_id"]
    if names.null_count() < len(names):
        starts = (
            new_user
            | (names.fill_null("") != names.fill_null("").shift(1)).fill_null(True).to_numpy()
            | (np.diff(time, prepend=-1) != 0)
        )
        return np.cumsum(starts) - 1
    starts = new_user | (np.diff(time, prepend=time[:1]) > PAUSE)
    begin = np.maximum.accumulate(np.where(starts, np.arange(len(user)), 0))
    return np.cumsum(starts | ((np.arange(len(user)) - begin) % PART == 0)) - 1


def _first_at(wanted: np.ndarray, request: np.ndarray) -> np.ndarray:
    """The first row of each request where ``wanted`` (at least one per request)."""
    rows = np.flatnonzero(wanted)
    return rows[np.unique(request[rows], return_index=True)[1]]


def _split_by_time(data: Dataset, users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """A request is held out from its user's first held-out event on; under a global cut, from the first of anybody's."""
    held = np.asarray(data.split)
    result = np.zeros(len(users), np.int64)
    owner = _owners(data)
    for split in (VALID, TEST):
        begin = np.full(data.n_users, np.iinfo(np.int64).max)
        rows = np.flatnonzero(held == split)
        np.minimum.at(begin, owner[rows], np.asarray(data.timestamps)[rows].astype(np.int64))
        if data.info["split"] == "global-time":
            begin[:] = begin.min()
        result[times >= begin[users]] = split
    return result


def _split_by_events(
    data: Dataset,
    levels: Levels,
    user: np.ndarray,
    item: np.ndarray,
    time: np.ndarray,
    stage: np.ndarray,
    request: np.ndarray,
    n_requests: int,
) -> np.ndarray:
    """The latest split of the events that a request led to: for each clicked row, the same person's next event with the item, and the next
    of the depth that was reached (a click may be training and the purchase after it held out).
    """
    owner = _owners(data)
    depth = np.array([levels.chain.index(name) for name in data.actions_chain], np.int64)[np.asarray(data.actions)]
    events = pl.DataFrame(
        {"user": owner, "item": np.asarray(data.items).astype(np.int64), "time": np.asarray(data.timestamps).astype(np.int64),
         "stage": depth, "split": np.asarray(data.split).astype(np.int64)}
    ).sort("time")  # fmt: skip
    rows = np.flatnonzero(stage >= levels.click)
    asked = pl.DataFrame(
        {"user": user[rows], "item": item[rows], "time": time[rows], "stage": stage[rows], "request": request[rows]}
    ).sort("time")
    result = np.zeros(n_requests, np.int64)
    for by in (["user", "item"], ["user", "item", "stage"]):
        joined = asked.join_asof(events, on="time", by=by, strategy="forward", check_sortedness=False)
        np.maximum.at(result, joined["request"].to_numpy(), joined["split"].fill_null(TRAIN).to_numpy())
    return result


def _queries(data: Dataset, table: pl.DataFrame, first: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Query ids (N,) of requests, -1 for none, and the texts they index: the dataset's, and behind them those that led to no event."""
    if "query" not in table.columns or table["query"].null_count() == len(table):
        return np.full(len(first), -1, np.int64), data.query_texts
    asked = table["query"][first]
    new = asked.drop_nulls().unique(maintain_order=True)
    new = new.filter(~new.is_in(data.query_texts)) if data.query_texts else new
    texts = [*data.query_texts, *new]
    known = pl.DataFrame({"query": pl.Series(texts, dtype=pl.String), "id": np.arange(len(texts))})
    ids = asked.to_frame("query").join(known, on="query", how="left", maintain_order="left")["id"]
    return ids.fill_null(-1).to_numpy().astype(np.int64), texts


def _history_ends(data: Dataset, users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The first event of the log that a request at a time does not see (N,): what the user did strictly before it is seen."""
    stamps = np.asarray(data.timestamps).astype(np.int64)
    origin = min(stamps.min(initial=0), times.min(initial=0))
    span = max(stamps.max(initial=0), times.max(initial=0)) - origin + 2
    stop = np.searchsorted(_owners(data) * span + (stamps - origin), users * span + (times - origin), side="left")
    return np.maximum(stop, np.asarray(data.offsets)[users])
