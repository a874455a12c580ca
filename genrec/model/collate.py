"""From event arrays to padded batches: requests inside windows (training) or behind histories (inference). No loop over events or users."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch

from genrec.config.schema import ModelConfig
from genrec.data.augment import Shuffle, shuffled
from genrec.data.dataset import Dataset, Requests
from genrec.data.impressions import ImpressionLog
from genrec.data.sequences import Windows
from genrec.model.embeddings import CODE_SPAN
from genrec.model.network import Batch, BatchImpressions
from genrec.semantic_ids.query_codes import QueryCoder
from genrec.semantic_ids.user_ids import LONG
from genrec.text.encoder import TextEncoder, unit
from genrec.text.query_tokens import HASHED, hashed_tokens, readable


@dataclass(frozen=True)
class QueryFeatures:
    """Features of a table of query texts: ``text`` (Q, text_dim) and tokens ``words[offsets[q]:offsets[q + 1]]``.

    Tokens below ``WORD_BUCKETS`` are hashed words, below ``HASHED`` hashed character n-grams, the rest codes of the query's semantic ID.
    """

    text: np.ndarray
    words: np.ndarray
    offsets: np.ndarray

    @classmethod
    def build(cls, texts: Sequence[str], encoder: TextEncoder) -> QueryFeatures:
        """Read the first 256 characters of each query. An encoder without codebooks gives no code tokens.

        A query in which nothing is known, or with no letter at all, has a zero text vector and is still a query.
        """
        texts = readable(texts)
        rows, tokens = hashed_tokens(texts)
        if isinstance(encoder, QueryCoder):
            text, codes = encoder.encode_queries(texts)
            row, level = np.nonzero(codes >= 0)
            rows = np.concatenate([rows, row])
            tokens = np.concatenate([tokens, HASHED + level * CODE_SPAN + codes[row, level]])
        else:
            text = encoder.encode(texts)
        order = np.argsort(rows, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(texts)))]).astype(np.int64)
        return cls(text, tokens[order].astype(np.int64), offsets)

    def joined(self, other: QueryFeatures) -> QueryFeatures:
        """One table of both, this one's rows first."""
        offsets = np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]])
        return QueryFeatures(
            np.concatenate([self.text, other.text]), np.concatenate([self.words, other.words]), offsets
        )

    def take(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Text vectors, words and start offsets of some queries."""
        lengths = np.diff(self.offsets)[ids]
        starts = np.cumsum(lengths) - lengths
        rows = np.repeat(self.offsets[ids] - starts, lengths) + np.arange(lengths.sum())
        return self.text[ids], self.words[rows], starts


class Collator:
    """Builds ``Batch`` from windows of a dataset (training) or from requests (inference).

    ``stages`` (S,): the place in the action chain of each of ``model.stages``; ``shown``: what the log showed, as further requests of a
    training batch, and ``impression_windows`` (N,) rising, the window each of them belongs to. ``features`` are those of the queries, ``texts`` of
    the items' texts (asked for as further queries), ``keywords`` of each item's keywords. ``target_level``: events whose action has a lower
    place in the chain are seen and not predicted.
    """

    def __init__(
        self, model: ModelConfig, features: QueryFeatures, stages: np.ndarray | None = None, shown: ImpressionLog | None = None,
        texts: QueryFeatures | None = None, keywords: QueryFeatures | None = None, target_level: int = 0,
    ):  # fmt: skip
        self.target_level = target_level
        self.model, self.stages, self.shown, self.keywords = model, stages, shown, keywords
        self.n_queries, self.features = len(features.text), features if texts is None else features.joined(texts)
        self.impression_windows = np.zeros(0, np.int64)

    @property
    def described(self) -> np.ndarray:
        """Items with a text in which something is known: ids, rising."""
        return np.flatnonzero(self.features.text[self.n_queries :].any(1))

    def items(self, ids: np.ndarray) -> Batch:
        """A training batch of requests without history: the text of each item (B,) asks for the item."""
        none, zero = np.zeros(0, np.int64), np.zeros(len(ids), np.int64)
        source = SimpleNamespace(items=none, actions=none, queries=none, timestamps=none)
        return self._finish(
            source, zero, zero, zero[:, None], zero[:, None], (self.n_queries + ids)[:, None], np.asarray(ids)[:, None]
        )

    def teacher(self, batch: Batch) -> Batch | None:
        """The batch with the keywords of the sought item behind each request's query; None where nothing is searched.

        As keywords join a text in semantic IDs (OneSearch): text vectors are averaged and brought to length one, and the tokens are added.
        """
        asked, targets = batch.request_queries.numpy(), batch.targets.numpy()
        live = (asked > 0) & (targets >= 0)
        if not live.any():
            return None
        pairs, place = np.unique(np.stack([asked[live] - 1, targets[live]]), axis=1, return_inverse=True)
        own = QueryFeatures(
            batch.query_text.numpy(),
            batch.query_words.numpy(),
            np.append(batch.query_offsets.numpy(), len(batch.query_words)),
        )
        (text, words, starts), (key_text, key_words, key_starts) = own.take(pairs[0]), self.keywords.take(pairs[1])
        mixed = unit(text + key_text)
        rows = np.concatenate([_rows(starts, len(words)), _rows(key_starts, len(key_words))])
        order = np.argsort(rows, kind="stable")
        offsets = np.searchsorted(rows[order], np.arange(pairs.shape[1]))
        queries = np.zeros_like(asked)
        queries[live] = 1 + len(own.text) + place.ravel()
        joined = (
            np.concatenate([own.text, mixed]), np.concatenate([own.words, np.concatenate([words, key_words])[order]]),
            np.concatenate([own.offsets[:-1], len(own.words) + offsets]), queries,
        )  # fmt: skip
        names = ("query_text", "query_words", "query_offsets", "request_queries")
        return replace(
            batch,
            **{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in zip(names, joined, strict=True)},
        )

    def windows(
        self, data: Dataset, windows: Windows, rows: np.ndarray, recommend_searches: bool, searches: bool, shuffle: Shuffle | None = None,
        recommends: bool = True, cold_searches: bool = False, same_time: bool = True,
    ) -> Batch:  # fmt: skip
        """A training batch. Every predicted event with a history is a recommendation request; one with a query is also a search request.

        ``recommend_searches`` false (logged queries) keeps search events out of the recommendation requests. ``shuffle`` permutes events.
        ``recommends`` false leaves the recommendation requests out; ``cold_searches`` true lets search requests see no history, and leaves
        out what was shown; ``same_time`` false lets no request see an event of its own second.
        """
        start, first, stop = windows.start[rows], windows.first[rows], windows.stop[rows]
        asked_row, asked_shown, asked_position = self._shown_in(rows[:0] if cold_searches else rows, start)
        older = _older(data, data.offsets, start) if self.model.summary_tokens else None
        if shuffle is not None:
            data, begin = shuffled(data, start, stop, shuffle)
            start, first, stop = begin, first - start + begin, stop - start + begin
        count = stop - first
        row = np.repeat(np.arange(len(rows)), count)
        event = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(count.sum())
        visible = event if same_time else _first_of_time(np.asarray(data.timestamps), event, start[row])
        position = visible - start[row]
        query = np.asarray(data.queries[event]).astype(np.int64)
        plain = (position > 0) & (recommend_searches | (query < 0)) & recommends
        search = (query >= 0) & searches
        if self.target_level:
            wanted = np.asarray(data.actions)[event] >= self.target_level
            plain, search = plain & wanted, search & wanted
        row, event = np.concatenate([row[plain], row[search]]), np.concatenate([event[plain], event[search]])
        query = np.concatenate([np.full(plain.sum(), -1), query[search]])
        position, visible = (np.concatenate([array[plain], array[search]]) for array in (position, visible))
        lane, n_lanes = _lanes(np.concatenate([row, asked_row]), len(rows))
        shown_lane, lane = lane[len(row) :], lane[: len(row)]
        shape = (len(rows), n_lanes)
        targets = np.full(shape, -1, np.int64)
        targets[row, lane] = data.items[event]
        positions = np.zeros(shape, np.int64)
        positions[row, lane] = position
        positions[asked_row, shown_lane] = asked_position
        asked = np.full(shape, -1, np.int64)
        asked[row, lane] = query
        if cold_searches:
            positions[asked >= 0] = 0
        times = np.asarray(data.timestamps)
        seen = event if self.model.request_time else np.maximum(visible - 1, start[row])
        when = np.repeat(times[start][:, None], n_lanes, axis=1)
        when[row, lane] = times[np.where((query >= 0) & cold_searches, start[row], seen)]
        if len(asked_row):
            last = times[start[asked_row] + np.maximum(asked_position - 1, 0)]
            asked[asked_row, shown_lane] = self.shown.queries[asked_shown]
            when[asked_row, shown_lane] = self.shown.times[asked_shown] if self.model.request_time else last
        batch = self._finish(
            data, start, np.maximum(stop - start - 1, positions.max(1, initial=0)), positions, when, asked, targets
        )
        if self.model.summary_tokens:
            _add_older(batch, *older)
        if self.stages is not None:
            reached = np.zeros((*shape, len(self.stages)), bool)
            reached[row, lane] = np.asarray(data.actions)[event][:, None] >= self.stages
            batch.reached = torch.from_numpy(reached)
        if len(asked_row):
            batch.impressions = _shown_lanes(self.shown, asked_row, shown_lane, asked_shown)
        return batch

    def _shown_in(self, rows: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The requests that the log answered within some windows: their row, their index in ``shown``, and how many events they see."""
        low, high = (
            np.searchsorted(self.impression_windows, rows, side="left"),
            np.searchsorted(self.impression_windows, rows, side="right"),
        )
        row = np.repeat(np.arange(len(rows)), high - low)
        index = np.repeat(low - (np.cumsum(high - low) - (high - low)), high - low) + np.arange(len(row))
        position = self.shown.before[index] - start[row] if len(row) else np.zeros(0, np.int64)
        return row, index, position

    def impression_batch(self, data: Dataset, shown: ImpressionLog, index: np.ndarray) -> Batch:
        """An inference batch of some requests that the log answered, each in a row of its own, with what was shown."""
        batch = self.requests(shown.requests_of(index))
        row = np.arange(len(index))
        batch.impressions = _shown_lanes(shown, row, np.zeros_like(row), index)
        return batch

    def requests(self, requests: Requests) -> Batch:
        """An inference batch: the last ``max_length`` events of each history and one request behind them."""
        lengths = np.minimum(np.diff(requests.offsets), self.model.max_length)
        start = requests.offsets[1:] - lengths
        times = requests.reference_times(self.model.request_time)
        batch = self._finish(
            requests, start, lengths, lengths[:, None].astype(np.int64), times[:, None], requests.request_queries[:, None].astype(np.int64),
            requests.targets[:, None].astype(np.int64),
        )  # fmt: skip
        if self.model.summary_tokens:
            _add_older(batch, *_older(requests, requests.offsets, start))
        return batch

    def _finish(self, source, start, lengths, positions, request_times, asked, targets) -> Batch:
        width = max(int(lengths.max(initial=0)), 1)
        lane = np.arange(width)
        live = lane < lengths[:, None]
        event = np.where(live, start[:, None] + lane, 0)
        pick = (
            (lambda array: np.asarray(array)[event])
            if len(source.items)
            else (lambda array: np.zeros(event.shape, np.int64))
        )
        times = pick(source.timestamps)
        origin = np.where(lengths > 0, times[:, 0], request_times[:, 0])[:, None]
        history_queries = np.where(live, pick(source.queries), -1).astype(np.int64)
        table, local = np.unique(np.concatenate([history_queries.ravel(), asked.ravel()]), return_inverse=True)
        if len(table) == 0 or table[0] != -1:
            table, local = np.concatenate([[-1], table]), local + 1
        text, words, offsets = self.features.take(table[1:])
        split = history_queries.size
        tensors = (
            np.where(live, pick(source.items), 0).astype(np.int64), np.where(live, pick(source.actions), 0).astype(np.int64),
            local[:split].reshape(history_queries.shape), (np.where(live, times - origin, 0) / self.model.time_bucket).astype(np.float64),
            positions, ((request_times - origin) / self.model.time_bucket).astype(np.float64), local[split:].reshape(asked.shape), targets,
            text, words, offsets,
        )  # fmt: skip
        return Batch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in tensors))


