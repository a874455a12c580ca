"""The embedded store: one SQLite file, readable by its owner alone."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from genrec.errors import UserError
from genrec.serving.store import (
    EVENT_COLUMNS,
    STORE_FORMAT,
    Kept,
    StoredEvent,
    StoredImpression,
    StoreError,
    StoreFullError,
    same_event,
    user_key,
)

_USERS_AT_ONCE = 500  # SQLite bounds the parameters of a statement
_EVENT = tuple(field.name for field in fields(StoredEvent))
_IMPRESSION = tuple(field.name for field in fields(StoredImpression))
_TABLES = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, user_id TEXT NOT NULL, item_id TEXT NOT NULL, timestamp INTEGER NOT NULL,
    action TEXT, query TEXT, event_id TEXT, surface TEXT, request_id TEXT, UNIQUE (user_id, event_id)
);
CREATE INDEX IF NOT EXISTS events_of_user ON events (user_id, timestamp, seq);
CREATE INDEX IF NOT EXISTS items_of_user ON events (user_id, item_id);
CREATE TABLE IF NOT EXISTS impressions (
    seq INTEGER PRIMARY KEY, request_id TEXT NOT NULL, user_id TEXT NOT NULL, item_id TEXT NOT NULL,
    timestamp INTEGER NOT NULL, position INTEGER NOT NULL, propensity REAL
);
CREATE INDEX IF NOT EXISTS impressions_of_user ON impressions (user_id);
CREATE TABLE IF NOT EXISTS items (item_id TEXT PRIMARY KEY, columns TEXT, version INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS items_by_version ON items (version);
CREATE TABLE IF NOT EXISTS erased (user_key TEXT PRIMARY KEY);
"""
_FROM_FORMAT_1 = """
ALTER TABLE events RENAME TO events_1;
DROP INDEX IF EXISTS events_of_user;
ALTER TABLE items RENAME TO items_1;
{tables}
INSERT INTO events (seq, user_id, item_id, timestamp, action, query, event_id)
    SELECT place, user_id, item_id, timestamp, action, query, event_id FROM events_1;
INSERT INTO items (item_id, columns, version) SELECT item_id, columns, rowid FROM items_1;
DROP TABLE events_1;
DROP TABLE items_1;
"""
Row = TypeVar("Row", StoredEvent, StoredImpression)


