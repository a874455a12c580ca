"""What a server does with hostile traffic: schemathesis over its OpenAPI document, then oversized, malformed and
unicode-hostile requests at once.

    python scripts/bench/serve_hostile.py BUNDLE --output results --examples 100

No answer may be a 5xx, but 504 to a client's own ``timeout_ms``, and none may take longer than its budget. The numbers go to ``serve_hostile.json``, schemathesis'
own report beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from http_lines import Lines
from serve_server import Server, Traffic

DEEP = b'{"history": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
HOSTILE: dict[str, tuple[str, bytes]] = {
    "not JSON": ("/v1/recommend", b"{history: }"),
    "cut off": ("/v1/recommend", b'{"history": ["a", "b"'),
    "empty body": ("/v1/recommend", b""),
    "a list, no object": ("/v1/recommend", b"[1, 2, 3]"),
    "not UTF-8": ("/v1/search", b'{"query": "\xff\xfe\xfa"}'),
    "lone surrogate": ("/v1/search", b'{"query": "\\ud800"}'),
    "lone surrogate as user": ("/v1/recommend", b'{"user_id": "\\udfff"}'),
    "null byte": ("/v1/search", b'{"query": "a\\u0000b"}'),
    "right-to-left and joiners": ("/v1/search", json.dumps({"query": "\u202e\u200d\u200b\ufeff shampoo \U0001f9d4\U0001f3ff\u200d\u2642"}).encode()),
    "combining marks, 200 of them": ("/v1/search", json.dumps({"query": "e" + "\u0301" * 200}).encode()),
    "only spaces of unicode": ("/v1/search", json.dumps({"query": "\u2003\u00a0\u3000"}).encode()),
    "nested 100,000 deep": ("/v1/recommend", DEEP),
    "5 MB body": ("/v1/recommend", b'{"history": ["' + b"x" * 5_000_000 + b'"]}'),
    "1 MB query": ("/v1/search", json.dumps({"query": "x" * 1_000_000}).encode()),
    "100,000 events of history": ("/v1/recommend", json.dumps({"history": ["x"] * 100_000}).encode()),
    "k of 10^9": ("/v1/recommend", b'{"history": ["x"], "k": 1000000000}'),
    "k below 1": ("/v1/recommend", b'{"history": ["x"], "k": 0}'),
    "number of 400 digits": ("/v1/recommend", b'{"history": ["x"], "k": ' + b"9" * 400 + b"}"),
    "NaN": ("/v1/recommend", b'{"history": ["x"], "k": NaN}'),
    "timestamp out of range": ("/v1/recommend", b'{"history": ["x"], "timestamp": 99999999999999999999}'),
    "unknown field": ("/v1/recommend", b'{"histori": ["x"]}'),
    "unknown path": ("/v1/nothing", b"{}"),
    "path of 60,000 characters": ("/v1/" + "a" * 60_000, b"{}"),
}  # fmt: skip


def schemathesis(server: Server, examples: int, report: Path, seconds: float) -> dict:
    """The command line's full run, reload left out (the bench of reloads has it).

    504 is a stated answer: requests may bring a ``timeout_ms`` of 1. The server's own budget is out of reach here.
    """
    settings = report.with_name("schemathesis.toml")
    settings.write_text('[checks]\nnot_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 504]\n')
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(settings), "run", f"{server.url}/openapi.json", "--checks", CHECKS, "--phases", "examples,coverage,fuzzing,stateful",
        "--max-examples", str(examples), "--request-timeout", "20", "--seed", "1", "--exclude-path", "/v1/admin/reload", "--no-color", "--workers", "1",
    ]  # fmt: skip
    started = time.perf_counter()
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        text, code = run.stdout + run.stderr, run.returncode
    except subprocess.TimeoutExpired as expired:
        text, code = (expired.stdout or b"").decode(), -1
    report.write_text(text)
    generated = re.findall(r"^.*(?:Test cases|generated|tested).*$", text, re.MULTILINE | re.IGNORECASE)
    return {
        "exit_code": code,
        "seconds": round(time.perf_counter() - started, 1),
        "says": [line.strip() for line in generated][-6:],
    }


async def hostile(server: Server, rounds: int, traffic: Traffic) -> dict:
    """Every hostile request ``rounds`` times, 16 at once, with honest ones among them."""
    client, slowest, seen = Lines(server.port), {}, {}
    gate = asyncio.Semaphore(16)

    async def one(name: str, path: str, body: bytes) -> None:
        async with gate:
            started = time.perf_counter()
            try:
                status: int | str = (await client.post(path, body))[0]
            except (OSError, TimeoutError, asyncio.LimitOverrunError) as error:
                status = type(error).__name__
            seen.setdefault(name, Counter())[str(status)] += 1
            slowest[name] = max(slowest.get(name, 0.0), time.perf_counter() - started)

    jobs = [(name, *what) for name, what in HOSTILE.items() for _ in range(rounds)]
    for _ in range(rounds * 10):
        path, body = traffic.recommend()
        jobs.append(("honest", path, json.dumps(body).encode()))
    traffic.random.shuffle(jobs)
    await asyncio.gather(*(one(*job) for job in jobs))
    client.close()
    return {name: {"statuses": dict(seen[name]), "slowest_s": round(slowest[name], 3)} for name in [*HOSTILE, "honest"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--output", type=Path, help="folder for the numbers; without it they are printed alone")
    parser.add_argument("--examples", type=int, default=100, help="of schemathesis per operation")
    parser.add_argument("--rounds", type=int, default=10, help="of every hostile request")
    parser.add_argument("--limit", type=float, default=600, help="seconds that schemathesis may take")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    output = options.output or work
    output.mkdir(parents=True, exist_ok=True)
    try:
        server = Server(options.bundle, work / "hostile.sqlite", "--time-budget-ms", "20000")
        result = {"hostile": asyncio.run(hostile(server, options.rounds, Traffic(options.bundle)))}
        if options.examples:
            result["schemathesis"] = schemathesis(server, options.examples, output / "schemathesis.txt", options.limit)
        result["still answers"] = asyncio.run(_answers(server))
        server.stop()
        (output / "serve_hostile.json").write_text(json.dumps(result, indent=1) + "\n")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(json.dumps(result, indent=1))


async def _answers(server: Server) -> bool:
    client = Lines(server.port)
    status, _ = await client.post("/v1/recommend", {"history": []})
    client.close()
    return status == 200


if __name__ == "__main__":
    main()
