"""Routes for operators and visitors: reload, health, metrics, the demo page and the API's description."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from genrec import __version__
from genrec.errors import UserError
from genrec.serving import replies
from genrec.serving.bodies import BoundedRoute, problem, problems
from genrec.serving.state import server_of

router = APIRouter(route_class=BoundedRoute, responses=problems())
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data: https:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS = {"content-security-policy": _PAGE_POLICY, "cache-control": "no-store", "referrer-policy": "no-referrer"}


@router.post(
    "/v1/admin/reload",
    response_model=replies.Bundle,
    responses=problems(409),
    tags=["operations"],
    operation_id="reload",
)
async def reload(request: Request) -> Any:
    """Read the bundle's folder again and put it in the old one's place; no request fails meanwhile."""
    try:
        return {"bundle": await server_of(request).reload()}
    except UserError as error:
        return problem(409, "refused", f"{error}; the old bundle goes on answering")


@router.get("/healthz", response_model=replies.Health, tags=["operations"], operation_id="health")
async def healthz() -> Any:
    """The process lives."""
    return {"status": "ok", "version": __version__}


@router.get("/readyz", response_model=replies.Ready, tags=["operations"], operation_id="ready")
async def readyz(request: Request) -> Any:
    """Requests are welcome. 503 names the store where it does not answer."""
    server = server_of(request)
    if server.draining:
        return problem(503, "stopping", "the server is stopping")
    store = server.engine.store
    if store.failing is not None:
        return problem(503, "store_unavailable", f"store {store.name}: {store.failing}")
    return {"status": "ready", "bundle": server.engine.key, "store": store.name}


@router.get("/metrics", response_class=Response, tags=["operations"], operation_id="metrics")
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    server = server_of(request)
    server.metrics.waiting.set(server.answers.waiting)
    return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page() -> HTMLResponse:
    """The demo page."""
    return _html("demo.html")


@router.get("/docs", response_class=HTMLResponse, include_in_schema=False)
async def docs() -> HTMLResponse:
    """The API's description, made from ``/openapi.json`` without external scripts."""
    return _html("docs.html")


def _html(name: str) -> HTMLResponse:
    return HTMLResponse(files("genrec.serving").joinpath(name).read_text(encoding="utf-8"), headers=_PAGE_HEADERS)
