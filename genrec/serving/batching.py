"""Dynamic batching: single requests are gathered for a few milliseconds and answered in one pass by a worker thread."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


class QueueFull(Exception):
    """The queue holds as many requests as it may; ``retry_after`` in whole seconds."""

    def __init__(self, retry_after: int):
        super().__init__("too many requests are waiting")
        self.retry_after = retry_after


class TimeBudgetSpent(Exception):
    """No answer within the request's time budget."""


@dataclass
class _Waiting:
    """One request in the queue; ``deadline`` is of ``time.monotonic``."""

    payload: Any
    deadline: float
    future: asyncio.Future
    loop: asyncio.AbstractEventLoop


class Batcher:
    """Gathers payloads and hands them to ``work`` (list of payloads -> list of results or exceptions) on one thread.

    A batch closes when it has ``max_batch`` payloads or ``max_wait`` seconds after its first one, and before that when more would, at
    the pace of the last ones, take over half of what is left to the first one; while a batch is worked on, the next gathers by itself.
    ``max_batch`` 1 switches batching off. At most ``max_queue`` payloads wait; one more is refused with ``QueueFull``. A payload whose
    deadline passed while it waited is never worked on. ``close`` finishes what was taken.
    """

    def __init__(
        self, work: Callable[[list], Sequence[Any]], max_batch: int, max_wait: float, max_queue: int, on_batch: Callable[[int], None] | None = None,
        name: str = "batcher",
    ):  # fmt: skip
        self.work, self.max_batch, self.max_wait, self.on_batch = work, max_batch, max_wait, on_batch
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(max_queue)
        self._pace = 0.05  # seconds per batch, smoothed: what Retry-After is estimated from ...
        self._each = 0.0  # ... and per payload: how many can be answered in time
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue now."""
        return self._queue.qsize()

    async def submit(self, payload: Any, budget: float) -> Any:
        """The result for one payload within ``budget`` seconds.

        Raises ``QueueFull``, ``TimeBudgetSpent``, or what the work raised for this payload.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(payload, time.monotonic() + budget, loop.create_future(), loop)
        if self._closed:
            raise QueueFull(1)
        try:
            self._queue.put_nowait(waiting)
        except queue.Full:
            raise QueueFull(max(1, round(self._pace * self._queue.maxsize / self.max_batch))) from None
        try:
            return await asyncio.wait_for(waiting.future, budget)
        except TimeoutError:
            raise TimeBudgetSpent from None

    def close(self, timeout: float = 30.0) -> None:
        """Take nothing more, answer what waits, stop the thread."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        self._thread.join(timeout)

    def _gather(self) -> tuple[list[_Waiting], bool]:
        """The next batch, and whether it is the last."""
        first = self._queue.get()
        if first is None:
            return [], True
        batch, until = [first], time.monotonic() + self.max_wait
        most = self.max_batch
        if self._each:  # of a batch that is too large for the budget nobody would get an answer
            most = min(most, max(1, int((first.deadline - time.monotonic()) / 2 / self._each)))
        while len(batch) < most:
            try:  # what already waits is taken at once; for more there is a short wait
                one = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if one is None:
                return batch, True
            batch.append(one)
        return batch, False

    def _run(self) -> None:
        last = False
        while not last:
            batch, last = self._gather()
            now = time.monotonic()
            live = [one for one in batch if one.deadline > now and not one.future.cancelled()]
            if not live:
                continue
            if self.on_batch is not None:
                self.on_batch(len(live))
            try:
                results: Sequence[Any] = self.work([one.payload for one in live])
            except Exception as error:  # a failure of the whole batch is each request's failure; the thread lives on
                results = [error] * len(live)
            spent = time.monotonic() - now
            self._pace += 0.2 * (spent - self._pace)
            self._each += (0.2 if self._each else 1.0) * (spent / len(live) - self._each)
            for one, result in zip(live, results, strict=True):
                try:
                    one.loop.call_soon_threadsafe(_settle, one.future, result)
                except RuntimeError:  # the loop is gone: nobody waits for this answer any more
                    pass


def _settle(future: asyncio.Future, result: Any) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
