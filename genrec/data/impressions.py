"""Impressions: the items that a log showed, slate by slate, and what the users did with them.

A slate is what one request showed. Every consumer (ranking head, preference stage, session search) takes a slate's
split from ``split_slates``, so no impression is training data for one of them and held out for another.

The split rule:

1. An impression is training data if it is earlier than every held-out event of its user, and also not later than the
   user's last training event or earlier than every held-out event of the log. It is validation data if the same holds
   for test events. Else it is test data.
2. An impression that led to an event (the user's next event with the item, and the next one of the depth that was
   reached) belongs at least to the split of that event.
3. All impressions of a slate belong to the latest split of any of them.

So training never sees an impression at or after a held-out event of its user, nor one whose outcome is held out.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar, TypeVar

import numpy as np
import polars as pl

from genrec.data.dataset import TEST, TRAIN, VALID, Dataset, Requests
from genrec.data.histories import gather_ranges
from genrec.data.rates import FeedbackRates
from genrec.errors import UserError

IMPRESSION = "impression"
SLATE_PAUSE = 1800  # a log without request ids: a pause of more seconds begins a slate ...
SLATE_ROWS = 20  # ... and so do so many rows (impressions of one second stay together)
_LONG_AGO, _NEVER = -(2**62), 2**62
Log = TypeVar("Log", bound="SlateLog")


@dataclass(frozen=True)
class SlateLog:
    """N slates of a dataset and their n_rows impressions.

    ``users``, ``times`` (seconds), ``split`` and ``queries`` (indices into ``texts``, -1 for none) are (N,). A slate's
    request sees its user's events up to, but without, index ``before`` (N,) of the log: those strictly earlier than its
    time. The impressions of slate n are rows ``offsets[n]`` to ``offsets[n + 1] - 1`` of ``items``.
    """

    data: Dataset
    users: np.ndarray
    before: np.ndarray
    times: np.ndarray
    split: np.ndarray
    queries: np.ndarray
    texts: list[str]
    offsets: np.ndarray
    items: np.ndarray

    _per_slate: ClassVar[tuple[str, ...]] = ("users", "before", "times", "split", "queries")
    _per_row: ClassVar[tuple[str, ...]] = ("items",)

    def __len__(self) -> int:
        return len(self.users)

    @cached_property
    def owner(self) -> np.ndarray:
        """The slate of each row: (n_rows,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def history_lengths(self) -> np.ndarray:
        """(N,) events of the user before each slate."""
        return self.before - np.asarray(self.data.offsets)[self.users]

    def rows(self, slates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows of some slates: their indices (n,), the slate among the given ones, and the position in it."""
        lengths = np.diff(self.offsets)[slates]
        offsets, rows = gather_ranges(self.offsets[:-1][slates], lengths)
        owner = np.repeat(np.arange(len(slates)), lengths)
        return rows, owner, np.arange(len(rows)) - offsets[:-1][owner]

    def take(self: Log, slates: np.ndarray) -> Log:
        """Some of the slates, in their order."""
        offsets, rows = gather_ranges(self.offsets[:-1][slates], np.diff(self.offsets)[slates])
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        values |= {name: values[name][slates] for name in self._per_slate}
        values |= {name: values[name][rows] for name in self._per_row}
        return type(self)(**(values | {"offsets": offsets}))

    def requests_of(self, slates: np.ndarray) -> Requests:
        """The requests behind some slates, without a target."""
        none, surfaces = np.full(len(slates), -1, np.int64), self._surfaces_of(slates)
        who, when = (self.users[slates], self.before[slates]), (self.times[slates], self.queries[slates])
        return self.data.requests_at(*who, *when, none, self.texts, surfaces)

    def _surfaces_of(self, slates: np.ndarray) -> np.ndarray | None:
        """Where some slates were shown, as indices of the dataset's surface names; None where that is not known."""
        return None


@dataclass(frozen=True)
class ImpressionLog(SlateLog):
    """Slates in order of user and time, with the stages of the feedback chain that each impression reached.

    ``reached`` (n_rows, stages) bool, ``surfaces`` (n_rows,) codes, ``rates`` the feedback rates of the splits that may
    be counted.
    """

    reached: np.ndarray
    surfaces: np.ndarray
    rates: FeedbackRates

    _per_row: ClassVar[tuple[str, ...]] = ("items", "reached", "surfaces")

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Rates of some rows (n, n_features) float32, from counts strictly before each."""
        owner = self.owner[rows]
        return self.rates.features(self.users[owner], self.items[rows], self.surfaces[rows], self.times[owner])

    def _surfaces_of(self, slates: np.ndarray) -> np.ndarray | None:
        """That of a slate's first impression."""
        names = {name: index for index, name in enumerate(self.data.surface_names)}
        codes = np.array([names.get(name, -1) for name in self.rates.surfaces] + [-1], np.int64)
        return codes[self.surfaces[self.offsets[slates]]]


def feedback_chain(data: Dataset) -> list[str]:
    """The dataset's actions from shallow to deep; ``impression`` stands first where the log has impressions."""
    chain = list(data.actions_chain)
    return chain if IMPRESSION in chain or data.impressions is None else [IMPRESSION, *chain]


def split_slates(data: Dataset) -> pl.DataFrame | None:
    """The dataset's impressions with three more columns; None for a log without impressions.

    ``stage`` is the index in ``feedback_chain``, ``slate`` numbers the slates, and ``split`` follows the rule of the
    module. Rows keep their order: user, time, request.
    """
    table = data.impressions
    if table is None:
        return None
    users, times = table["user"].to_numpy().astype(np.int64), table["timestamp"].to_numpy().astype(np.int64)
    stages = _stage_of(table["action"], feedback_chain(data), default=0)
    slates = _slate_numbers(table, users, times)
    split = np.maximum(_split_by_time(data, users, times), _split_by_outcome(data, table, stages))
    latest = np.zeros(int(slates.max(initial=-1)) + 1, np.uint8)
    np.maximum.at(latest, slates, split)
    return table.with_columns(stage=pl.Series(stages), slate=pl.Series(slates), split=pl.Series(latest[slates]))


def load_impressions(data: Dataset, actions: list[str], last: int = TRAIN) -> ImpressionLog | None:
    """The impressions with the stages ``actions`` of the chain that each reached; None for a log without impressions.

    Rates count impressions of splits up to ``last``. Impressions without known feedback (null in a column of the first
    stage's name) are left out. Impressions of one user, time and ``request_id`` are one request.
    """
    table = split_slates(data)
    if table is None or not actions:
        return None
    stage_indices(data, actions)
    if actions[0] in table.columns:
        table = table.filter(pl.col(actions[0]).is_not_null())
    users, times = table["user"].to_numpy().astype(np.int64), table["timestamp"].to_numpy().astype(np.int64)
    reached, split = _reached(table, list(data.actions_chain), actions), table["split"].to_numpy()
    counted = split <= last
    cut = int(times[counted].max(initial=_LONG_AGO)) + 1
    brands, categories = _codes(_maker(data.item_table)), _codes(_category(data.item_table))
    rates = FeedbackRates(table.filter(pl.Series(counted)), brands, categories, reached[counted], cut)
    request = table["request_id"].fill_null("").rle_id().to_numpy()
    new = np.ones(len(table), bool)
    new[1:] = (users[1:] != users[:-1]) | (times[1:] != times[:-1]) | (request[1:] != request[:-1])
    first = np.flatnonzero(new)
    return ImpressionLog(
        data=data,
        users=users[first],
        before=events_before(data, users[first], times[first]),
        times=times[first],
        split=split[first],
        queries=query_indices(table, data.query_texts)[first],
        texts=data.query_texts,
        offsets=np.append(first, len(table)).astype(np.int64),
        items=table["item"].to_numpy().astype(np.int64),
        reached=reached,
        surfaces=rates.surface_codes(table),
        rates=rates,
    )


def stage_indices(data: Dataset, actions: list[str]) -> np.ndarray:
    """The index of each action in the log's chain; ``UserError`` for an action the log does not have."""
    chain = list(data.actions_chain)
    for name in actions:
        if name not in chain:
            raise UserError(f"model.rank_actions: the log has no action '{name}'; it has {', '.join(chain)}")
    return np.array([chain.index(name) for name in actions])


def query_indices(table: pl.DataFrame, texts: list[str]) -> np.ndarray:
    """(n,) the index of each row's ``query`` in ``texts``, -1 for none or an unknown one."""
    if "query" not in table.columns or not texts:
        return np.full(len(table), -1, np.int64)
    known = pl.Series(texts, dtype=pl.String)
    indices = table["query"].replace_strict(known, np.arange(len(texts)), default=-1, return_dtype=pl.Int64)
    return indices.fill_null(-1).to_numpy()


def events_before(data: Dataset, users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The index of each user's first event that is not strictly earlier than a time: (n,)."""
    stamps = np.asarray(data.timestamps)
    if not len(stamps) or not len(times):
        return np.asarray(data.offsets)[users]
    origin = int(min(stamps.min(), times.min()))
    width = int(max(stamps.max(), times.max())) - origin + 1
    keys = data.event_users * width + (stamps - origin)
    return np.searchsorted(keys, users * width + (times - origin), side="left")


def _slate_numbers(table: pl.DataFrame, users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(n,) rising numbers of slates: the log's requests, or, where it names none, a user's rows up to a pause."""
    new_user, new_time = np.diff(users, prepend=-1) != 0, np.diff(times, prepend=times[:1] - 1) != 0
    names = table["request_id"]
    if names.null_count() < len(names):
        new_name = (names.fill_null("") != names.fill_null("").shift(1)).fill_null(True).to_numpy()
        return np.cumsum(new_user | new_time | new_name) - 1
    starts = new_user | (np.diff(times, prepend=times[:1]) > SLATE_PAUSE)
    row = np.arange(len(users))
    full = (row - np.maximum.accumulate(np.where(starts, row, 0))) // SLATE_ROWS
    # A slate that is full ends at the next second: impressions of one second are one request.
    seconds = np.maximum.accumulate(np.where(starts | new_time, row, 0))
    return np.cumsum(starts | (np.diff(full[seconds], prepend=0) > 0)) - 1


def _split_by_time(data: Dataset, users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Rule 1 of the module, (n,) uint8."""
    stamps, split, owner = np.asarray(data.timestamps).astype(np.int64), np.asarray(data.split), data.event_users
    result = np.full(len(users), TEST, np.uint8)
    for part in (VALID, TRAIN):
        last, first_later = np.full(data.n_users, _LONG_AGO), np.full(data.n_users, _NEVER)
        known = split <= part
        np.maximum.at(last, owner[known], stamps[known])
        np.minimum.at(first_later, owner[~known], stamps[~known])
        border = int(first_later.min(initial=_NEVER))
        result[(times < first_later[users]) & ((times <= last[users]) | (times < border))] = part
    return result


def _split_by_outcome(data: Dataset, table: pl.DataFrame, stages: np.ndarray) -> np.ndarray:
    """Rule 2 of the module, (n,) uint8: the latest split of the events that each impression led to, TRAIN without one.

    Two events are looked up: a click may be training data and the purchase after it held out.
    """
    chain = feedback_chain(data)
    depth = np.array([chain.index(name) for name in data.actions_chain], np.int64)
    events = pl.DataFrame(
        {
            "user": data.event_users,
            "item": np.asarray(data.items).astype(np.int64),
            "time": np.asarray(data.timestamps).astype(np.int64),
            "stage": depth[np.asarray(data.actions)] if len(depth) else np.zeros(0, np.int64),
            "split": np.asarray(data.split).astype(np.int64),
        }
    ).sort("time", "split", maintain_order=True)
    led = np.flatnonzero(stages >= first_feedback(chain))
    rows = pl.DataFrame(
        {
            "user": table["user"].to_numpy().astype(np.int64)[led],
            "item": table["item"].to_numpy().astype(np.int64)[led],
            "time": table["timestamp"].to_numpy().astype(np.int64)[led],
            "stage": stages[led],
            "row": led,
        }
    ).sort("time")
    result = np.zeros(len(table), np.uint8)
    for by in (["user", "item"], ["user", "item", "stage"]):
        joined = rows.join_asof(events, on="time", by=by, strategy="forward", check_sortedness=False)
        np.maximum.at(result, joined["row"].to_numpy(), joined["split"].fill_null(TRAIN).to_numpy().astype(np.uint8))
    return result


def first_feedback(chain: list[str] | tuple[str, ...]) -> int:
    """The index of the first stage of a chain beyond an impression."""
    return int(chain[0] == IMPRESSION and len(chain) > 1)


def _stage_of(actions: pl.Series, chain: list[str], default: int) -> np.ndarray:
    """(n,) the index of each action in a chain."""
    indices = np.arange(len(chain))
    return actions.replace_strict(chain, indices, default=default, return_dtype=pl.Int64).fill_null(default).to_numpy()


def _reached(table: pl.DataFrame, chain: list[str], actions: list[str]) -> np.ndarray:
    """(n, stages) bool.

    A true/false column of a stage's name decides; without one, the deepest stage reached (``action``) does.
    """
    level = _stage_of(table["action"], chain, default=-1)
    columns = []
    for name in actions:
        flag = name in table.columns and table[name].dtype == pl.Boolean
        columns.append(table[name].fill_null(False).to_numpy() if flag else level >= chain.index(name))
    return np.stack([np.asarray(column, bool) for column in columns], axis=1)


def _maker(items: pl.DataFrame) -> pl.Series:
    return items["author_id"] if "author_id" in items.columns else items["brand"]


def _category(items: pl.DataFrame) -> pl.Series:
    column = items["category"]
    return column.list.join("\x1f", ignore_nulls=True) if column.dtype == pl.List(pl.String) else column


def _codes(values: pl.Series) -> np.ndarray:
    codes = values.cast(pl.String).rank("dense").cast(pl.Int64)
    return (codes.fill_null(0) - 1).to_numpy()