class SqliteStore:
    """A store in one file. ``limit``: how many of a user's newest events an answer reads."""

    name = "sqlite"

    def __init__(self, path: str | Path, limit: int = 200):
        self.path, self.limit = Path(path), limit
        self._local = threading.local()
        self._writing = threading.Lock()
        self._open: list[sqlite3.Connection] = []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            self.path.chmod(0o600)  # SQLite gives its -wal and -shm files the same mode
            self._prepare(self._connection())
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"{path} is not an event store ({error}); name another file with --events") from error

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > STORE_FORMAT:
            raise UserError(
                f"{self.path} is an event store of format {version}, this genrec reads up to {STORE_FORMAT}; "
                "install a newer genrec"
            )
        tables = _FROM_FORMAT_1.format(tables=_TABLES) if version == 1 else _TABLES
        connection.executescript(f"BEGIN IMMEDIATE; {tables} PRAGMA user_version = {STORE_FORMAT}; COMMIT;")
        columns = {row[1] for row in connection.execute("PRAGMA table_info(impressions)")}
        if "propensity" not in columns:  # a store of before; an older genrec goes on reading it
            connection.execute("ALTER TABLE impressions ADD COLUMN propensity REAL")

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection; autocommit, so that a read never holds the log back."""
        if not hasattr(self._local, "connection"):
            connection = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
                connection.execute(f"PRAGMA {pragma}")
            self._local.connection = connection
            with self._writing:
                self._open.append(connection)
        return self._local.connection

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._connection()
        except sqlite3.Error as error:
            raise _named(error) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as connection, self._writing:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def append(self, events: Sequence[StoredEvent]) -> list[Kept]:
        """See ``Store``; one transaction."""
        insert = _insert("events", _EVENT) + " ON CONFLICT (user_id, event_id) DO NOTHING"
        kept: list[Kept] = []
        with self._transaction() as connection:
            for event in events:
                row = _values(event, _EVENT)
                new = connection.execute(insert, row).rowcount
                kept.append("kept" if new else self._repeated(connection, event, row))
        return kept

    @staticmethod
    def _repeated(connection: sqlite3.Connection, event: StoredEvent, row: tuple) -> Kept:
        query = f"SELECT {', '.join(_EVENT)} FROM events WHERE user_id = ? AND event_id = ?"
        stored = connection.execute(query, (event.user_id, event.event_id)).fetchone()
        return "repeated" if same_event(dict(zip(_EVENT, stored, strict=True)), event) else "conflict"

    def append_impressions(self, impressions: Sequence[StoredImpression]) -> None:
        """See ``Store``."""
        with self._transaction() as connection:
            rows = [_values(one, _IMPRESSION) for one in impressions]
            connection.executemany(_insert("impressions", _IMPRESSION), rows)

    def events_of(self, users: Sequence[str]) -> pl.DataFrame:
        """See ``Store``."""
        query = (
            "SELECT user_id, item_id, timestamp, action, query FROM (SELECT *, row_number() OVER "
            "(PARTITION BY user_id ORDER BY timestamp DESC, seq DESC) AS age FROM events "
            "WHERE user_id IN ({users})) WHERE age <= {limit} ORDER BY user_id, timestamp, seq"
        )
        return pl.DataFrame(self._of_users(query, users), schema=EVENT_COLUMNS, orient="row")

    def items_of(self, users: Sequence[str]) -> dict[str, list[str]]:
        """See ``Store``."""
        items: dict[str, list[str]] = {user: [] for user in users}
        for user, item in self._of_users(
            "SELECT DISTINCT user_id, item_id FROM events WHERE user_id IN ({users})", users
        ):
            items[user].append(item)
        return items

    def erased(self, users: Sequence[str]) -> set[str]:
        """See ``Store``."""
        keys = {user_key(user): user for user in users}
        query = "SELECT user_key FROM erased WHERE user_key IN ({users})"
        return {keys[key] for (key,) in self._of_users(query, list(keys))}

    def _of_users(self, query: str, users: Sequence[str]) -> list[tuple]:
        rows: list[tuple] = []
        with self._reading() as connection:
            for start in range(0, len(users), _USERS_AT_ONCE):
                some = users[start : start + _USERS_AT_ONCE]
                text = query.format(users=",".join("?" * len(some)), limit=self.limit)
                rows += connection.execute(text, list(some)).fetchall()
        return rows

    def forget(self, user_id: str) -> int:
        """See ``Store``. Freed pages are overwritten, and the write-ahead log is emptied."""
        with self._transaction() as connection:
            removed = connection.execute("DELETE FROM events WHERE user_id = ?", (user_id,)).rowcount
            connection.execute("DELETE FROM impressions WHERE user_id = ?", (user_id,))
            connection.execute("INSERT OR IGNORE INTO erased VALUES (?)", (user_key(user_id),))
        if self._empty_log():
            raise StoreError("the user is erased, but a reader keeps the old write-ahead log; send the request again")
        return removed

    def _empty_log(self) -> bool:
        """Empty the write-ahead log; whether a reader kept it."""
        with self._reading() as connection, self._writing:
            return bool(connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])

    def change_items(self, items: dict[str, dict[str, Any] | None]) -> int:
        """See ``Store``."""
        with self._transaction() as connection:
            version = self._version(connection)
            rows = [
                (item, None if columns is None else json.dumps(columns), version + n)
                for n, (item, columns) in enumerate(items.items(), 1)
            ]
            connection.executemany("INSERT OR REPLACE INTO items (item_id, columns, version) VALUES (?, ?, ?)", rows)
        return version + len(rows)

    def changed_items(self, after: int = 0) -> dict[str, dict[str, Any] | None]:
        """See ``Store``."""
        query = "SELECT item_id, columns FROM items WHERE version > ? ORDER BY version"
        with self._reading() as connection:
            rows = connection.execute(query, (after,)).fetchall()
        return {item: None if columns is None else json.loads(columns) for item, columns in rows}

    def version(self) -> int:
        """See ``Store``."""
        with self._reading() as connection:
            return self._version(connection)

    @staticmethod
    def _version(connection: sqlite3.Connection) -> int:
        return connection.execute("SELECT coalesce(max(version), 0) FROM items").fetchone()[0]

    def trim(self, before: int) -> tuple[int, int]:
        """See ``Store``."""
        with self._transaction() as connection:
            events, impressions = (
                connection.execute(f"DELETE FROM {table} WHERE timestamp < ?", (before,)).rowcount
                for table in ("events", "impressions")
            )
        self._empty_log()
        return events, impressions

    def backup(self, path: Path) -> None:
        """See ``Store``. A server may go on writing meanwhile."""
        part = path.with_name(path.name + ".part")
        try:
            os.close(os.open(part, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600))
            with self._reading() as connection, closing(sqlite3.connect(part)) as copy:
                connection.backup(copy, pages=1000)
                copy.execute("PRAGMA journal_mode = DELETE")
                if copy.execute("PRAGMA quick_check").fetchone() != ("ok",):
                    raise UserError(f"{self.path} is damaged; {part} holds what could be read")
            part.replace(path)
        except OSError as error:
            raise UserError(f"--output: {path} cannot be written ({error.strerror})") from error

    def all_events(self) -> Iterator[StoredEvent]:
        """See ``Store``."""
        return self._all("events", _EVENT, lambda row: StoredEvent(*row))

    def all_impressions(self) -> Iterator[StoredImpression]:
        """See ``Store``."""
        return self._all("impressions", _IMPRESSION, lambda row: StoredImpression(*row))

    def _all(self, table: str, columns: tuple[str, ...], make: Callable[[tuple], Row]) -> Iterator[Row]:
        with self._reading() as connection:
            yield from map(make, connection.execute(f"SELECT {', '.join(columns)} FROM {table} ORDER BY seq"))

    def close(self) -> None:
        """See ``Store``."""
        with self._writing:
            for connection in self._open:
                connection.close()
            self._open.clear()


def _insert(table: str, columns: tuple[str, ...]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


def _values(record: StoredEvent | StoredImpression, columns: tuple[str, ...]) -> tuple:
    return tuple(getattr(record, name) for name in columns)


def _named(error: sqlite3.Error) -> StoreError:
    full = getattr(error, "sqlite_errorname", "").startswith("SQLITE_FULL") or "full" in str(error)
    return StoreFullError("the event store's disk is full") if full else StoreError(f"the event store fails ({error})")
