"""A small client of a genrec server, without dependencies: ``Client("http://127.0.0.1:8000").recommend(user="u1")``."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote


class ServerError(Exception):
    """The server refused a request: its ``status``, ``code`` and message."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class Item:
    """One answer; ``propensity``: its chance to stand in its slot, where the server explores."""

    item_id: str
    title: str | None
    score: float
    propensity: float | None = None
    attributes: dict[str, Any] | None = None
    reason: dict[str, Any] | None = None


@dataclass(frozen=True)
class Listing:
    """Answers, best first, and how they were made; see the server's ``/openapi.json``."""

    recommendation_id: str
    items: list[Item]
    mode: str
    source: str
    bundle: str
    n_proven: int
    no_match: bool
    match: float
    corrected: str | None
    next_offset: int | None
    next_cursor: str | None
    notes: list[str] = field(default_factory=list)
    facets: dict[str, Any] | None = None


class Client:
    """Calls one server. A request that is refused because the server is busy is sent again ``retries`` times."""

    def __init__(self, url: str, key: str | None = None, timeout: float = 10.0, retries: int = 2):
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        self.headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})

    def recommend(self, user: str | None = None, history: Sequence[Any] | None = None, **options: Any) -> Listing:
        """What a user or this history wants next; ``options``: k, mode, filters, fields, facets, offset, ..."""
        return self._listing("recommend", user, history, options)

    def search(
        self, query: str, user: str | None = None, history: Sequence[Any] | None = None, **options: Any
    ) -> Listing:
        """What a query means to a user; ``options`` as in ``recommend``."""
        return self._listing("search", user, history, options | {"query": query})

    def rank(
        self, candidates: Sequence[str], user: str | None = None, history: Sequence[Any] | None = None, **options: Any
    ) -> Listing:
        """The candidates, best first; unknown ones are named in ``notes``."""
        return self._listing("rank", user, history, options | {"candidates": list(candidates)})

    def similar(self, item_id: str, **options: Any) -> Listing:
        """The items nearest to one item; ``options``: k, filters, fields."""
        return self._listing("similar", None, None, options | {"item_id": item_id})

    def suggest(
        self, prefix: str = "", user: str | None = None, history: Sequence[Any] | None = None, k: int = 10
    ) -> list[str]:
        """Queries that the user is likely to search next."""
        body = _person(user, history) | {"prefix": prefix, "k": k}
        return [one["query"] for one in self.call("POST", "/v1/suggest", body)["suggestions"]]

    def baselines(self, query: str | None = None, k: int = 10) -> dict[str, list[Item]]:
        """What simple methods answer: ``popular`` and, for a query, ``bm25``."""
        lists = self.call("POST", "/v1/baselines", {"k": k} | ({} if query is None else {"query": query}))
        return {name: [Item(**item) for item in items] for name, items in lists.items() if items is not None}

    def describe(self) -> dict[str, Any]:
        """What the server's bundle holds: items, users, columns, modes."""
        return self.call("GET", "/v1/bundle")

    def add_events(self, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Remember events {user_id, item_id, ...}; the report of single ones comes back."""
        return self.call("POST", "/v1/events", {"events": [dict(event) for event in events]})

    def add_items(self, items: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        """Add items {item_id, title, ...}."""
        return self.call("POST", "/v1/items", {"items": [dict(item) for item in items]})

    def update_item(self, item_id: str, **columns: Any) -> None:
        """Replace columns of an item."""
        self.call("PATCH", f"/v1/items/{quote(item_id)}", columns)

    def remove_item(self, item_id: str) -> None:
        """Never recommend an item again."""
        self.call("DELETE", f"/v1/items/{quote(item_id)}")

    def erase_user(self, user_id: str) -> dict[str, Any]:
        """Erase what is known of a user."""
        return self.call("DELETE", f"/v1/users/{quote(user_id)}")

    def _listing(self, route: str, user: str | None, history: Sequence[Any] | None, body: Mapping[str, Any]) -> Listing:
        answer = self.call("POST", f"/v1/{route}", _person(user, history) | dict(body))
        return Listing(**{**answer, "items": [Item(**item) for item in answer["items"]]})

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer of a route. ``ServerError`` where the server refuses, ``OSError`` where it is away."""
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(self.retries + 1):
            request = urllib.request.Request(self.url + path, data, self.headers, method=method)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    return json.loads(reply.read())
            except urllib.error.HTTPError as error:
                if error.code == 429 and attempt < self.retries:
                    time.sleep(float(error.headers.get("retry-after", "1")))
                    continue
                raise _refused(error) from None
        raise AssertionError("unreachable")


def _person(user: str | None, history: Sequence[Any] | None) -> dict[str, Any]:
    person = {"user_id": user, "history": None if history is None else list(history)}
    return {name: value for name, value in person.items() if value is not None}


def _refused(error: urllib.error.HTTPError) -> ServerError:
    try:
        problem = json.loads(error.read())
        return ServerError(error.code, problem["error"], problem["message"])
    except (ValueError, KeyError, TypeError):
        return ServerError(error.code, "error", error.reason)
