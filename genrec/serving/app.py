"""The ASGI application. ``genrec serve BUNDLE`` starts it; the API is described at ``/openapi.json`` and ``/docs``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from genrec import __version__
from genrec.errors import UserError
from genrec.serving import answer_routes, change_routes, operation_routes
from genrec.serving.batching import QueueFullError, TimeBudgetError
from genrec.serving.bodies import BoundedRoute, invalid, problem
from genrec.serving.engine import Engine, settle_objects
from genrec.serving.logs import json_logs, log
from genrec.serving.middleware import OPEN_PATHS, RequestMiddleware
from genrec.serving.settings import Keys, ServeSettings
from genrec.serving.state import Server, problem_of
from genrec.serving.store import StoreError
from genrec.serving.tracing import Tracing

_ROUTES = (answer_routes, change_routes, operation_routes)
_CODES = {400: "not_json", 404: "not_found", 405: "method_not_allowed", 422: "invalid"}
_DESCRIPTION = "One generative model for recommendation and search. Every problem has the form `{error, message}`."


def create_app(engine: Engine, tracing: Tracing | None = None) -> FastAPI:
    """The ASGI application around an engine; it closes the engine's store when it stops."""
    server = Server(engine, engine.canary(), tracing)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop, tasks = asyncio.get_running_loop(), set()

        def start(work: Any) -> None:
            task = loop.create_task(work)
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        async def quiet_reload() -> None:
            with contextlib.suppress(UserError):  # logged; the old bundle goes on
                await server.reload()

        with contextlib.suppress(
            NotImplementedError, RuntimeError, ValueError
        ):  # not the main thread, or no such signal
            loop.add_signal_handler(signal.SIGHUP, lambda: start(quiet_reload()))
        start(server.refresh_forever())
        yield
        server.draining = True
        for task in tasks:
            task.cancel()
        await asyncio.to_thread(server.close)

    app = FastAPI(
        title="genrec", version=__version__, description=_DESCRIPTION, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.server = server
    for module in _ROUTES:
        app.include_router(module.router)
    handlers: dict[type[Exception], Callable[[Any], JSONResponse]] = {
        RequestValidationError: invalid,
        UserError: lambda error: problem(*problem_of(error)),
        StoreError: lambda error: problem(*problem_of(error), headers={"retry-after": "1"}),
        QueueFullError: lambda error: problem(429, "busy", str(error), {"retry-after": str(error.retry_after)}),
        TimeBudgetError: lambda error: problem(504, "too_late", "no answer within the time budget"),
        HTTPException: lambda error: problem(
            error.status_code, _CODES.get(error.status_code, "error"), str(error.detail), dict(error.headers or {})
        ),
    }
    for kind, handle in handlers.items():
        app.add_exception_handler(kind, _handler(handle))

    def problem_to(error: Exception) -> Response | None:
        handle = next((handlers[kind] for kind in type(error).__mro__ if kind in handlers), None)
        return None if handle is None else handle(error)

    routes = [route for module in _ROUTES for route in module.router.routes if isinstance(route, BoundedRoute)]
    direct = {route.path: route for route in routes if route.direct is not None and route.methods == {"POST"}}
    app.add_middleware(RequestMiddleware, server=server, direct=direct, problem_of=problem_to)
    if tracing is not None:
        tracing.add_to(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's way to change the document
    return app


def _handler(handle: Callable[[Any], JSONResponse]) -> Callable:
    async def answer(_request: Request, error: Exception) -> JSONResponse:
        return handle(error)

    return answer


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document with the security schemes."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes,
            tags=[{"name": name} for name in ("answers", "reasons", "events", "users", "items", "operations")],
        )  # fmt: skip
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if path in OPEN_PATHS else [{"bearer": []}, {"apiKey": []}, {}]
        app.openapi_schema = document
    return app.openapi_schema


def serve(settings: ServeSettings) -> None:
    """Load the bundle and answer until SIGINT or SIGTERM; what was taken is finished."""
    import torch
    import uvicorn

    from genrec.serving.connections import ConnectionLimit, limited_protocol

    # Before the load, which takes long: a wrong setting should be reported at once.
    listening = _listen(settings)
    tracing = Tracing.to_collector() if settings.traces else None
    if settings.key_file is not None:
        Keys(settings.key_file)
    # One core is left to HTTP: threads that wait for a core at every barrier halve the rate under load.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(settings.threads or max(1, cores - 1))
    # Each event of a connection takes the interpreter's lock anew, which a batch gives up once in this time: a flood of
    # hundreds of events would wait for as many times this before /healthz is read.
    sys.setswitchinterval(0.0001)
    json_logs()
    engine = Engine(settings)
    fields = {"bundle": engine.key, "items": engine.model.snapshot.n_items, "fitted_on": engine.model.fitted_on}
    log.info("loaded", extra={"fields": fields})
    if settings.key_file is None and settings.without_keys:
        log.warning("no key is required", extra={"fields": {"host": settings.host}})
    app = create_app(engine, tracing)
    settle_objects()
    server = app.state.server
    limit = ConnectionLimit(settings, server.metrics, server.refuse, server.refuses)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, http=limited_protocol(limit),
        timeout_graceful_shutdown=settings.drain_s,
    )  # fmt: skip
    for stop in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # uvicorn raises a signal again once it has stopped: that is no failure
        signal.signal(stop, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listening])


def _listen(settings: ServeSettings) -> socket.socket:
    """A socket bound to the address, to listen on once the model is loaded; ``UserError`` where that fails."""
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((settings.host, settings.port))
        return bound
    except OSError as error:
        raise UserError(f"--port: cannot listen on {settings.host} port {settings.port} ({error.strerror})") from error
