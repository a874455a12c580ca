"""What a server must stand: a store that fails, foreign web sites, large bodies, half-open connections, overload."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import threading
import time

import pytest
import uvicorn

from genrec.errors import UserError
from genrec.serving.app import _listen
from genrec.serving.batching import Batcher, QueueFullError, TimeBudgetError
from genrec.serving.connections import ConnectionLimit, limited_protocol
from genrec.serving.logs import Metrics
from genrec.serving.settings import ServeSettings
from genrec.serving.store import StoreError

JSON = {"content-type": "application/json"}


def test_a_store_that_is_away_fails_only_what_needs_it(serving, model):
    async def go():
        async with serving(batch_wait_ms=50.0) as (client, app):
            store = app.state.server.engine.store._store

            def away(*_arguments):
                raise StoreError("the event store fails (away)")

            whole, store.events_of = store.events_of, away
            history = model.snapshot.item_ids[:2]
            bodies = [{"user_id": "u"}, {"history": history}, {"user_id": "u", "history": history}, {}]
            replies = await asyncio.gather(*(client.post("/v1/recommend", json=body) for body in bodies))
            assert [reply.status_code for reply in replies] == [503, 200, 200, 200]
            assert replies[0].json()["error"] == "store_unavailable" and replies[0].headers["retry-after"]
            ready = await client.get("/readyz")
            assert ready.status_code == 503 and "store sqlite" in ready.json()["message"]
            metrics = (await client.get("/metrics")).text
            assert 'genrec_store_up{store="sqlite"} 0.0' in metrics and "genrec_store_failures_total" in metrics
            store.events_of = whole
            assert (await client.post("/v1/recommend", json={"user_id": "u"})).status_code == 200
            assert (await client.get("/readyz")).status_code == 200

    asyncio.run(go())


def test_a_change_is_not_visible_before_it_is_durable(serving):
    async def go():
        async with serving() as (client, app):
            store = app.state.server.engine.store._store
            item = (await client.post("/v1/recommend", json={"k": 1})).json()["items"][0]["item_id"]
            pages = store._connection().execute("PRAGMA page_count").fetchone()[0]
            big = {"item_id": "big", "title": "A title", "text": "word " * 4000}
            event = {"user_id": "u", "item_id": item, "query": "word " * 100}

            def limit(size: int) -> None:  # the disk is full
                for connection in store._open:
                    connection.execute(f"PRAGMA max_page_count = {size}")

            await client.post("/v1/items", json={"items": [{"item_id": "small"}]})
            await client.post("/v1/events", json={"events": [event]})
            limit(pages)
            for method, path, body in (
                ("POST", "/v1/items", {"items": [big]}),
                ("PATCH", "/v1/items/small", {"text": "word " * 4000}),
                ("POST", "/v1/events", {"events": [event] * 200}),
            ):
                reply = await client.request(method, path, json=body)
                assert reply.status_code == 507 and reply.json()["error"] == "store_full", reply.text
            assert (await client.get("/v1/items/big")).status_code == 404
            assert (await client.get("/v1/items/small")).json()["text"] is None
            limit(10**6)
            assert (await client.post("/v1/items", json={"items": [big]})).json()["added"] == 1

    asyncio.run(go())
    asyncio.run(restarted(serving, "big"))


async def restarted(serving, item: str) -> None:
    async with serving() as (client, _):
        assert (await client.get(f"/v1/items/{item}")).status_code == 200


def test_item_changes_reach_another_server_on_the_same_store(serving):
    async def go():
        async with serving(refresh_s=0.05) as (first, _), serving(refresh_s=0.05) as (second, _):
            await first.post("/v1/items", json={"items": [{"item_id": "new", "title": "Quux"}]})
            await eventually(second, "new", 200)
            await second.patch("/v1/items/new", json={"title": "Better"})
            for _ in range(200):
                if (await first.get("/v1/items/new")).json()["title"] == "Better":
                    break
                await asyncio.sleep(0.05)
            else:
                raise AssertionError("the update never came")
            await first.delete("/v1/items/new")
            await eventually(second, "new", 404)

    asyncio.run(go())


async def eventually(client, item: str, status: int) -> None:
    for _ in range(200):
        if (await client.get(f"/v1/items/{item}")).status_code == status:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{item} never became {status}")


def test_foreign_web_sites_and_other_hosts(serving):
    async def go():
        async with serving() as (client, _):
            body = json.dumps({"k": 1})
            for headers, status in (
                (JSON, 200),
                (JSON | {"origin": "http://test"}, 200),
                (JSON | {"origin": "http://evil.example"}, 403),
                (JSON | {"sec-fetch-site": "cross-site"}, 403),
                ({"content-type": "text/plain"}, 415),
                ({}, 415),
                (JSON | {"host": "evil.example"}, 421),
            ):
                assert (await client.post("/v1/recommend", content=body, headers=headers)).status_code == status, (
                    headers
                )
            assert (await client.post("/v1/admin/reload", headers={"origin": "null"})).status_code == 403
            head = await client.head("/healthz")
            assert head.status_code == 200 and head.content == b""
            assert "frame-ancestors 'none'" in (await client.get("/")).headers["content-security-policy"]
            echoed = await client.get("/healthz", headers={"x-request-id": "my-id.1"})
            assert echoed.headers["x-request-id"] == "my-id.1"
            made = await client.get("/healthz", headers={"x-request-id": "bad id\t"})
            assert made.headers["x-request-id"] != "bad id\t"

    asyncio.run(go())


def test_an_open_address_needs_keys_or_a_flag(tmp_path):
    with pytest.raises(UserError, match="--without-keys"):
        ServeSettings(tmp_path, host="0.0.0.0")
    assert ServeSettings(tmp_path, host="0.0.0.0", without_keys=True).allowed_hosts == ()
    assert "localhost" in ServeSettings(tmp_path).allowed_hosts


def test_a_taken_port_is_one_line_before_the_load(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="cannot listen"):
        _listen(ServeSettings(tmp_path, port=taken.getsockname()[1]))


def test_large_bodies_are_refused_by_size_keys_and_first_mistake(serving):
    async def go():
        async with serving() as (client, _):
            many = json.dumps({f"k{n}": 1 for n in range(5000)})
            long = json.dumps({"query": "x", "history": ["x"] * 100_000})
            wrong = json.dumps({"events": [{"user_id": "u"}] * 1000})
            for path, body, status in (
                ("/v1/search", many, 422),
                ("/v1/search", long, 413),
                ("/v1/events", wrong, 422),
            ):
                reply = await client.post(path, content=body, headers=JSON)
                assert reply.status_code == status and len(reply.text) < 500, reply.text[:300]

    asyncio.run(go())


def test_answers_past_the_application_have_its_mistakes_and_headers(serving):
    """Routes of lists are called without FastAPI: their problems must be those that its other routes give."""

    async def go():
        async with serving(time_budget_ms=2000.0) as (client, app):
            for body, status, error, words in (
                (b"", 422, "invalid", "body: Field required"),
                (b"{", 400, "not_json", "not JSON"),
                (b'{"k": "5"}', 422, "invalid", "body.k: Input should be a valid integer"),
                (b'{"nonsense": 1}', 422, "invalid", "body.nonsense: Extra inputs are not permitted"),
                (b'{"history": [{"item": 1}]}', 422, "invalid", "body.history.0"),
                (b"[" * 17 + b"]" * 17, 422, "too_deep", "16"),
                (b'{"cursor": "broken"}', 422, "invalid", "cursor"),
            ):
                reply = await client.post("/v1/recommend", content=body, headers=JSON | {"x-request-id": "r.1"})
                assert (reply.status_code, reply.json()["error"]) == (status, error), reply.text
                assert words in reply.json()["message"], reply.text
                assert reply.headers["x-request-id"] == "r.1" and reply.headers["x-content-type-options"] == "nosniff"
            assert (await client.get("/v1/recommend")).status_code == 405
            metrics = (await client.get("/metrics")).text
            assert 'route="/v1/recommend",status="422"' in metrics

            def broken(*_arguments):
                raise RuntimeError("a mistake of ours")

            app.state.server.main.engine.ask = broken
            reply = await client.post("/v1/recommend", json={"k": 1})
            assert reply.status_code == 500 and "a mistake of ours" not in reply.text

    asyncio.run(go())


def test_a_busy_server_refuses_before_it_reads_a_body(serving):
    async def go():
        async with serving() as (client, app):
            app.state.server.main.queue.refuses = lambda _budget: 7

            async def body():
                raise AssertionError("the body was read")
                yield b""

            reply = await client.post("/v1/search", content=body(), headers=JSON)
            assert reply.status_code == 429 and reply.headers["retry-after"] == "7"
            assert reply.json()["error"] == "busy"
            assert (await client.post("/v1/events", json={"events": []})).status_code == 422  # others are read

    asyncio.run(go())


def test_half_open_connections_are_closed_and_bounded():
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await asyncio.sleep(1.0 if scope["path"] == "/slow" else 0.0)
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    metrics = Metrics()
    settings = ServeSettings(__file__, header_timeout_ms=300.0, connections=5)  # type: ignore[arg-type]
    limit = ConnectionLimit(settings, metrics)
    with listening(app, limit) as address:
        check_connections(address, limit)


@contextlib.contextmanager
def listening(app, limit):
    """A server on loopback whose connections ``limit`` watches; its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, http=limited_protocol(limit), lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        thread.join()


