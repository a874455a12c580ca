"""Reading bodies, and the form of problems."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
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
    504: "No answer within the time budget, or within the request's own `timeout_ms`.",
    507: "The event store is full; nothing was changed.",
}
_ALWAYS = (400, 401, 403, 408, 413, 415, 421, 422, 429, 503, 504)


def problems(*more: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of the problems that a route may answer with."""
    return {status: {"model": Problem, "description": _DESCRIPTIONS[status]} for status in (*_ALWAYS, *more)}


def problem(status: int, error: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """A problem as an answer. A lone surrogate in a message could not be sent; it is replaced."""
    return JSONResponse({"error": error, "message": message.encode("utf-8", "replace").decode()}, status, headers)


class JsonAnswer(Response):
    """A value as JSON. A route that returns it is called without FastAPI's parsing and validation of answers."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The JSON text."""
        return to_json(content)


def invalid(error: RequestValidationError) -> JSONResponse:
    """The first mistake: where and what, never the value, which may be personal, huge or unprintable."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return problem(400, "not_json", "the body is not JSON")
    return _mistake(first["loc"], first["msg"])


def _mistake(where: Sequence[str | int], what: str) -> JSONResponse:
    return problem(422, "invalid", f"{'.'.join(map(str, where))[:200]}: {what[:300]}")


async def _value(body: bytes) -> Any:
    """The value of a JSON text. A large one is parsed by a thread, so that other requests go on."""
    try:
        return await bounded(parse_json, body)
    except TooManyKeysError:
        raise HTTPException(422, "an object of the body has too many keys") from None
    except ValueError:
        raise HTTPException(400, "the body is not JSON") from None


class _BoundedRequest(Request):
    async def json(self) -> Any:
        """The body's value."""
        return await _value(await self.body())


Direct = Callable[[bytes, Request], Coroutine[Any, Any, Response]]


class BoundedRoute(APIRoute):
    """A route that parses bodies within limits.

    ``direct`` answers a body without FastAPI, which spends more on a request than everything else of HTTP together;
    None where the endpoint does not take one body and return a ``JsonAnswer``.
    """

    direct: Direct | None = None

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, over a request that parses within limits."""
        self.direct = _direct(self.endpoint)
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            return await handler(_BoundedRequest(request.scope, request.receive))

        return answer


def _direct(endpoint: Callable[..., Any]) -> Direct | None:
    """``endpoint(body, request)`` behind the validation of its body; None for an endpoint of another form."""
    signature = inspect.signature(endpoint, eval_str=True)
    kinds = [one.annotation for one in signature.parameters.values()]
    if signature.return_annotation is not JsonAnswer or len(kinds) != 2 or kinds[1] is not Request:
        return None
    model: type[BaseModel] = kinds[0]

    async def answer(text: bytes, request: Request) -> Response:
        if not text:
            return _mistake(["body"], "Field required")
        try:
            body = model.model_validate(await _value(text))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            return _mistake(["body", *first["loc"]], first["msg"])
        return await endpoint(body, request)

    return answer
