"""What stands before every route: API key, size and depth of bodies, request counts and times, one log line per request without personal data."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import sys
import time
import uuid

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genrec.serving.settings import ServeSettings

log = logging.getLogger("genrec.serve")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
OPEN_PATHS = ("/", "/healthz", "/readyz", "/metrics", "/openapi.json")


class Metrics:
    """Prometheus metrics of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        buckets = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
        self.requests = Counter(
            "genrec_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "genrec_request_seconds", "Time to answer, by route.", ["route"], buckets=buckets, registry=self.registry
        )
        self.batch = Histogram(
            "genrec_batch_size",
            "Requests per pass of the network.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )
        self.waiting = Gauge("genrec_queue", "Requests that wait for a pass.", registry=self.registry)
        self.items = Gauge("genrec_items", "Items that can be shown.", registry=self.registry)
        self.events = Counter("genrec_events", "Events kept.", registry=self.registry)
        self.reloads = Counter("genrec_reloads", "Reloads by result.", ["result"], registry=self.registry)


class JsonLines(logging.Formatter):
    """One JSON object per line; fields come with ``extra={"fields": ...}``."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def json_logs() -> None:
    """Send the server's log, and uvicorn's, to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for logger in (log, logging.getLogger("uvicorn.error")):
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def json_depth(body: bytes) -> int:
    """The greatest nesting of brackets outside strings; brackets need not match."""
    rest = np.frombuffer(_STRING.sub(b"", body), np.uint8)
    steps = np.isin(rest, np.frombuffer(b"[{", np.uint8)).astype(np.int64) - np.isin(
        rest, np.frombuffer(b"]}", np.uint8)
    )
    return int(steps.cumsum().max(initial=0))


class _Refused(Exception):
    def __init__(self, status: int, error: str, message: str):
        super().__init__(message)
        self.status, self.error, self.message = status, error, message


class RequestMiddleware:
    """ASGI middleware; see the module's docstring. Bodies are read whole, at most ``max_body_bytes`` of them, before a route sees them."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics):
        self.app, self.settings, self.metrics = app, settings, metrics
        self.keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, request_id = time.perf_counter(), uuid.uuid4().hex[:16]
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            self._check_key(scope)
            body = await self._body(scope, receive)
            await self.app(scope, _replay(body, receive), answer)
        except _Refused as refused:
            await _problem(answer, refused.status, refused.error, refused.message)
        except Exception:
            log.exception("failed", extra={"fields": {"request_id": request_id}})
            if not status:
                await _problem(answer, 500, "internal", "this is our mistake; the log has more under the request's id")
        finally:
            route = getattr(scope.get("route"), "path", "other")  # the template, never the path itself: paths hold ids
            seconds = time.perf_counter() - started
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            fields = {
                "request_id": request_id,
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(1000 * seconds, 2),
            }
            log.info("request", extra={"fields": fields})

    def _check_key(self, scope: Scope) -> None:
        if not self.keys or scope["path"] in OPEN_PATHS:
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        matches = [
            hmac.compare_digest(given, key) for key in self.keys
        ]  # all of them: the time says nothing about which key was near
        if not any(matches):
            raise _Refused(401, "unauthorized", "give a valid key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        limit = self.settings.max_body_bytes
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limit:
            raise _Refused(413, "too_large", f"the body may have {limit} bytes")
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(self.settings.body_timeout_ms / 1000):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Refused(400, "incomplete", "the body ended early")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise _Refused(413, "too_large", f"the body may have {limit} bytes")
                    more = message.get("more_body", False)
        except TimeoutError:
            raise _Refused(408, "too_slow", "the body took too long to arrive") from None
        body = b"".join(parts)
        if json_depth(body) > self.settings.max_depth:
            raise _Refused(422, "too_deep", f"the body may be nested {self.settings.max_depth} deep")
        return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the whole body once, and then what the connection says."""
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _problem(send: Send, status: int, error: str, message: str) -> None:
    body = json.dumps({"error": error, "message": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
