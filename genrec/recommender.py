"""``Recommender``: a trained run in Python. Ids are mapped here, never by the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from genrec.data.dataset import TRAIN, VALID, Requests
from genrec.decoding.filters import Categories
from genrec.decoding.ranker import MODES
from genrec.decoding.suggestions import Suggester
from genrec.errors import UserError
from genrec.pipeline import Run
from genrec.text.query_tokens import readable


@dataclass(frozen=True)
class Answer:
    """One recommended or found item."""

    item_id: str
    title: str | None
    score: float


@dataclass(frozen=True)
class Suggestion:
    """One query that may come next; ``count`` is how often it was asked before."""

    query: str
    score: float
    count: int


class Recommender:
    """Answers ``recommend`` and ``search`` from a run folder.

    ``fitted_on``: ``train`` or ``train+valid``; by default the refit where there is one.
    """

    def __init__(self, run: Run, fitted_on: str | None = None):
        self.run = run
        self.fitted_on = fitted_on or (run.fitted[-1] if run.fitted else _no_model(run))
        self.dataset = run.dataset
        self.ranker = run.ranker(self.fitted_on)
        self._titles = self.dataset.item_table["title"].to_list()
        self._item_ids = self.dataset.item_table["item_id"].to_list()

    @classmethod
    def load(cls, folder: str | Path, fitted_on: str | None = None) -> Recommender:
        """Open a run folder made by ``genrec run``. Raises ``UserError`` when it is missing, half-written or of another version."""
        return cls(Run.open(folder), fitted_on)

    def recommend(
        self, user: str | None = None, history: Sequence[str | Mapping[str, Any]] | None = None, k: int = 10, mode: str = "fused",
        exclude_seen: bool = True, category: str | Sequence[str] | None = None,
    ) -> list[Answer]:  # fmt: skip
        """What a known ``user``, or somebody with this ``history`` (item ids, oldest first, or {item_id, timestamp, action, query}), wants next.

        ``category``: only items of this category, a name or a path (``Categories.mask``). Raises ``UserError`` for an unknown user or
        category, k below 1 or an unknown mode. Nobody and no history gives the popular items.
        """
        return self._one(user, history, None, k, mode, exclude_seen, category)

    def search(
        self, query: str, user: str | None = None, history: Sequence[str | Mapping[str, Any]] | None = None, k: int = 10, mode: str = "fused",
        exclude_seen: bool = False, category: str | Sequence[str] | None = None,
    ) -> list[Answer]:  # fmt: skip
        """What ``query`` means to this user or history, or to nobody in particular; ``category`` as in ``recommend``.

        The first 256 characters of a query are read. Raises ``UserError`` for an empty query.
        """
        query = readable([query])[0].strip() if query else ""
        if not query:
            raise UserError("the query is empty; give at least one word, or use recommend")
        return self._one(user, history, query, k, mode, exclude_seen, category)

    def suggest(
        self, user: str | None = None, history: Sequence[str | Mapping[str, Any]] | None = None, k: int = 10, exclude_asked: bool = False
    ) -> list[Suggestion]:
        """What people with this history search next: the known queries, best first; without a history the most asked.

        ``exclude_asked`` leaves out queries that the history already holds. Raises ``UserError`` where the data have no queries.
        """
        if k < 1:
            raise UserError(f"k must be at least 1, is {k}")
        suggester = self._suggester
        if not suggester.texts:
            raise UserError("the training events have no queries to suggest; use logged searches, or queries.synthetic")
        places, scores = suggester.suggest(self._request(user, history, None), k, exclude_asked)
        return [
            Suggestion(suggester.texts[place], float(score), int(suggester.counts[place]))
            for place, score in zip(places[0].tolist(), scores[0].tolist(), strict=True)
            if np.isfinite(score)
        ]

    @cached_property
    def _suggester(self) -> Suggester:
        return Suggester(self.ranker, self.dataset, TRAIN if self.fitted_on == "train" else VALID)

    @cached_property
    def _categories(self) -> Categories:
        return Categories(self.dataset.item_table)

    def _one(self, user, history, query, k, mode, exclude_seen, category=None) -> list[Answer]:
        exclude = None if category is None else torch.from_numpy(~self._categories.mask(category))
        ids, scores = self.answer(self._request(user, history, query), k, mode, exclude_seen, exclude=exclude)
        return [
            Answer(self._item_ids[item], self._titles[item], float(score))
            for item, score in zip(ids[0].tolist(), scores[0].tolist(), strict=True)
            if item >= 0
        ]

    def _request(self, user, history, query) -> Requests:
        table = pl.DataFrame(
            {"request_id": ["0"], "user_id": [user], "timestamp": [None], "query": [query]},
            schema={"request_id": pl.String, "user_id": pl.String, "timestamp": pl.Int64, "query": pl.String},
        )
        histories = None
        if history is not None:
            events = [{"item_id": event} if isinstance(event, str) else dict(event) for event in history]
            event_type = pl.Struct({"item_id": pl.String, "timestamp": pl.Int64, "action": pl.String, "query": pl.String})
            histories = pl.Series("history", [events], dtype=pl.List(event_type))
        return self.requests(table, histories)

    def answer(
        self, requests: Requests, k: int, mode: str = "fused", exclude_seen: bool = True, progress=None, exclude: torch.Tensor | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Item indices (N, k), -1 where empty, and scores (N, k). ``exclude``: items that no answer may hold, as in ``Ranker.rank``."""
        if k < 1:
            raise UserError(f"k must be at least 1, is {k}")
        if mode not in self.ranker.modes:
            raise UserError(f"--mode: '{mode}' is not one of {', '.join(self.ranker.modes if mode in MODES else MODES)}")
        k = min(k, self.dataset.n_items)
        settings = self.ranker.settings
        beam, dense = settings.beam, settings.dense
        try:  # a long list needs more proposals; later answers must not depend on it
            if mode == "generate":
                settings.beam = max(beam, k)
            else:
                settings.dense = max(dense, k)
            return self.ranker.rank(requests, k, [mode], exclude_seen, progress, exclude)[mode]
        finally:
            settings.beam, settings.dense = beam, dense

    def requests(self, table: pl.DataFrame, histories: pl.Series | None = None) -> Requests:
        """Requests of a table with ``user_id`` or ``histories``, and nullable ``timestamp`` and ``query``.

        A known user's history is what the run knows of them up to the request's time, never a test event. Items that are not in the
        catalogue are left out of a given history. Raises ``UserError`` with the row for an unknown user.
        """
        times = table["timestamp"].to_numpy().astype(np.float64)  # nan where unknown
        if histories is None:
            lengths, items, stamps, actions, searched = self._known(table["user_id"], times)
        else:
            lengths, items, stamps, actions, searched = self._given(histories)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        asked = table["query"].str.strip_chars().replace("", None)
        texts = pl.concat([searched.alias("query"), asked.alias("query")]).drop_nulls().unique(maintain_order=True)
        queries, request_queries = (
            part.replace_strict(texts, np.arange(len(texts)), default=-1, return_dtype=pl.Int64).fill_null(-1).to_numpy()
            for part in (searched, asked)
        )
        last = stamps[np.maximum(offsets[1:] - 1, 0)] if len(stamps) else np.zeros(len(table), np.int64)
        when = np.where(np.isnan(times), np.where(lengths > 0, last, 0), times).astype(np.int64)
        return Requests(offsets, items, stamps, actions, queries, when, request_queries, np.full(len(table), -1, np.int64), texts.to_list())

    def _known(self, users: pl.Series, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, pl.Series]:
        """Lengths (N,) and ragged items, times, actions and query texts of known users up to a time (nan: no limit)."""
        data = self.dataset
        index = users.replace_strict(data.user_ids, np.arange(data.n_users), default=-1, return_dtype=pl.Int64).fill_null(-1).to_numpy()
        unknown = np.flatnonzero((index < 0) & users.is_not_null().to_numpy())
        if len(unknown):
            place = int(unknown[0])
            raise UserError(f"row {place + 1}: user '{users[place]}' is not in the data; give a history instead, or no user")
        lengths = np.where(index >= 0, data.known_lengths(VALID)[index], 0)
        row = np.repeat(np.arange(len(index)), lengths)
        event = np.repeat(data.offsets[index] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        keep = np.isnan(times[row]) | (data.timestamps[event] <= times[row])
        row, event = row[keep], event[keep]
        items, stamps, actions, queries = (
            np.asarray(column[event]).astype(np.int64) for column in (data.items, data.timestamps, data.actions, data.queries)
        )
        return np.bincount(row, minlength=len(index)), items, stamps, actions, data.texts_of(queries)

    def _given(self, histories: pl.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, pl.Series]:
        """The same of given histories: lists of item ids, or of {item_id, timestamp, action, query}, all but the first nullable."""
        data = self.dataset
        if not isinstance(histories.dtype, pl.List):
            raise UserError(f"column 'history' must hold lists of item ids or of {{item_id, timestamp, action, query}}, not {histories.dtype}")
        events = pl.DataFrame({"row": np.arange(len(histories)), "item_id": histories}).explode("item_id").drop_nulls("item_id")
        if isinstance(events["item_id"].dtype, pl.Struct):
            events = events.select("row", pl.col("item_id").alias("event")).unnest("event")
            if "item_id" not in events.columns:
                raise UserError(f"column 'history': its entries have no field item_id, only {', '.join(events.columns[1:])}")
        for name in ("timestamp", "action", "query"):
            if name not in events.columns:
                events = events.with_columns(pl.lit(None).alias(name))
        items = data.item_table.select("item_id", pl.int_range(pl.len()).alias("item"))
        chain = {name: place for place, name in enumerate(data.actions_chain)}
        events = (
            events.with_columns(pl.col("item_id").cast(pl.String), pl.col("timestamp").cast(pl.Int64).fill_null(0))
            .join(items, on="item_id", how="inner", maintain_order="left")
            .with_columns(
                pl.col("action").cast(pl.String).replace_strict(chain, default=0, return_dtype=pl.Int64).fill_null(0),
                pl.col("query").cast(pl.String).str.strip_chars().replace("", None),
            )
            .sort("row", "timestamp", maintain_order=True)
        )
        lengths = np.bincount(events["row"].to_numpy(), minlength=len(histories))
        return lengths, *(events[name].to_numpy() for name in ("item", "timestamp", "action")), events["query"]

    def predictions(self, table: pl.DataFrame, requests: Requests, k: int, mode: str, exclude_seen: bool, progress=None) -> pl.DataFrame:
        """The answer table: ``request_id``, ``rank`` (from 1), ``item_id``, ``score``."""
        ids, scores = self.answer(requests, k, mode, exclude_seen, progress)
        place, rank = np.nonzero(ids >= 0)
        return pl.DataFrame({
            "request_id": table["request_id"][place], "rank": rank + 1,
            "item_id": self.dataset.item_table["item_id"][ids[place, rank]], "score": scores[place, rank],
        })  # fmt: skip


def _no_model(run: Run) -> str:
    raise UserError(f"{run.folder} holds no trained model; run: genrec train CONFIG")
