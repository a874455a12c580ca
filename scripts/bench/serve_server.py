"""What the serving benches share: a server in a process of its own, random traffic, and closed loops of callers."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import polars as pl
from http_lines import Lines

PERCENTILES = (50, 95, 99)
PRELOADED = ["torch", "uvicorn", "genrec.cli.main", "genrec.inference.recommender", "genrec.serving.app"]


def _genrec(arguments: list[str]) -> None:
    sys.argv = ["genrec", *arguments]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    from genrec.cli.main import main

    main()


class Forked:
    """A process that is forked from one which has imported everything: most of a start is imports."""

    def __init__(self, arguments: list[str]):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.process = context.Process(target=_genrec, args=(arguments,))
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> None:
        self.process.join()

    def send_signal(self, kind: int) -> None:
        os.kill(self.pid, kind)


def processor(pid: int) -> float:
    """Processor seconds of the threads that a process has, to the nanosecond."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


class Server:
    """``genrec serve`` on a free port and one core. ``code``: a checkout to run instead of the installed package.

    ``forked``: see ``Forked``.
    """

    def __init__(
        self,
        bundle: Path,
        events: Path | str,
        *options: str,
        code: Path | None = None,
        core: int | None = 0,
        forked: bool = False,
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        started = time.perf_counter()
        entry = "from genrec.cli.main import main; main()"
        if code is not None and (code / "genrec" / "cli.py").exists():  # a checkout from before the package of commands
            entry = "from genrec.cli import main; main()"
        arguments = ["serve", str(bundle), "--port", str(self.port), "--events", str(events), *options]
        command = [sys.executable, "-c", entry, *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        if code is not None:
            environment["PYTHONPATH"] = str(code)
        self.process: Forked | subprocess.Popen
        if forked:
            self.process = Forked(arguments)
        else:
            self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment, cwd=code)
        if core is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.process.pid, {core})
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
        length = self.random.randint(1, min(20, len(self.items)))
        return "/v1/recommend", {"history": self.random.sample(self.items, length), "k": 10}

    def search(self) -> tuple[str, dict]:
        _, body = self.recommend()
        words = self.random.choice(self.titles).split() if self.titles else ["thing"]
        return "/v1/search", body | {"query": " ".join(self.random.sample(words, min(3, len(words))))}


async def ask(client: Lines, request: tuple[str, dict], seconds: list[float], seen: Counter) -> float:
    """One request; its time counts only where it succeeded. Returns the pause that a refusal asks for."""
    body = json.dumps(request[1]).encode()
    started, pause = time.perf_counter(), 0.0
    try:
        status: int | str = (await client.post(request[0], body))[0]
    except (OSError, TimeoutError) as error:
        status = type(error).__name__
    seen[status] += 1
    if status == 200:
        seconds.append(time.perf_counter() - started)
    elif status == 429:
        pause = 1.0  # the least that Retry-After says
    return pause


async def closed_loop(server: Server, make, clients: int, duration: float, patient: bool = False) -> dict:
    """``clients`` callers, each asking again once it has its answer; ``patient`` ones wait as a refusal asks them to."""
    seconds: list[float] = []
    seen: Counter = Counter()
    client, warm = Lines(server.port), Counter()
    await asyncio.gather(*(ask(client, make(), [], warm) for _ in range(min(clients, 64))))
    started, burnt, own = time.perf_counter(), server.processor(), time.process_time()

    async def caller() -> None:
        while time.perf_counter() - started < duration:
            pause = await ask(client, make(), seconds, seen)
            if patient and pause:
                await asyncio.sleep(pause)

    await asyncio.gather(*(caller() for _ in range(clients)))
    spent = time.perf_counter() - started
    client.close()
    each = 1e3 / max(len(seconds), 1)
    return {"clients": clients} | summary(seconds, seen, spent) | {
        "server_cpu_ms": round((server.processor() - burnt) * each, 2),
        "client_cpu_ms": round((time.process_time() - own) * each, 2),
    }  # fmt: skip


def summary(seconds: list[float], seen: Counter, spent: float) -> dict:
    """Good answers a second, percentiles in milliseconds, and how many requests had each status."""
    points = np.percentile(np.array(seconds or [np.nan]) * 1000, PERCENTILES)
    return {
        "per_second": round(len(seconds) / spent, 1),
        **{f"p{name}_ms": round(float(value), 1) for name, value in zip(PERCENTILES, points, strict=True)},
        "failed": sum(count for status, count in seen.items() if status != 200),
        "statuses": {str(status): count for status, count in seen.items()},
    }  # fmt: skip
