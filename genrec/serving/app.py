"""The HTTP server's routes. ``genrec serve BUNDLE`` starts it; the API is described at ``/openapi.json``."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from genrec import __version__
from genrec.errors import UserError
from genrec.inference.recommender import Answer
from genrec.inference.requests import RecommendationRequest
from genrec.serving import schemas as s
from genrec.serving.batching import Batcher, QueueFull, TimeBudgetSpent
from genrec.serving.engine import Engine
from genrec.serving.middleware import Metrics, RequestMiddleware, log
from genrec.serving.settings import ServeSettings

_PAGE_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'"
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": s.Problem, "description": text}
    for status, text in {
        400: "The body is not JSON.", 401: "No valid API key.", 408: "The body took too long to arrive.", 413: "The body is too large.",
        422: "Something in the request is wrong; the message names it.", 429: "Too many requests wait; see Retry-After.",
        504: "No answer within the time budget.",
    }.items()
}  # fmt: skip
_MISSING: dict[int | str, dict[str, Any]] = {**_PROBLEMS, 404: {"model": s.Problem, "description": "Unknown item."}}
router = APIRouter(responses=_PROBLEMS)
ItemId = Annotated[str, Path(min_length=1, max_length=256)]


class Server:
    """What the routes share: the engine, its queues and the metrics."""

    def __init__(self, engine: Engine):
        settings, self.engine, self.metrics = engine.settings, engine, Metrics()
        self.settings, self.draining = settings, False
        wait = settings.batch_wait_ms / 1000
        self.answers = Batcher(
            engine.ask, settings.max_batch, wait, settings.queue, self.metrics.batch.observe, "answers"
        )
        self.events = Batcher(self._keep, 256, 0.0, settings.queue, name="events")
        self.calls = Batcher(_each, 1, 0.0, max(1, settings.queue // 8), name="calls")

    def _keep(self, batches: list[list]) -> list[int]:
        """One durable transaction for every request that waits."""
        self.engine.store.append([event for batch in batches for event in batch])
        self.metrics.events.inc(sum(len(batch) for batch in batches))
        return [len(batch) for batch in batches]

    async def ask(self, question: RecommendationRequest) -> s.Listing:
        answers: list[Answer] = await self.answers.submit(question, self.settings.time_budget_ms / 1000)
        return s.Listing.model_construct(
            items=[s.Item.model_construct(**asdict(one)) for one in answers], bundle=self.engine.key
        )

    async def call(self, work: Callable[[], Any], budget_ms: float | None = None) -> Any:
        """Rare work (explanations, catalogue changes), one at a time, beside the answers."""
        return await self.calls.submit(work, (budget_ms or self.settings.time_budget_ms) / 1000)

    async def reload(self) -> str:
        try:
            key = await asyncio.to_thread(self.engine.reload)
        except UserError as error:
            self.metrics.reloads.labels("refused").inc()
            log.warning("reload refused", extra={"fields": {"reason": str(error)}})
            raise
        self.metrics.reloads.labels("done").inc()
        log.info("reloaded", extra={"fields": {"bundle": key}})
        return key

    def close(self) -> None:
        for batcher in (self.answers, self.events, self.calls):
            batcher.close(self.settings.drain_s)
        self.engine.store.close()


def _each(calls: list[Callable[[], Any]]) -> list[Any]:
    results: list[Any] = []
    for call in calls:
        try:
            results.append(call())
        except UserError as error:
            results.append(error)
    return results


def _server(request: Request) -> Server:
    return request.app.state.server


@router.post("/v1/recommend", response_model=s.Listing)
async def recommend(body: s.RecommendBody, request: Request) -> Any:
    """What the person wants next."""
    return await _server(request).ask(body.question(None, body.exclude_seen))


@router.post("/v1/search", response_model=s.Listing)
async def search(body: s.SearchBody, request: Request) -> Any:
    """What the person means by the query."""
    return await _server(request).ask(body.question(body.query.strip(), body.exclude_seen))


@router.post("/v1/rank", response_model=s.Listing)
async def rank(body: s.RankBody, request: Request) -> Any:
    """The candidates, best first."""
    return await _server(request).ask(body.question())


@router.post("/v1/explain", responses=_MISSING)
async def explain(body: s.ExplainBody, request: Request) -> dict:
    """Why this item: nearest history items, shared words, what each source said, the way through the code tree."""
    server = _server(request)
    model = server.engine.model
    _check_item(server, body.item_id)
    result = await server.call(
        lambda: model.explain(body.item_id, body.user_id, body.events(), body.query, body.timestamp, strict=False)
    )
    return asdict(result)


@router.post("/v1/walk")
async def walk(body: s.WalkBody, request: Request) -> dict:
    """The beam on the code tree, level by level."""
    server = _server(request)
    model = server.engine.model
    return asdict(
        await server.call(lambda: model.walk(body.user_id, body.events(), body.query, body.width, strict=False))
    )


@router.post("/v1/events", response_model=s.Accepted)
async def events(body: s.EventsBody, request: Request) -> Any:
    """Remember what users did. Once this answers, the events are on the disk, and the next answer reads them."""
    server = _server(request)
    return {
        "accepted": await server.events.submit(
            [event.stored() for event in body.events], server.settings.time_budget_ms / 1000
        )
    }


@router.delete("/v1/users/{user_id}", response_model=s.Removed)
async def forget(user_id: ItemId, request: Request) -> Any:
    """Erase a user's stored events."""
    server = _server(request)
    return {"removed": await server.call(lambda: server.engine.store.forget(user_id))}