def check_connections(address, limit):
    open_ones = [socket.create_connection(address) for _ in range(5)]
    open_ones[0].sendall(b"GET / HTTP/1.1\r\nhost: x\r\n")  # and never ends
    time.sleep(0.1)
    with socket.create_connection(address) as good:  # makes the oldest half-open one go
        good.settimeout(5)
        good.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"204" in good.recv(1000)
        with contextlib.suppress(ConnectionResetError):
            assert open_ones[0].recv(1000) == b""
        assert limit.open == 5
    for one in open_ones:
        one.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(1000) == b""
        one.close()
    with socket.create_connection(address) as good:
        good.settimeout(5)
        for _ in range(2):  # kept alive, the next head in time
            good.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"204" in good.recv(1000)
    busy = [socket.create_connection(address) for _ in range(5)]
    for one in busy:
        one.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
    time.sleep(0.2)
    with socket.create_connection(address) as refused:  # none of these makes room
        refused.settimeout(5)
        assert b"503" in refused.recv(1000)
    for one in busy:
        one.settimeout(10)
        assert b"204" in one.recv(1000)
        one.close()


def test_a_busy_server_refuses_at_the_head_and_goes_on_reading():
    """The rest of a refused request is skipped; what follows on the connection is answered, in order."""
    seen, busy = [], [7]

    async def app(scope, receive, send):
        message = await receive()
        seen.append((scope["path"], message["body"]))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    settings = ServeSettings(__file__, connections=5)  # type: ignore[arg-type]
    limit = ConnectionLimit(settings, Metrics(), lambda path: busy[0] if path == "/v1/search" else 0)
    post = b"POST %s HTTP/1.1\r\nhost: x\r\n%scontent-length: 4\r\n\r\nbody"
    with listening(app, limit) as address, socket.create_connection(address) as client:
        client.settimeout(5)
        reader = client.makefile("rb")

        def answer() -> tuple[bytes, list[bytes]]:
            head = []
            while line := reader.readline().strip():
                head.append(line.lower())
            size = next((int(line.split()[1]) for line in head if line.startswith(b"content-length")), 0)
            return reader.read(size), head

        client.sendall(post % (b"/v1/search?x=1", b"X-Request-Id: mine\r\n") + post % (b"/v1/events", b""))
        body, head = answer()
        assert b"429" in head[0] and b"retry-after: 7" in head and b"x-request-id: mine" in head
        assert json.loads(body)["error"] == "busy"
        assert b"204" in answer()[1][0] and seen == [("/v1/events", b"body")]
        client.sendall((post % (b"/v1/search", b""))[:-2])  # half of a body
        assert b"429" in answer()[1][0]
        client.sendall(b"dy" + b"GET /v1/search HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"204" in answer()[1][0]
        busy[0] = 0
        client.sendall(post % (b"/v1/search", b""))
        assert b"204" in answer()[1][0] and seen[-1] == ("/v1/search", b"body")
        busy[0] = 3
        client.sendall(post % (b"/v1/search", b"connection: close\r\nx-request-id: no good\r\n"))
        body, head = answer()
        assert b"connection: close" in head and not any(line.startswith(b"x-request-id") for line in head)
        assert reader.read() == b"" and len(seen) == 3


def test_a_client_that_asks_again_at_once_is_read_later(monkeypatch):
    """A flood costs one refusal a second and connection; other requests of the connection are answered meanwhile."""
    monkeypatch.setattr("genrec.serving.connections._HOLD", 2.0)
    busy, refused = [7], []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def refuse(path):
        refused.append(path)
        return busy[0] if path == "/v1/search" else 0

    settings = ServeSettings(__file__, connections=5)  # type: ignore[arg-type]
    limit = ConnectionLimit(settings, Metrics(), refuse, lambda path: busy[0] if path == "/v1/search" else 0)
    post = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody"
    with listening(app, limit) as address, socket.create_connection(address) as client:
        client.settimeout(5)

        def answer() -> tuple[bytes, float]:
            began, head = time.monotonic(), client.recv(1000)
            return head.split(b"\r\n")[0], time.monotonic() - began

        client.sendall(post % b"/v1/search")
        assert b"429" in answer()[0]
        client.sendall(post % b"/v1/events")
        assert b"204" in answer()[0] and refused == ["/v1/search", "/v1/events"]
        client.sendall((post % b"/v1/search?x=1")[:-2])
        client.sendall(b"dy")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1000)
        client.settimeout(5)
        assert refused == ["/v1/search", "/v1/events"] and b"429" in answer()[0] and len(refused) == 3
        busy[0] = 0  # what comes now is welcome, however early
        client.sendall(post % b"/v1/search")
        assert b"204" in answer()[0]
        busy[0] = 7
        client.sendall(post % b"/v1/search")
        assert b"429" in answer()[0]
        client.sendall(post % b"/v1/search")  # and goes away
    with listening(app, limit) as address, socket.create_connection(address) as client:
        client.settimeout(5)
        client.sendall(post % b"/v1/events")
        assert b"204" in client.recv(1000) and limit.open == 1


