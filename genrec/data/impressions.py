"""Requests that the log itself answered: what was shown to whom, and what became of it. Made from ``impressions.parquet``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from genrec.data.dataset import SPLITS, TRAIN, Dataset, Requests
from genrec.data.rates import FeedbackRates
from genrec.errors import UserError


@dataclass(frozen=True)
class ImpressionLog:
    """N requests in order of user and time, with what was shown in each.

    ``users``, ``before``, ``times``, ``split`` (N,): the user sees the events of the log up to and without index ``before`` (those strictly
    earlier than ``times``, seconds); ``queries`` (N,) index the dataset's query texts, -1 for none. Request n was shown rows ``offsets[n]``
    to ``offsets[n + 1] - 1`` of ``items``, ``reached`` (n_rows, stages) bool and ``surfaces`` (n_rows,).
    """

    users: np.ndarray
    before: np.ndarray
    times: np.ndarray
    split: np.ndarray
    queries: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    reached: np.ndarray
    surfaces: np.ndarray
    rates: FeedbackRates

    def __len__(self) -> int:
        return len(self.users)

    @cached_property
    def owner(self) -> np.ndarray:
        """The request of each row: (n_rows,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def take(self, requests: np.ndarray) -> ImpressionLog:
        """Some of the requests, in their order."""
        place, _, _ = self.rows(requests)
        offsets = np.concatenate([[0], np.cumsum(np.diff(self.offsets)[requests])]).astype(np.int64)
        few = {name: getattr(self, name)[requests] for name in ("users", "before", "times", "split", "queries")}
        rows = {name: getattr(self, name)[place] for name in ("items", "reached", "surfaces")}
        return ImpressionLog(**few, **rows, offsets=offsets, rates=self.rates)

    def rows(self, requests: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows shown in some requests: their indices (n,), which of the given requests each belongs to, and its place there."""
        lengths = np.diff(self.offsets)[requests]
        owner = np.repeat(np.arange(len(requests)), lengths)
        lane = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return self.offsets[requests][owner] + lane, owner, lane

    def histories(self, dataset: Dataset, requests: np.ndarray) -> Requests:
        """Some requests with all their users did before, for inference; they have no single target."""
        start = np.asarray(dataset.offsets)[self.users[requests]]
        lengths = self.before[requests] - start
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        place = np.repeat(start - offsets[:-1], lengths) + np.arange(offsets[-1])
        past = [
            np.asarray(column[place])
            for column in (dataset.items, dataset.timestamps, dataset.actions, dataset.queries)
        ]
        none = np.full(len(requests), -1, np.int64)
        return Requests(offsets, *past, self.times[requests], self.queries[requests], none, dataset.query_texts)

    def features(self, rows: np.ndarray) -> np.ndarray:
        """CandidateFeatures (n, F) float32 of some rows, from counts strictly before each."""
        owner = self.owner[rows]
        return self.rates.features(self.users[owner], self.items[rows], self.surfaces[rows], self.times[owner])


def stage_indices(dataset: Dataset, actions: list[str]) -> np.ndarray:
    """The place of each action in the log's chain; ``UserError`` for an action the log does not have."""
    chain = list(dataset.actions_chain)
    for name in actions:
        if name not in chain:
            raise UserError(f"model.rank_actions: the log has no action '{name}'; it has {', '.join(chain)}")
    return np.array([chain.index(name) for name in actions])


def load_impressions(dataset: Dataset, actions: list[str], last: int = TRAIN) -> ImpressionLog | None:
    """What was shown, with the stages ``actions`` of the chain that each row reached; None for a log without impressions.

    Rates count rows of splits up to ``last``. A row whose feedback is not known (a column of the first stage's name is null) is left out.
    Rows of one user, time and ``request_id`` are one request. A row belongs to the training part where it is not later than its user's last
    training event, or earlier than every held-out event; likewise for validation; the rest is test.
    """
    table = dataset.impressions
    if table is None or not actions:
        return None
    stage_indices(dataset, actions)
    if actions[0] in table.columns:
        table = table.filter(pl.col(actions[0]).is_not_null())
    users, times = table["user"].to_numpy().astype(np.int64), table["timestamp"].to_numpy().astype(np.int64)
    reached = _reached(table, list(dataset.actions_chain), actions)
    split = _split_of(dataset, users, times)
    cut = int(times[split <= last].max(initial=-(2**62))) + 1
    facts = dataset.item_table
    counted = split <= last
    rates = FeedbackRates(
        table.filter(pl.Series(counted)), _codes(_maker(facts)), _codes(_category(facts)), reached[counted], cut
    )
    request = table["request_id"].fill_null("").rle_id().to_numpy()
    new = np.ones(len(table), bool)
    new[1:] = (users[1:] != users[:-1]) | (times[1:] != times[:-1]) | (request[1:] != request[:-1])
    first = np.flatnonzero(new)
    return ImpressionLog(
        users[first], _events_before(dataset, users[first], times[first]), times[first], split[first], _queries(dataset, table)[first],
        np.append(first, len(table)).astype(np.int64),
        table["item"].to_numpy().astype(np.int64), reached, rates.surface_codes(table), rates,
    )  # fmt: skip


def _reached(table: pl.DataFrame, chain: list[str], actions: list[str]) -> np.ndarray:
    """(n, stages) bool. A true/false column of a stage's name decides; without one, the deepest stage reached (``action``) does."""
    places = {name: place for place, name in enumerate(chain)}
    level = table["action"].replace_strict(places, default=-1, return_dtype=pl.Int64).fill_null(-1)
    columns = []
    for name in actions:
        flag = name in table.columns and table[name].dtype == pl.Boolean
        columns.append(table[name].fill_null(False) if flag else level >= chain.index(name))
    return np.stack([np.asarray(column.to_numpy(), bool) for column in columns], axis=1)


def _queries(dataset: Dataset, table: pl.DataFrame) -> np.ndarray:
    """(n,) the id of each row's query, -1 for none or one that the dataset does not know."""
    if "query" not in table.columns or not dataset.query_texts:
        return np.full(len(table), -1, np.int64)
    known = {text: place for place, text in enumerate(dataset.query_texts)}
    return table["query"].replace_strict(known, default=-1, return_dtype=pl.Int64).fill_null(-1).to_numpy()


def _events_before(dataset: Dataset, users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The index of each user's first event not strictly earlier than a time: (n,)."""
    stamps = np.asarray(dataset.timestamps)
    if not len(stamps) or not len(times):
        return np.asarray(dataset.offsets)[users]
    origin = int(min(stamps.min(), times.min()))
    width = int(max(stamps.max(), times.max())) - origin + 1
    owner = np.repeat(np.arange(dataset.n_users), np.diff(dataset.offsets))
    return np.searchsorted(owner * width + (stamps - origin), users * width + (times - origin), side="left")


def _split_of(dataset: Dataset, users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """TRAIN, VALID or TEST of each shown row; see ``load_impressions``."""
    stamps, split = np.asarray(dataset.timestamps), np.asarray(dataset.split)
    result = np.full(len(users), SPLITS["test"], np.uint8)
    for part in (SPLITS["valid"], TRAIN):
        known = dataset.known_lengths(part)
        last = np.where(
            known > 0, stamps[np.maximum(dataset.offsets[:-1] + known - 1, 0)] if len(stamps) else 0, -(2**62)
        )
        later = stamps[split > part]
        border = int(later.min()) if len(later) else 2**62
        result[(times <= last[users]) | (times < border)] = part
    return result


def _maker(items: pl.DataFrame) -> pl.Series:
    return items["author_id"] if "author_id" in items.columns else items["brand"]


def _category(items: pl.DataFrame) -> pl.Series:
    column = items["category"]
    return column.list.join("\x1f", ignore_nulls=True) if column.dtype == pl.List(pl.String) else column


def _codes(values: pl.Series) -> np.ndarray:
    codes = values.cast(pl.String).rank("dense").cast(pl.Int64)
    return (codes.fill_null(0) - 1).to_numpy()
