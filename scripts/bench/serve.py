"""Measure a server on loopback: load, a long soak, SIGKILLs, hot reloads, and adding items.

    python scripts/bench/serve.py BUNDLE --output results                                  # load at 1, 8 and 64
    clients, batching on and off
    python scripts/bench/serve.py BUNDLE --output results --minutes 10 --kills 50 --reloads 100 --add 10000

The client (``http_lines.py``) runs on the same machine and takes a tenth of a millisecond of processor time a request.
Each part's numbers are written to ``serve_<part>.json`` as soon as it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import polars as pl
from http_lines import Lines

SHARES = (50, 95, 99)


class Server:
    """``genrec serve`` in a process of its own, on a free port."""

    def __init__(self, bundle: Path, events: Path, *options: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        started = time.perf_counter()
        command = [
            sys.executable,
            "-c",
            "from genrec.cli.main import main; main()",
            "serve",
            str(bundle),
            "--port",
            str(self.port),
            "--events",
            str(events),
        ]
        self.process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
        while True:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=1).status_code == 200:
                    break
            except httpx.TransportError:
                if self.process.poll() is not None:
                    raise SystemExit(f"the server ended with code {self.process.returncode}") from None
            time.sleep(0.05)
        self.ready_after = time.perf_counter() - started

    def memory(self) -> float:
        """Resident memory in MB."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def processor(self) -> float:
        """Processor seconds spent so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, kind: int = signal.SIGTERM) -> None:
        self.process.send_signal(kind)
        self.process.wait()


class Traffic:
    """Random requests about a bundle's items: histories of 1 to 20 items, queries of up to three title words."""

    def __init__(self, bundle: Path, seed: int = 0):
        items = pl.read_parquet(bundle / "dataset" / "items.parquet")
        self.items = items["item_id"].to_list()
        self.titles = [title for title in items["title"].drop_nulls().to_list() if title.split()]
        self.random = random.Random(seed)

    def recommend(self) -> tuple[str, dict]:
        return "/v1/recommend", {
            "history": self.random.sample(self.items, self.random.randint(1, min(20, len(self.items)))),
            "k": 10,
        }

    def search(self) -> tuple[str, dict]:
        _, body = self.recommend()
        words = self.random.choice(self.titles).split() if self.titles else ["thing"]
        return "/v1/search", body | {"query": " ".join(self.random.sample(words, min(3, len(words))))}


async def ask(client: Lines, request: tuple[str, dict], seconds: list[float], seen: Counter) -> None:
    """One request; its time counts only where it succeeded."""
    body = json.dumps(request[1]).encode()
    started = time.perf_counter()
    try:
        status: int | str = (await client.post(request[0], body))[0]
    except (OSError, TimeoutError) as error:
        status = type(error).__name__
    seen[status] += 1
    if status == 200:
        seconds.append(time.perf_counter() - started)


async def closed_loop(server: Server, make, clients: int, duration: float) -> dict:
    """``clients`` callers, each asking again as soon as it has its answer."""
    seconds: list[float] = []
    seen: Counter = Counter()
    client, warm = Lines(server.port), Counter()
    await asyncio.gather(*(ask(client, make(), [], warm) for _ in range(clients)))
    started, burnt, own = time.perf_counter(), server.processor(), time.process_time()

    async def caller() -> None:
        while time.perf_counter() - started < duration:
            await ask(client, make(), seconds, seen)

    await asyncio.gather(*(caller() for _ in range(clients)))
    spent = time.perf_counter() - started
    client.close()
    each = 1e3 / max(len(seconds), 1)
    return {"clients": clients} | summary(seconds, seen, spent) | {
        "server_cpu_ms": round((server.processor() - burnt) * each, 2), "client_cpu_ms": round((time.process_time() - own) * each, 2)
    }  # fmt: skip


def summary(seconds: list[float], seen: Counter, spent: float) -> dict:
    points = np.percentile(np.array(seconds or [np.nan]) * 1000, SHARES)
    return {
        "per_second": round(len(seconds) / spent, 1), **{f"p{share}_ms": round(float(value), 1) for share, value in zip(SHARES, points, strict=True)},
        "failed": sum(count for status, count in seen.items() if status != 200), "statuses": {str(status): count for status, count in seen.items()},
    }  # fmt: skip


