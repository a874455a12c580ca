"""Which store ``--events`` names."""

from __future__ import annotations

from pathlib import Path

from genrec.errors import UserError
from genrec.serving.sqlite_store import SqliteStore
from genrec.serving.store import Store

_REDIS = ("redis://", "rediss://")


def existing_store(where: str) -> Store:
    """The store of a server that ran; ``UserError`` where there is none."""
    if not where.startswith(_REDIS) and not Path(where).is_file():
        raise UserError(f"{where} does not exist; name the server's store with --events")
    return open_store(where)


def open_store(where: str) -> Store:
    """The store of ``--events``: a file, or ``redis://host:port/db``. ``UserError`` for one that cannot be opened."""
    if where.startswith(_REDIS):
        from genrec.serving.redis_store import RedisStore  # here: an extra

        return RedisStore.connect(where)
    return SqliteStore(where)
