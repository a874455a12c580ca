"""Routes that answer: lists, suggestions, reasons."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, HTTPException, Request

from genrec.inference.explain import Explanation, Walk
from genrec.inference.requests import Response
from genrec.serving import replies
from genrec.serving import schemas as s
from genrec.serving.batching import QueueFullError, TimeBudgetError
from genrec.serving.bodies import BoundedRoute, JsonAnswer, problems
from genrec.serving.state import Server, problem_of, server_of

router = APIRouter(route_class=BoundedRoute, responses=problems())
missing = problems(404)


async def _listed(body: s.RecommendBody | s.SearchBody | s.RankBody, request: Request) -> JsonAnswer:
    server = server_of(request)
    inference_request, served = body.to_request(), server.bundle_of(request, body)
    response = await server.ask(served, inference_request, body.timeout_ms)
    return JsonAnswer(await server.described(served, response, body, inference_request))


@router.post("/v1/recommend", response_model=replies.Listing, tags=["answers"], operation_id="recommend")
async def recommend(body: s.RecommendBody, request: Request) -> JsonAnswer:
    """What the person wants next."""
    return await _listed(body, request)


@router.post("/v1/search", response_model=replies.Listing, tags=["answers"], operation_id="search")
async def search(body: s.SearchBody, request: Request) -> JsonAnswer:
    """What the person means by the query."""
    return await _listed(body, request)


@router.post("/v1/rank", response_model=replies.Listing, tags=["answers"], operation_id="rank")
async def rank(body: s.RankBody, request: Request) -> JsonAnswer:
    """The candidates, best first."""
    return await _listed(body, request)


@router.post("/v1/requests", response_model=replies.Listings, tags=["answers"], operation_id="answerMany")
async def requests(body: s.RequestsBody, request: Request) -> JsonAnswer:
    """Several requests in one call. A problem of one is its own answer."""
    server = server_of(request)

    async def one(part: s.RecommendPart | s.SearchPart | s.RankPart) -> dict[str, Any]:
        try:
            inference_request, served = part.to_request(), server.bundle_of(request, part)
            response = await server.ask(served, inference_request, part.timeout_ms)
            return await server.described(served, response, part, inference_request)
        except TimeBudgetError:
            return {"error": "too_late", "message": "no answer within the time budget"}
        except QueueFullError as error:
            return {"error": "busy", "message": str(error)}
        except Exception as error:
            _, code, message = problem_of(error)
            return {"error": code, "message": message}

    return JsonAnswer({"answers": await asyncio.gather(*map(one, body.requests))})


@router.post("/v1/similar", response_model=replies.Listing, responses=missing, tags=["answers"], operation_id="similar")
async def similar(body: s.SimilarBody, request: Request) -> JsonAnswer:
    """The items nearest to one item."""
    server = server_of(request)
    model = server.engine.model
    known(server, body.item_id)
    filters = None if body.filters is None else body.filters.filters()
    items = await server.call(lambda: model.similar(body.item_id, body.k, filters))
    return JsonAnswer(server.listing(server.main, Response(items, "retrieve", n_proven=len(items)), body))


@router.post("/v1/baselines", response_model=replies.Baselines, tags=["reasons"], operation_id="baselines")
async def baselines(body: s.BaselinesBody, request: Request) -> Any:
    """The most popular items and, for a query, BM25 on its words: what to compare the model's list with."""
    server = server_of(request)
    filters = None if body.filters is None else body.filters.filters()
    lists = await server.call(lambda: server.engine.model.baselines(body.query, body.k, filters))
    return {name: server.items(server.main, answers, body.fields) for name, answers in lists.items()}


@router.get("/v1/bundle", response_model=replies.Description, tags=["reasons"], operation_id="describeBundle")
async def bundle(request: Request) -> Any:
    """What answers now: items, users, columns and modes."""
    server = server_of(request)
    return await server.call(server.engine.describe)


@router.post("/v1/suggest", response_model=replies.Suggestions, tags=["answers"], operation_id="suggest")
async def suggest(body: s.SuggestBody, request: Request) -> Any:
    """Logged queries that the person is likely to search next."""
    server = server_of(request)
    model = server.bundle_of(request, body).engine.model
    suggestions = await server.call(
        lambda: model.suggest(body.user_id, body.events(), body.k, prefix=body.prefix, strict=False)
    )
    return {"suggestions": [asdict(one) for one in suggestions]}


@router.post("/v1/history", response_model=replies.Events, tags=["reasons"], operation_id="readHistory")
async def history(body: s.Person, request: Request) -> Any:
    """What is read of a person's history, oldest first: at most the newest 200 events."""
    model = server_of(request).bundle_of(request, body).engine.model
    events = await server_of(request).call(lambda: model.history(body.user_id, body.events()))
    return {"events": events[-200:]}


@router.post("/v1/explain", response_model=Explanation, responses=missing, tags=["reasons"], operation_id="explain")
async def explain(body: s.ExplainBody, request: Request) -> Any:
    """Why this item: nearest history items, shared words, features, and its path through the code tree."""
    server = server_of(request)
    model = server.bundle_of(request, body).engine.model
    known(server, body.item_id)
    return await server.call(
        lambda: model.explain(body.item_id, body.user_id, body.events(), body.query, body.timestamp, strict=False)
    )


@router.post("/v1/walk", response_model=Walk, tags=["reasons"], operation_id="walk")
async def walk(body: s.WalkBody, request: Request) -> Any:
    """The beam on the code tree, level by level."""
    server = server_of(request)
    model = server.bundle_of(request, body).engine.model
    person = (body.user_id, body.events(), body.query)
    return await server.call(lambda: model.walk(*person, body.width, body.exclude_seen, body.blocked, strict=False))


def known(server: Server, item_id: str) -> None:
    """404 for an item that the catalogue does not have."""
    if not server.engine.model.snapshot.has(item_id):
        raise HTTPException(404, f"item '{item_id}' is not in the catalogue")