def test_refusals_are_counted_and_logged_now_and_then(serving, caplog):
    async def go():
        async with serving() as (client, app):
            server = app.state.server
            assert server.refuse("/v1/search") == 0 and server.refuse("/healthz") == 0
            server.main.queue.refuses = lambda _budget: 4
            with caplog.at_level("WARNING", "genrec.serve"):
                assert [server.refuse("/v1/search") for _ in range(50)] == [4] * 50
            assert server.refuse("/healthz") == server.refuse("/v1/events") == 0
            assert len([one for one in caplog.records if one.message == "requests refused"]) == 1
            metrics = (await client.get("/metrics")).text
            assert 'route="/v1/search",status="429"} 50' in metrics

    asyncio.run(go())


def test_overload_is_refused_at_once_and_what_was_taken_is_answered():
    """Ten times as many clients as can be answered: full batches, no answer too late, refusals without a wait."""
    sizes = []

    def slow(payloads: list) -> list:
        sizes.append(len(payloads))
        time.sleep(0.02 + 0.002 * len(payloads))
        return payloads

    async def go():
        batcher, counts, waits = Batcher(slow, 16, 0.0, 10_000), {"good": 0, "refused": 0, "late": 0}, []
        for n in range(4):
            await batcher.submit(n, 10)

        async def client():
            for _ in range(5):
                began = time.monotonic()
                try:
                    await batcher.submit(0, 0.4)
                    counts["good"] += 1
                except QueueFullError as error:
                    counts["refused"] += 1
                    waits.append(time.monotonic() - began)
                    assert error.retry_after >= 1
                    await asyncio.sleep(0.1)
                except TimeBudgetError:
                    counts["late"] += 1

        await asyncio.gather(*(client() for _ in range(300)))
        batcher.close()
        return counts, waits

    counts, _ = asyncio.run(go())
    assert counts["refused"] > 0 and counts["good"] >= 100 and counts["late"] <= counts["good"] // 10
    assert sorted(sizes)[len(sizes) // 2] >= 8


def test_the_store_file_is_private(tmp_path):
    from genrec.serving.sqlite_store import SqliteStore

    store = SqliteStore(tmp_path / "e")
    store.change_items({"a": None})
    for name in ("e", "e-wal", "e-shm"):
        assert stat.S_IMODE(os.stat(tmp_path / name).st_mode) == 0o600, name
    store.close()
