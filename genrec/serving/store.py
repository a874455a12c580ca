"""What the server remembers: users' events and impressions, items changed after the export, and who was erased.

``SqliteStore`` (default) is one file with a write-ahead log and ``synchronous=FULL``: what was acknowledged survives
``SIGKILL`` and, on a disk that honours flushes, a power cut. ``RedisStore`` (extra ``genrec[redis]``) is as durable
as that server is set to be (``appendonly yes``, ``appendfsync always``). Both keep the same promises; the tests run
against both.

An event with an ``event_id`` is kept once per user, so a client may send again whatever was not acknowledged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import polars as pl

STORE_FORMAT = 2
EVENT_COLUMNS = {
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp": pl.Int64,
    "action": pl.String,
    "query": pl.String,
}
Kept = Literal["kept", "repeated", "conflict"]


class StoreError(Exception):
    """The store does not answer now. What the call wanted to write was not written."""


class StoreFullError(StoreError):
    """The store has no space left."""


@dataclass(frozen=True)
class StoredEvent:
    """One action of a user; ``timestamp`` in seconds since 1970, UTC.

    ``request_id`` is the recommendation it answers.
    """

    user_id: str
    item_id: str
    timestamp: int
    action: str | None = None
    query: str | None = None
    event_id: str | None = None
    surface: str | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class StoredImpression:
    """One item shown to a user at ``position`` (from 1) of the recommendation ``request_id``.

    ``propensity``: the chance it had to stand there, as the answer stated it.
    """

    request_id: str
    user_id: str
    item_id: str
    timestamp: int
    position: int
    propensity: float | None = None


class Store(Protocol):
    """A store.

    All methods may be called from many threads, and raise ``StoreError`` where the store does not answer.
    """

    name: str

    def append(self, events: Sequence[StoredEvent]) -> list[Kept]:
        """Keep events, durable when this returns.

        ``repeated``: the same event was kept before. ``conflict``: its id names another event of the user, and it was
        not kept.
        """

    def append_impressions(self, impressions: Sequence[StoredImpression]) -> None:
        """Keep impressions, durable when this returns."""

    def events_of(self, users: Sequence[str]) -> pl.DataFrame:
        """The newest events of each user, oldest first: ``EVENT_COLUMNS``."""

    def items_of(self, users: Sequence[str]) -> dict[str, list[str]]:
        """All distinct items in the events of each user, however old."""

    def forget(self, user_id: str) -> int:
        """Erase a user and suppress what a bundle knows of them; returns the number of events erased."""

    def erased(self, users: Sequence[str]) -> set[str]:
        """Which of the users were erased."""

    def change_items(self, items: dict[str, dict[str, Any] | None]) -> int:
        """Remember columns of items added or updated after training, None for removed ones; returns the version."""

    def changed_items(self, after: int = 0) -> dict[str, dict[str, Any] | None]:
        """The last change of each item that changed after a version, oldest change first."""

    def version(self) -> int:
        """Version of the last item change, 0 for none."""

    def trim(self, before: int) -> tuple[int, int]:
        """Delete events and impressions older than a time in seconds; returns how many of each.

        Item changes and erased users stay.
        """

    def backup(self, path: Path) -> None:
        """Write a whole copy, which a server opens like the store. ``UserError`` where that cannot be done."""

    def all_events(self) -> Iterator[StoredEvent]:
        """Every event, for the export."""

    def all_impressions(self) -> Iterator[StoredImpression]:
        """Every impression, for the export."""

    def close(self) -> None:
        """Close all connections."""


def user_key(user_id: str) -> str:
    """What an erased user is remembered by: a digest, not the id."""
    return hashlib.sha256(user_id.encode("utf-8", "replace")).hexdigest()


def same_event(kept: dict[str, Any], event: StoredEvent) -> bool:
    """Whether a kept event equals one sent again. Without a time in the event, the time of arrival is its time."""
    names = [one.name for one in fields(event) if one.name != "timestamp"]
    return all(kept.get(name) == getattr(event, name) for name in names)
