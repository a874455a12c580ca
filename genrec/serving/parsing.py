"""Reading JSON bodies of strangers: bounded in nesting and keys, and never holding up other requests for long.

A large body is read by one thread, one body at a time. NumPy lets other threads run while it counts brackets and
commas; a parser does not, so a body with more values than any body of this API has is refused before it is parsed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from pydantic_core import from_json

OFF_LOOP = 32_768  # larger bodies are read by the thread
MAX_OBJECTS = 12_000  # of one body: items to add are the most
MAX_COMMAS = 120_000  # without those of objects: the longest list of ids has 100,000
_KEYS_AT_ONCE = 64  # keys of one JSON object; no body of this API has more
_QUOTE, _BACKSLASH = ord('"'), ord("\\")
_reader = ThreadPoolExecutor(1, "bodies")
Result = TypeVar("Result")


class TooManyKeysError(ValueError):
    """A JSON object has more keys than any body of this API."""


async def bounded(work: Callable[[bytes], Result], body: bytes) -> Result:
    """``work(body)``: at once for a small body, by the thread for a large one."""
    if len(body) < OFF_LOOP:
        return work(body)
    return await asyncio.get_running_loop().run_in_executor(_reader, work, body)


def plainly_small(body: bytes, depth: int) -> bool:
    """Whether a body's size and brackets alone show that it is nested at most ``depth`` deep and not too large."""
    return len(body) < OFF_LOOP and body.count(b"[") + body.count(b"{") <= depth


@dataclass(frozen=True)
class JsonShape:
    """What a JSON text holds outside its strings: the greatest nesting, and how many objects and commas."""

    depth: int
    objects: int
    commas: int

    @property
    def too_large(self) -> bool:
        """Whether no body of this API has so many values: parsing it would only hold the others up."""
        return self.objects > MAX_OBJECTS or self.commas > MAX_COMMAS + _KEYS_AT_ONCE * self.objects


def json_shape(body: bytes) -> JsonShape:
    """The shape of a JSON text; brackets need not match."""
    text = np.frombuffer(body, np.uint8)
    quotes = text == _QUOTE
    slashes = np.flatnonzero(text == _BACKSLASH)
    if len(slashes):
        # In a run of backslashes every second one is escaped by the one before; a quote behind an odd run is no quote.
        starts = np.flatnonzero(np.diff(slashes, prepend=-2) != 1)
        lengths = np.diff(starts, append=len(slashes))
        behind = slashes[starts] + lengths
        quotes[behind[(lengths % 2 == 1) & (behind < len(text))]] = False
    outside = ~np.logical_xor.accumulate(quotes) if len(text) else quotes
    braces = (text == ord("{")) & outside
    opened = braces | ((text == ord("[")) & outside)
    closed = ((text == ord("]")) | (text == ord("}"))) & outside
    steps = opened[np.flatnonzero(opened | closed)]  # most bytes are no brackets
    depth = np.where(steps, 1, -1).cumsum().max(initial=0)
    return JsonShape(int(depth), int(braces.sum()), int(((text == ord(",")) & outside).sum()))


def parse_json(body: bytes) -> object:
    """The value of a JSON text. ``ValueError`` for another text, ``TooManyKeysError`` for a very large object."""
    value = from_json(body, cache_strings="none")
    waiting = [value]
    while waiting:  # not recursive: the nesting is bounded before, but by a setting
        one = waiting.pop()
        if isinstance(one, dict):
            if len(one) > _KEYS_AT_ONCE:
                raise TooManyKeysError
            waiting.extend(part for part in one.values() if isinstance(part, dict | list))
        elif isinstance(one, list):
            waiting.extend(part for part in one if isinstance(part, dict | list))
    return value
