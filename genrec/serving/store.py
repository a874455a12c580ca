"""Users' events, and items added after training, kept where a stop cannot lose them.

``SqliteStore`` (default): one file, write-ahead log, ``synchronous=FULL``: when ``append`` returns, the events are on the disk and survive
``SIGKILL`` and, on a disk that honours flushes, a power cut. ``RedisStore`` (extra ``genrec[redis]``): as durable as that server is set to be
(``appendonly yes``, ``appendfsync always``).

An event with an ``event_id`` is kept once, however often it is sent, so that a client may send again whatever was not acknowledged.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from genrec.errors import UserError

STORE_FORMAT = 1
_USERS_AT_ONCE = 500  # SQLite bounds the parameters of a statement
SCHEMA = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "action": pl.String, "query": pl.String}
_TABLES = """
CREATE TABLE IF NOT EXISTS events (
    place INTEGER PRIMARY KEY, user_id TEXT NOT NULL, item_id TEXT NOT NULL, timestamp INTEGER NOT NULL, action TEXT, query TEXT, event_id TEXT UNIQUE
);
CREATE INDEX IF NOT EXISTS events_of_user ON events (user_id, timestamp, place);
CREATE TABLE IF NOT EXISTS items (item_id TEXT PRIMARY KEY, columns TEXT);
"""


@dataclass(frozen=True)
class StoredEvent:
    """One thing a person did; ``timestamp`` in seconds since 1970, UTC."""

    user_id: str
    item_id: str
    timestamp: int
    action: str | None = None
    query: str | None = None
    event_id: str | None = None


class Store(Protocol):
    """What the server asks of a store. All methods may be called from many threads."""

    def append(self, events: Sequence[StoredEvent]) -> int:
        """Keep events; returns how many were new. They are durable when this returns."""

    def events_of(self, users: Sequence[str]) -> pl.DataFrame:
        """The newest events of each user, oldest first: ``SCHEMA``."""

    def forget(self, user_id: str) -> int:
        """Erase a user's events; returns how many there were."""

    def change_items(self, items: dict[str, dict[str, Any] | None]) -> None:
        """Remember items added after training (their columns) and removed ones (None)."""

    def changed_items(self) -> dict[str, dict[str, Any] | None]:
        """What ``change_items`` was told, the last word of each item."""

    def close(self) -> None: ...


class SqliteStore:
    """An embedded store. ``limit``: newest events read of a user."""

    def __init__(self, path: str | Path, limit: int = 200):
        self.path, self.limit = Path(path), limit
        self._local = threading.local()
        self._writing = threading.Lock()
        self._open: list[sqlite3.Connection] = []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = self._connection()
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found > STORE_FORMAT:
                raise UserError(
                    f"{path} is an event store of format {found}, this genrec reads up to {STORE_FORMAT}; install a newer genrec"
                )
            connection.executescript(_TABLES)
            connection.execute(f"PRAGMA user_version = {STORE_FORMAT}")
        except (sqlite3.DatabaseError, OSError) as error:
            raise UserError(f"{path} is not an event store ({error}); name another file") from error

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection; autocommit, so that a read never holds the log back."""
        if not hasattr(self._local, "connection"):
            connection = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self._local.connection = connection
            with self._writing:
                self._open.append(connection)
        return self._local.connection

    def append(self, events: Sequence[StoredEvent]) -> int:
        """Keep events in one transaction; see ``Store``."""
        rows = [(e.user_id, e.item_id, e.timestamp, e.action, e.query, e.event_id) for e in events]
        connection = self._connection()
        with self._writing:
            before = connection.total_changes
            connection.execute("BEGIN IMMEDIATE")
            try:
                insert = "INSERT OR IGNORE INTO events (user_id, item_id, timestamp, action, query, event_id) VALUES (?, ?, ?, ?, ?, ?)"
                connection.executemany(insert, rows)
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            return connection.total_changes - before

    def events_of(self, users: Sequence[str]) -> pl.DataFrame:
        """See ``Store``."""
        rows = []
        for start in range(0, len(users), _USERS_AT_ONCE):
            some = users[start : start + _USERS_AT_ONCE]
            query = (
                "SELECT user_id, item_id, timestamp, action, query FROM (SELECT *, row_number() OVER "
                "(PARTITION BY user_id ORDER BY timestamp DESC, place DESC) AS age FROM events "
                f"WHERE user_id IN ({','.join('?' * len(some))})) WHERE age <= ? ORDER BY user_id, timestamp, place"
            )
            rows += self._connection().execute(query, (*some, self.limit)).fetchall()
        return pl.DataFrame(rows, schema=SCHEMA, orient="row")

    def forget(self, user_id: str) -> int:
        """See ``Store``; the freed pages are overwritten."""
        connection = self._connection()
        with self._writing:
            connection.execute("PRAGMA secure_delete = ON")
            return connection.execute("DELETE FROM events WHERE user_id = ?", (user_id,)).rowcount

    def change_items(self, items: dict[str, dict[str, Any] | None]) -> None:
        """See ``Store``."""
        rows = [(item, None if columns is None else json.dumps(columns)) for item, columns in items.items()]
        connection = self._connection()
        with self._writing:
            connection.execute("BEGIN IMMEDIATE")
            # removed and added again: its row moves to the end, so that items come back in the order in which they came
            connection.executemany("INSERT OR REPLACE INTO items (item_id, columns) VALUES (?, ?)", rows)
            connection.execute("COMMIT")

    def changed_items(self) -> dict[str, dict[str, Any] | None]:
        """See ``Store``."""
        rows = self._connection().execute("SELECT item_id, columns FROM items ORDER BY rowid").fetchall()
        return {item: None if columns is None else json.loads(columns) for item, columns in rows}

    def close(self) -> None:
        """Close every thread's connection."""
        with self._writing:
            for connection in self._open:
                connection.close()
            self._open.clear()


