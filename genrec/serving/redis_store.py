"""The store on a Redis server, for replicas that share their users (extra ``genrec[redis]``).

Keys, below ``genrec:2:``: ``events:USER`` a sorted set by time, ``seen:USER`` its items, ``ids:USER`` its event ids,
``impressions:USER``; ``users`` who has any of these; ``items`` and ``items_order`` item changes; ``erased``.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from genrec.errors import UserError
from genrec.serving.store import (
    EVENT_COLUMNS,
    Kept,
    StoredEvent,
    StoredImpression,
    StoreError,
    StoreFullError,
    same_event,
    user_key,
)

Result = TypeVar("Result")
_TIMEOUT = 1.0  # seconds; an answer must not wait longer for its history
_PAUSE = 1.0  # after a failure, calls fail at once for so long


class RedisStore:
    """A store on Redis. ``client``: a ``redis.Redis``; ``limit`` as in ``SqliteStore``."""

    name = "redis"

    def __init__(self, client: Any, limit: int = 200, prefix: str = "genrec"):
        self.client, self.limit, self.prefix = client, limit, f"{prefix}:2"
        self._sequence = itertools.count()
        self._down_until = 0.0
        if self._call(lambda: client.exists(f"{prefix}:ids", f"{prefix}:items")):
            raise UserError(
                f"the Redis server holds an event store of format 1 (keys {prefix}:*), this genrec writes format 2; "
                "use another database number, or delete the old keys"
            )

    @classmethod
    def connect(cls, url: str) -> RedisStore:
        """Connect to ``redis://host:port/db``; ``UserError`` without the extra or an answer of the server."""
        try:
            import redis
        except ImportError:
            raise UserError("a Redis store needs: pip install '.[redis]'") from None
        client = redis.Redis.from_url(url, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT)
        try:
            client.ping()
        except redis.RedisError as error:
            raise UserError(f"{url.rsplit('@', 1)[-1]}: no Redis server answers ({error})") from error
        return cls(client)

    def _call(self, work: Callable[[], Result]) -> Result:
        """Run ``work``; while the server is down, fail at once instead of making each request wait."""
        from redis import RedisError
        from redis.exceptions import OutOfMemoryError

        if time.monotonic() < self._down_until:
            raise StoreError("the Redis server does not answer")
        try:
            return work()
        except OutOfMemoryError as error:
            raise StoreFullError("the Redis server is out of memory") from error
        except RedisError as error:
            self._down_until = time.monotonic() + _PAUSE
            raise StoreError(f"the Redis server does not answer ({type(error).__name__})") from error

    def _key(self, kind: str, user: str) -> str:
        return f"{self.prefix}:{kind}:{user}"

    def append(self, events: Sequence[StoredEvent]) -> list[Kept]:
        """See ``Store``. Event ids are watched, so that two replicas cannot both keep one."""
        return self._call(lambda: self._append(events))

    def _append(self, events: Sequence[StoredEvent]) -> list[Kept]:
        from redis import WatchError

        named = sorted({self._key("ids", event.user_id) for event in events if event.event_id is not None})
        while True:
            with self.client.pipeline(transaction=True) as batch:
                try:
                    if named:
                        batch.watch(*named)
                    kept = self._kept(batch, events)
                    batch.multi()
                    for event, result in zip(events, kept, strict=True):
                        if result == "kept":
                            self._add(batch, event)
                    batch.execute()
                    return kept
                except WatchError:
                    continue

    def _kept(self, batch: Any, events: Sequence[StoredEvent]) -> list[Kept]:
        known: dict[tuple[str, str], dict[str, Any]] = {}
        result: list[Kept] = []
        for event in events:
            if event.event_id is None:
                result.append("kept")
                continue
            pair = event.user_id, event.event_id
            if pair not in known:
                text = batch.hget(self._key("ids", event.user_id), event.event_id)
                if text is None:
                    known[pair] = asdict(event)
                    result.append("kept")
                    continue
                known[pair] = json.loads(text)
            result.append("repeated" if same_event(known[pair], event) else "conflict")
        return result

    def _add(self, batch: Any, event: StoredEvent) -> None:
        # The member begins with the order of arrival: events of one second stay in it, and equal events are two.
        text = json.dumps(asdict(event))
        member = f"{time.time_ns():020d}{next(self._sequence) % 10**6:06d}{text}"
        batch.zadd(self._key("events", event.user_id), {member: event.timestamp})
        batch.sadd(self._key("seen", event.user_id), event.item_id)
        batch.sadd(f"{self.prefix}:users", event.user_id)
        if event.event_id is not None:
            batch.hset(self._key("ids", event.user_id), event.event_id, text)

    def append_impressions(self, impressions: Sequence[StoredImpression]) -> None:
        """See ``Store``."""

        def work() -> None:
            with self.client.pipeline(transaction=True) as batch:
                for one in impressions:
                    batch.rpush(self._key("impressions", one.user_id), json.dumps(asdict(one)))
                    batch.sadd(f"{self.prefix}:users", one.user_id)
                batch.execute()

        self._call(work)

    def _many(self, command: str, keys: Sequence[str], *arguments: Any) -> list[Any]:
        def work() -> list[Any]:
            with self.client.pipeline(transaction=False) as batch:
                for key in keys:
                    getattr(batch, command)(key, *arguments)
                return batch.execute()

        return self._call(work)

    def events_of(self, users: Sequence[str]) -> pl.DataFrame:
        """See ``Store``."""
        members = self._many("zrange", [self._key("events", user) for user in users], -self.limit, -1)
        events = [_event(member) for kept in members for member in kept]
        rows = [tuple(getattr(event, name) for name in EVENT_COLUMNS) for event in events]
        return pl.DataFrame(rows, schema=EVENT_COLUMNS, orient="row")

    def items_of(self, users: Sequence[str]) -> dict[str, list[str]]:
        """See ``Store``."""
        sets = self._many("smembers", [self._key("seen", user) for user in users])
        return {user: sorted(item.decode() for item in items) for user, items in zip(users, sets, strict=True)}

    def erased(self, users: Sequence[str]) -> set[str]:
        """See ``Store``."""
        if not users:
            return set()
        flags = self._call(lambda: self.client.smismember(f"{self.prefix}:erased", [user_key(user) for user in users]))
        return {user for user, flag in zip(users, flags, strict=True) if flag}

    def forget(self, user_id: str) -> int:
        """See ``Store``."""

        def work() -> int:
            with self.client.pipeline(transaction=True) as batch:
                batch.zcard(self._key("events", user_id))
                batch.delete(*(self._key(kind, user_id) for kind in ("events", "seen", "ids", "impressions")))
                batch.srem(f"{self.prefix}:users", user_id)
                batch.sadd(f"{self.prefix}:erased", user_key(user_id))
                return int(batch.execute()[0])

        return self._call(work)

    def change_items(self, items: dict[str, dict[str, Any] | None]) -> int:
        """See ``Store``. The version and the change are one transaction, so versions appear in their order."""
        name = f"{self.prefix}:version"

        def change(batch: Any) -> int:
            version = int(batch.get(name) or 0)
            batch.multi()
            for n, (item, columns) in enumerate(items.items(), version + 1):
                batch.hset(f"{self.prefix}:items", item, json.dumps(columns))
                batch.zadd(f"{self.prefix}:items_order", {item: n})
            batch.set(name, version + len(items))
            return version + len(items)

        return self._call(lambda: self.client.transaction(change, name, value_from_callable=True))

    def changed_items(self, after: int = 0) -> dict[str, dict[str, Any] | None]:
        """See ``Store``."""

        def work() -> dict[str, dict[str, Any] | None]:
            names = self.client.zrangebyscore(f"{self.prefix}:items_order", f"({after}", "+inf")
            columns = self.client.hmget(f"{self.prefix}:items", names) if names else []
            return {name.decode(): json.loads(text) for name, text in zip(names, columns, strict=True)}

        return self._call(work)

    def version(self) -> int:
        """See ``Store``: the last change that is complete."""
        last = self._call(lambda: self.client.zrange(f"{self.prefix}:items_order", -1, -1, withscores=True))
        return int(last[0][1]) if last else 0

    def trim(self, before: int) -> tuple[int, int]:
        """See ``Store``; user by user. Event ids are forgotten with their events."""
        counts = [self._trim_user(user, before) for user in self._users()]
        return sum(events for events, _ in counts), sum(impressions for _, impressions in counts)

    def _trim_user(self, user: str, before: int) -> tuple[int, int]:
        keys = {kind: self._key(kind, user) for kind in ("events", "seen", "ids", "impressions")}

        def change(batch: Any) -> tuple[int, int]:
            old = [_event(member) for member in batch.zrangebyscore(keys["events"], "-inf", f"({before}")]
            kept = {_event(member).item_id for member in batch.zrangebyscore(keys["events"], before, "+inf")}
            late = [text for text in batch.lrange(keys["impressions"], 0, -1) if json.loads(text)["timestamp"] < before]
            batch.multi()
            batch.zremrangebyscore(keys["events"], "-inf", f"({before}")
            if gone := {event.item_id for event in old} - kept:
                batch.srem(keys["seen"], *gone)
            if names := [event.event_id for event in old if event.event_id is not None]:
                batch.hdel(keys["ids"], *names)
            for text in late:
                batch.lrem(keys["impressions"], 1, text)
            return len(old), len(late)

        return self._call(lambda: self.client.transaction(change, *keys.values(), value_from_callable=True))

    def backup(self, path: Path) -> None:
        """Refused: a Redis server makes its own backups."""
        raise UserError(
            "a Redis store is backed up by its server: 'redis-cli BGSAVE', or a copy of its append-only file"
        )

    def all_events(self) -> Iterator[StoredEvent]:
        """See ``Store``."""
        for user in self._users():
            yield from map(_event, self._many("zrange", [self._key("events", user)], 0, -1)[0])

    def all_impressions(self) -> Iterator[StoredImpression]:
        """See ``Store``."""
        for user in self._users():
            for text in self._many("lrange", [self._key("impressions", user)], 0, -1)[0]:
                yield StoredImpression(**json.loads(text))

    def _users(self) -> list[str]:
        return sorted(user.decode() for user in self._call(lambda: self.client.smembers(f"{self.prefix}:users")))

    def close(self) -> None:
        """See ``Store``."""
        self.client.close()


def _event(member: bytes) -> StoredEvent:
    return StoredEvent(**json.loads(member[26:]))
