"""The request middleware: host, origin and key checks, limits of bodies, metrics, one log line per request."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genrec.serving.bodies import BoundedRoute
from genrec.serving.ids import REQUEST_ID, new_id
from genrec.serving.logs import log
from genrec.serving.parsing import bounded, json_shape, plainly_small
from genrec.serving.settings import ROLES, Keys, ServeSettings
from genrec.serving.state import Server

OPEN_PATHS = ("/", "/docs", "/healthz", "/readyz", "/metrics", "/openapi.json")
OPEN_FILES = "/page/"  # scripts and styles of the demo page
ASK_BYTES = 262_144  # bodies of requests for answers
EVENT_BYTES = 1_048_576  # bodies of events and impressions


def body_limit(path: str, settings: ServeSettings) -> int:
    """The largest body of a route."""
    if path.startswith("/v1/items"):
        return settings.max_body_bytes
    return min(EVENT_BYTES if path in ("/v1/events", "/v1/impressions") else ASK_BYTES, settings.max_body_bytes)


def role_of(method: str, path: str) -> str:
    """The role that a route asks for."""
    if path.startswith("/v1/admin"):
        return "admin"
    changes = path in ("/v1/events", "/v1/impressions") or path.startswith(("/v1/items", "/v1/users"))
    return "write" if changes and method not in ("GET", "HEAD") else "read"


class RefusedError(Exception):
    """A request that no route sees."""

    def __init__(self, status: int, error: str, message: str, **headers: str):
        super().__init__(message)
        self.status, self.error, self.message, self.headers = status, error, message, headers


class RequestMiddleware:
    """ASGI middleware; see the module's docstring.

    A body is read whole, within its route's limit, before a route sees it.
    """

    def __init__(
        self,
        app: ASGIApp,
        server: Server,
        direct: Mapping[str, BoundedRoute],
        problem_of: Callable[[Exception], Response | None],
    ):
        """``server``: whose settings, metrics and queues these are.

        ``direct``: POST routes by path that are answered here, past the application. ``problem_of`` gives the answer
        to an error of theirs, None for one that is our mistake.
        """
        self.direct, self.problem_of = direct, problem_of
        settings = server.settings
        self.app, self.settings, self.metrics, self.server = app, settings, server.metrics, server
        self.keys = None if settings.key_file is None else Keys(settings.key_file)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, headers, method = time.perf_counter(), dict(scope["headers"]), scope["method"]
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if REQUEST_ID.fullmatch(given) else new_id()[:16]
        status, scope["request_id"] = 0, request_id
        if method == "HEAD":  # answered as GET, without the body
            scope = {**scope, "method": "GET"}

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = ((b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff"))
                message["headers"] = [*message.get("headers", []), *more]
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            self._check_sender(scope, headers)
            self._check_key(scope, headers)
            self._check_queue(scope["path"])
            body = await self._body(scope, headers, receive)
            route = self.direct.get(scope["path"]) if method == "POST" else None
            if route is None:
                await self.app(scope, _replay(body, receive), answer)
            else:
                await self._directly(route, body, scope, receive, answer)
        except RefusedError as refused:
            await _problem(answer, refused)
        except Exception:
            log.exception("failed", extra={"fields": {"request_id": request_id}})
            if not status:
                text = "this is our mistake; the log has more under the request's id"
                await _problem(answer, RefusedError(500, "internal", text))
        finally:
            self._record(scope, method, status, request_id, time.perf_counter() - started)

    async def _directly(self, route: BoundedRoute, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        assert route.direct is not None
        scope["route"] = route
        try:
            response = await route.direct(body, Request(scope, receive))
        except Exception as error:
            problem = self.problem_of(error)
            if problem is None:
                raise
            response = problem
        await response(scope, receive, send)

    def _record(self, scope: Scope, method: str, status: int, request_id: str, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")  # the template, never the path itself: paths hold ids
        bundle = scope.get("bundle") or self.server.key
        self.metrics.requests.labels(route, str(status), bundle).inc()
        self.metrics.seconds.labels(route, bundle).observe(seconds)
        fields = {"request_id": request_id, "method": method, "route": route, "status": status}
        log.info("request", extra={"fields": fields | {"bundle": bundle, "ms": round(1000 * seconds, 2)}})

    def _check_sender(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Refuse requests that a foreign web page makes a browser send: by a name of its own, or across origins."""
        host = _name(b"//" + headers.get(b"host", b""))
        allowed = self.settings.allowed_hosts
        if allowed and host not in allowed:
            raise RefusedError(421, "wrong_host", f"this server does not answer for the host named; it is {allowed[0]}")
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return
        origin = headers.get(b"origin")
        foreign = origin is not None and urlsplit(origin).netloc != headers.get(b"host", b"")
        if foreign or headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site"):
            raise RefusedError(403, "cross_site", "requests from other web sites are not answered")
        media = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if scope["method"] in ("POST", "PUT", "PATCH") and media != b"application/json" and _has_body(headers):
            raise RefusedError(415, "not_json", "send the body as 'Content-Type: application/json'")

    def _check_key(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        path = scope["path"]
        if self.keys is None or path in OPEN_PATHS or path.startswith(OPEN_FILES):
            return
        given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        role = self.keys.role(given)
        if role is None:
            text = "give a valid key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
            raise RefusedError(401, "unauthorized", text, **{"www-authenticate": "Bearer"})
        needed = role_of(scope["method"], path)
        if ROLES.index(role) < ROLES.index(needed):
            raise RefusedError(403, "forbidden", f"this key has the role {role}; the route needs {needed}")

    def _check_queue(self, path: str) -> None:
        """Refuse a request that would wait too long before its body is read: refusals must not slow answers down."""
        if seconds := self.server.refuses(path):
            raise RefusedError(429, "busy", "too many requests are waiting", **{"retry-after": str(seconds)})

    async def _body(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        limit = body_limit(scope["path"], self.settings)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limit:
            raise RefusedError(413, "too_large", f"the body may have {limit} bytes")
        chunks, size, more = [], 0, True
        try:
            async with asyncio.timeout(self.settings.body_timeout_ms / 1000):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RefusedError(400, "incomplete", "the body ended early")
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > limit:
                        raise RefusedError(413, "too_large", f"the body may have {limit} bytes")
                    more = message.get("more_body", False)
        except TimeoutError:
            raise RefusedError(408, "too_slow", "the body took too long to arrive") from None
        body = b"".join(chunks)
        if plainly_small(body, self.settings.max_depth):
            return body
        shape = await bounded(json_shape, body)
        if shape.too_large:
            raise RefusedError(422, "too_many_values", "the body holds more values than any of this API")
        if shape.depth > self.settings.max_depth:
            raise RefusedError(422, "too_deep", f"the body may be nested {self.settings.max_depth} deep")
        return body


def _name(address: bytes) -> str:
    """The host of an address, without its port; empty where it is none."""
    try:
        return urlsplit(address.decode("latin-1")).hostname or ""
    except ValueError:
        return ""


def _has_body(headers: dict[bytes, bytes]) -> bool:
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


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


async def _problem(send: Send, refused: RefusedError) -> None:
    body = json.dumps({"error": refused.error, "message": refused.message}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
