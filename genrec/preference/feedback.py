"""Feedback of the users on the items they saw: from the log's impressions, or, where it has none, from its events.

The split of a slate is that of ``genrec.data.impressions``: no training slate is at or after a held-out event of its
user.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import polars as pl

from genrec.data.dataset import Dataset, Requests
from genrec.data.impressions import SlateLog, events_before, query_indices, split_slates
from genrec.data.schema import PROPENSITY
from genrec.errors import UserError
from genrec.preference.levels import Levels


@dataclass(frozen=True)
class Feedback(SlateLog):
    """Slates in order of time.

    ``stages`` (n_rows,) index the feedback chain; ``targets`` (N,) the deepest-going item, -1 without a click.
    ``propensities`` (n_rows,) are the logged chances that the item was shown in its slot, NaN where not logged.

    ``observed`` is false for a log without impressions: each slate is then one event.
    """

    targets: np.ndarray
    stages: np.ndarray
    propensities: np.ndarray
    observed: bool

    _per_slate: ClassVar[tuple[str, ...]] = (*SlateLog._per_slate, "targets")
    _per_row: ClassVar[tuple[str, ...]] = ("items", "stages", "propensities")

    @cached_property
    def requests(self) -> Requests:
        """The request behind each slate, with the slate's target."""
        return self.data.requests_at(self.users, self.before, self.times, self.queries, self.targets, self.texts)

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Items and stages (N, K) of each slate's rows, -1 behind the last."""
        rows, owner, column = self.rows(np.arange(len(self)))
        width = max(int(np.diff(self.offsets).max(initial=0)), 1)
        items, stages = np.full((len(self), width), -1, np.int64), np.full((len(self), width), -1, np.int64)
        items[owner, column], stages[owner, column] = self.items[rows], self.stages[rows]
        return items, stages


def collect(data: Dataset, levels: Levels) -> Feedback:
    """All feedback of a dataset, train, valid and test."""
    table = split_slates(data)
    return _of_events(data) if table is None or table.height == 0 else _of_impressions(data, table, levels)


def _of_events(data: Dataset) -> Feedback:
    """Every event with a history is a slate of one row, itself.

    Synthetic queries are left out: the users did not type them.
    """
    owner = data.event_users
    events = np.flatnonzero(np.arange(len(owner)) > np.asarray(data.offsets)[owner])
    events = events[np.argsort(np.asarray(data.timestamps)[events], kind="stable")]
    items, times = (np.asarray(column)[events].astype(np.int64) for column in (data.items, data.timestamps))
    stages, queries = (np.asarray(column)[events].astype(np.int64) for column in (data.actions, data.queries))
    return Feedback(
        data=data,
        users=owner[events],
        before=events,
        times=times,
        split=np.asarray(data.split)[events],
        queries=np.full(len(events), -1, np.int64) if data.info["synthetic_queries"] else queries,
        texts=data.query_texts,
        offsets=np.arange(len(events) + 1),
        items=items,
        targets=items,
        stages=stages,
        propensities=np.full(len(events), np.nan),
        observed=False,
    )


def _of_impressions(data: Dataset, table: pl.DataFrame, levels: Levels) -> Feedback:
    slate, stages = table["slate"].to_numpy(), table["stage"].to_numpy()
    item = table["item"].to_numpy().astype(np.int64)
    first = np.flatnonzero(np.diff(slate, prepend=-1))
    users, times = (table[name].to_numpy()[first].astype(np.int64) for name in ("user", "timestamp"))
    deepest = np.maximum.reduceat(stages, first)
    best = np.flatnonzero(stages == deepest[slate])
    best = best[np.unique(slate[best], return_index=True)[1]]  # the first of the deepest rows of each slate
    texts = _all_queries(data, table)
    feedback = Feedback(
        data=data,
        users=users,
        before=events_before(data, users, times),
        times=times,
        split=table["split"].to_numpy()[first],
        queries=query_indices(table[first], texts),
        texts=texts,
        offsets=np.append(first, len(slate)),
        items=item,
        targets=np.where(deepest >= levels.click, item[best], -1),
        stages=stages,
        propensities=_propensities(table),
        observed=True,
    )
    return feedback.take(np.argsort(times, kind="stable"))


def _propensities(table: pl.DataFrame) -> np.ndarray:
    """Column ``propensity`` (n_rows,) in (0, 1]; NaN where the log does not state it."""
    if PROPENSITY not in table.columns:
        return np.full(table.height, np.nan)
    values = table[PROPENSITY].cast(pl.Float64).fill_null(np.nan).to_numpy()
    if not ((values > 0) & (values <= 1) | np.isnan(values)).all():
        raise UserError(f"impressions: {PROPENSITY} must be above 0 and at most 1, or empty where it is not known")
    return values


def _all_queries(data: Dataset, table: pl.DataFrame) -> list[str]:
    """The dataset's query texts and, behind them, the queries of slates that led to no event."""
    if "query" not in table.columns:
        return data.query_texts
    known = pl.Series(data.query_texts, dtype=pl.String)
    new = table["query"].drop_nulls().unique(maintain_order=True)
    return [*data.query_texts, *new.filter(~new.is_in(known.implode()))]