class RedisStore:
    """The same on a Redis server, for several replicas that share their users. ``client``: a ``redis.Redis``."""

    def __init__(self, client, limit: int = 200, prefix: str = "genrec"):
        self.client, self.limit, self.prefix = client, limit, prefix

    @classmethod
    def connect(cls, url: str) -> RedisStore:
        """Connect to ``redis://host:port/db``; ``UserError`` when the extra is not installed or the server does not answer."""
        try:
            import redis
        except ImportError:
            raise UserError("a Redis store needs: pip install 'genrec[redis]'") from None
        client = redis.Redis.from_url(url)
        try:
            client.ping()
        except redis.RedisError as error:
            raise UserError(f"{url.rsplit('@', 1)[-1]}: no Redis server answers ({error})") from error
        return cls(client)

    def append(self, events: Sequence[StoredEvent]) -> int:
        """See ``Store``. An event id is claimed in the transaction that keeps its event."""
        claimed = self._unclaimed(events)
        with self.client.pipeline(transaction=True) as batch:
            for event, new in zip(events, claimed, strict=True):
                if not new:
                    continue
                key = f"{self.prefix}:events:{event.user_id}"
                batch.rpush(key, json.dumps(asdict(event)))
                batch.ltrim(key, -2 * self.limit, -1)
                if event.event_id is not None:
                    batch.hset(f"{self.prefix}:ids", event.event_id, 1)
            batch.execute()
        return sum(claimed)

    def _unclaimed(self, events: Sequence[StoredEvent]) -> list[bool]:
        ids = [event.event_id for event in events]
        named = [one for one in ids if one is not None]
        known = set()
        if named:
            known = {
                one
                for one, found in zip(named, self.client.hmget(f"{self.prefix}:ids", named), strict=True)
                if found is not None
            }
        result = []
        for one in ids:
            result.append(one not in known)
            if one is not None:
                known.add(one)
        return result

    def events_of(self, users: Sequence[str]) -> pl.DataFrame:
        """See ``Store``."""
        with self.client.pipeline(transaction=False) as batch:
            for user in users:
                batch.lrange(f"{self.prefix}:events:{user}", 0, -1)
            found = batch.execute()
        rows = []
        for kept in found:
            events = sorted(
                (json.loads(event) for event in kept), key=lambda event: event["timestamp"]
            )  # stable: ties as they came
            rows += [tuple(event[name] for name in SCHEMA) for event in events[-self.limit :]]
        return pl.DataFrame(rows, schema=SCHEMA, orient="row")

    def forget(self, user_id: str) -> int:
        """See ``Store``."""
        key = f"{self.prefix}:events:{user_id}"
        with self.client.pipeline(transaction=True) as batch:
            batch.llen(key)
            batch.delete(key)
            return int(batch.execute()[0])

    def change_items(self, items: dict[str, dict[str, Any] | None]) -> None:
        """See ``Store``."""
        key = f"{self.prefix}:items"
        with self.client.pipeline(transaction=True) as batch:
            for item, columns in items.items():
                batch.hset(key, item, json.dumps(columns))
            batch.execute()

    def changed_items(self) -> dict[str, dict[str, Any] | None]:
        """See ``Store``."""
        return {
            item.decode(): json.loads(columns) for item, columns in self.client.hgetall(f"{self.prefix}:items").items()
        }

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


def open_store(where: str) -> Store:
    """The store of ``--events``: a file, or ``redis://host:port/db``."""
    return RedisStore.connect(where) if where.startswith(("redis://", "rediss://")) else SqliteStore(where)
