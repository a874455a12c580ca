"""``Recommender``: a trained run or a bundle in Python. Ids are mapped here, never by the caller."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from genrec.data.dataset import TRAIN, VALID, Requests
from genrec.errors import UserError
from genrec.generation.options import MODES, SearchOptions
from genrec.inference.bundle import open_run
from genrec.inference.explain import Explanation, Walk, explain, walk
from genrec.inference.filters import Categories
from genrec.inference.requests import Diversity, EventSource, Filters, History, RecommendationRequest, build_requests
from genrec.inference.snapshot import AddedItemIds, CatalogueSnapshot
from genrec.inference.suggestions import Suggester
from genrec.ranking.ranker import Ranker
from genrec.retrieval.allowed import AllowedItems, id_lists
from genrec.runs.run import Run
from genrec.text.query_tokens import readable

_DIVERSE_POOL = 5  # a diversified list is chosen from this many times its length


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
    """Answers ``recommend``, ``search`` and ``rank`` from a run folder or a bundle; items may be added and removed while it does.

    ``fitted_on``: ``train`` or ``train+valid``; by default the refit where there is one. ``store``: where users' newer events are kept
    (``genrec.serving.store``). All methods may be called from many threads: an answer sees one state of the catalogue from start to end.
    """

    def __init__(self, run: Run, fitted_on: str | None = None, store: EventSource | None = None):
        self.run, self.store = run, store
        self.fitted_on = fitted_on or run.default_fit()
        self.dataset = run.dataset
        ranker = run.ranker(self.fitted_on)
        self._snapshot = CatalogueSnapshot(
            self.dataset.item_table, run.ids, ranker, np.zeros(self.dataset.n_items, bool)
        )
        self._changing = threading.Lock()

    @classmethod
    def load(cls, folder: str | Path, fitted_on: str | None = None, store: EventSource | None = None) -> Recommender:
        """Open a run folder made by ``genrec run`` or a bundle made by ``genrec export``, whose every byte is checked.

        Raises ``UserError`` when it is missing, half-written, changed, or of another version.
        """
        return cls(open_run(folder), fitted_on, store)

    @property
    def ranker(self) -> Ranker:
        return self._snapshot.ranker

    @property
    def snapshot(self) -> CatalogueSnapshot:
        """The present state of the catalogue."""
        return self._snapshot

    # --- questions -----------------------------------------------------------------------------------------------------

    def recommend(
        self, user: str | None = None, history: History | None = None, k: int = 10, mode: str = "fused", exclude_seen: bool = True,
        timestamp: int | None = None, filters: Filters | None = None, diversity: Diversity | None = None,
        category: str | Sequence[str] | None = None,
    ) -> list[Answer]:  # fmt: skip
        """What a known ``user``, or somebody with this ``history`` (item ids, oldest first, or {item_id, timestamp, action, query}), wants next.

        ``category``: only items of this category, a name or a path (``Categories.mask``). Raises ``UserError`` for an unknown user or
        category, k below 1 or an unknown mode. Nobody and no history gives the popular items.
        """
        filters = self._within(category, filters)
        return self.ask(
            [RecommendationRequest(user, history, None, k, mode, exclude_seen, timestamp, filters, diversity)]
        )[0]

    def search(
        self, query: str, user: str | None = None, history: History | None = None, k: int = 10, mode: str = "fused", exclude_seen: bool = False,
        timestamp: int | None = None, filters: Filters | None = None, diversity: Diversity | None = None,
        category: str | Sequence[str] | None = None,
    ) -> list[Answer]:  # fmt: skip
        """What ``query`` means to this user or history, or to nobody in particular; ``category`` as in ``recommend``.

        The first 256 characters of a query are read. Raises ``UserError`` for an empty query.
        """
        filters = self._within(category, filters)
        return self.ask(
            [RecommendationRequest(user, history, _words(query), k, mode, exclude_seen, timestamp, filters, diversity)]
        )[0]

    def suggest(
        self, user: str | None = None, history: History | None = None, k: int = 10, exclude_asked: bool = False
    ) -> list[Suggestion]:
        """What people with this history search next: the known queries, best first; without a history the most asked.

        ``exclude_asked`` leaves out queries that the history already holds. Raises ``UserError`` where the data have no queries.
        """
        if k < 1:
            raise UserError(f"k must be at least 1, is {k}")
        snapshot, suggester = self._snapshot, self._suggester
        if not suggester.texts:
            raise UserError("the training events have no queries to suggest; use logged searches, or queries.synthetic")
        requests = self._requests(snapshot, [RecommendationRequest(user, history)], True)
        places, scores = suggester.suggest(requests, k, exclude_asked)
        return [
            Suggestion(suggester.texts[place], float(score), int(suggester.counts[place]))
            for place, score in zip(places[0].tolist(), scores[0].tolist(), strict=True)
            if np.isfinite(score)
        ]

    @cached_property
    def _suggester(self) -> Suggester:
        return Suggester(self.ranker, self.dataset, VALID if self.fitted_on == "train+valid" else TRAIN)

    def _within(self, category: str | Sequence[str] | None, filters: Filters | None) -> Filters | None:
        """``filters`` that also keep to a category."""
        if category is None:
            return filters
        filters, table = filters or Filters(), self._snapshot.table
        inside = table["item_id"].filter(pl.Series(Categories(table).mask(category)))
        wanted = inside if filters.in_stock is None else inside.filter(inside.is_in(list(filters.in_stock)))
        return replace(filters, in_stock=wanted.to_list())

    def rank(
        self, candidates: Sequence[str], user: str | None = None, history: History | None = None, query: str | None = None,
        mode: str = "fused", timestamp: int | None = None,
    ) -> list[Answer]:  # fmt: skip
        """All ``candidates`` (item ids), best first, for this user or history and perhaps a query. ``UserError`` for an unknown candidate."""
        query = None if query is None else _words(query)
        question = RecommendationRequest(
            user, history, query, max(len(set(candidates)), 1), mode, False, timestamp, candidates=tuple(candidates)
        )
        return self.ask([question])[0]

    def recommend_many(
        self, users: Iterable[str | None] | None = None, histories: Iterable[History | None] | None = None, **options
    ) -> list[list[Answer]]:
        """``recommend`` for many users or histories at once; ``options`` as there, the same for all."""
        return self.ask(
            [RecommendationRequest(user, history, None, **options) for user, history in _pairs(users, histories)]
        )

    def search_many(
        self,
        queries: Sequence[str],
        users: Iterable[str | None] | None = None,
        histories: Iterable[History | None] | None = None,
        **options,
    ) -> list[list[Answer]]:
        """``search`` for many queries at once, each with its user or history."""
        people = (
            _pairs(users, histories) if users is not None or histories is not None else [(None, None)] * len(queries)
        )
        options = {"exclude_seen": False} | options
        return self.ask(
            [
                RecommendationRequest(user, history, _words(query), **options)
                for query, (user, history) in zip(queries, people, strict=True)
            ]
        )

    def rank_many(
        self, candidates: Sequence[Sequence[str]], users: Iterable[str | None] | None = None, histories: Iterable[History | None] | None = None,
        **options,
    ) -> list[list[Answer]]:  # fmt: skip
        """``rank`` for many lists of candidates at once, each with its user or history."""
        people = (
            _pairs(users, histories) if users is not None or histories is not None else [(None, None)] * len(candidates)
        )
        options = {"exclude_seen": False} | options
        return self.ask([
            RecommendationRequest(user, history, k=max(len(set(chosen)), 1), candidates=tuple(chosen), **options)
            for chosen, (user, history) in zip(candidates, people, strict=True)
        ])  # fmt: skip

    def ask(self, questions: Sequence[RecommendationRequest], strict: bool = True) -> list[list[Answer]]:
        """Any questions, mixed, in one pass of the network per kind; what an answer holds does not depend on its neighbours.

        ``strict`` false answers an unknown user as somebody without history.
        """
        snapshot = self._snapshot
        answers: list[list[Answer]] = [[] for _ in questions]
        groups: dict[tuple, list[int]] = defaultdict(list)
        for place, question in enumerate(questions):
            subset = None if question.filters is None else question.filters.subset
            groups[
                question.mode, question.exclude_seen, _pool(snapshot, question), subset, question.candidates is None
            ].append(place)
        for (mode, exclude_seen, *_), places in groups.items():
            group = [questions[place] for place in places]
            requests = self._requests(snapshot, group, strict)
            wanted = max(_length(question) for question in group)
            options = SearchOptions(wanted, (mode,), exclude_seen, allowed=_allowed(snapshot, group))
            ids, scores = self._rank(snapshot, requests, options)
            for place, question, row, values in zip(places, group, ids, scores, strict=True):
                answers[place] = _answers(snapshot, question, row, values)
        return answers

    def answer(
        self, requests: Requests, k: int, mode: str = "fused", exclude_seen: bool = True, progress=None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Item indices (N, k), -1 where empty, and scores (N, k)."""
        snapshot = self._snapshot
        options = SearchOptions(k, (mode,), exclude_seen, allowed=AllowedItems(_present(snapshot)))
        return self._rank(snapshot, requests, options, progress)

    @staticmethod
    def _rank(
        snapshot: CatalogueSnapshot, requests: Requests, options: SearchOptions, progress=None
    ) -> tuple[np.ndarray, np.ndarray]:
        ranker, (mode,) = snapshot.ranker, options.modes
        if options.k < 1:
            raise UserError(f"k must be at least 1, is {options.k}")
        if mode not in ranker.modes:
            raise UserError(f"--mode: '{mode}' is not one of {', '.join(ranker.modes if mode in MODES else MODES)}")
        return ranker.rank(requests, replace(options, k=min(options.k, snapshot.n_items)), progress)[mode]

    def requests(self, table: pl.DataFrame, histories: pl.Series | None = None) -> Requests:
        """Requests of a table with ``user_id`` or ``histories``, and nullable ``timestamp`` and ``query``; see ``build_requests``."""
        users = table["user_id"].to_list() if "user_id" in table.columns else [None] * len(table)
        times = table["timestamp"].cast(pl.Float64).to_numpy()
        return build_requests(
            self.dataset, self._snapshot, users, times, table["query"].to_list(), histories, self.store
        )

    def _requests(
        self, snapshot: CatalogueSnapshot, questions: Sequence[RecommendationRequest], strict: bool
    ) -> Requests:
        users, queries = [question.user for question in questions], [question.query for question in questions]
        times = np.array(
            [np.nan if question.timestamp is None else question.timestamp for question in questions], np.float64
        )
        histories = (
            [question.history for question in questions]
            if any(question.history is not None for question in questions)
            else None
        )
        return build_requests(self.dataset, snapshot, users, times, queries, histories, self.store, strict)

    def predictions(
        self, table: pl.DataFrame, requests: Requests, k: int, mode: str, exclude_seen: bool, progress=None
    ) -> pl.DataFrame:
        """The answer table: ``request_id``, ``rank`` (from 1), ``item_id``, ``score``."""
        ids, scores = self.answer(requests, k, mode, exclude_seen, progress)
        place, rank = np.nonzero(ids >= 0)
        return pl.DataFrame({
            "request_id": table["request_id"][place], "rank": rank + 1,
            "item_id": self._snapshot.table["item_id"][ids[place, rank]], "score": scores[place, rank],
        })  # fmt: skip

    # --- why -----------------------------------------------------------------------------------------------------------

    def explain(
        self, item_id: str, user: str | None = None, history: History | None = None, query: str | None = None, timestamp: int | None = None,
        strict: bool = True,
    ) -> Explanation:  # fmt: skip
        """Why ``item_id`` would be shown: its nearest history items, shared words, evidence and the way through the code tree."""
        snapshot = self._snapshot
        question = RecommendationRequest(user, history, None if query is None else _words(query), timestamp=timestamp)
        return explain(snapshot, self._requests(snapshot, [question], strict), item_id)

    def walk(
        self,
        user: str | None = None,
        history: History | None = None,
        query: str | None = None,
        width: int = 8,
        strict: bool = True,
    ) -> Walk:
        """The beam's way down the code tree for one request, level by level: what the demo page draws."""
        snapshot = self._snapshot
        question = RecommendationRequest(user, history, None if query is None else _words(query))
        return walk(snapshot, self._requests(snapshot, [question], strict), width)

    # --- the catalogue ---------------------------------------------------------------------------------------------------

    def add_items(self, items: pl.DataFrame | Sequence[Mapping[str, Any]]) -> AddedItemIds:
        """Add items (columns of ``genrec/data/schema.py``; ``item_id`` required): encoded with the fixed codebooks, nothing is trained.

        They can be recommended, found, ranked and read in histories as soon as this returns; a bundle on disk is not changed. An item that
        is there already is left as it is; a removed one comes back. Raises ``UserError`` for a missing, empty or double id.
        """
        table = items if isinstance(items, pl.DataFrame) else pl.DataFrame(list(items), infer_schema_length=None)
        with self._changing:
            self._snapshot, added = self._snapshot.add(table)
        return added

    def remove_items(self, item_ids: Sequence[str]) -> None:
        """Never show these again; they still count in histories. ``UserError`` for an unknown item."""
        with self._changing:
            self._snapshot = self._snapshot.remove(list(item_ids))

    def item(self, item_id: str) -> dict[str, Any]:
        """An item's columns and its ``codes``. ``UserError`` for an unknown or removed item."""
        snapshot = self._snapshot
        place = int(snapshot.places([item_id])[0])
        return snapshot.table.row(place, named=True) | {"codes": snapshot.catalogue.codes[place].tolist()}


