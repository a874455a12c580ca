"""What the routes share: the engine, its queues and the metrics."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from fastapi import Request

from genrec.errors import UserError
from genrec.inference.requests import Answer, RecommendationRequest, Response
from genrec.serving import schemas as s
from genrec.serving.batching import Batcher
from genrec.serving.cursors import next_cursor
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
        self.changes = Batcher(_each, 1, 0.0, max(1, settings.queue // 8), name="changes")
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

    async def ask(self, request: RecommendationRequest, timeout_ms: int | None = None) -> Response:
        """The response to one request, in a batch with others, within its own timeout or the server's time budget."""
        budget = self.settings.time_budget_ms
        return await self.answers.submit(request, min(timeout_ms or budget, budget) / 1000)

    async def call(self, work: Callable[[], Any]) -> Any:
        """Work that is no list (explanations, suggestions, ...), one at a time, beside the answers."""
        return await self.calls.submit(work, self.settings.time_budget_ms / 1000)

    async def change(self, work: Callable[[], Any]) -> Any:
        """Catalogue changes, one at a time: they take longer, and do not hold ``call`` up."""
        return await self.changes.submit(work, self.settings.change_budget_ms / 1000)

    async def described(self, response: Response, body: s.ListingBody, asked: RecommendationRequest) -> dict[str, Any]:
        """``listing`` with what else the body asks for: facets and reasons are made beside the answers."""
        answer = self.listing(response, body)
        facets, reasons = getattr(body, "facets", None), getattr(body, "reasons", False)
        if not facets and not reasons:
            return answer

        def work() -> None:
            model, ids = self.engine.model, [item["item_id"] for item in answer["items"]]
            if facets:
                answer["facets"] = model.facets(facets, asked.filters)
            if reasons:
                for item, reason in zip(
                    answer["items"], model.reasons(ids, asked.user, asked.history, asked.query), strict=False
                ):
                    item["reason"] = asdict(reason)

        await self.call(work)
        return answer

    def items(self, answers: Sequence[Answer], fields: Sequence[str] | None) -> list[dict[str, Any]]:
        """Answers as the API gives them, with the columns ``fields``."""
        items: list[dict[str, Any]] = [
            {"item_id": one.item_id, "title": one.title, "score": one.score} for one in answers
        ]
        if fields:
            columns = self.engine.model.columns([one.item_id for one in answers], fields)
            for item, attributes in zip(items, columns, strict=True):
                item["attributes"] = attributes
        return items

    def listing(self, response: Response, body: s.ListingBody) -> dict[str, Any]:
        """A response as the API gives it, with what the body asks of its form."""
        items, notes = self.items(response.items, body.fields), list(response.notes)
        answer = {
            "recommendation_id": uuid.uuid4().hex,
            "items": items,
            "mode": response.mode,
            "source": response.source,
            "bundle": self.engine.key,
            "n_proven": response.n_proven,
            "no_match": response.no_match,
            "match": response.match,
            "corrected": response.corrected,
            "next_offset": None,
            "next_cursor": None,
            "notes": notes,
        }
        if isinstance(body, s.Pages):
            start, bundle = body.start()
            if bundle not in (None, self.engine.key):
                notes.append("the bundle changed after the page before; items may be repeated or missing")
            end = start + body.k
            if len(items) == body.k and end < s.MAX_LIST:
                answer |= {"next_offset": end, "next_cursor": next_cursor(body, end, self.engine.key)}
        return answer

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
        for batcher in (self.answers, self.events, self.calls, self.changes):
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
