"""Routes for operators and visitors: reload, health, metrics, the demo page and the API's description."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from genrec import __version__
from genrec.errors import UserError
from genrec.serving import replies
from genrec.serving.bodies import BoundedRoute, problem, problems
from genrec.serving.state import server_of

router = APIRouter(route_class=BoundedRoute, responses=problems())
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data: https:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_PAGE_FILES = {
    entry.name: entry.read_bytes()
    for entry in files("genrec.serving").joinpath("page").iterdir()
    if entry.name.rpartition(".")[2] in _MEDIA_TYPES
}
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
    canary = None if server.canary is None else server.canary.key
    return {"status": "ready", "bundle": server.key, "canary": canary, "store": store.name}


@router.get("/metrics", response_class=Response, tags=["operations"], operation_id="metrics")
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    server = server_of(request)
    for served in server.bundles:
        server.metrics.waiting.labels(served.role).set(served.queue.waiting)
    return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The demo page."""
    return _file("index.html")


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """The API's description, made from ``/openapi.json`` without external scripts."""
    return _file("docs.html")


@router.get("/page/{name}", include_in_schema=False)
async def page_file(name: str) -> Response:
    """A script or style of these pages."""
    if name not in _PAGE_FILES:
        raise HTTPException(404, "no such file")
    return _file(name)


def _file(name: str) -> Response:
    return Response(_PAGE_FILES[name], media_type=_MEDIA_TYPES[name.rpartition(".")[2]], headers=_PAGE_HEADERS)
