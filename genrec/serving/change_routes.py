"""Routes that change what the server knows: events, impressions, users and items."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from genrec.errors import UserError
from genrec.inference.snapshot import AddedItemIds
from genrec.serving import replies
from genrec.serving import schemas as s
from genrec.serving.answer_routes import known
from genrec.serving.bodies import BoundedRoute, problems
from genrec.serving.state import server_of
from genrec.serving.store import Kept

router = APIRouter(route_class=BoundedRoute, responses=problems(507))
missing = problems(404, 507)
PathId = Annotated[str, Path(min_length=1, max_length=256)]


@router.post("/v1/events", response_model=replies.Accepted, tags=["events"], operation_id="addEvents")
async def events(body: s.EventsBody, request: Request) -> Any:
    """Remember what users did. Once this answers, the events are on the disk, and the next answer reads them.

    Events of unknown items are kept (the item may come) and reported; so are unknown actions, which count as the
    weakest one. An event id that names another event of the user is a conflict: the new event is not kept.
    """
    server = server_of(request)
    budget = server.settings.time_budget_ms / 1000
    kept: list[Kept] = await server.events.submit([event.stored() for event in body.events], budget)
    model = server.engine.model
    details: list[dict[str, Any]] = []
    actions = set(model.dataset.actions_chain)
    for index, (event, result) in enumerate(zip(body.events, kept, strict=True)):
        if result != "kept":
            details.append({"index": index, "problem": result, "kept": result == "repeated"})
        elif model.snapshot.index_of(event.item_id) < 0:
            details.append({"index": index, "problem": "unknown_item", "kept": True})
        elif event.action is not None and event.action not in actions:
            details.append({"index": index, "problem": "unknown_action", "kept": True})
    rejected = sum(result == "conflict" for result in kept)
    return {"accepted": len(kept) - rejected, "rejected": rejected, "details": details}


@router.post("/v1/impressions", response_model=replies.Shown, tags=["events"], operation_id="addImpressions")
async def impressions(body: s.ImpressionsBody, request: Request) -> Any:
    """Store impressions; durable once this answers."""
    server = server_of(request)
    await server.call(lambda: server.engine.store.append_impressions(body.stored()))
    return {"accepted": len(body.items)}


@router.delete("/v1/users/{user_id:path}", response_model=replies.Erased, tags=["users"], operation_id="eraseUser")
async def forget(user_id: PathId, request: Request) -> Any:
    """Erase a user: stored events and impressions are removed, and events in the bundle are not read any more."""
    server = server_of(request)
    removed, in_bundle = await server.call(lambda: server.forget(user_id))
    return {"removed": removed, "in_bundle": in_bundle}


@router.post("/v1/items", response_model=replies.AddedItems, tags=["items"], operation_id="addItems")
async def add_items(body: s.ItemsBody, request: Request) -> Any:
    """Add items; they are visible when this answers, and stay through restarts and reloads."""
    server = server_of(request)

    def work() -> AddedItemIds:
        return server.engine.add_items([item.model_dump(exclude_unset=True) for item in body.items])

    added = await server.change(work)
    server.count_items()
    return {"added": len(added.added), "restored": len(added.restored), "unchanged": len(added.unchanged)}


@router.get(
    "/v1/items/{item_id:path}",
    response_model=replies.ItemRecord,
    responses=missing,
    tags=["items"],
    operation_id="getItem",
)
async def get_item(item_id: PathId, request: Request) -> Any:
    """An item's columns and codes."""
    server = server_of(request)
    known(server, item_id)
    return server.engine.model.item(item_id)


@router.put(
    "/v1/items/{item_id:path}",
    response_model=replies.Updated,
    responses=missing,
    tags=["items"],
    operation_id="replaceItem",
)
async def replace_item(item_id: PathId, body: s.ItemColumns, request: Request) -> Any:
    """Replace an item: columns that are not given become null."""
    columns = dict.fromkeys(("title", "text", "brand", "category", "price")) | body.model_dump(exclude_unset=True)
    return await _update(request, item_id, columns)


@router.patch(
    "/v1/items/{item_id:path}",
    response_model=replies.Updated,
    responses=missing,
    tags=["items"],
    operation_id="updateItem",
)
async def update_item(item_id: PathId, body: s.ItemColumns, request: Request) -> Any:
    """Replace the given columns of an item; the others stay."""
    return await _update(request, item_id, body.model_dump(exclude_unset=True))


async def _update(request: Request, item_id: str, columns: dict[str, Any]) -> dict[str, int]:
    server = server_of(request)
    known(server, item_id)
    if columns.get("item_id", item_id) != item_id:
        raise UserError("item_id: the body names another item than the path")
    item = columns | {"item_id": item_id}
    await server.change(lambda: server.engine.update_items([item]))
    return {"updated": 1}


@router.delete(
    "/v1/items/{item_id:path}",
    response_model=replies.Removed,
    responses=missing,
    tags=["items"],
    operation_id="removeItem",
)
async def remove_item(item_id: PathId, request: Request) -> Any:
    """Never recommend an item again; it still counts in histories."""
    server = server_of(request)
    known(server, item_id)
    await server.change(lambda: server.engine.remove_items([item_id]))
    server.count_items()
    return {"removed": 1}
