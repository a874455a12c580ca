"""Dynamic batching with admission control: single requests are gathered and answered in one pass by a worker thread.

A request that would wait too long is refused at once, so that what was taken is answered in time: under overload the
server goes on giving as many good answers as it can, and the others know immediately when to come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_FORGET = 0.1  # weight of the newest batch in the cost estimate
_MARGIN = 0.8  # fraction of the time left to a request that its batch may be expected to take
_UNKNOWN = 64  # payloads that may wait before the first batch has shown what one costs
_WAIT = 0.5  # fraction of a request's time budget that it may wait before its batch starts


class QueueFullError(Exception):
    """The request would wait too long; ``retry_after`` in whole seconds."""

    def __init__(self, retry_after: int):
        super().__init__("too many requests are waiting")
        self.retry_after = retry_after


class TimeBudgetError(Exception):
    """No answer within the request's time budget."""


class Cost:
    """Seconds that a batch of n payloads takes, as ``fixed + each * n``: a running least-squares line."""

    def __init__(self) -> None:
        self._moments: list[float] | None = None  # means of n, t, n * n and n * t

    def add(self, n: int, seconds: float) -> None:
        """Learn from one batch."""
        new = [float(n), seconds, float(n * n), n * seconds]
        old = self._moments
        self._moments = new if old is None else [a + _FORGET * (b - a) for a, b in zip(old, new, strict=True)]

    @property
    def known(self) -> bool:
        """Whether there was a batch."""
        return self._moments is not None

    def of(self, n: int) -> float:
        """The expected seconds of a batch; 0 before the first one."""
        if self._moments is None:
            return 0.0
        mean_n, mean_t, square, product = self._moments
        spread = square - mean_n * mean_n
        each = (product - mean_n * mean_t) / spread if spread > 1e-6 * square else mean_t / mean_n
        each = min(max(each, 0.0), mean_t / mean_n)
        return mean_t + each * (n - mean_n)


@dataclass
class _Waiting:
    """One request in the queue; ``since`` and ``deadline`` are of ``time.monotonic``."""

    payload: Any
    since: float
    deadline: float
    future: asyncio.Future
    loop: asyncio.AbstractEventLoop


class Batcher:
    """Gathers payloads and hands them to ``work`` (list of payloads -> list of results or exceptions) on one thread.

    A batch closes when it has ``max_batch`` payloads, or when no more came for ``max_wait`` seconds. While they come,
    it waits at most as long as a batch takes whatever its size, since that is what one batch saves against two. While
    a batch is worked on, the next gathers by itself, so batches grow under load. ``max_batch`` 1 switches batching off.
    A payload is refused with ``QueueFullError`` where ``max_queue`` wait already (before the first batch ``_UNKNOWN``),
    where the expected wait is more than half of its time budget, or where its own batch would end too late. A payload
    whose deadline passed is dropped before the next batch is chosen; see ``choose``.
    ``close`` finishes what was taken.
    """

    def __init__(
        self,
        work: Callable[[list], Sequence[Any]],
        max_batch: int,
        max_wait: float,
        max_queue: int,
        on_batch: Callable[[Sequence[float], float], None] | None = None,
        name: str = "batcher",
    ):
        """``on_batch`` is called after each batch with the seconds that each request waited, and those of the work."""
        self.work, self.max_batch, self.max_wait, self.max_queue = work, max_batch, max_wait, max_queue
        self.on_batch, self.cost = on_batch, Cost()
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._busy_until = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue now."""
        return len(self._queue)

    def expected_wait(self) -> float:
        """Seconds until a request that comes now would start."""
        full, rest = divmod(len(self._queue), self.max_batch)
        running = max(0.0, self._busy_until - time.monotonic())
        return running + full * self.cost.of(self.max_batch) + (self.cost.of(rest) if full and rest else 0.0)

    def refuses(self, budget: float) -> int:
        """Whole seconds after which to come back where a request with this budget is refused now, else 0."""
        wait = self.expected_wait()
        own = self.cost.of(1)  # the least that its batch takes; of a large one nothing is known after lone requests
        over = max(wait - _WAIT * budget, wait + own - _MARGIN * budget)
        if over > 0 and (wait > 0 or self._queue):  # an idle server tries it, however long the last batch took
            return math.ceil(over)
        most = self.max_queue if self.cost.known else min(self.max_queue, _UNKNOWN)
        return int(self._closed or len(self._queue) >= most)

    async def submit(self, payload: Any, budget: float) -> Any:
        """The result for one payload within ``budget`` seconds.

        Raises ``QueueFullError``, ``TimeBudgetError``, or what the work raised for this payload.
        """
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        one = _Waiting(payload, now, now + budget, loop.create_future(), loop)
        with self._changed:
            if seconds := self.refuses(budget):
                raise QueueFullError(seconds)
            self._queue.append(one)
            self._changed.notify()
        try:
            return await asyncio.wait_for(one.future, budget)
        except TimeoutError:
            raise TimeBudgetError from None

    def close(self, timeout: float = 30.0) -> None:
        """Take nothing more, answer what waits, stop the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)

    def _gather(self) -> list[_Waiting]:
        """The next batch, without what is too late; empty when the batcher was closed and all is done."""
        with self._changed:
            while True:
                while not self._queue and not self._closed:
                    self._changed.wait()
                until = time.monotonic() + max(self.max_wait, self.cost.of(0))
                while len(self._queue) < self.max_batch and not self._closed:
                    if not self._changed.wait(min(self.max_wait, max(0.0, until - time.monotonic()))):
                        break
                now = time.monotonic()
                live = [one for one in self._queue if one.deadline > now and not one.future.cancelled()]
                batch = choose(live, now, self.max_batch, self.cost)
                chosen = set(map(id, batch))
                self._queue = deque(one for one in live if id(one) not in chosen)
                if batch or self._closed:
                    self._busy_until = now + self.cost.of(len(batch)) if batch else now
                    return batch

    def _run(self) -> None:
        while batch := self._gather():
            began = time.monotonic()
            try:
                results: Sequence[Any] = self.work([one.payload for one in batch])
            except Exception as error:  # a failure of the whole batch is each request's failure; the thread lives on
                results = [error] * len(batch)
            spent = time.monotonic() - began
            self.cost.add(len(batch), spent)
            self._busy_until = 0.0
            if self.on_batch is not None:
                self.on_batch([began - one.since for one in batch], spent)
            settled = list(zip(batch, results, strict=True))
            for loop in {one.loop for one in batch}:
                with contextlib.suppress(RuntimeError):  # the loop is gone, and with it who waited for these answers
                    loop.call_soon_threadsafe(_settle, [pair for pair in settled if pair[0].loop is loop])


def choose(live: Sequence[_Waiting], now: float, max_batch: int, cost: Cost) -> list[_Waiting]:
    """The largest batch of requests that all have the time it takes, those that came first among them.

    A batch that ended in time for the oldest request would shrink to one when the server is late, and the server would
    stay late. Where no request has the time of even a batch of its own, all are tried: the estimate may be too high.
    """
    left = sorted((_MARGIN * (one.deadline - now) for one in live), reverse=True)
    size = 0
    while size < min(len(live), max_batch) and left[size] >= cost.of(size + 1):
        size += 1
    if not size:
        return list(live[:max_batch])
    return [one for one in live if _MARGIN * (one.deadline - now) >= cost.of(size)][:size]


def _settle(results: Sequence[tuple[_Waiting, Any]]) -> None:
    for one, result in results:
        if one.future.done():
            continue
        if isinstance(result, Exception):
            one.future.set_exception(result)
        else:
            one.future.set_result(result)
