"""Which store ``--events`` names."""

from __future__ import annotations

from genrec.serving.sqlite_store import SqliteStore
from genrec.serving.store import Store


def open_store(where: str) -> Store:
    """The store of ``--events``: a file, or ``redis://host:port/db``. ``UserError`` for one that cannot be opened."""
    if where.startswith(("redis://", "rediss://")):
        from genrec.serving.redis_store import RedisStore  # here: an extra

        return RedisStore.connect(where)
    return SqliteStore(where)
