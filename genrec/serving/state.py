"""What the routes share: the engine, its queues and the metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from fastapi import Request

from genrec.errors import UserError
from genrec.inference.exploration import Exploration
from genrec.inference.requests import Answer, RecommendationRequest, Response
from genrec.serving import schemas as s
from genrec.serving.batching import Batcher
from genrec.serving.bundles import ServedBundle, goes_to_canary
from genrec.serving.cursors import next_cursor
from genrec.serving.engine import Engine
from genrec.serving.ids import new_id
from genrec.serving.logs import Metrics, log
from genrec.serving.store import Kept, StoredEvent, StoreError, StoreFullError
from genrec.serving.tracing import Tracing

_EVENTS_AT_ONCE = 256  # requests with events that share a transaction
_LOG_SECONDS = 10  # between two lines about refused requests
QUEUED_PATHS = ("/v1/recommend", "/v1/search", "/v1/rank", "/v1/requests")


class Server:
    """The engine behind the routes, its queues and the metrics."""

    def __init__(self, engine: Engine, canary: Engine | None = None, tracing: Tracing | None = None):
        """``canary``: a second bundle on the same store, for the fraction ``canary_weight`` of the users."""
        settings, self.metrics = engine.settings, Metrics(engine.settings.time_budget_ms / 1000)
        self.settings, self.draining, self.tracing = settings, False, tracing
        self.main = ServedBundle(engine, "main", self.metrics, tracing)
        self.canary = None if canary is None else ServedBundle(canary, "canary", self.metrics, tracing)
        self.events = Batcher(self._keep, _EVENTS_AT_ONCE, 0.0, settings.queue, name="events")
        self.calls = Batcher(_each, 1, 0.0, max(1, settings.queue // 8), name="calls")
        self.changes = Batcher(_each, 1, 0.0, max(1, settings.queue // 8), name="changes")
        self._refused, self._logged = 0, -1e9
        engine.store.on_call = self._on_store_call
        self.metrics.store_up.labels(engine.store.name).set(1)

    @property
    def engine(self) -> Engine:
        """The main bundle's engine."""
        return self.main.engine

    @property
    def bundles(self) -> list[ServedBundle]:
        """All bundles that answer."""
        return [self.main] if self.canary is None else [self.main, self.canary]

    @property
    def key(self) -> str:
        """The key of the main bundle."""
        return self.main.key

    def bundle_of(self, request: Request, person: s.Person | None = None) -> ServedBundle:
        """The bundle that answers a person; the request is counted as its own."""
        served = self.main
        weight = self.settings.canary_weight
        if self.canary is not None and person is not None and goes_to_canary(person.user_id, person.events(), weight):
            served = self.canary
        request.scope["bundle"] = served.key
        return served

    def refuses(self, path: str) -> int:
        """Whole seconds after which to come back where no bundle takes a request of a path now, else 0."""
        if path not in QUEUED_PATHS:
            return 0
        budget = self.settings.time_budget_ms / 1000
        return min(served.queue.refuses(budget) for served in self.bundles)

    def refuse(self, path: str) -> int:
        """``refuses`` for a request that nothing else will see: it is counted, and logged now and then."""
        seconds = self.refuses(path)
        if seconds:
            self.metrics.requests.labels(path, "429", self.key).inc()
            self._refused += 1
            if time.monotonic() - self._logged >= _LOG_SECONDS:
                fields = {"count": self._refused, "retry_after": seconds}
                log.warning("requests refused", extra={"fields": fields})
                self._logged, self._refused = time.monotonic(), 0
        return seconds

    def _on_store_call(self, seconds: float, error: StoreError | None) -> None:
        self.metrics.stage_seconds.labels("store", self.key).observe(seconds)
        self.metrics.store_up.labels(self.engine.store.name).set(error is None)
        if error is not None:
            self.metrics.store_failures.labels(self.engine.store.name).inc()

    def _keep(self, batches: list[list[StoredEvent]]) -> list[list[Kept] | Exception]:
        """One durable transaction for every request that waits."""
        kept = self.engine.store.append([event for batch in batches for event in batch])
        self.metrics.events.inc(sum(one == "kept" for one in kept))
        ends = iter(kept)
        return [[next(ends) for _ in batch] for batch in batches]

    async def ask(
        self, served: ServedBundle, request: RecommendationRequest, timeout_ms: int | None = None
    ) -> Response:
        """The response to one request, in a batch with others, within its own timeout or the server's time budget."""
        budget, share = self.settings.time_budget_ms, self.settings.exploration
        if share and request.candidates is None:
            # Other draws each hour; within it, the pages of a list fit together, on every server.
            hour = int(time.time() // 3600)
            request = replace(request, exploration=Exploration(share, self.settings.exploration_temperature, hour))
        return await served.ask(request, min(timeout_ms or budget, budget) / 1000)

    async def call(self, work: Callable[[], Any]) -> Any:
        """Work that is no list (explanations, suggestions, ...), one at a time, in parallel to the answers."""
        return await self.calls.submit(work, self.settings.time_budget_ms / 1000)

    async def change(self, work: Callable[[], Any]) -> Any:
        """Catalogue changes, one at a time: they take longer, and do not hold ``call`` up. The canary follows."""

        def both() -> Any:
            result = work()
            self._refresh()
            return result

        return await self.changes.submit(both, self.settings.change_budget_ms / 1000)

    async def described(
        self, served: ServedBundle, response: Response, body: s.ListingBody, request: RecommendationRequest
    ) -> dict[str, Any]:
        """``listing`` with what else the body asks for: facets and reasons, made in parallel to other answers."""
        answer = self.listing(served, response, body)
        facets, reasons = getattr(body, "facets", None), getattr(body, "reasons", False)
        if not facets and not reasons:
            return answer

        def work() -> None:
            model, ids = served.engine.model, [item["item_id"] for item in answer["items"]]
            if facets:
                answer["facets"] = model.facets(facets, request.filters)
            if reasons:
                for item, reason in zip(
                    answer["items"], model.reasons(ids, request.user, request.history, request.query), strict=False
                ):
                    item["reason"] = asdict(reason)

        await self.call(work)
        return answer

    def items(
        self, served: ServedBundle, answers: Sequence[Answer], fields: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        """Answers as the API gives them, with the columns ``fields``."""
        items: list[dict[str, Any]] = [
            {"item_id": one.item_id, "title": one.title, "score": one.score} for one in answers
        ]
        for item, one in zip(items, answers, strict=True):
            if one.propensity is not None:
                item["propensity"] = one.propensity
        if fields:
            columns = served.engine.model.columns([one.item_id for one in answers], fields)
            for item, attributes in zip(items, columns, strict=True):
                item["attributes"] = attributes
        return items

    def listing(self, served: ServedBundle, response: Response, body: s.ListingBody) -> dict[str, Any]:
        """A response as the API gives it, with what the body asks of its form."""
        items, notes = self.items(served, response.items, body.fields), list(response.notes)
        answer = {
            "recommendation_id": new_id(),
            "items": items,
            "mode": response.mode,
            "source": response.source,
            "bundle": served.key,
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
            if bundle not in (None, served.key):
                notes.append("the bundle changed after the page before; items may be repeated or missing")
            end = start + body.k
            if len(items) == body.k and end < s.MAX_LIST:
                answer |= {"next_offset": end, "next_cursor": next_cursor(body, end, served.key)}
        return answer

    def forget(self, user_id: str) -> tuple[int, bool]:
        """Erase a user; returns the number of events erased, and whether a bundle has some, suppressed now."""
        removed, in_bundle = self.engine.forget(user_id)
        return removed, in_bundle or any(user_id in one.engine.model.dataset.user_index for one in self.bundles)

    async def reload(self) -> str:
        """Read the bundles again; ``UserError`` for a bad one. Returns the main bundle's key."""
        try:
            for served in self.bundles:
                await asyncio.to_thread(served.engine.reload)
        except UserError as error:
            self.metrics.reloads.labels("refused").inc()
            log.warning("reload refused", extra={"fields": {"reason": str(error)}})
            raise
        self.metrics.reloads.labels("done").inc()
        log.info("reloaded", extra={"fields": {served.role: served.key for served in self.bundles}})
        self.count_items()
        return self.key

    def count_items(self) -> None:
        """Report the bundles and how many items each can recommend."""
        for served in self.bundles:
            served.describe()

    def _refresh(self) -> bool:
        """Take over item changes that another bundle or server on the same store made; whether there were any."""
        changed = False
        for served in self.bundles:
            try:
                changed |= served.engine.refresh()
            except (StoreError, UserError) as error:
                log.warning("items not refreshed", extra={"fields": {"reason": str(error), "bundle": served.key}})
        return changed

    async def refresh_forever(self) -> None:
        """Take over item changes of other servers on the same store."""
        while True:
            await asyncio.sleep(self.settings.refresh_s)
            if await asyncio.to_thread(self._refresh):
                self.count_items()
                log.info("items refreshed")

    def close(self) -> None:
        """Finish what was taken and close the store."""
        queues = [served.queue for served in self.bundles]
        for batcher in (*queues, self.events, self.calls, self.changes):
            batcher.close(self.settings.drain_s)
        self.engine.store.close()
        if self.tracing is not None:
            self.tracing.close()


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
