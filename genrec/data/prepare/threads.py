"""Two cores for work that numpy and polars do outside of Python's lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADS = min(2, os.cpu_count() or 1)  # every thread holds a piece of the data: more of them would cost memory
Given = TypeVar("Given")
Made = TypeVar("Made")


def ahead(values: Iterable[Given]) -> Iterator[Given]:
    """The same values (none of them None), the next one being made in a thread while the last one is worked on."""
    source = iter(values)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, source, None)
        while (value := waiting.result()) is not None:
            waiting = pool.submit(next, source, None)
            yield value


def in_threads(work: Callable[[Given], Made], values: Iterable[Given]) -> Iterator[Made]:
    """``work`` of each value, in order, a few at a time."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque = deque()
        for value in values:
            waiting.append(pool.submit(work, value))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
