"""Opaque cursors of pages: where the next page starts, which request it belongs to, and which bundle gave the last."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any

from pydantic import BaseModel

from genrec.errors import UserError

_OF_A_PAGE = {"cursor", "offset", "fields", "facets", "reasons", "timeout_ms"}  # may differ from page to page


def next_cursor(body: BaseModel, offset: int, bundle: str) -> str:
    """The cursor of the page that starts at ``offset``."""
    text = json.dumps([offset, _digest(body), bundle])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(body: BaseModel, cursor: str) -> tuple[int, str]:
    """(offset, bundle) of a cursor. ``UserError`` for one that is damaged or belongs to another request."""
    try:
        padded = cursor.encode() + b"=" * (-len(cursor) % 4)
        offset, digest, bundle = json.loads(base64.urlsafe_b64decode(padded))
        if not isinstance(offset, int) or offset < 0 or not isinstance(bundle, str):
            raise ValueError
    except (ValueError, TypeError, binascii.Error):
        raise UserError("cursor: not one that this server gave; start again without it") from None
    if digest != _digest(body):
        raise UserError("cursor: it belongs to another request; start again without it")
    return offset, bundle


def _digest(body: BaseModel) -> str:
    content: dict[str, Any] = body.model_dump(exclude=_OF_A_PAGE, exclude_none=True)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
