"""Measure a server on loopback: load, overload, a lone request, a long soak, SIGKILLs and hot reloads.

    python scripts/bench/serve.py BUNDLE --parts load,overload,lone
    python scripts/bench/serve.py BUNDLE --parts load --base CHECKOUT --base-bundle ITS_BUNDLE   # beside older code
    python scripts/bench/serve.py BUNDLE --parts soak,kills,reloads --minutes 10 --kills 50 --reloads 100

The server has one core; the client (``http_lines.py``) runs where the system puts it and takes a tenth of a millisecond
of processor time a request. Rows that are compared alternate in one run. Numbers go to ``serve_<part>.json``. A SIGTERM
ends a soak, kills and reloads early: what was done is checked and reported.
``serve_attacks.py`` measures what hostile traffic and broken surroundings do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
from http_lines import Lines
from serve_server import Server, Traffic, ask, closed_loop, summary

STOPPED = threading.Event()  # by SIGTERM
PATIENT = ("--time-budget-ms", "20000")  # where failures should say something of the server, not of a busy machine


def load(options: argparse.Namespace, work: Path) -> list[dict]:
    """Good answers a second and percentiles by task and number of clients; with ``--base`` in turn with older code."""
    servers = {"now": Server(options.bundle, work / "now")}
    if options.base is not None:
        servers["base"] = Server(options.base_bundle, work / "base", code=options.base)
    traffic, rows = Traffic(options.bundle), []
    for task in ("recommend", "search"):
        for clients in options.clients:
            for _ in range(options.rounds):
                for name, server in servers.items():
                    row = asyncio.run(closed_loop(server, getattr(traffic, task), clients, options.seconds))
                    rows.append({"code": name, "task": task} | row)
                    print(rows[-1], flush=True)
    for server in servers.values():
        server.stop()
    return rows


def overload(options: argparse.Namespace, work: Path) -> dict:
    """Good answers a second at the peak, and at ten times the peak's clients, which come back when they are told to."""
    server, traffic = Server(options.bundle, work / "overload"), Traffic(options.bundle)
    peaks, floods = [], []
    for _ in range(options.rounds):
        peaks.append(asyncio.run(closed_loop(server, traffic.recommend, 64, options.seconds)))
        floods.append(asyncio.run(closed_loop(server, traffic.recommend, 640, options.seconds, patient=True)))
        print(peaks[-1], floods[-1], sep="\n", flush=True)
    server.stop()
    rates = [flood["per_second"] / peak["per_second"] for peak, flood in zip(peaks, floods, strict=True)]
    return {"peaks": peaks, "floods": floods, "ratios": [round(rate, 3) for rate in rates]}


def lone(options: argparse.Namespace, work: Path, requests: int = 150) -> dict:
    """Median time of a lone recommend over HTTP and of the same call in Python in this process, in turn; same lists."""
    from genrec.inference.recommender import Recommender

    server, traffic = Server(options.bundle, work / "lone", "--batch-wait-ms", "0", core=None), Traffic(options.bundle)
    model, times = Recommender.load(options.bundle), {"python": [], "http": []}
    same = 0

    async def go() -> None:
        nonlocal same
        client = Lines(server.port)
        for number in range(requests):
            path, body = traffic.recommend()
            data = json.dumps(body).encode()
            began = time.perf_counter()
            answers = model.recommend(history=body["history"], k=10)
            middle = time.perf_counter()
            _, reply = await client.post(path, data)
            ended = time.perf_counter()
            same += [one["item_id"] for one in json.loads(reply)["items"]] == [one.item_id for one in answers]
            if number >= 10:
                times["python"].append(middle - began)
                times["http"].append(ended - middle)
        client.close()

    asyncio.run(go())
    server.stop()
    medians = {name: float(np.median(values)) for name, values in times.items()}
    return {
        "requests": requests, "same_lists": same, "ratio": round(medians["http"] / medians["python"], 3),
        **{f"{name}_ms": round(1000 * value, 2) for name, value in medians.items()},
    }  # fmt: skip


def soak(options: argparse.Namespace, work: Path) -> dict:
    """``minutes`` at ``--rate`` requests a second on a clock: errors, and memory of the first and last minute."""
    server, traffic, rate = Server(options.bundle, work / "soak", *PATIENT), Traffic(options.bundle), options.rate
    memory: list[tuple[float, float]] = []

    async def go() -> dict:
        seconds: list[float] = []
        seen: Counter = Counter()
        tasks: set[asyncio.Task] = set()
        client, started, sent = Lines(server.port), time.perf_counter(), 0
        while (now := time.perf_counter() - started) < 60 * options.minutes and not STOPPED.is_set():
            while sent < now * rate:
                make = traffic.search if sent % 2 else traffic.recommend
                task = asyncio.create_task(ask(client, make(), seconds, seen))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
            if not memory or now - memory[-1][0] >= 1:
                memory.append((now, server.memory()))
                if len(memory) % 30 == 0:
                    print(f"{now:.0f} s: {dict(seen)}, {memory[-1][1]:.0f} MB", flush=True)
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
        "minutes": round(times[-1] / 60, 2),
        "asked_per_second": rate,
        "memory_first_mb": round(first, 1),
        "memory_last_mb": round(last, 1),
        "memory_growth": round(last / first - 1, 4),
    }