@router.post("/v1/items", response_model=s.AddedItems)
async def add_items(body: s.ItemsBody, request: Request) -> Any:
    """Add items; they are visible when this answers, and stay through restarts and reloads."""
    server = _server(request)
    items = [item.model_dump() for item in body.items]
    added = await server.call(lambda: server.engine.add_items(items), server.settings.change_budget_ms)
    _count_items(server)
    return {"added": len(added.added), "restored": len(added.restored), "unchanged": len(added.unchanged)}


@router.get("/v1/items/{item_id:path}", responses=_MISSING)
async def get_item(item_id: ItemId, request: Request) -> dict:
    """An item's columns and codes."""
    server = _server(request)
    _check_item(server, item_id)
    return server.engine.model.item(item_id)


@router.delete("/v1/items/{item_id:path}", response_model=s.Removed, responses=_MISSING)
async def remove_item(item_id: ItemId, request: Request) -> Any:
    """Never show an item again; it still counts in histories."""
    server = _server(request)
    _check_item(server, item_id)
    await server.call(lambda: server.engine.remove_items([item_id]), server.settings.change_budget_ms)
    _count_items(server)
    return {"removed": 1}


@router.post(
    "/v1/admin/reload", responses={409: {"model": s.Problem, "description": "The bundle is bad; the old one goes on."}}
)
async def reload(request: Request) -> dict:
    """Read the bundle's folder again and put it in the old one's place; no request fails meanwhile."""
    try:
        return {"bundle": await _server(request).reload()}
    except UserError as error:
        return _problem(409, "refused", str(error))  # type: ignore[return-value]


@router.get("/healthz")
async def healthz() -> dict:
    """The process lives."""
    return {"status": "ok", "version": __version__}


@router.get("/readyz", responses={503: {"model": s.Problem, "description": "Stopping."}})
async def readyz(request: Request) -> dict:
    """Requests are welcome."""
    server = _server(request)
    if server.draining:
        return _problem(503, "stopping", "the server is stopping")  # type: ignore[return-value]
    return {"status": "ready", "bundle": server.engine.key}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    server = _server(request)
    server.metrics.waiting.set(server.answers.waiting)
    return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page() -> HTMLResponse:
    """The demo page."""
    html = files("genrec.serving").joinpath("demo.html").read_text(encoding="utf-8")
    return HTMLResponse(html, headers={"content-security-policy": _PAGE_POLICY, "cache-control": "no-store"})


