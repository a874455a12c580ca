"""``Recommender``: the Python API of a trained run or a bundle. Ids are mapped here, never by the caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from genrec.data.dataset import TRAIN, VALID, Requests
from genrec.errors import UserError
from genrec.inference.answering import answer_all, similar_items
from genrec.inference.baselines import baseline_lists
from genrec.inference.bundle import BundleRun, export, opened_run
from genrec.inference.changing_catalogue import ChangingCatalogue
from genrec.inference.explain import Explanation, Walk, explain, walk
from genrec.inference.exploration import Exploration
from genrec.inference.filters import Category, Filters, facet
from genrec.inference.histories import build_requests, read_events
from genrec.inference.reasons import Reason, reasons
from genrec.inference.requests import (
    Answer,
    Answers,
    Attributes,
    Diversity,
    EventSource,
    History,
    RecommendationRequest,
    Response,
    StoredUsers,
    query_words,
)
from genrec.inference.snapshot import CatalogueSnapshot
from genrec.inference.suggestions import Suggester, Suggestion
from genrec.memory import reused_memory
from genrec.ranking.ranker import Ranker
from genrec.runs.run import Run


class Recommender(ChangingCatalogue):
    """Recommends, searches and ranks with a run folder or a bundle; items may be changed meanwhile.

    ``fitted_on``: ``train`` or ``train+valid``; by default the refit where there is one. ``store``: where users'
    newer events are kept (``genrec.serving.store``). All methods may be called from many threads: an answer sees one
    state of the catalogue from start to end.
    """

    def __init__(self, run: Run, fitted_on: str | None = None, store: EventSource | None = None):
        self.run, self.store = run, store
        self.fitted_on = fitted_on or run.default_fit()
        self.dataset = run.dataset
        ranker, removed = run.ranker(self.fitted_on), np.zeros(self.dataset.n_items, bool)
        super().__init__(CatalogueSnapshot(self.dataset.item_table, run.ids, ranker, removed))
        vars(run).pop("ids", None)  # the run would keep the first state's trie in memory for ever
        # Reads the known queries for suggestions: a later snapshot would give them other vectors.
        self._base = ranker.without_search()

    @classmethod
    def load(cls, folder: str | Path, fitted_on: str | None = None, store: EventSource | None = None) -> Recommender:
        """Open a run folder made by ``genrec run`` or a bundle made by ``genrec export``, whose every byte is checked.

        Raises ``UserError`` when it is missing, half-written, changed, or of another version.
        """
        with reused_memory(), opened_run(folder) as run:
            return cls(run, fitted_on, store)

    @classmethod
    def fit(
        cls, events: Any, items: Any = None, queries: Any = None, output: str | Path = "runs/fit", **settings: Any
    ) -> Recommender:
        """Train on tables in memory or on files and open the result; see ``genrec.pipeline.fit_frames``.

        ``events``, ``items`` and ``queries`` are Polars or pandas frames, Arrow tables, or paths. ``output`` is the run
        folder, which ``load`` opens later; a second call with the same tables does only what is not done yet.
        ``settings`` are those of a config, as ``training={"epochs": 5}``. Raises ``UserError`` for a missing column or
        an unknown setting.
        """
        from genrec.pipeline.fit_frames import fit_frames  # training is slow to import

        return cls(fit_frames(events, items, queries, output, **settings))

    def save(self, folder: str | Path) -> Path:
        """Write a bundle to ``folder``: everything that answering needs. Items added since loading are not in it.

        Raises ``UserError`` if this recommender was opened from a bundle, or ``folder`` holds something else.
        """
        return export(self.run.folder, folder, self.fitted_on, programs=False)

    def evaluate(self, split: str = "test") -> pl.DataFrame:
        """The results table on ``test`` or ``valid``: a row per model and kind of request, baselines included.

        Raises ``UserError`` if this recommender was opened from a bundle, which holds no test events.
        """
        from genrec.pipeline.fit_frames import evaluate

        if isinstance(self.run, BundleRun):
            raise UserError(f"{self.run.folder} is a bundle and holds no held-out events; evaluate the run folder")
        return evaluate(self.run, split)

    @property
    def ranker(self) -> Ranker:
        """What ranks the present catalogue."""
        return self._snapshot.ranker

    # --- lists ---

    def recommend(
        self,
        user: str | None = None,
        history: History | None = None,
        k: int = 10,
        mode: str = "fused",
        exclude_seen: bool = True,
        timestamp: int | None = None,
        filters: Filters | None = None,
        diversity: Diversity | None = None,
        category: Category | None = None,
        attributes: Attributes | None = None,
        surface: str | None = None,
        exploration: Exploration | None = None,
    ) -> list[Answer]:
        """The next items for a known ``user``, or for this ``history``.

        A history is item ids, oldest first, or {item_id, timestamp, action, query}.
        ``category``: only items of this category, a name or a path (``Categories.mask``). ``attributes`` of the person
        and ``surface`` of the request are read by a model with ``model.situation``; by default those of the data.
        ``exploration`` draws some slots, and answers state propensities. Raises ``UserError`` for an unknown user,
        category or attribute, k below 1 or an unknown mode. Without user and history, the popular items.
        """
        filters = _with_category(filters, category)
        given = user, history, None, k, mode, exclude_seen, timestamp, filters, diversity
        request = RecommendationRequest(*given, attributes=attributes, surface=surface, exploration=exploration)
        return self.ask([request])[0].items

    def search(
        self,
        query: str,
        user: str | None = None,
        history: History | None = None,
        k: int = 10,
        mode: str = "fused",
        exclude_seen: bool = False,
        timestamp: int | None = None,
        filters: Filters | None = None,
        diversity: Diversity | None = None,
        category: Category | None = None,
        attributes: Attributes | None = None,
        surface: str | None = None,
        exploration: Exploration | None = None,
    ) -> Answers:
        """The items that ``query`` means to this user or history; the other arguments as in ``recommend``.

        Misspelt, joined, split and half-typed words are read as words of the catalogue: ``corrected`` of the answers
        says how. ``no_match`` of the answers: the query names nothing, and they are those of a request without one.
        The first 256 characters of a query are read. Raises ``UserError`` for an empty query.
        """
        filters, query = _with_category(filters, category), query_words(query)
        given = user, history, query, k, mode, exclude_seen, timestamp, filters, diversity
        request = RecommendationRequest(*given, attributes=attributes, surface=surface, exploration=exploration)
        return Answers(self.ask([request])[0])

    def rank(
        self,
        candidates: Sequence[str],
        user: str | None = None,
        history: History | None = None,
        query: str | None = None,
        mode: str = "fused",
        timestamp: int | None = None,
        attributes: Attributes | None = None,
        surface: str | None = None,
    ) -> list[Answer]:
        """All ``candidates`` (item ids), best first, for this user or history and perhaps a query.

        Raises ``UserError`` for an unknown candidate.
        """
        query, k = None if query is None else query_words(query), max(len(set(candidates)), 1)
        chosen = tuple(candidates)
        given = user, history, query, k, mode, False, timestamp
        request = RecommendationRequest(*given, candidates=chosen, attributes=attributes, surface=surface)
        return self.ask([request])[0].items

    def similar(self, item_id: str, k: int = 10, filters: Filters | None = None) -> list[Answer]:
        """The items nearest to one item, by the cosine of the network's item vectors.

        ``UserError`` for an unknown item.
        """
        return similar_items(self._snapshot, item_id, k, filters)

    def suggest(
        self, user: str | None = None, history: History | None = None, k: int = 10, exclude_asked: bool = False,
        prefix: str = "", strict: bool = True,
    ) -> list[Suggestion]:  # fmt: skip
        """The logged queries that people with this history search next; without a history the most frequent.

        ``exclude_asked`` leaves out queries of the history. ``prefix`` is what is typed so far: queries that begin so
        come first, then those that have its words, then those that have them with typos corrected; no others. Raises
        ``UserError`` where the data have no queries.
        """
        if k < 1:
            raise UserError(f"k must be at least 1, is {k}")
        snapshot, suggester = self._snapshot, self._suggester
        if not suggester.texts:
            raise UserError("the training events have no queries to suggest; use logged searches, or queries.synthetic")
        requests = self._requests(snapshot, [RecommendationRequest(user, history)], strict)
        return suggester.best(snapshot.ranker, requests, k, exclude_asked, prefix)

    @property
    def has_suggestions(self) -> bool:
        """Whether the training events have queries to suggest."""
        return bool(self._suggester.texts)

    @cached_property
    def _suggester(self) -> Suggester:
        return Suggester(self._base, self.dataset, VALID if self.fitted_on == "train+valid" else TRAIN)

    def ask(self, requests: Sequence[RecommendationRequest], strict: bool = True) -> list[Response]:
        """Any requests, mixed, in one pass of the network per kind; an answer does not depend on the others.

        ``strict`` false answers an unknown user as somebody without history, a category that no item has with
        nothing, and leaves unknown candidates out; ``notes`` of the response then names them.
        """
        stored = StoredUsers.read(self.store, [request.user for request in requests if request.reads_user])
        return answer_all(self.dataset, self._snapshot, requests, stored, strict)

    def requests(self, table: pl.DataFrame, histories: pl.Series | None = None) -> Requests:
        """Requests of a table with ``user_id`` or ``histories``, and nullable ``timestamp`` and ``query``.

        Further columns: ``surface`` and attributes that the model reads.
        """
        users = table["user_id"].to_list() if "user_id" in table.columns else [None] * len(table)
        times, queries = table["timestamp"].cast(pl.Float64).to_numpy(), table["query"].to_list()
        stored = StoredUsers.read(self.store, users)
        reader = self._snapshot.ranker.situation
        situation = None if reader is None else reader.situation.stated_columns(table)
        return build_requests(self.dataset, self._snapshot, users, times, queries, histories, stored, True, situation)

    # --- reasons ---

    def explain(
        self,
        item_id: str,
        user: str | None = None,
        history: History | None = None,
        query: str | None = None,
        timestamp: int | None = None,
        strict: bool = True,
    ) -> Explanation:
        """Why ``item_id`` is recommended: nearest history items, shared words, features, and its path of codes."""
        snapshot, query = self._snapshot, None if query is None else query_words(query)
        if snapshot.has(item_id) and not snapshot.in_trie(item_id):  # its path is part of the explanation
            snapshot = self.merge_items()
        request = RecommendationRequest(user, history, query, timestamp=timestamp)
        return explain(snapshot, self._requests(snapshot, [request], strict), item_id)

    def reasons(
        self,
        item_ids: Sequence[str],
        user: str | None = None,
        history: History | None = None,
        query: str | None = None,
    ) -> list[Reason]:
        """For each item of a list the related items of the history and the words of the query that it has.

        Cheaper than ``explain``: the network does not run.
        """
        snapshot, query = self._snapshot, None if query is None else query_words(query)
        return reasons(
            snapshot, self._requests(snapshot, [RecommendationRequest(user, history, query)], False), item_ids
        )

    def baselines(
        self, query: str | None = None, k: int = 10, filters: Filters | None = None
    ) -> dict[str, list[Answer]]:
        """The ``popular`` items and, for a query, the ``bm25`` list: what simple methods answer."""
        return baseline_lists(self._snapshot, None if query is None else query_words(query), k, filters)

    def walk(
        self,
        user: str | None = None,
        history: History | None = None,
        query: str | None = None,
        width: int = 8,
        exclude_seen: bool = False,
        blocked: Sequence[str] = (),
        strict: bool = True,
    ) -> Walk:
        """The beam search of one request down the code tree, level by level: what the demo page draws."""
        snapshot, query = self._snapshot, None if query is None else query_words(query)
        requests = self._requests(snapshot, [RecommendationRequest(user, history, query)], strict)
        return walk(snapshot, requests, width, exclude_seen, blocked)

    def _requests(
        self, snapshot: CatalogueSnapshot, requests: Sequence[RecommendationRequest], strict: bool
    ) -> Requests:
        stored = StoredUsers.read(self.store, [request.user for request in requests if request.reads_user])
        times = np.array([np.nan if one.timestamp is None else one.timestamp for one in requests], np.float64)
        users, queries = [one.user for one in requests], [one.query for one in requests]
        histories = [one.history for one in requests]
        return build_requests(self.dataset, snapshot, users, times, queries, histories, stored, strict)

    # --- what is known ---

    def history(self, user: str | None = None, history: History | None = None) -> list[dict[str, Any]]:
        """What is read of a user or history, oldest first: item_id, title, timestamp, action and query."""
        snapshot = self._snapshot
        requests = self._requests(snapshot, [RecommendationRequest(user, history)], strict=False)
        return read_events(snapshot, requests, self.dataset.actions_chain)

    def item(self, item_id: str) -> dict[str, Any]:
        """An item's columns and its ``codes``. ``UserError`` for an unknown or removed item."""
        snapshot = self._snapshot
        index = int(snapshot.indices([item_id])[0])
        return snapshot.table.row(index, named=True) | {"codes": snapshot.catalogue.codes[index].tolist()}

    def columns(self, item_ids: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
        """The named columns of items. ``UserError`` for an unknown column."""
        snapshot = self._snapshot
        for name in names:
            if name not in snapshot.table.columns:
                raise UserError(
                    f"fields: the items have no column '{name}'; columns: {', '.join(snapshot.table.columns)}"
                )
        return snapshot.table[snapshot.known_indices(item_ids).tolist()].select(names).to_dicts()

    def facets(
        self, fields: Sequence[str], filters: Filters | None = None, limit: int = 20
    ) -> dict[str, dict[str, Any]]:
        """Counts or range of each of these item columns, among the items that ``filters`` leaves; see ``facet``."""
        snapshot = self._snapshot
        mask = ~snapshot.removed
        if filters is not None:
            mask &= filters.mask(snapshot.table, snapshot.categories)
        return {name: facet(snapshot.table, mask, name, limit) for name in fields}


def _with_category(filters: Filters | None, category: Category | None) -> Filters | None:
    """``filters`` that also keep to one category."""
    if category is None:
        return filters
    if filters is None or filters.category is None:
        return replace(filters or Filters(), category=(category,))
    raise UserError("give the category once: as 'category', or in the filters")


__all__ = [
    "Answer",
    "Diversity",
    "Exploration",
    "Filters",
    "RecommendationRequest",
    "Recommender",
    "Response",
    "Suggestion",
]