def load(bundle: Path, work: Path, clients: list[int], duration: float) -> list[dict]:
    """Requests per second and percentiles by task, number of clients, and batching."""
    rows = []
    for batch in (64, 1):
        server = Server(bundle, work / "load", "--max-batch", str(batch))
        traffic = Traffic(bundle)
        for task, make in (("recommend", traffic.recommend), ("search", traffic.search)):
            for count in clients:
                row = {"task": task, "batching": batch > 1} | asyncio.run(closed_loop(server, make, count, duration))
                rows.append(row)
                print(row, flush=True)
        server.stop()
    return rows


def soak(bundle: Path, work: Path, minutes: float, top: float) -> dict:
    """``minutes`` at 70 % of the top rate, requests starting on a clock: errors, and memory of the first and last
    minute."""
    server = Server(bundle, work / "soak")
    traffic, rate = Traffic(bundle), 0.7 * top
    memory: list[tuple[float, float]] = []

    async def go() -> dict:
        seconds: list[float] = []
        seen: Counter = Counter()
        tasks: set[asyncio.Task] = set()
        client, started, sent = Lines(server.port), time.perf_counter(), 0
        while (now := time.perf_counter() - started) < 60 * minutes:
            while sent < now * rate:
                make = traffic.search if sent % 2 else traffic.recommend
                task = asyncio.create_task(ask(client, make(), seconds, seen))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
            if not memory or now - memory[-1][0] >= 1:
                memory.append((now, server.memory()))
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)
        client.close()
        return summary(seconds, seen, time.perf_counter() - started)

    result = asyncio.run(go())
    server.stop()
    times, sizes = np.array(memory).T
    edge = min(60.0, times[-1] / 3)
    first, last = sizes[times <= edge].mean(), sizes[times >= times[-1] - edge].mean()
    return result | {
        "asked_per_second": round(rate, 1),
        "memory_first_mb": round(first, 1),
        "memory_last_mb": round(last, 1),
        "memory_growth": round(last / first - 1, 4),
    }


def kills(bundle: Path, work: Path, times: int) -> dict:
    """SIGKILL under load, again and again on one event store: every acknowledged event must be there in the end."""
    events = work / "kills.sqlite"
    traffic, acknowledged, ready = Traffic(bundle), set(), []

    async def go(server: Server, turn: int, duration: float) -> None:
        client = Lines(server.port)

        async def writer(lane: int) -> None:
            for place in range(1_000_000):
                name = f"{turn}-{lane}-{place}"
                event = {"user_id": f"u{lane}", "item_id": traffic.random.choice(traffic.items), "event_id": name}
                try:
                    status, _ = await client.post("/v1/events", {"events": [event]})
                except (OSError, TimeoutError):
                    return
                if status == 200:
                    acknowledged.add(name)

        async def reader() -> None:
            while server.process.poll() is None:
                await ask(client, traffic.recommend(), [], Counter())

        async def killer() -> None:
            await asyncio.sleep(duration)
            server.process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(server.process.wait)

        await asyncio.gather(killer(), *(writer(lane) for lane in range(8)), *(reader() for _ in range(4)))
        client.close()

    for turn in range(times):
        server = Server(bundle, events)
        ready.append(server.ready_after)
        asyncio.run(go(server, turn, 0.3 + traffic.random.random()))
        print(
            f"kill {turn + 1}: ready after {ready[-1]:.1f} s, {len(acknowledged)} events acknowledged so far",
            flush=True,
        )
    server = Server(bundle, events)  # the store must open again after the last kill, too
    server.stop()
    kept = {row[0] for row in sqlite3.connect(events).execute("SELECT event_id FROM events")}
    return {"kills": times, "acknowledged": len(acknowledged), "lost": len(acknowledged - kept), "ready_s_median": round(float(np.median(ready)), 2),
            "ready_s_max": round(max(ready), 2)}  # fmt: skip