def _words(query: str) -> str:
    query = readable([query])[0].strip() if query else ""
    if not query:
        raise UserError("the query is empty; give at least one word, or use recommend")
    return query


def _pairs(
    users: Iterable[str | None] | None, histories: Iterable[History | None] | None
) -> list[tuple[str | None, History | None]]:
    if users is None and histories is None:
        raise UserError("give users or histories, one per request")
    users = None if users is None else list(users)
    histories = None if histories is None else list(histories)
    return list(zip(users or [None] * len(histories), histories or [None] * len(users), strict=True))


def _length(question: RecommendationRequest) -> int:
    return question.k if question.diversity is None else question.k * _DIVERSE_POOL


def _pool(snapshot: CatalogueSnapshot, question: RecommendationRequest) -> int:
    """How many proposals a question needs: questions that need as many share a pass."""
    options = SearchOptions(min(_length(question), snapshot.n_items), (question.mode,))
    return options.widths(snapshot.ranker.settings)[0 if question.mode == "generate" else 1]


def _present(snapshot: CatalogueSnapshot) -> torch.Tensor | None:
    """Mask (n_items,) of the items that were not removed; None where none was."""
    return torch.from_numpy(~snapshot.removed) if snapshot.removed.any() else None


def _allowed(snapshot: CatalogueSnapshot, questions: Sequence[RecommendationRequest]) -> AllowedItems:
    """What questions of one ``Filters.subset`` may be answered with."""
    filters, mask, excluded, only = questions[0].filters, _present(snapshot), None, None
    if filters is not None and (filters.category is not None or filters.in_stock is not None):
        mask = torch.from_numpy(filters.mask(snapshot) & ~snapshot.removed)
    if any(one.filters is not None and one.filters.blocked for one in questions):
        excluded = id_lists(
            [snapshot.known_places(one.filters.blocked or ()) if one.filters else () for one in questions]
        )
    if any(one.candidates is not None for one in questions):
        only = id_lists([snapshot.places(list(one.candidates)) for one in questions])
    return AllowedItems(mask, excluded, only)


