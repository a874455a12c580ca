"""The batcher: what is gathered, what is refused, what is dropped, and that nothing taken is lost."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from genrec.serving.batching import Batcher, Cost, QueueFullError, TimeBudgetError, _Waiting, choose


class Gate:
    """Work that waits for a word, and remembers its batches."""

    def __init__(self):
        self.batches: list[list] = []
        self.open = threading.Event()
        self.begun = threading.Event()

    def __call__(self, payloads: list) -> list:
        self.batches.append(list(payloads))
        self.begun.set()
        self.open.wait(10)
        return [payload * 10 for payload in payloads]


def started(*options, **more) -> tuple[Gate, Batcher]:
    gate = Gate()
    return gate, Batcher(gate, *options, **more)


async def begun(gate: Gate) -> None:
    await asyncio.to_thread(gate.begun.wait, 10)


def test_requests_gather_while_a_batch_is_worked_on():
    async def go():
        gate, batcher = started(3, 0.0, 100)
        tasks = [asyncio.create_task(batcher.submit(0, 10))]
        await begun(gate)
        tasks += [asyncio.create_task(batcher.submit(n, 10)) for n in range(1, 6)]
        await asyncio.sleep(0)
        gate.open.set()
        assert await asyncio.gather(*tasks) == [0, 10, 20, 30, 40, 50]
        assert gate.batches == [[0], [1, 2, 3], [4, 5]]
        batcher.close()

    asyncio.run(go())


def test_a_batch_waits_while_requests_come_and_no_longer():
    """At most as long as a batch costs whatever its size, which is what two batches cost more than one."""

    async def go():
        batches: list[list] = []
        batcher = Batcher(lambda payloads: batches.append(list(payloads)) or payloads, 64, 0.2, 100)
        batcher.cost.of = lambda n: 60 + 0.01 * n  # type: ignore[method-assign]
        first = [asyncio.create_task(batcher.submit(n, 1000)) for n in range(2)]
        await asyncio.sleep(0.05)  # less than the pause that ends a batch
        await asyncio.gather(*first, batcher.submit(2, 1000))
        assert batches == [[0, 1, 2]]
        await asyncio.wait_for(batcher.submit(3, 1000), 30)  # nobody else came: it does not wait for the whole minute
        assert batches[1] == [3]
        batcher.close()

    asyncio.run(go())


def test_what_a_refusal_says_is_known_before_a_request_is_read():
    async def go():
        gate, batcher = started(1, 0.0, 100)
        assert batcher.refuses(1.0) == 0
        batcher.cost.add(1, 2.0)
        tasks = [asyncio.create_task(batcher.submit(n, 30)) for n in range(4)]
        await begun(gate)
        assert batcher.refuses(30) == 0 and 6 <= batcher.refuses(2.0) <= 9
        gate.open.set()
        await asyncio.gather(*tasks)
        batcher.close()
        assert batcher.refuses(1000) == 1

    asyncio.run(go())


def test_one_at_a_time_without_batching():
    async def go():
        gate, batcher = started(1, 1.0, 100)
        gate.open.set()
        await asyncio.gather(*(batcher.submit(n, 10) for n in range(4)))
        assert gate.batches == [[0], [1], [2], [3]]
        batcher.close()

    asyncio.run(go())


def test_a_full_queue_refuses_and_says_when_to_come_back():
    async def go():
        gate, batcher = started(1, 0.0, 2)
        tasks = [asyncio.create_task(batcher.submit(0, 10))]
        await begun(gate)
        tasks += [asyncio.create_task(batcher.submit(n, 10)) for n in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError) as refused:
            await batcher.submit(3, 10)
        assert refused.value.retry_after >= 1 and batcher.waiting == 2
        gate.open.set()
        assert await asyncio.gather(*tasks) == [0, 10, 20]
        batcher.close()

    asyncio.run(go())


def test_before_the_first_batch_a_flood_is_refused():
    """Of a server that just began nothing is known: a whole queue could be more than it answers in time."""

    async def go():
        gate, batcher = started(8, 0.0, 512)
        tasks = [asyncio.create_task(batcher.submit(0, 10))]
        await begun(gate)
        tasks += [asyncio.create_task(batcher.submit(n, 10)) for n in range(1, 66)]
        await asyncio.sleep(0)
        assert batcher.refuses(10) and batcher.waiting == 64
        gate.open.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in results] == [int] * 65 + [QueueFullError] and not batcher.refuses(10)
        batcher.close()

    asyncio.run(go())


def test_who_waited_too_long_is_told_and_not_worked_on():
    async def go():
        gate, batcher = started(1, 0.0, 10)
        first = asyncio.create_task(batcher.submit(0, 10))
        await begun(gate)
        with pytest.raises(TimeBudgetError):
            await batcher.submit(1, 0.05)
        last = asyncio.create_task(batcher.submit(2, 10))
        gate.open.set()
        assert [await first, await last] == [0, 20] and gate.batches == [[0], [2]]
        batcher.close()

    asyncio.run(go())


def test_errors_reach_only_their_request():
    async def go():
        batcher = Batcher(
            lambda payloads: [ValueError("odd") if payload % 2 else payload for payload in payloads], 4, 0.05, 10
        )
        results = await asyncio.gather(*(batcher.submit(n, 10) for n in range(4)), return_exceptions=True)
        assert results[0::2] == [0, 2] and all(isinstance(result, ValueError) for result in results[1::2])
        broken = Batcher(lambda payloads: 1 / 0, 4, 0.0, 10)
        for _ in range(2):  # the thread lives on
            with pytest.raises(ZeroDivisionError):
                await broken.submit(1, 10)
        batcher.close(), broken.close()

    asyncio.run(go())


def test_closing_finishes_what_was_taken():
    async def go():
        gate, batcher = started(1, 0.0, 10)
        tasks = [asyncio.create_task(batcher.submit(n, 10)) for n in range(4)]
        await begun(gate)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFullError):
            await batcher.submit(9, 10)
        gate.open.set()
        assert await asyncio.gather(*tasks) == [0, 10, 20, 30]
        await closing

    asyncio.run(go())


def test_a_batch_is_no_larger_than_the_budget_allows():
    sizes = []

    def slow(payloads: list) -> list:
        sizes.append(len(payloads))
        time.sleep(0.05 * len(payloads))
        return payloads

    async def go():
        batcher = Batcher(slow, 64, 0.0, 100)
        await batcher.submit(0, 10)
        answers = await asyncio.gather(*(batcher.submit(n, 0.6) for n in range(12)), return_exceptions=True)
        batcher.close()
        return [answer for answer in answers if not isinstance(answer, Exception)]

    assert len(asyncio.run(go())) >= 3, "twelve at once would take all of the budget: none would be answered"
    assert sizes[0] == 1 and max(sizes) <= 10


def test_a_late_server_drops_the_oldest_and_keeps_its_batches():
    """A batch that suits the oldest request would be of one, at most of whose cost is the same as of a full one."""
    cost = Cost()
    for n in (1, 50):
        cost.add(n, 0.3 + 0.005 * n)
    now = 100.0
    live = [_Waiting(n, now - 2 + 0.04 * n, now + 0.04 * n, None, None) for n in range(50)]  # type: ignore[arg-type]
    batch = choose(live, now, 64, cost)
    assert len(batch) >= 30 and [one.payload for one in batch] == sorted(one.payload for one in batch)
    assert all(0.8 * (one.deadline - now) >= cost.of(len(batch)) for one in batch)
    relaxed = [_Waiting(n, now, now + 10, None, None) for n in range(100)]  # type: ignore[arg-type]
    assert [one.payload for one in choose(relaxed, now, 64, cost)] == list(range(64)), "first come, first served"
    hopeless = [_Waiting(n, now, now + 0.1, None, None) for n in range(100)]  # type: ignore[arg-type]
    assert len(choose(hopeless, now, 64, cost)) == 64, "the estimate may be wrong, and only a batch can mend it"
    assert choose([], now, 64, cost) == []


def test_a_slow_while_is_over_when_the_machine_is_fast_again():
    """Requests on a clock, most of whose cost is their batch's: after one very slow batch, answers come again."""
    calls, answered = [], []

    def work(payloads: list) -> list:
        calls.append(len(payloads))
        time.sleep(1.0 if len(calls) == 3 else 0.08 + 0.001 * len(payloads))
        return payloads

    async def go():
        batcher = Batcher(work, 64, 0.0, 1000)

        async def client(number: int) -> None:
            await asyncio.sleep(number / 60)
            try:
                await batcher.submit(number, 0.5)
                answered.append(number)
            except (QueueFullError, TimeBudgetError):
                pass

        await asyncio.gather(*(client(number) for number in range(240)))
        batcher.close()

    asyncio.run(go())
    assert len([number for number in answered if number >= 150]) >= 45, "half of the last ninety, on any machine"


def test_a_burst_after_lone_requests_is_taken():
    """What a batch of one costs says nothing about each request of a large one."""

    async def go():
        gate, batcher = started(64, 0.0, 100)
        for _ in range(3):
            batcher.cost.add(1, 0.05)
        tasks = [asyncio.create_task(batcher.submit(0, 30))]
        await begun(gate)
        tasks += [asyncio.create_task(batcher.submit(n, 30)) for n in range(1, 60)]
        await asyncio.sleep(0)
        assert batcher.waiting == 59 and batcher.refuses(2.0) == 0
        gate.open.set()
        await asyncio.gather(*tasks)
        batcher.close()

    asyncio.run(go())