def kills(options: argparse.Namespace, work: Path) -> dict:
    """SIGKILL under load, again and again on one event store: every acknowledged event must be there in the end."""
    events, ready = work / "kills.sqlite", []
    traffic: Traffic = Traffic(options.bundle)
    acknowledged: set[str] = set()

    async def go(server: Server, turn: int, duration: float) -> None:
        client = Lines(server.port)

        async def writer(lane: int) -> None:
            for number in range(1_000_000):
                name = f"{turn}-{lane}-{number}"
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

    for turn in range(options.kills):
        if STOPPED.is_set():
            break
        server = Server(options.bundle, events, core=None, forked=True)
        ready.append(server.ready_after)
        asyncio.run(go(server, turn, 0.3 + traffic.random.random()))
        print(f"kill {turn + 1}: {len(acknowledged)} events acknowledged so far", flush=True)
    server = Server(
        options.bundle, events, core=None, forked=True
    )  # the store must open again after the last kill, too
    server.stop()
    kept = {row[0] for row in sqlite3.connect(events).execute("SELECT event_id FROM events")}
    return {
        "kills": len(ready), "acknowledged": len(acknowledged), "lost": len(acknowledged - kept),
        "ready_s_median": round(float(np.median(ready)), 2),
    }  # fmt: skip


def reloads(options: argparse.Namespace, work: Path) -> dict:
    """Hot reloads under the load of eight clients: no request may fail."""
    server, traffic = Server(options.bundle, work / "reloads", *PATIENT), Traffic(options.bundle)
    seen: Counter = Counter()
    seconds: list[float] = []
    memory: list[float] = []

    async def go() -> list[float]:
        done, spent = False, []
        client = Lines(server.port)

        async def caller() -> None:
            while not done:
                await ask(client, traffic.recommend(), seconds, seen)

        callers = [asyncio.create_task(caller()) for _ in range(8)]
        for number in range(options.reloads):
            if STOPPED.is_set():
                break
            started = time.perf_counter()
            status, reply = await client.post("/v1/admin/reload", b"", timeout=120)
            spent.append(time.perf_counter() - started)
            memory.append(server.memory())
            if number % 5 == 4:
                print(f"reload {number + 1}: {dict(seen)}, {memory[-1]:.0f} MB", flush=True)
            if status != 200:
                raise SystemExit(f"a good bundle was refused: {reply!r}")
        done = True
        await asyncio.gather(*callers)
        client.close()
        return spent

    started = time.perf_counter()
    spent = asyncio.run(go())
    result = summary(seconds, seen, time.perf_counter() - started)
    server.stop()
    edge = max(len(memory) // 10, 1)
    first, last = np.mean(memory[:edge]), np.mean(memory[-edge:])
    return result | {
        "reloads": len(spent),
        "reload_s_median": round(float(np.median(spent)), 2),
        "memory_first_mb": round(float(first), 1),
        "memory_last_mb": round(float(last), 1),
        "memory_growth": round(float(last / first - 1), 4),
    }


def add_items(options: argparse.Namespace, work: Path, sample: int = 100) -> dict:
    """Add items named by words of the catalogue's titles and a number: the time, and whether a search finds them."""
    server, traffic = Server(options.bundle, work / "add", "--time-budget-ms", "20000"), Traffic(options.bundle, 1)
    words = sorted({word for title in traffic.titles for word in title.split()}) or ["thing"]
    names = {f"added-{n}": " ".join(traffic.random.choices(words, k=5)) + f" {n}" for n in range(options.add)}
    with httpx.Client(base_url=server.url, timeout=120) as client:
        started = time.perf_counter()
        items = [{"item_id": item, "title": title} for item, title in names.items()]
        for first in range(0, len(items), 10_000):
            client.post("/v1/items", json={"items": items[first : first + 10_000]}).raise_for_status()
        added = time.perf_counter() - started
        chosen = traffic.random.sample(sorted(names), min(sample, len(names)))
        replies = [client.post("/v1/search", json={"query": names[item], "k": 10}).json() for item in chosen]
    server.stop()
    hits = sum(item in [one["item_id"] for one in reply["items"]] for item, reply in zip(chosen, replies, strict=True))
    return {"added": len(names), "seconds": round(added, 2), "recall@10_of_title_searches": hits / len(chosen)}


PARTS = {
    "load": load, "overload": overload, "lone": lone, "soak": soak, "kills": kills, "reloads": reloads, "add": add_items,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=["load"], help=", ".join(PARTS))
    parser.add_argument("--output", type=Path, help="folder for the numbers; without it they are printed alone")
    parser.add_argument("--base", type=Path, help="a checkout of older code, for the load table")
    parser.add_argument("--base-bundle", type=Path, help="a bundle that the older code exported")
    parser.add_argument("--clients", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=8, help="per row of load and overload")
    parser.add_argument("--rounds", type=int, default=1, help="how often the compared rows alternate")
    parser.add_argument("--minutes", type=float, default=10, help="of the soak")
    parser.add_argument("--rate", type=float, default=60, help="requests a second of the soak")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--reloads", type=int, default=100)
    parser.add_argument("--add", type=int, default=10_000)
    options = parser.parse_args()
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp())
    signal.signal(signal.SIGTERM, lambda *_: STOPPED.set())
    try:
        for part in options.parts:
            result = PARTS[part](options, work)
            if options.output:
                (options.output / f"serve_{part}.json").write_text(json.dumps(result, indent=1) + "\n")
            print(part, json.dumps(result), flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
