"""From event arrays to padded batches: requests inside windows (training) or after histories (inference)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from genrec.config.schema import ModelConfig
from genrec.data.augment import Shuffle, shuffled
from genrec.data.dataset import Dataset, Requests
from genrec.data.impressions import ImpressionLog
from genrec.data.queries import mix
from genrec.data.sequences import Windows
from genrec.data.situation import SituationReader
from genrec.model.batch import Batch, BatchImpressions
from genrec.model.pooling import LONG
from genrec.model.query_features import QueryFeatures

# Inference batches are padded to a multiple of this number of events, so that a request's vectors do not depend on its
# batch: CPU kernels sum in groups of columns, and the grouping depends on the length (measured: equal to the last bit
# from 32 on).
LENGTH_MULTIPLE = 32
MIN_QUERIES = 4  # rows of an inference batch's query table, for the same reason
TEXT_SEARCHES = 0.3  # fraction of a training's searches that ask by an item's text, where texts are aligned


class Collator:
    """Builds ``Batch`` from windows of a dataset (training) or from requests (inference).

    ``features`` are those of the queries, ``texts`` of the items' texts (as further queries). ``stages`` (S,) is the
    index in the action chain of each of ``model.stages``. Requests of ``impressions`` join a training batch;
    ``impression_windows`` (N,), rising, is the window of each. Events whose action is below ``target_level`` in the
    chain are context and not predicted.
    """

    def __init__(
        self,
        model: ModelConfig,
        features: QueryFeatures,
        stages: np.ndarray | None = None,
        impressions: ImpressionLog | None = None,
        texts: QueryFeatures | None = None,
        target_level: int = 0,
        situation: SituationReader | None = None,
    ):
        """``situation`` reads the situation of requests, for a network with ``model.situation``."""
        self.target_level, self.situation = target_level, situation
        self.model, self.stages, self.impressions = model, stages, impressions
        self.n_queries, self.features = len(features.text), features if texts is None else features.joined(texts)
        self.impression_windows = np.zeros(0, np.int64)

    @property
    def described(self) -> np.ndarray:
        """Ids of items with a known word in their text, rising."""
        return np.flatnonzero(self._has_text)

    def items(self, ids: np.ndarray) -> Batch:
        """A training batch of requests without history: the text of each item (B,) searches for the item."""
        none, zero = np.zeros(0, np.int64), np.zeros(len(ids), np.int64)
        source = SimpleNamespace(items=none, actions=none, queries=none, timestamps=none)
        return self._finish(
            source, zero, zero, zero[:, None], zero[:, None], (self.n_queries + ids)[:, None], np.asarray(ids)[:, None]
        )

    def windows(
        self,
        data: Dataset,
        windows: Windows,
        rows: np.ndarray,
        recommend_searches: bool,
        searches: bool,
        shuffle: Shuffle | None = None,
        recommends: bool = True,
        cold_searches: bool = False,
        same_time: bool = True,
        texts_seed: int | None = None,
    ) -> Batch:
        """A training batch: a recommendation request for each predicted event with a history, a search for each query.

        ``recommend_searches`` false (logged queries) makes no recommendation requests of search events;
        ``recommends`` false makes none at all. ``shuffle`` permutes events. ``cold_searches`` true hides the history
        from searches and leaves out impressions. ``same_time`` false hides events of the same second from a request.
        With ``texts_seed``, ``TEXT_SEARCHES`` of the searches, drawn by event, ask by the target's own text, if known.
        """
        start, first, stop = windows.start[rows], windows.first[rows], windows.stop[rows]
        slate_row, slate_index, slate_position = self._impressions_in(rows[:0] if cold_searches else rows, start)
        older = _older(data, data.offsets, start) if self.model.summary_tokens else None
        later = self._later(data, stop, windows.end[rows]) if self.model.anchors or self.model.query_anchors else None
        source: Any = data
        in_log = start
        if shuffle is not None:
            source, begin = shuffled(data, start, stop, shuffle)
            start, first, stop = begin, first - start + begin, stop - start + begin
        row, event, query, position, visible = self._requests_in(
            source, start, first, stop, recommend_searches, searches, recommends, same_time
        )
        if texts_seed is not None:
            query = self._by_text(query, source.items[event], in_log[row] + event - start[row], texts_seed)
        column, n_columns = _columns(np.concatenate([row, slate_row]), len(rows))
        slate_column, column = column[len(row) :], column[: len(row)]
        shape = (len(rows), n_columns)
        targets = _table(shape, -1, row, column, source.items[event])
        queries = _table(shape, -1, row, column, query)
        positions = _table(shape, 0, row, column, position)
        positions[slate_row, slate_column] = slate_position
        if cold_searches:
            positions[queries >= 0] = 0
        times = np.asarray(source.timestamps)
        seen = event if self.model.request_time else np.maximum(visible - 1, start[row])
        when = np.repeat(times[start][:, None], n_columns, axis=1)
        when[row, column] = times[np.where((query >= 0) & cold_searches, start[row], seen)]
        if len(slate_row):
            assert self.impressions is not None
            last = times[start[slate_row] + np.maximum(slate_position - 1, 0)]
            queries[slate_row, slate_column] = self.impressions.queries[slate_index]
            when[slate_row, slate_column] = self.impressions.times[slate_index] if self.model.request_time else last
        batch = self._finish(
            source, start, np.maximum(stop - start - 1, positions.max(1, initial=0)), positions, when, queries, targets
        )
        batch.later_items = later
        if self.situation is not None and not cold_searches:
            cells = np.concatenate([row, slate_row]), np.concatenate([column, slate_column])
            codes = self._situations(data, in_log[row] + event - start[row], slate_index)
            batch.situation = torch.zeros(*shape, codes.shape[1], dtype=torch.long)
            batch.situation[cells] = torch.from_numpy(codes)
        if older is not None:
            _add_older(batch, *older)
        if self.stages is not None:
            reached = np.zeros((*shape, len(self.stages)), bool)
            reached[row, column] = np.asarray(source.actions)[event][:, None] >= self.stages
            batch.reached = torch.from_numpy(reached)
        if len(slate_row) and self.impressions is not None:
            batch.impressions = _batch_impressions(self.impressions, slate_row, slate_column, slate_index)
        return batch

    def _by_text(self, query: np.ndarray, items: np.ndarray, events: np.ndarray, seed: int) -> np.ndarray:
        """Queries (n,), of drawn searches that of the text of ``items`` (n,): the same for any division of a step."""
        drawn = mix(events.astype(np.uint64) + mix(np.array([seed], np.uint64))) < TEXT_SEARCHES * 2.0**64
        return np.where((query >= 0) & drawn & self._has_text[items], self.n_queries + items.astype(np.int64), query)

    @cached_property
    def _has_text(self) -> np.ndarray:
        return np.asarray(self.features.text[self.n_queries :].any(1))

    def _situations(self, data: Dataset, events: np.ndarray, slates: np.ndarray) -> np.ndarray:
        """Rows of the situation in which ``events`` (n,) and logged requests ``slates`` (m,) happened: (n + m, F)."""
        assert self.situation is not None
        surfaces = None if data.surfaces is None else np.asarray(data.surfaces[events]).astype(np.int64)
        rows = self.situation.codes(data.user_of(events), surfaces, np.asarray(data.timestamps[events]))
        if not len(slates):
            return rows
        assert self.impressions is not None
        return np.concatenate([rows, self._codes(self.impressions.requests_of(slates))])

    def _codes(self, requests: Requests) -> np.ndarray:
        assert self.situation is not None
        return self.situation.codes(requests.users, requests.surfaces, requests.times, requests.situation)

    def _later(self, data: Dataset, stop: np.ndarray, end: np.ndarray) -> torch.Tensor:
        """The up to ``max_length`` events from ``stop`` (B,) on, before ``end`` (B,): (B, L) item ids, -1 padding."""
        count = np.minimum(end - stop, self.model.max_length)
        column = np.arange(int(count.max(initial=0)))
        live = column < count[:, None]
        items = np.asarray(data.items)[np.where(live, stop[:, None] + column, 0)]
        return torch.from_numpy(np.where(live, items, -1).astype(np.int64))

    def _requests_in(
        self,
        source,
        start: np.ndarray,
        first: np.ndarray,
        stop: np.ndarray,
        recommend_searches: bool,
        searches: bool,
        recommends: bool,
        same_time: bool,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Requests of predicted events ``first`` to ``stop`` of windows from ``start`` (B,) on, recommendations first.

        Returns (n,) each: window, target event, query (-1 for none), number of visible events, and the event behind the
        last visible one.
        """
        count = stop - first
        row = np.repeat(np.arange(len(start)), count)
        event = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(count.sum())
        visible = event if same_time else _first_of_time(np.asarray(source.timestamps), event, start[row])
        position = visible - start[row]
        query = np.asarray(source.queries[event]).astype(np.int64)
        plain = (position > 0) & (recommend_searches | (query < 0)) & recommends
        search = (query >= 0) & searches
        if self.target_level:
            predicted = np.asarray(source.actions)[event] >= self.target_level
            plain, search = plain & predicted, search & predicted
        none = np.full(plain.sum(), -1)
        row, event, position, visible = (
            np.concatenate([array[plain], array[search]]) for array in (row, event, position, visible)
        )
        return row, event, np.concatenate([none, query[search]]), position, visible

    def _impressions_in(self, rows: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The logged requests of some windows: row, index in ``impressions``, and number of visible events."""
        low, high = (np.searchsorted(self.impression_windows, rows, side=side) for side in ("left", "right"))
        row = np.repeat(np.arange(len(rows)), high - low)
        index = np.repeat(low - (np.cumsum(high - low) - (high - low)), high - low) + np.arange(len(row))
        if not len(row):
            return row, index, np.zeros(0, np.int64)
        assert self.impressions is not None
        return row, index, self.impressions.before[index] - start[row]

    def impression_batch(self, impressions: ImpressionLog, index: np.ndarray) -> Batch:
        """An inference batch of some logged requests, each in a row of its own, with its impressions."""
        batch = self.requests(impressions.requests_of(index))
        row = np.arange(len(index))
        batch.impressions = _batch_impressions(impressions, row, np.zeros_like(row), index)
        return batch

    def requests(self, requests: Requests) -> Batch:
        """An inference batch: the last ``max_length`` events of each history and one request after them."""
        lengths = np.minimum(np.diff(requests.offsets), self.model.max_length)
        start = requests.offsets[1:] - lengths
        times = requests.reference_times(self.model.request_time)
        batch = self._finish(
            requests,
            start,
            lengths,
            lengths[:, None].astype(np.int64),
            times[:, None],
            requests.request_queries[:, None].astype(np.int64),
            requests.targets[:, None].astype(np.int64),
            LENGTH_MULTIPLE,
        )
        if self.model.summary_tokens:
            _add_older(batch, *_older(requests, requests.offsets, start))
        if self.situation is not None:
            batch.situation = torch.from_numpy(self._codes(requests))[:, None]
        return batch

    def _finish(
        self, source, start, lengths, positions, request_times, request_queries, targets, multiple: int = 1
    ) -> Batch:
        """Pad the contexts, to a ``multiple`` of events, and number the batch's queries."""
        width = -(-max(int(lengths.max(initial=0)), 1) // multiple) * multiple
        column = np.arange(width)
        live = column < lengths[:, None]
        event = np.where(live, start[:, None] + column, 0)

        def pick(array) -> np.ndarray:
            return np.asarray(array)[event] if len(source.items) else np.zeros(event.shape, np.int64)

        times = pick(source.timestamps)
        origin = np.where(lengths > 0, times[:, 0], request_times[:, 0])[:, None]
        history_queries = np.where(live, pick(source.queries), -1).astype(np.int64)
        both = np.concatenate([history_queries.ravel(), request_queries.ravel()])
        table, local = np.unique(both, return_inverse=True)
        if len(table) == 0 or table[0] != -1:
            table, local = np.concatenate([[-1], table]), local + 1
        text, words, offsets = self.features.take(table[1:])
        missing = 0
        if multiple > 1 and 0 < len(text) < MIN_QUERIES:
            missing = MIN_QUERIES - len(text)
            text = np.pad(text, ((0, missing), (0, 0)))
            offsets = np.pad(offsets, (0, missing), constant_values=len(words))
        split, bucket = history_queries.size, self.model.time_bucket
        arrays: dict[str, Any] = {
            "items": np.where(live, pick(source.items), 0).astype(np.int64),
            "actions": np.where(live, pick(source.actions), 0).astype(np.int64),
            "queries": local[:split].reshape(history_queries.shape),
            "times": (np.where(live, times - origin, 0) / bucket).astype(np.float64),
            "positions": positions,
            "request_times": ((request_times - origin) / bucket).astype(np.float64),
            "request_queries": local[split:].reshape(request_queries.shape),
            "targets": targets,
            "query_text": text,
            "query_words": words,
            "query_offsets": offsets,
        }
        if (named := self.features.named) is not None:
            rows = np.concatenate([table[1:], np.zeros(missing, np.int64)])
            parts = {"named_items": named.ids, "similarity": named.similarity, "word_match": named.words}
            arrays |= {name: part[rows] for name, part in parts.items()}
        tensors: dict[str, Any] = {
            name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()
        }
        return Batch(**tensors)


def _first_of_time(times: np.ndarray, event: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The first event, from ``start`` on, of the second of each ``event``: (n,). Times rise within a window."""
    if not len(event):
        return event
    low, high = int(start.min()), int(event.max()) + 1
    times = times[low:high]
    new = np.concatenate([[True], times[1:] != times[:-1]])
    begin = np.maximum.accumulate(np.where(new, np.arange(len(times)), 0))
    return np.maximum(begin[event - low] + low, start)


def _older(source, offsets: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items and actions (n,) of the newest ``LONG`` events before ``start`` (B,), and where each sequence's begin (B,).

    ``offsets`` (N + 1,) say where the sequences of ``source`` begin.
    """
    begin = np.maximum(np.asarray(offsets)[np.searchsorted(offsets, start, side="right") - 1], start - LONG)
    begin = np.minimum(begin, start)  # a start after the last sequence
    count = start - begin
    first = np.cumsum(count) - count
    event = np.repeat(begin - first, count) + np.arange(count.sum())
    return np.asarray(source.items)[event], np.asarray(source.actions)[event], first


def _add_older(batch: Batch, items: np.ndarray, actions: np.ndarray, first: np.ndarray) -> None:
    batch.older_items, batch.older_actions, batch.older_offsets = (
        torch.from_numpy(array.astype(np.int64)) for array in (items, actions, first)
    )


def _table(shape: tuple[int, int], empty: int, row: np.ndarray, column: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A table of ``shape`` with ``values`` (n,) at their cells, ``empty`` elsewhere."""
    table = np.full(shape, empty, np.int64)
    table[row, column] = values
    return table


def _columns(row: np.ndarray, n_rows: int) -> tuple[np.ndarray, int]:
    """The column of each request among those of its row, and the number of columns."""
    order = np.argsort(row, kind="stable")
    counts = np.bincount(row, minlength=n_rows)
    column = np.empty(len(row), np.int64)
    column[order] = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    return column, max(int(counts.max(initial=0)), 1)


def request_batches(
    requests: Requests, collator: Collator, size: int, min_rows: int = 1
) -> Iterator[tuple[np.ndarray, Requests, Batch]]:
    """Chunks of requests sorted by history length, for less padding: their indices, the chunk, its batch.

    A batch of fewer than ``min_rows`` requests repeats them behind themselves.
    """
    order = np.argsort(np.minimum(np.diff(requests.offsets), collator.model.max_length), kind="stable")
    for begin in range(0, len(order), size):
        rows = order[begin : begin + size]
        chunk = requests.take(rows)
        padded = chunk.take(np.resize(np.arange(len(rows)), min_rows)) if len(rows) < min_rows else chunk
        yield rows, chunk, collator.requests(padded)


def impression_windows(impressions: ImpressionLog, windows: Windows, offsets: np.ndarray) -> np.ndarray:
    """The window (N,) of each logged request, rising; -1 for a user without one.

    It is the window that predicts the event after the request; after the last predicted event, the user's last window.
    """
    owner = np.searchsorted(offsets, windows.start, side="right") - 1
    width = int(offsets[-1]) + 2
    keys = owner * width + windows.first
    window = np.searchsorted(keys, impressions.users * width + impressions.before, side="right") - 1
    own = (window >= 0) & (owner[np.maximum(window, 0)] == impressions.users)
    return np.where(own, window, -1)


def _batch_impressions(
    impressions: ImpressionLog, row: np.ndarray, column: np.ndarray, index: np.ndarray
) -> BatchImpressions:
    """Slates of the logged requests ``index`` (N,), which are at ``row`` and ``column`` (N,) of a batch."""
    entry, owner, slot = impressions.rows(index)
    shape = (len(index), int(slot.max(initial=0)) + 1)
    items = np.full(shape, -1, np.int64)
    items[owner, slot] = impressions.items[entry]
    reached = np.zeros((*shape, impressions.reached.shape[1]), bool)
    reached[owner, slot] = impressions.reached[entry]
    known = impressions.features(entry)
    features = np.zeros((*shape, known.shape[1]), np.float32)
    features[owner, slot] = known
    return BatchImpressions(*(torch.from_numpy(array) for array in (row, column, items, reached, features)))
