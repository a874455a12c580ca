"""``Recommender``: a trained run in Python. Ids are mapped here, never by the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from genrec.data.dataset import VALID, Requests
from genrec.decoding.ranker import MODES
from genrec.errors import UserError
from genrec.pipeline import Run


@dataclass(frozen=True)
class Answer:
    """One recommended or found item."""

    item_id: str
    title: str | None
    score: float


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
        exclude_seen: bool = True,
    ) -> list[Answer]:  # fmt: skip
        """What a known ``user``, or somebody with this ``history`` (item ids, oldest first, or {item_id, timestamp, action}), wants next.

        Raises ``UserError`` for an unknown user, k below 1 or an unknown mode. Nobody and no history gives the popular items.
        """
        return self._one(user, history, None, k, mode, exclude_seen)

    def search(
        self, query: str, user: str | None = None, history: Sequence[str | Mapping[str, Any]] | None = None, k: int = 10, mode: str = "fused",
        exclude_seen: bool = False,
    ) -> list[Answer]:  # fmt: skip
        """What ``query`` means to this user or history. Raises ``UserError`` for an empty query."""
        if not query or not query.strip():
            raise UserError("the query is empty; give at least one word, or use recommend")
        return self._one(user, history, query.strip(), k, mode, exclude_seen)

    def _one(self, user, history, query, k, mode, exclude_seen) -> list[Answer]:
        table = pl.DataFrame(
            {"request_id": ["0"], "user_id": [user], "timestamp": [None], "query": [query]},
            schema={"request_id": pl.String, "user_id": pl.String, "timestamp": pl.Int64, "query": pl.String},
        )
        histories = None if history is None else [list(history)]
        ids, scores = self.answer(self.requests(table, histories), k, mode, exclude_seen)
        return [
            Answer(self._item_ids[item], self._titles[item], float(score))
            for item, score in zip(ids[0].tolist(), scores[0].tolist(), strict=True)
            if item >= 0
        ]

    def answer(self, requests: Requests, k: int, mode: str = "fused", exclude_seen: bool = True, progress=None) -> tuple[np.ndarray, np.ndarray]:
        """Item indices (N, k), -1 where empty, and scores (N, k)."""
        if k < 1:
            raise UserError(f"k must be at least 1, is {k}")
        if mode not in self.ranker.modes:
            raise UserError(f"--mode: '{mode}' is not one of {', '.join(self.ranker.modes if mode in MODES else MODES)}")
        k = min(k, self.dataset.n_items)
        settings = self.ranker.settings
        if mode == "generate":
            settings.beam = max(settings.beam, k)
        else:
            settings.dense = max(settings.dense, k)
        return self.ranker.rank(requests, k, [mode], exclude_seen, progress)[mode]

    def requests(self, table: pl.DataFrame, histories: list | None = None) -> Requests:
        """Requests of a table with ``user_id`` or ``histories``, and nullable ``timestamp`` and ``query``.

        A known user's history is what the run knows of them up to the request's time, never a test event. Items that are not in the
        catalogue are left out of a given history. Raises ``UserError`` with the row for an unknown user.
        """
        data = self.dataset
        times = table["timestamp"].to_list()
        rows = [self._given(history) for history in histories] if histories is not None else self._known(table["user_id"].to_list(), times)
        query_index = {text: place for place, text in enumerate(data.query_texts)} if any(len(row[3]) for row in rows) else {}
        texts = list(data.query_texts) if query_index else []
        asked = []
        for query in table["query"].to_list():
            query = (query or "").strip()
            asked.append(query_index.setdefault(query, len(query_index)) if query else -1)
            if query and asked[-1] == len(texts):
                texts.append(query)
        offsets = np.concatenate([[0], np.cumsum([len(row[0]) for row in rows])]).astype(np.int64)
        items, stamps, actions, queries = (
            np.concatenate([row[part] for row in rows] or [np.zeros(0, np.int64)]).astype(np.int64) for part in range(4)
        )
        latest = [row[1][-1] if len(row[1]) else 0 for row in rows]
        when = np.array([last if time is None else time for time, last in zip(times, latest, strict=True)], np.int64)
        return Requests(offsets, items, stamps, actions, queries, when, np.array(asked, np.int64), np.full(len(rows), -1, np.int64), texts)

    def _known(self, users: list[str | None], times: list[int | None]) -> list[tuple]:
        data = self.dataset
        known = data.known_lengths(VALID)
        rows = []
        for place, (user, time) in enumerate(zip(users, times, strict=True)):
            if user is None:
                rows.append((np.zeros(0, np.int64),) * 4)
                continue
            index = data.user_index.get(user)
            if index is None:
                raise UserError(f"row {place + 1}: user '{user}' is not in the data; give a history instead, or no user")
            start = data.offsets[index]
            stop = start + known[index]
            if time is not None:
                stop = start + np.searchsorted(data.timestamps[start:stop], time, side="right")
            rows.append((data.items[start:stop], data.timestamps[start:stop], data.actions[start:stop], data.queries[start:stop]))
        return rows

    def _given(self, history: Sequence[str | Mapping[str, Any]] | None) -> tuple:
        data = self.dataset
        events = [{"item_id": event} if isinstance(event, str) else event for event in history or []]
        kept = [(data.item_index[str(event["item_id"])], event) for event in events if str(event.get("item_id")) in data.item_index]
        chain = {name: place for place, name in enumerate(data.actions_chain)}
        items = np.array([item for item, _ in kept], np.int64)
        times = np.array([event.get("timestamp") or 0 for _, event in kept], np.int64)
        actions = np.array([chain.get(event.get("action"), 0) for _, event in kept], np.int64)
        if len(times) and not (np.diff(times) >= 0).all():
            order = np.argsort(times, kind="stable")
            items, times, actions = items[order], times[order], actions[order]
        return items, times, actions, np.full(len(items), -1, np.int64)

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
