"""Times of the stages of an answer; nothing is measured without an observer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Observer = Callable[[str, float], None]
_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Call ``observer(stage, seconds)`` for every stage that ends inside, in this thread or task."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """A stage of an answer: ``network``, ``search`` or ``ranking``. On a GPU, the time until the work is queued."""
    observer = _observer.get()
    if observer is None:
        yield
        return
    began = time.perf_counter()
    try:
        yield
    finally:
        observer(name, time.perf_counter() - began)
