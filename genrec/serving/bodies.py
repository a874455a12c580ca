"""Reading bodies, and the form of problems."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from genrec.serving.parsing import TooManyKeysError, bounded, parse_json
from genrec.serving.replies import Problem

_DESCRIPTIONS = {
    400: "The body is not JSON.",
    401: "No valid API key.",
    403: "The key's role does not allow this, or the request comes from another web site.",
    404: "Unknown item.",
    408: "The body took too long to arrive.",
    409: "The bundle is bad; the old one goes on.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    421: "The request names another host.",
    422: "Something in the request is wrong; the message names it.",
    429: "The request would wait too long; see Retry-After.",
    503: "The event store does not answer, or the server is stopping.",
    504: "No answer within the time budget.",
    507: "The event store is full; nothing was changed.",
}
_ALWAYS = (400, 401, 403, 408, 413, 415, 421, 422, 429, 503, 504)


def problems(*more: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of the problems that a route may answer with."""
    return {status: {"model": Problem, "description": _DESCRIPTIONS[status]} for status in (*_ALWAYS, *more)}


def problem(status: int, error: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """A problem as an answer. A lone surrogate in a message could not be sent; it is replaced."""
    return JSONResponse({"error": error, "message": message.encode("utf-8", "replace").decode()}, status, headers)


def invalid(error: RequestValidationError) -> JSONResponse:
    """The first mistake: where and what, never the value, which may be personal, huge or unprintable."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return problem(400, "not_json", "the body is not JSON")
    where = ".".join(str(part) for part in first["loc"])[:200]
    return problem(422, "invalid", f"{where}: {first['msg'][:300]}")


class _BoundedRequest(Request):
    async def json(self) -> Any:
        """The body's value. A large one is parsed by a thread, so that other requests go on."""
        try:
            return await bounded(parse_json, await self.body())
        except TooManyKeysError:
            raise HTTPException(422, "an object of the body has too many keys") from None
        except ValueError:
            raise HTTPException(400, "the body is not JSON") from None


class BoundedRoute(APIRoute):
    """A route that parses bodies within limits."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, over a request that parses within limits."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            return await handler(_BoundedRequest(request.scope, request.receive))

        return answer