def _answers(
    snapshot: CatalogueSnapshot, question: RecommendationRequest, row: np.ndarray, scores: np.ndarray
) -> list[Answer]:
    live = row >= 0
    row, scores = row[live], scores[live]
    if question.diversity is not None:
        order = _diversified(snapshot.catalogue.codes[row], question.diversity)
        row, scores = row[order], scores[order]
    row, scores = row[: question.k], scores[: question.k]
    return [
        Answer(snapshot.item_ids[item], snapshot.titles[item], float(score))
        for item, score in zip(row.tolist(), scores.tolist(), strict=True)
    ]


def _diversified(codes: torch.Tensor, diversity: Diversity) -> np.ndarray:
    """A new order (n,) of a list with these codes (n, L): the first ``at_most`` of each prefix, then the second, and so on; else as it was."""
    if not len(codes):
        return np.zeros(0, np.int64)
    _, prefix = np.unique(codes[:, : diversity.levels].numpy(), axis=0, return_inverse=True)
    prefix = prefix.ravel()
    by_prefix = np.argsort(prefix, kind="stable")
    rank = np.empty(len(prefix), np.int64)
    rank[by_prefix] = np.arange(len(prefix)) - np.searchsorted(prefix[by_prefix], prefix[by_prefix])
    return np.argsort(rank // diversity.at_most, kind="stable")


__all__ = ["Answer", "Diversity", "Filters", "RecommendationRequest", "Recommender"]
