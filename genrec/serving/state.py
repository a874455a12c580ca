"""What the routes share: the engine, its queues and the metrics."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Request

from genrec.errors import UserError
from genrec.inference.filters import Filters
from genrec.inference.requests import RecommendationRequest, Response
from genrec.serving import schemas as s
from genrec.serving.batching import Batcher
from genrec.serving.engine import Engine
from genrec.serving.logs import Metrics, log
from genrec.serving.store import Kept, StoredEvent, StoreError, StoreFullError

_EVENTS_AT_ONCE = 256  # requests with events that share a transaction


class Server:
    """The engine behind the routes, its queues and the metrics."""

    def __init__(self, engine: Engine):
        settings, self.engine, self.metrics = engine.settings, engine, Metrics()
        self.settings, self.draining = settings, False
        wait = settings.batch_wait_ms / 1000
        self.answers = Batcher(engine.ask, settings.max_batch, wait, settings.queue, self._on_batch, "answers")
        self.events = Batcher(self._keep, _EVENTS_AT_ONCE, 0.0, settings.queue, name="events")
        self.calls = Batcher(_each, 1, 0.0, max(1, settings.queue // 8), name="calls")
        engine.store.on_call = self._on_store_call
        self.metrics.store_up.labels(engine.store.name).set(1)

    @property
    def key(self) -> str:
        """The key of the bundle that answers now."""
        return self.engine.key

    def _on_batch(self, size: int, seconds: float) -> None:
        self.metrics.batch.observe(size)
        self.metrics.stage_seconds.labels("answer").observe(seconds)

    def _on_store_call(self, seconds: float, error: StoreError | None) -> None:
        self.metrics.stage_seconds.labels("store").observe(seconds)
        self.metrics.store_up.labels(self.engine.store.name).set(error is None)
        if error is not None:
            self.metrics.store_failures.labels(self.engine.store.name).inc()

    def _keep(self, batches: list[list[StoredEvent]]) -> list[list[Kept] | Exception]:
        """One durable transaction for every request that waits."""
        kept = self.engine.store.append([event for batch in batches for event in batch])
        self.metrics.events.inc(sum(one == "kept" for one in kept))
        ends = iter(kept)
        return [[next(ends) for _ in batch] for batch in batches]

    async def ask(self, request: RecommendationRequest) -> Response:
        """The response to one request, in a batch with others."""
        return await self.answers.submit(request, self.settings.time_budget_ms / 1000)

    async def call(self, work: Callable[[], Any], budget_ms: float | None = None) -> Any:
        """Rare work (explanations, catalogue changes), one at a time, beside the answers."""
        return await self.calls.submit(work, (budget_ms or self.settings.time_budget_ms) / 1000)

    def listing(
        self, response: Response, body: s.Person | s.SimilarBody, filters: Filters | None = None
    ) -> dict[str, Any]:
        """The JSON of a response, with the columns and counts that the body asks for."""
        model = self.engine.model
        items = [{"item_id": one.item_id, "title": one.title, "score": one.score} for one in response.items]
        fields = getattr(body, "fields", None)
        if fields:
            for item, columns in zip(
                items, model.columns([one.item_id for one in response.items], fields), strict=True
            ):
                item["attributes"] = columns  # type: ignore[assignment]  # the other values are no dictionaries
        facets = getattr(body, "facets", None)
        offset, k = getattr(body, "offset", 0), getattr(body, "k", len(items))
        more = len(items) == k and offset + k < s.MAX_LIST and hasattr(body, "offset")
        return {
            "recommendation_id": uuid.uuid4().hex,
            "items": items,
            "mode": response.mode,
            "source": response.source,
            "bundle": self.engine.key,
            "n_proven": response.n_proven,
            "no_match": response.no_match,
            "match": response.match,
            "corrected": response.corrected,
            "next_offset": offset + k if more else None,
            "notes": response.notes,
            **({"facets": model.facets(facets, filters)} if facets else {}),
        }

    async def reload(self) -> str:
        """Read the bundle again; ``UserError`` for a bad one."""
        try:
            key = await asyncio.to_thread(self.engine.reload)
        except UserError as error:
            self.metrics.reloads.labels("refused").inc()
            log.warning("reload refused", extra={"fields": {"reason": str(error)}})
            raise
        self.metrics.reloads.labels("done").inc()
        log.info("reloaded", extra={"fields": {"bundle": key}})
        self.count_items()
        return key

    def count_items(self) -> None:
        """Report how many items can be recommended."""
        self.metrics.items.set(self.engine.model.snapshot.n_available)

    async def refresh_forever(self) -> None:
        """Take over item changes of other servers on the same store."""
        while True:
            await asyncio.sleep(self.settings.refresh_s)
            try:
                if await asyncio.to_thread(self.engine.refresh):
                    self.count_items()
                    log.info("items refreshed")
            except (StoreError, UserError) as error:
                log.warning("items not refreshed", extra={"fields": {"reason": str(error)}})

    def close(self) -> None:
        """Finish what was taken and close the store."""
        for batcher in (self.answers, self.events, self.calls):
            batcher.close(self.settings.drain_s)
        self.engine.store.close()


def _each(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    results: list[Any] = []
    for call in calls:
        try:
            results.append(call())
        except (UserError, StoreError) as error:
            results.append(error)
    return results


def server_of(request: Request) -> Server:
    """The server behind a request."""
    return request.app.state.server


def problem_of(error: Exception) -> tuple[int, str, str]:
    """Status, code and message of an error that is one request's own."""
    if isinstance(error, StoreFullError):
        return 507, "store_full", f"{error}; nothing was changed"
    if isinstance(error, StoreError):
        return 503, "store_unavailable", f"{error}; requests that carry a history, or name no user, are answered"
    return 422, "invalid", str(error)