def reloads(bundle: Path, work: Path, times: int) -> dict:
    """Hot reloads under the load of eight clients: no request may fail."""
    server, traffic = Server(bundle, work / "reloads"), Traffic(bundle)
    seen: Counter = Counter()
    seconds: list[float] = []

    async def go() -> list[float]:
        done, spent = False, []
        client = Lines(server.port)

        async def caller() -> None:
            while not done:
                await ask(client, traffic.recommend(), seconds, seen)

        callers = [asyncio.create_task(caller()) for _ in range(8)]
        for _ in range(times):
            started = time.perf_counter()
            status, reply = await client.post("/v1/admin/reload", b"", timeout=120)
            spent.append(time.perf_counter() - started)
            if status != 200:
                raise SystemExit(f"a good bundle was refused: {reply!r}")
        done = True
        await asyncio.gather(*callers)
        client.close()
        return spent

    started = time.perf_counter()
    before = server.memory()
    spent = asyncio.run(go())
    result = summary(seconds, seen, time.perf_counter() - started) | {
        "reloads": times,
        "reload_s_median": round(float(np.median(spent)), 2),
    }
    result |= {"memory_before_mb": round(before, 1), "memory_after_mb": round(server.memory(), 1)}
    server.stop()
    return result


def add_items(bundle: Path, work: Path, count: int, sample: int = 300) -> dict:
    """Add items named by words of the catalogue's titles and a number of their own: the time, and how often a search
    for one's title finds it."""
    server, traffic = Server(bundle, work / "add", "--time-budget-ms", "20000"), Traffic(bundle, 1)
    words = sorted({word for title in traffic.titles for word in title.split()}) or ["thing"]
    names = {f"added-{n}": " ".join(traffic.random.choices(words, k=5)) + f" {n}" for n in range(count)}
    with httpx.Client(base_url=server.url, timeout=120) as client:
        started = time.perf_counter()
        items = [{"item_id": item, "title": title} for item, title in names.items()]
        for place in range(0, count, 10_000):
            client.post("/v1/items", json={"items": items[place : place + 10_000]}).raise_for_status()
        added = time.perf_counter() - started

        def found(item: str, k: int) -> list[str]:
            reply = client.post("/v1/search", json={"query": names[item], "k": k}).raise_for_status()
            return [one["item_id"] for one in reply.json()["items"]]

        first = "added-0" in found("added-0", 10)
        answered = time.perf_counter() - started
        chosen = traffic.random.sample(sorted(names), min(sample, count))
        hits = sum(item in found(item, 10) for item in chosen)
    server.stop()
    return {"added": count, "seconds": round(added, 2), "seconds_with_first_answer": round(answered, 2), "first_search_finds_it": first,
            "recall@10_of_title_searches": round(hits / len(chosen), 4), "searches": len(chosen)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--output", type=Path, help="folder for the numbers; without it they are printed alone")
    parser.add_argument("--clients", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=10, help="per row of the load table; 0 leaves it out")
    parser.add_argument("--minutes", type=float, default=0, help="of soak at 70 %% of the top rate")
    parser.add_argument("--rate", type=float, default=0, help="top rate for the soak where the load table is left out")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--reloads", type=int, default=0)
    parser.add_argument("--add", type=int, default=0, help="items to add")
    options = parser.parse_args()
    if options.minutes and not options.seconds and not options.rate:
        parser.error("--minutes needs the load table (--seconds) or --rate")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp())

    def keep(part: str, result) -> None:
        if options.output:
            (options.output / f"serve_{part}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(part, json.dumps(result), flush=True)

    try:
        top = options.rate
        if options.seconds:
            rows = load(options.bundle, work, options.clients, options.seconds)
            keep("load", rows)
            # the soak asks for both tasks in turn: the slower one sets its pace
            top = top or min(
                max(row["per_second"] for row in rows if row["task"] == task) for task in ("recommend", "search")
            )
        for part, wanted, run in (
            ("soak", options.minutes, lambda: soak(options.bundle, work, options.minutes, top)), ("kills", options.kills, lambda: kills(options.bundle, work, options.kills)),
            ("reloads", options.reloads, lambda: reloads(options.bundle, work, options.reloads)), ("add", options.add, lambda: add_items(options.bundle, work, options.add)),
        ):  # fmt: skip
            if wanted:
                keep(part, run())
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
