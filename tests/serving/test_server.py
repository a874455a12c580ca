"""The HTTP server: answers, limits, keys, reloads, durability, and logs that hold nobody's data."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import weakref

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.client import Client, ServerError
from genrec.errors import UserError
from genrec.inference.bundle import export
from genrec.serving.engine import settle_objects
from genrec.serving.middleware import RequestMiddleware
from genrec.serving.parsing import MAX_OBJECTS, JsonShape, json_shape
from genrec.serving.settings import Keys, ServeSettings
from genrec.serving.sqlite_store import SqliteStore

JSON = {"content-type": "application/json"}


def ids(reply) -> list[str]:
    assert reply.status_code == 200, reply.text
    return [item["item_id"] for item in reply.json()["items"]]


def problem(reply, status: int, *words: str) -> None:
    body = reply.json()
    assert reply.status_code == status and set(body) == {"error", "message"}, reply.text
    for word in words:
        assert word in body["message"], body


def test_answers_are_the_recommenders(serving, model):
    async def go():
        async with serving() as (client, _):
            user, history = model.dataset.user_ids[1], model.snapshot.item_ids[:3]
            plain = [answer.item_id for answer in model.recommend(user, k=7)]
            assert ids(await client.post("/v1/recommend", json={"user_id": user, "k": 7})) == plain
            actual = [answer.item_id for answer in model.search("blue scarf", history=history)]
            assert ids(await client.post("/v1/search", json={"query": " blue scarf ", "history": history})) == actual
            ranked = [answer.item_id for answer in model.rank(history[::-1], user)]
            assert ids(await client.post("/v1/rank", json={"candidates": history, "user_id": user})) == ranked
            body = {
                "history": [{"item_id": history[0], "timestamp": 5}, history[1]],
                "filters": {"blocked": plain},
                "diversity": {"at_most": 1},
            }
            assert not set(ids(await client.post("/v1/recommend", json=body))) & set(plain)
            why = (await client.post("/v1/explain", json={"item_id": plain[0], "user_id": user})).json()
            assert why["item_id"] == plain[0] and len(why["path"]) == 5
            assert len((await client.post("/v1/walk", json={"history": history, "width": 3})).json()["levels"]) == 5
            assert ids(await client.post("/v1/recommend", json={"user_id": "a stranger"})) == [
                answer.item_id for answer in model.recommend()
            ]

    asyncio.run(go())


def test_concurrent_requests_share_passes_and_keep_their_answers(serving, model):
    async def go():
        async with serving(batch_wait_ms=50.0) as (client, app):
            users = model.dataset.user_ids[:20].to_list()
            replies = await asyncio.gather(
                *(client.post("/v1/recommend", json={"user_id": user, "k": 5}) for user in users)
            )
            bad = await asyncio.gather(
                *(client.post("/v1/rank", json={"candidates": [name]}) for name in ("nope", model.snapshot.item_ids[0]))
            )
            assert [ids(reply) for reply in replies] == [
                [answer.item_id for answer in model.recommend(user, k=5)] for user in users
            ]
            assert [len(ids(reply)) for reply in bad] == [0, 1] and "'nope'" in bad[0].json()["notes"][0]
            batches = next(iter(app.state.server.metrics.batch.collect())).samples
            assert next(sample.value for sample in batches if sample.name.endswith("_count")) < 20

    asyncio.run(go())


def test_a_click_changes_the_next_answer_and_can_be_forgotten(serving, model):
    async def go():
        async with serving() as (client, _):
            before = ids(await client.post("/v1/recommend", json={"user_id": "new"}))
            event = {"user_id": "new", "item_id": before[0], "event_id": "e1"}
            for again in ([], [{"index": 0, "problem": "repeated", "kept": True}]):
                assert (await client.post("/v1/events", json={"events": [event]})).json() == {
                    "accepted": 1,
                    "rejected": 0,
                    "details": again,
                }
            after = ids(await client.post("/v1/recommend", json={"user_id": "new"}))
            assert after != before and before[0] not in after
            assert after == [answer.item_id for answer in model.recommend(history=[before[0]])]
            known = model.dataset.user_ids[3]  # what the store holds comes after what the bundle knows
            own = ids(await client.post("/v1/recommend", json={"user_id": known}))
            await client.post("/v1/events", json={"events": [{"user_id": known, "item_id": own[0]}]})
            assert own[0] not in ids(await client.post("/v1/recommend", json={"user_id": known}))
            assert (await client.delete("/v1/users/new")).json() == {"removed": 1, "in_bundle": False}
            assert ids(await client.post("/v1/recommend", json={"user_id": "new"})) == before

    asyncio.run(go())


def test_items_come_and_go_and_stay_through_restart_and_reload(serving, bundle):
    async def go():
        async with serving() as (client, _):
            items = [
                {"item_id": "new/1 x", "title": "Quux velvet throne", "category": ["Thrones"]},
                {"item_id": "new-2", "title": "Quux lamp"},
            ]
            assert (await client.post("/v1/items", json={"items": items})).json() == {
                "added": 2,
                "restored": 0,
                "unchanged": 0,
            }
            assert "new/1 x" in ids(await client.post("/v1/recommend", json={"filters": {"category": ["Thrones"]}}))
            assert (await client.get("/v1/items/new%2F1%20x")).json()["title"] == "Quux velvet throne"
            gone = ids(await client.post("/v1/recommend", json={"k": 1}))[0]
            assert (await client.delete(f"/v1/items/{gone}")).json() == {"removed": 1}
            problem(await client.delete(f"/v1/items/{gone}"), 404, gone)
            problem(await client.get("/v1/items/nope"), 404, "nope")
            assert (await client.post("/v1/items", json={"items": [{"item_id": "dropped"}]})).json()["added"] == 1
            assert (await client.delete("/v1/items/dropped")).json() == {"removed": 1}
            assert (await client.post("/v1/admin/reload")).status_code == 200
            assert (await client.get("/v1/items/new-2")).status_code == 200 and (
                await client.get(f"/v1/items/{gone}")
            ).status_code == 404
        async with serving() as (client, app):
            snapshot = app.state.server.engine.model.snapshot
            assert not snapshot.in_trie(gone) and snapshot.in_trie("new-2") and snapshot.index_of("dropped") < 0
            assert (await client.get("/v1/items/new-2")).json()["title"] == "Quux lamp"
            assert gone not in ids(await client.post("/v1/recommend", json={"k": 1000}))
            assert (await client.delete("/v1/items/new-2")).json() == {"removed": 1}
            assert (await client.post("/v1/items", json={"items": items})).json() == {
                "added": 0,
                "restored": 1,
                "unchanged": 1,
            }

    asyncio.run(go())


HOSTILE = [
    ("/v1/search", '{"query":', 400),
    ("/v1/search", "", 422),
    ("/v1/search", '{"query": ""}', 422),
    ("/v1/search", '{"query": "  "}', 422),
    ("/v1/search", '{"query": "\\ud800"}', 400),
    ("/v1/search", '{"query": 5}', 422),
    ("/v1/search", "[" * 5000, 422),
    ("/v1/search", '{"a":' * 5000, 422),
    ("/v1/search", '{"query": "x", "k": 0}', 422),
    ("/v1/search", '{"query": "x", "k": 1e999}', 422),
    ("/v1/search", '{"query": "x", "nonsense": 1}', 422),
    ("/v1/search", '{"query": "x", "mode": "guess"}', 422),
    ("/v1/search", '{"query": "x", "timestamp": 99999999999999999999}', 422),
    ("/v1/search", '{"query": "x", "k": ' + "9" * 5000 + "}", 400),
    ("/v1/search", b'{"query": "\xff\xfe"}', 400),
    ("/v1/search", "null", 422),
    ("/v1/recommend", '{"history": ["' + "x" * 300 + '"]}', 422),
    ("/v1/recommend", '{"history": [{"item_id": "a", "timestamp": NaN}]}', 422),
    ("/v1/rank", '{"candidates": []}', 422),
    ("/v1/explain", '{"item_id": "nope"}', 404),
    ("/v1/nothing", "{}", 404),
    ("/v1/items", '{"items": [{"item_id": "a", "price": NaN}]}', 422),
    ("/v1/items", '{"items": [{"item_id": "a"}, {"item_id": "a"}]}', 422),
    ("/v1/events", '{"events": [{"user_id": "u"}]}', 422),
]


def test_hostile_bodies_are_refused_and_harm_nothing(serving):
    async def go():
        async with serving() as (client, _):
            for path, body, status in HOSTILE:
                reply = await client.post(path, content=body, headers=JSON)
                assert reply.status_code == status, (path, body[:60], reply.text)
                assert set(reply.json()) == {"error", "message"} and len(reply.text) < 1000
            kept = {"query": "\u0000 \ufdfd \U0001f600 \u202e \u0301" + "a" * 400, "user_id": "\U0001f600\u0000"}
            assert len(ids(await client.post("/v1/search", json=kept))) == 10
            assert (await client.get("/v1/search")).status_code == 405

    asyncio.run(go())


def test_sizes_and_depths(serving):
    async def go():
        async with serving(max_body_bytes=2000, max_depth=4) as (client, _):
            problem(
                await client.post("/v1/search", json={"query": "x", "history": ["a" * 200] * 20}), 413, "2000 bytes"
            )

            async def endless():
                for _ in range(1000):
                    yield b" " * 100

            problem(await client.post("/v1/search", content=endless(), headers=JSON), 413, "2000 bytes")
            problem(await client.post("/v1/search", content="[[[[[]]]]]", headers=JSON), 422, "nested 4 deep")

    asyncio.run(go())
    assert [
        json_shape(body).depth
        for body in (b"", b"1", b"[]", b'{"a": [1, {"b": 2}]}', b'["[[[[", "\\"[["]', b'"[[[', b"]]][[")
    ] == [0, 0, 1, 3, 1, 0, 0]
    assert json_shape(b'{"a, {": ["\\\\", ",", {}], "b": 1}') == JsonShape(3, 2, 3)


def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(serving, monkeypatch):
    def never(body):
        raise AssertionError("parsed")

    async def go():
        async with serving() as (client, _):
            many = b'{"items": [' + b",".join([b"{}"] * (MAX_OBJECTS + 1)) + b"]}"
            keys = b"{" + b",".join(b'"k%d":1' % n for n in range(200_000)) + b"}"
            monkeypatch.setattr("genrec.serving.bodies.parse_json", never)
            for body in (many, keys):
                problem(await client.post("/v1/items", content=body, headers=JSON), 422, "more values")
            monkeypatch.undo()
            ids = {"history": ["x"], "filters": {"blocked": [f"{n}" for n in range(20_000)]}}
            assert (await client.post("/v1/recommend", json=ids)).status_code == 200

    asyncio.run(go())


@given(
    value=st.recursive(
        st.none() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)
    )
)
def test_the_shape_of_a_text_is_that_of_its_value(value):
    def depth(one):
        parts = one.values() if isinstance(one, dict) else one
        return 1 + max(map(depth, parts), default=0) if isinstance(one, dict | list) else 0

    def objects(one):
        parts = one.values() if isinstance(one, dict) else one if isinstance(one, list) else []
        return isinstance(one, dict) + sum(map(objects, parts))

    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        shape = json_shape(text.encode("utf-8", "replace"))
        assert (shape.depth, shape.objects) == (depth(value), objects(value))


def test_a_slow_body_is_not_waited_for(serving):
    async def go():
        async with serving(body_timeout_ms=50.0) as (client, _):

            async def slow():
                yield b"{"
                await asyncio.sleep(5)
                yield b"}"

            problem(await client.post("/v1/search", content=slow(), headers=JSON), 408)

    asyncio.run(go())


def test_keys(serving, tmp_path):
    async def go():
        (tmp_path / "keys").write_text(
            "first-key-0123456789\n# a comment\nread reader-key-0123456789\nwrite second-key-0123456789\n"
        )
        async with serving(key_file=tmp_path / "keys") as (client, app):
            for headers in ({}, {"authorization": "Bearer nope"}, {"x-api-key": ""}, {"authorization": "Bearer "}):
                problem(await client.post("/v1/recommend", json={}, headers=headers), 401, "key")
                assert (await client.post("/v1/admin/reload", headers=headers)).status_code == 401
            admin = {"authorization": "Bearer first-key-0123456789"}
            reader, writer = {"x-api-key": "reader-key-0123456789"}, {"x-api-key": "second-key-0123456789"}
            event = {"events": [{"user_id": "u", "item_id": "i000003"}]}
            for headers, statuses in ((reader, (200, 403, 403)), (writer, (200, 200, 403)), (admin, (200, 200, 200))):
                actual = [
                    (await client.post("/v1/recommend", json={}, headers=headers)).status_code,
                    (await client.post("/v1/events", json=event, headers=headers)).status_code,
                    (await client.post("/v1/admin/reload", headers=headers)).status_code,
                ]
                assert tuple(actual) == statuses
            for path in ("/", "/docs", "/healthz", "/readyz", "/metrics", "/openapi.json"):
                assert (await client.get(path)).status_code == 200
            # a rotated key is in force without a restart, and a file that became wrong changes nothing
            keys = next(one for one in middlewares(app) if isinstance(one, RequestMiddleware)).keys
            for text, statuses in (("read a-newer-key-0123456789", (401, 200)), ("short", (401, 200))):
                (tmp_path / "keys").write_text(text)
                keys._checked = -10.0
                actual = [(await client.post("/v1/recommend", json={}, headers={"x-api-key": key})).status_code
                         for key in ("first-key-0123456789", "a-newer-key-0123456789")]  # fmt: skip
                assert tuple(actual) == statuses

    asyncio.run(go())


def middlewares(app):
    """The middleware stack of an app, outermost first."""
    one = app.middleware_stack
    while one is not None:
        yield one
        one = getattr(one, "app", None)


def test_wrong_key_files(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        Keys(tmp_path / "none")
    for text, words in (
        ("\n# no\n", "holds no key"),
        ("short\n", "fewer than 16"),
        ("king a-long-enough-key-1\n", "role 'king'"),
    ):
        (tmp_path / "keys").write_text(text)
        with pytest.raises(UserError, match=words):
            Keys(tmp_path / "keys")


def test_full_queues_and_spent_budgets(serving):
    async def go():
        async with serving(max_batch=1, queue=2) as (client, app):
            slow = app.state.server.main.queue
            work = slow.work
            slow.work = lambda payloads: (time.sleep(0.2), work(payloads))[1]
            replies = await asyncio.gather(*(client.post("/v1/recommend", json={}) for _ in range(12)))
            counts = {status: sum(reply.status_code == status for reply in replies) for status in (200, 429)}
            assert sum(counts.values()) == 12 and 1 <= counts[200] <= 4
            refused = next(reply for reply in replies if reply.status_code == 429)
            assert int(refused.headers["retry-after"]) >= 1
            slow.work = work
        async with serving(time_budget_ms=100.0) as (client, app):
            slow = app.state.server.main.queue
            work = slow.work
            slow.work = lambda payloads: (time.sleep(0.5), work(payloads))[1]
            problem(await client.post("/v1/recommend", json={}), 504, "time budget")

    asyncio.run(go())


def test_a_reload_swaps_and_a_bad_bundle_is_refused(trained_run, bundle, serving, tmp_path):
    async def go():
        position = tmp_path / "live"
        shutil.copytree(bundle, position)
        async with serving(bundle=position) as (client, _):
            before = await client.post("/v1/recommend", json={"k": 3})
            weights = position / "model_refit" / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1] + b"?")
            problem(await client.post("/v1/admin/reload"), 409, "model.safetensors", "not what was written")
            again = await client.post("/v1/recommend", json={"k": 3})
            assert ids(again) == ids(before)
            shutil.rmtree(position)
            problem(await client.post("/v1/admin/reload"), 409)
            export(trained_run.folder, position, "train", programs=False)
            requests = [asyncio.create_task(client.post("/v1/recommend", json={"k": 3})) for _ in range(10)]
            swapped = await client.post("/v1/admin/reload")
            assert {reply.status_code for reply in await asyncio.gather(*requests)} == {200}
            after = await client.post("/v1/recommend", json={"k": 3})
            assert (
                swapped.status_code == 200
                and after.json()["bundle"] == swapped.json()["bundle"] != before.json()["bundle"]
            )

    asyncio.run(go())


def test_a_replaced_model_is_freed_though_loaded_objects_are_not_collected(serving):
    async def go():
        async with serving() as (client, app):
            settle_objects()
            try:
                engine = app.state.server.engine
                old = weakref.ref(engine.model)
                assert (await client.post("/v1/admin/reload")).status_code == 200
                assert old() is None
                assert gc.get_freeze_count() > 0
            finally:
                gc.unfreeze()

    asyncio.run(go())


def test_logs_and_metrics_hold_no_personal_data(serving, caplog):
    caplog.set_level(logging.INFO, logger="genrec.serve")

    async def go():
        async with serving() as (client, app):
            await client.post("/v1/search", json={"query": "secretquery", "user_id": "secretuser"})
            await client.post(
                "/v1/recommend", json={"user_id": "secretuser", "history": [{"item_id": "secretitem", "bad": 1}]}
            )
            await client.delete("/v1/users/secretuser")
            await client.get("/secretpath")
            text = (await client.get("/metrics")).text
        lines = [record.fields for record in caplog.records if record.getMessage() == "request"]
        assert len(lines) == 5 and {"route", "status", "ms", "request_id"} <= set(lines[0])
        assert "secret" not in json.dumps(lines) + text
        key = app.state.server.engine.key
        assert (
            f'genrec_requests_total{{bundle="{key}",route="/v1/search",status="200"}} 1.0' in text
            and "genrec_batch_size" in text
        )

    asyncio.run(go())


def test_failures_of_ours_are_500_without_details(serving):
    async def go():
        async with serving() as (client, app):
            app.state.server.main.queue.work = lambda questions: 1 / 0
            reply = await client.post("/v1/recommend", json={})
            problem(reply, 500, "our mistake")
            assert "division" not in reply.text

    asyncio.run(go())


def test_the_settings_are_checked(tmp_path):
    for wrong in (
        {"max_batch": 0},
        {"queue": 0},
        {"time_budget_ms": 0},
        {"port": 70_000},
        {"threads": -1},
        {"max_depth": 0},
    ):
        with pytest.raises(UserError, match="--" + next(iter(wrong)).replace("_", "-")):
            ServeSettings(tmp_path, **wrong)


def test_the_command_serves_and_stops_in_good_order(bundle, tmp_path):
    """The real process: ready, a click kept, SIGHUP, SIGTERM with exit code 0, and a log of JSON lines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-c",
        "from genrec.cli.main import main; main()",
        "serve",
        str(bundle),
        "--port",
        str(port),
        "--events",
        str(tmp_path / "e"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            assert httpx.get(f"{url}/readyz").status_code == 200
            break
        except httpx.TransportError:
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
    client = Client(url)
    assert client.add_events([{"user_id": "u", "item_id": "i000003"}])["accepted"] == 1
    listing = client.search("blue scarf", user="u", k=3, fields=["brand"])
    assert len(listing.items) == 3 and listing.items[0].attributes and client.suggest(k=2)
    assert len(client.rank(["i000003", "i000004"]).items) == 2 and len(client.similar("i000003", k=4).items) == 4
    assert len(client.baselines("scarf", k=2)["bm25"]) == 2 and client.describe()["items"] > 4
    client.add_items([{"item_id": "a/b c", "title": "Quux"}])
    client.update_item("a/b c", title="Better")
    client.remove_item("a/b c")
    with pytest.raises(ServerError, match="404 not_found"):
        client.remove_item("a/b c")
    assert client.recommend(history=["i000003"], k=2).next_offset == 2
    assert client.erase_user("nobody")["removed"] == 0
    process.send_signal(signal.SIGHUP)
    while 'genrec_reloads_total{result="done"} 1.0' not in httpx.get(f"{url}/metrics").text:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=900)
    lines = [json.loads(line) for line in err.splitlines()]
    assert process.returncode == 0 and {"loaded", "reloaded", "request"} <= {line["event"] for line in lines}
    assert SqliteStore(tmp_path / "e").forget("u") == 1