def _check_item(server: Server, item_id: str) -> None:
    try:
        server.engine.model.snapshot.places([item_id])
    except UserError as error:
        raise HTTPException(404, str(error)) from None


def _count_items(server: Server) -> None:
    snapshot = server.engine.model.snapshot
    server.metrics.items.set(int((~snapshot.removed).sum()))


def _problem(status: int, error: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    # A lone surrogate in a message could not be sent; it is replaced.
    return JSONResponse({"error": error, "message": message.encode("utf-8", "replace").decode()}, status, headers)


def _invalid(error: RequestValidationError) -> JSONResponse:
    """The first mistake: where and what, never the value, which may be personal, huge or unprintable."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _problem(400, "not_json", "the body is not JSON")
    return _problem(422, "invalid", f"{'.'.join(str(part) for part in first['loc'])[:200]}: {first['msg'][:300]}")


_CODES = {400: "not_json", 404: "not_found", 405: "method_not_allowed"}


def create_app(engine: Engine) -> FastAPI:
    """The ASGI application around an engine; it closes the engine's store when it stops."""
    server = Server(engine)
    _count_items(server)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop, tasks = asyncio.get_running_loop(), set()

        async def quietly() -> None:
            try:
                await server.reload()
            except UserError:
                pass  # logged; the old bundle goes on

        def on_hangup() -> None:
            task = loop.create_task(quietly())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        try:
            loop.add_signal_handler(signal.SIGHUP, on_hangup)
        except (NotImplementedError, RuntimeError, ValueError):  # not the main thread, or no such signal here
            pass
        yield
        server.draining = True
        await asyncio.to_thread(server.close)

    app = FastAPI(
        title="genrec",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        description="One model for search and recommendation.",
    )
    app.state.server = server
    app.include_router(router)
    app.add_middleware(RequestMiddleware, settings=engine.settings, metrics=server.metrics)
    handlers: dict[type[Exception], Callable[[Any], JSONResponse]] = {
        RequestValidationError: _invalid,
        UserError: lambda error: _problem(422, "invalid", str(error)),
        QueueFull: lambda error: _problem(429, "busy", str(error), {"retry-after": str(error.retry_after)}),
        TimeBudgetSpent: lambda error: _problem(504, "too_late", "no answer within the time budget"),
        HTTPException: lambda error: _problem(
            error.status_code, _CODES.get(error.status_code, "error"), str(error.detail), dict(error.headers or {})
        ),
    }
    for kind, handle in handlers.items():
        app.add_exception_handler(kind, _handler(handle))
    return app


def _handler(handle: Callable[[Any], JSONResponse]) -> Callable:
    async def answer(_request: Request, error: Exception) -> JSONResponse:
        return handle(error)

    return answer


def serve(settings: ServeSettings) -> None:
    """Load the bundle and answer until SIGINT or SIGTERM; what was taken is finished."""
    import torch
    import uvicorn

    from genrec.serving.middleware import json_logs

    # One core is left to HTTP: threads that wait for a core at every barrier halve the rate under load.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(settings.threads or max(1, cores - 1))
    json_logs()
    engine = Engine(settings)
    log.info(
        "loaded",
        extra={
            "fields": {
                "bundle": engine.key,
                "items": engine.model.snapshot.n_items,
                "fitted_on": engine.model.fitted_on,
            }
        },
    )
    config = uvicorn.Config(
        create_app(engine), settings.host, settings.port, log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=settings.drain_s,
    )  # fmt: skip
    for stop in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # uvicorn raises a signal again once it has stopped in good order: that is no failure
        signal.signal(stop, lambda *_: None)
    uvicorn.Server(config).run()
