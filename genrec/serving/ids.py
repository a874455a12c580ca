"""Ids of requests and answers."""

from __future__ import annotations

import random
import re

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")  # a client's id of its request that is echoed and logged

# Seeded by the system once: a call of the system for each id costs more than the rest of a small answer.
_random = random.Random()


def new_id() -> str:
    """A random id of 32 hexadecimal digits."""
    return f"{_random.getrandbits(128):032x}"