def _first_of_time(times: np.ndarray, event: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The first event, from ``start`` on, of the second of each ``event``: (n,). Times rise within a window."""
    if not len(event):
        return event
    low, high = int(start.min()), int(event.max()) + 1
    part = times[low:high]
    new = np.concatenate([[True], part[1:] != part[:-1]])
    begin = np.maximum.accumulate(np.where(new, np.arange(len(part)), 0))
    return np.maximum(begin[event - low] + low, start)


def _older(source, offsets: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items and actions (n,) of the newest ``LONG`` events in front of those from ``start`` (B,) on, and where each sequence's begin (B,).

    ``offsets`` (N + 1,) say where the sequences of ``source`` begin.
    """
    begin = np.maximum(np.asarray(offsets)[np.searchsorted(offsets, start, side="right") - 1], start - LONG)
    begin = np.minimum(begin, start)  # a start behind the last sequence
    count = start - begin
    first = np.cumsum(count) - count
    event = np.repeat(begin - first, count) + np.arange(count.sum())
    return np.asarray(source.items)[event], np.asarray(source.actions)[event], first


def _add_older(batch: Batch, items: np.ndarray, actions: np.ndarray, first: np.ndarray) -> None:
    batch.older_items, batch.older_actions, batch.older_offsets = (
        torch.from_numpy(part.astype(np.int64)) for part in (items, actions, first)
    )


def _rows(starts: np.ndarray, length: int) -> np.ndarray:
    """The row that each of ``length`` ragged entries belongs to, of rows that begin at ``starts``."""
    return np.searchsorted(starts, np.arange(length), side="right") - 1


def _lanes(row: np.ndarray, n_rows: int) -> tuple[np.ndarray, int]:
    """The place of each request among its row's requests, and how many lanes that takes."""
    order = np.argsort(row, kind="stable")
    counts = np.bincount(row, minlength=n_rows)
    lane = np.empty(len(row), np.int64)
    lane[order] = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    return lane, max(int(counts.max(initial=0)), 1)


def request_batches(requests: Requests, collator: Collator, size: int) -> Iterator[tuple[np.ndarray, Requests, Batch]]:
    """Chunks of requests sorted by history length (less padding): their indices, the chunk, its batch."""
    order = np.argsort(np.minimum(np.diff(requests.offsets), collator.model.max_length), kind="stable")
    for begin in range(0, len(order), size):
        rows = order[begin : begin + size]
        chunk = requests.take(rows)
        yield rows, chunk, collator.requests(chunk)


def impression_windows(shown: ImpressionLog, windows: Windows, offsets: np.ndarray) -> np.ndarray:
    """The window (N,) that each request the log answered belongs to, rising; -1 for a user without one.

    It is the window that predicts the event it stands before; behind the last predicted event, the user's last window.
    """
    owner = np.searchsorted(offsets, windows.start, side="right") - 1
    width = int(offsets[-1]) + 2
    place = np.searchsorted(owner * width + windows.first, shown.users * width + shown.before, side="right") - 1
    mine = (place >= 0) & (owner[np.maximum(place, 0)] == shown.users)
    return np.where(mine, place, -1)


def _shown_lanes(shown: ImpressionLog, row: np.ndarray, lane: np.ndarray, index: np.ndarray) -> BatchImpressions:
    """What was shown in requests ``index`` (N,), which stand at ``row`` and ``lane`` (N,) of a batch."""
    place, owner, column = shown.rows(index)
    shape = (len(index), int(column.max(initial=0)) + 1)
    items = np.full(shape, -1, np.int64)
    items[owner, column] = shown.items[place]
    reached = np.zeros((*shape, shown.reached.shape[1]), bool)
    reached[owner, column] = shown.reached[place]
    known = shown.features(place)
    evidence = np.zeros((*shape, known.shape[1]), np.float32)
    evidence[owner, column] = known
    return BatchImpressions(*(torch.from_numpy(array) for array in (row, lane, items, reached, evidence)))
