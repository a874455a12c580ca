"""What a server does under attack and in broken surroundings.

    python scripts/bench/serve_attacks.py BUNDLE --parts health,half-open,one-title,store-away,full-disk

``full-disk`` mounts a small tmpfs, for which it needs root; ``store-away`` needs the package fakeredis. The server has
one core; compared figures are from one run. Numbers go to ``serve_attacks.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import httpx
import numpy as np
from http_lines import Lines
from serve_server import Server, Traffic, closed_loop, processor

TITLE = "The same long title of very many items"


def _unknown_keys() -> bytes:
    return json.dumps({f"key{number}": 1 for number in range(300_000)}).encode()


def _wrong_events() -> bytes:
    return json.dumps({"events": [{"user_id": 1, "item_id": None}] * 60_000}).encode()


def _wrong_items() -> bytes:
    return json.dumps({"items": [{"item_id": "", "title": 5, "x": [[1]]}] * 80_000}).encode()


def _watch(port: int, pid: int, seconds: float) -> list[tuple[float, float]]:
    """Seconds that ``/healthz`` takes, asked twenty times a second by a process that does nothing else.

    And the processor seconds of the server meanwhile: what it takes where nothing else runs on its core.
    """
    client, times, began = http.client.HTTPConnection("127.0.0.1", port, timeout=60), [], time.perf_counter()
    while time.perf_counter() - began < seconds:
        busy, asked = processor(pid), time.perf_counter()
        client.request("GET", "/healthz")
        client.getresponse().read()
        times.append((time.perf_counter() - asked, processor(pid) - busy))
        time.sleep(0.05)
    return times


def health(bundle: Path, work: Path, seconds: float, rows: str = "") -> dict:
    """The 99th percentile of ``/healthz`` under each attack, beside that under honest load."""
    server, traffic, result = Server(bundle, work / "health"), Traffic(bundle), {}
    watcher = ProcessPoolExecutor(1)
    watcher.submit(_watch, server.port, server.process.pid, 0.1).result()

    async def attack(make: Callable[[Lines], Awaitable[object]], callers: int) -> dict:
        client, began, seen = Lines(server.port), time.perf_counter(), Counter()

        async def caller() -> None:
            while time.perf_counter() - began < seconds:
                try:
                    reply = await make(client)
                    seen[str(reply[0]) if isinstance(reply, tuple) else "sent"] += 1
                except (OSError, TimeoutError) as error:
                    seen[type(error).__name__] += 1

        watch = asyncio.get_running_loop().run_in_executor(watcher, _watch, server.port, server.process.pid, seconds)
        await asyncio.gather(*(caller() for _ in range(callers)))
        times = np.array(await watch)
        client.close()
        percentiles = np.round(1000 * np.percentile(times, [50, 99], axis=0), 1)
        return {
            "p50_ms, p99_ms": percentiles[:, 0].tolist(),
            "processor p50_ms, p99_ms": percentiles[:, 1].tolist(),
            "asked": len(times),
            "statuses": dict(seen),
        }

    large = {
        "4 MB of unknown keys": ("/v1/items", _unknown_keys()[:3_900_000]),
        "wrong events": ("/v1/events", _wrong_events()[:1_000_000]),
        "4 MB of wrong items": ("/v1/items", _wrong_items()[:4_100_000]),
        "unknown keys, 250 KB": ("/v1/recommend", b"{" + b",".join(b'"k%d":1' % n for n in range(20_000)) + b"}"),
        "100,000 opening brackets": ("/v1/recommend", b'{"history": ' + b"[" * 100_000),
    }
    attacks: dict[str, tuple[Callable[[Lines], Awaitable[object]], int]] = {
        "quiet": (lambda client: asyncio.sleep(0.05), 1),
        "64 honest clients": (lambda client: client.post(*traffic.recommend()), 64),
        "640 clients that do not wait": (lambda client: client.post(*traffic.recommend()), 640),
    }
    for name, (path, body) in large.items():
        attacks[name] = (lambda client, path=path, body=body: client.post(path, body)), 4
    for name, (make, callers) in attacks.items():
        if rows in name:
            result[name] = asyncio.run(attack(make, callers))
            print(name, result[name], flush=True)
    watcher.shutdown()
    server.stop()
    return result


def half_open(bundle: Path, work: Path, seconds: float, connections: int = 1100) -> dict:
    """Good answers a second before and while many connections are open that never send a request."""
    server, traffic = Server(bundle, work / "half", "--header-timeout-ms", "5000"), Traffic(bundle)

    async def open_many() -> list[asyncio.StreamWriter]:
        writers = []
        for number in range(connections):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(b"POST /v1/recommend HTTP/1.1\r\nhost: 127.0.0.1\r\n" if number % 2 else b"")
                writers.append(writer)
            except OSError:
                pass
        return writers

    async def go() -> dict:
        before = await closed_loop(server, traffic.recommend, 8, seconds)
        writers = await open_many()
        during = await closed_loop(server, traffic.recommend, 8, seconds)
        await asyncio.sleep(6)
        after = await closed_loop(server, traffic.recommend, 8, seconds)
        for writer in writers:
            writer.close()
        return {"opened": len(writers), "before": before, "during": during, "after": after}

    result = asyncio.run(go())
    server.stop()
    return result


def one_title(bundle: Path, count: int = 10_000, requests: int = 90) -> dict:
    """Processor time of lone fused answers before and after ``count`` items were added: of one title, and of as many.

    In this process and in turn, one thread. A catalogue that is six times as large costs more whatever its titles are:
    what the one title costs is the ratio to distinct ones.
    """
    import torch

    from genrec.inference.recommender import Recommender

    torch.set_num_threads(1)
    traffic = Traffic(bundle)
    words = sorted({word for title in traffic.titles for word in title.split()})
    titles = {
        "before": [],
        "distinct": [" ".join(traffic.random.choices(words, k=8)) + f" {n}" for n in range(count)],
        "one": [TITLE] * count,
    }
    models, added, spent = {}, {}, {}
    for name, own in titles.items():
        models[name], began = Recommender.load(bundle), time.process_time()
        if own:
            models[name].add_items([{"item_id": f"t{n}", "title": title} for n, title in enumerate(own)])
        added[name] = round(time.process_time() - began, 2)
        spent[name] = []
    for number in range(requests):
        history = traffic.recommend()[1]["history"]
        for name, model in models.items():
            began = time.process_time()
            model.recommend(history=history, k=10)
            if number >= 10:
                spent[name].append(time.process_time() - began)
    cpu = {name: float(np.median(seconds)) for name, seconds in spent.items()}
    return {
        "requests": requests - 10, "add_cpu_s": added, "cpu_ms": {name: round(1000 * one, 2) for name, one in cpu.items()},
        "largest_leaf": models["one"].snapshot.catalogue.trie.largest_leaf,
        "one_to_before": round(cpu["one"] / cpu["before"], 3), "one_to_distinct": round(cpu["one"] / cpu["distinct"], 3),
    }  # fmt: skip


def store_away(bundle: Path, work: Path, seconds: float) -> dict:
    """Answers by kind of request while the Redis store is away."""
    from fakeredis import TcpFakeServer

    redis = TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    threading.Thread(target=redis.serve_forever, daemon=True).start()
    server, traffic = Server(bundle, f"redis://127.0.0.1:{redis.server_address[1]}/0"), Traffic(bundle)
    redis.shutdown()
    redis.server_close()
    seen: dict[str, Counter] = {"history": Counter(), "user": Counter(), "events": Counter()}

    async def go() -> int:
        client, began = Lines(server.port), time.perf_counter()

        async def caller(kind: str) -> None:
            while time.perf_counter() - began < seconds:
                path, body = traffic.recommend()
                if kind == "user":
                    body = {"user_id": "u1"}
                if kind == "events":
                    path, body = "/v1/events", {"events": [{"user_id": "u1", "item_id": traffic.items[0]}]}
                status, _ = await client.post(path, body)
                seen[kind][status] += 1

        await asyncio.gather(*(caller(kind) for kind in seen for _ in range(4)))
        ready, _ = await client.get("/readyz")
        client.close()
        return ready

    ready = asyncio.run(go())
    server.stop()
    return {kind: dict(counts) for kind, counts in seen.items()} | {"readyz": ready}


def full_disk(bundle: Path, work: Path) -> dict:
    """Events and items until the store's disk is full: what was acknowledged must be there after a restart."""
    disk = work / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], check=True)
    events, items, statuses = set(), set(), Counter()
    try:
        server = Server(bundle, disk / "e.sqlite")
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for number in range(3000):
                body = {
                    "events": [
                        {"user_id": "u", "item_id": f"x{n}" * 20, "event_id": f"{number}-{n}"} for n in range(20)
                    ]
                }
                reply = client.post("/v1/events", json=body)
                statuses[f"events {reply.status_code}"] += 1
                if reply.status_code == 200:
                    events |= {event["event_id"] for event in body["events"]}
                name = f"n{number}"
                if number % 10 == 0:
                    reply = client.post("/v1/items", json={"items": [{"item_id": name, "title": "Blue " * 200}]})
                    statuses[f"items {reply.status_code}"] += 1
                    if reply.status_code == 200:
                        items.add(name)
                    elif client.get(f"/v1/items/{name}").status_code != 404:
                        statuses["refused item is visible"] += 1
                if sum(count for key, count in statuses.items() if key.endswith("507")) >= 20:
                    break
            statuses[f"recommend {client.post('/v1/recommend', json={}).status_code}"] += 1
        server.stop()
        server = Server(bundle, disk / "e.sqlite")
        with httpx.Client(base_url=server.url, timeout=60) as client:
            there = {name for name in items if client.get(f"/v1/items/{name}").status_code == 200}
            extra = client.get(f"/v1/items/n{number}").status_code == 200 and f"n{number}" not in items
        server.stop()
        from genrec.serving.sqlite_store import SqliteStore

        kept = {event.event_id for event in SqliteStore(disk / "e.sqlite").all_events()}
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
    return {
        "statuses": dict(statuses), "events_acknowledged": len(events), "events_lost": len(events - kept),
        "events_not_acknowledged_but_kept": len(kept - events), "items_acknowledged": len(items),
        "items_lost": len(items - there), "refused_item_came_back": extra,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    names = ["health", "half-open", "one-title", "store-away", "full-disk"]
    parser.add_argument("--parts", type=lambda text: text.split(","), default=names)
    parser.add_argument("--rows", default="", help="part of the names of the attacks under which health is asked")
    parser.add_argument("--seconds", type=float, default=6, help="per attack")
    parser.add_argument("--output", type=Path, help="folder for the numbers; without it they are printed alone")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    parts: dict[str, Callable[[], dict]] = {
        "health": lambda: health(options.bundle, work, options.seconds, options.rows),
        "half-open": lambda: half_open(options.bundle, work, options.seconds),
        "one-title": lambda: one_title(options.bundle),
        "store-away": lambda: store_away(options.bundle, work, options.seconds),
        "full-disk": lambda: full_disk(options.bundle, work),
    }
    result = {}
    try:
        for part in options.parts:
            result[part] = parts[part]()
            print(part, json.dumps(result[part]), flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "serve_attacks.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
