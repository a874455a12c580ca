"""The API beyond plain lists: filters, pages, several requests, changes, event reports, and notes of answers."""

from __future__ import annotations

import asyncio
import json

import polars as pl
import pytest
from pydantic import ValidationError

from genrec.data.prepare.appended import SERVED_OPTIONS
from genrec.data.readers import read_log
from genrec.data.schema import PROPENSITY
from genrec.serving.export import write_events
from genrec.serving.schemas import MAX_HISTORY, EventBody


def ids(reply) -> list[str]:
    assert reply.status_code == 200, reply.text
    return [item["item_id"] for item in reply.json()["items"]]


def test_answers_say_how_they_were_made(serving, model):
    async def go():
        async with serving() as (client, app):
            history = model.snapshot.item_ids[:3]
            answers = {}
            for mode in ("fused", "retrieve", "generate"):
                answers[mode] = (
                    await client.post("/v1/recommend", json={"history": history, "mode": mode, "k": 5})
                ).json()
                assert answers[mode]["mode"] == mode and answers[mode]["source"] == "model"
                assert answers[mode]["bundle"] == app.state.server.engine.key and answers[mode]["recommendation_id"]
            assert answers["fused"]["n_proven"] == 0 and answers["retrieve"]["n_proven"] == 5
            assert 0 < answers["generate"]["n_proven"] <= 5
            assert (await client.post("/v1/recommend", json={})).json()["source"] == "popular"
            nothing = (await client.post("/v1/search", json={"query": "qqqzzz xxyyzz"})).json()
            assert (
                nothing["no_match"]
                and nothing["match"] < 0.5
                and nothing["source"] == "popular"
                and not (await client.post("/v1/search", json={"query": "scarf"})).json()["no_match"]
            )

    asyncio.run(go())


def test_filters_facets_fields_and_pages(serving, model):
    async def go():
        async with serving() as (client, _):
            table = model.snapshot.table
            brand = table["brand"].drop_nulls()[0]
            where = {"any": [{"field": "brand", "eq": brand}, {"field": "price", "gte": 1e9}]}
            body = {"k": 80, "filters": {"where": where}, "fields": ["brand", "price"], "facets": ["brand", "price"]}
            reply = await client.post("/v1/recommend", json=body)
            expected = set(table.filter(pl.col("brand") == brand)["item_id"])
            assert set(ids(reply)) == expected
            assert all(item["attributes"]["brand"] == brand for item in reply.json()["items"])
            assert reply.json()["facets"]["brand"] == {"values": {brand: len(expected)}}
            assert reply.json()["facets"]["price"]["count"] <= len(expected)
            whole = ids(await client.post("/v1/recommend", json={"history": [table["item_id"][0]], "k": 20}))
            pages, offset = [], 0
            while offset is not None and offset < 20:
                page = await client.post(
                    "/v1/recommend", json={"history": [table["item_id"][0]], "k": 5, "offset": offset}
                )
                pages += ids(page)
                offset = page.json()["next_offset"]
            assert pages == whole
            for wrong in (
                {"filters": {"where": {"field": "nonsense", "eq": "red"}}},
                {"fields": ["nonsense"]},
                {"facets": ["nonsense"]},
                {"k": 1000, "offset": 1},
                {"k": 2.0},
                {"exclude_seen": 1},
            ):
                assert (await client.post("/v1/recommend", json=wrong)).status_code == 422, wrong

    asyncio.run(go())


def test_a_category_without_items_is_an_empty_list(serving, model):
    async def go():
        async with serving() as (client, _):
            name = model.snapshot.categories.names[0]
            reply = await client.post("/v1/recommend", json={"filters": {"category": [name + "x"]}})
            assert ids(reply) == [] and f"did you mean '{name}'" in reply.json()["notes"][0]
            upper = await client.post("/v1/recommend", json={"k": 80, "filters": {"category": [name.upper()]}})
            assert len(ids(upper)) == model.snapshot.categories.mask(name).sum() and upper.json()["notes"] == []

    asyncio.run(go())


def test_several_requests_similar_items_and_suggestions(serving, model):
    async def go():
        async with serving() as (client, _):
            item = model.snapshot.item_ids[3]
            requests = [
                {"kind": "recommend", "history": [item], "k": 3},
                {"kind": "search", "query": "blue scarf", "k": 4},
                {"kind": "rank", "candidates": [item, "nope"]},
                {"kind": "recommend", "filters": {"where": {"field": "nope", "eq": 1}}},
            ]
            answers = (await client.post("/v1/requests", json={"requests": requests})).json()["answers"]
            assert [len(answer["items"]) for answer in answers[:3]] == [3, 4, 1] and answers[3]["error"] == "invalid"
            assert "'nope'" in answers[2]["notes"][0]
            alone = await client.post("/v1/recommend", json={"history": [item], "k": 3})
            assert answers[0]["items"] == alone.json()["items"]
            similar = await client.post("/v1/similar", json={"item_id": item, "k": 5})
            assert ids(similar) == [answer.item_id for answer in model.similar(item, 5)] and item not in ids(similar)
            assert (await client.post("/v1/similar", json={"item_id": "nope"})).status_code == 404
            actual = (await client.post("/v1/suggest", json={"history": [item], "k": 5})).json()["suggestions"]
            prefix = actual[0]["query"][:2]
            actual = (await client.post("/v1/suggest", json={"prefix": prefix.upper()})).json()["suggestions"]
            assert actual and all(one["query"].lower().startswith(prefix.lower()) for one in actual)

    asyncio.run(go())


def test_items_are_updated(serving, bundle):
    async def go():
        async with serving() as (client, _):
            item = (await client.post("/v1/recommend", json={"k": 1})).json()["items"][0]["item_id"]
            before = (await client.get(f"/v1/items/{item}")).json()
            assert (await client.patch(f"/v1/items/{item}", json={"title": "Quux velvet throne"})).json() == {
                "updated": 1
            }
            after = (await client.get(f"/v1/items/{item}")).json()
            assert after == before | {"title": "Quux velvet throne"}
            assert ids(await client.post("/v1/search", json={"query": "Quux velvet throne", "k": 3})).count(item) == 1
            assert (await client.patch(f"/v1/items/{item}", json={"price": 3.5})).status_code == 200
            assert (await client.put(f"/v1/items/{item}", json={"title": "Plain"})).status_code == 200
            assert (await client.get(f"/v1/items/{item}")).json() == before | {
                "title": "Plain", "text": None, "brand": None, "category": None, "price": None,
            }  # fmt: skip
            for method, path, body, status in (
                ("PATCH", "nope", {"title": "x"}, 404),
                ("PATCH", item, {"titel": "x"}, 422),
                ("PATCH", item, {"price": "cheap"}, 422),
                ("PUT", item, {"item_id": "other"}, 422),
            ):
                assert (await client.request(method, f"/v1/items/{path}", json=body)).status_code == status
            # removed and added again: the columns given now hold
            await client.delete(f"/v1/items/{item}")
            again = await client.post("/v1/items", json={"items": [{"item_id": item, "title": "Back again"}]})
            assert again.json()["restored"] == 1
            assert (await client.get(f"/v1/items/{item}")).json()["title"] == "Back again"
            assert (await client.post("/v1/admin/reload")).status_code == 200
            assert (await client.get(f"/v1/items/{item}")).json()["title"] == "Back again"
        async with serving() as (client, _):
            assert (await client.get(f"/v1/items/{item}")).json()["title"] == "Back again"

    asyncio.run(go())


def test_events_are_reported_one_by_one_and_exported(serving, model, tmp_path):
    async def go():
        async with serving() as (client, app):
            item, action = model.snapshot.item_ids[0], model.dataset.actions_chain[0]
            event = {"user_id": "u/1", "item_id": item, "action": action, "event_id": "e", "recommendation_id": "r1"}
            batch = [
                event,
                event | {"event_id": None, "item_id": "nope"},
                event | {"event_id": None, "action": "dance"},
                event,
                event | {"item_id": "another"},
                event | {"user_id": "v"},
            ]
            reply = (await client.post("/v1/events", json={"events": batch})).json()
            assert reply["accepted"] == 5 and reply["rejected"] == 1
            assert [(one["index"], one["problem"], one["kept"]) for one in reply["details"]] == [
                (1, "unknown_item", True), (2, "unknown_action", True), (3, "repeated", True), (4, "conflict", False),
            ]  # fmt: skip
            visible = {"recommendation_id": "r1", "user_id": "u/1", "items": [item, "x"]}
            assert (await client.post("/v1/impressions", json=visible)).json() == {"accepted": 2}
            chain = model.dataset.actions_chain
            counts = write_events(app.state.server.settings.store_path, tmp_path / "log", chain)
            assert counts == {"events": 4, "impressions": 2}
            events = pl.read_parquet(tmp_path / "log" / "events.parquet")
            assert set(events["action"]) == {action}  # "dance" is read as the weakest action
            assert events["request_id"].to_list() == ["r1"] * 4 and events["user_id"].to_list() == ["u/1"] * 3 + ["v"]
            impressions = pl.read_parquet(tmp_path / "log" / "impressions.parquet")
            assert impressions["position"].to_list() == [1, 2]
            assert impressions["action"].to_list() == [action, "impression"]

    asyncio.run(go())


def test_explored_answers_are_logged_with_their_propensities(serving, model, tmp_path):
    async def go():
        asked = {"user_id": model.dataset.user_ids[1], "k": 6}
        async with serving() as (client, _):
            plain = (await client.post("/v1/recommend", json=asked)).json()["items"]
            assert all("propensity" not in item for item in plain)
        async with serving(exploration=1.0, exploration_temperature=5.0) as (client, app):
            answer = (await client.post("/v1/recommend", json=asked)).json()
            propensities = [item["propensity"] for item in answer["items"]]
            assert all(0 < one < 1 for one in propensities) and answer["n_proven"] == 0
            ranked = {"candidates": [item["item_id"] for item in plain], "user_id": asked["user_id"]}
            ranked = (await client.post("/v1/rank", json=ranked)).json()["items"]
            assert all("propensity" not in item for item in ranked)
            shown = [item["item_id"] for item in answer["items"]]
            visible = {"recommendation_id": answer["recommendation_id"], "user_id": asked["user_id"], "items": shown}
            wrong = await client.post("/v1/impressions", json=visible | {"propensities": [0.5]})
            assert wrong.status_code == 422 and "6 items" in wrong.json()["message"]
            assert (await client.post("/v1/impressions", json=visible | {"propensities": [0.0] * 6})).status_code == 422
            kept = await client.post("/v1/impressions", json=visible | {"propensities": propensities})
            assert kept.json() == {"accepted": 6}
            await client.post("/v1/impressions", json=visible)  # a client that does not send them back
            click = {"user_id": asked["user_id"], "item_id": shown[0]}
            await client.post("/v1/events", json={"events": [click]})
            chain = model.dataset.actions_chain
            write_events(app.state.server.settings.store_path, tmp_path / "log", chain)
        return propensities

    propensities = asyncio.run(go())
    parts = list(read_log("table", tmp_path / "log", SERVED_OPTIONS))
    read = pl.concat([part.impressions for part in parts if part.impressions is not None])
    assert read[PROPENSITY].to_list() == [*propensities, *[None] * 6]


def test_a_person_is_erased_from_the_bundle_too(serving, model):
    async def go():
        async with serving() as (client, app):
            user = model.dataset.user_ids[2]
            own = ids(await client.post("/v1/recommend", json={"user_id": user}))
            popular = ids(await client.post("/v1/recommend", json={}))
            assert own != popular
            for name in (user, "u/1"):
                await client.post("/v1/events", json={"events": [{"user_id": name, "item_id": own[0]}]})
            assert (await client.delete(f"/v1/users/{user}")).json() == {"removed": 1, "in_bundle": True}
            assert ids(await client.post("/v1/recommend", json={"user_id": user})) == popular
            assert (await client.delete("/v1/users/u/1")).json() == {"removed": 1, "in_bundle": False}
            path = app.state.server.settings.store_path
            for name in ("", "-wal"):
                with open(path + name, "rb") as file:
                    assert user.encode() not in file.read(), name
        async with serving() as (client, _):
            assert ids(await client.post("/v1/recommend", json={"user_id": user})) == popular

    asyncio.run(go())


def test_seen_items_are_excluded_however_old(serving, model):
    async def go():
        async with serving() as (client, app):
            app.state.server.engine.store._store.limit = 2
            items = model.snapshot.item_ids[:6]
            events = [{"user_id": "u", "item_id": item, "timestamp": n} for n, item in enumerate(items)]
            await client.post("/v1/events", json={"events": events})
            assert not set(ids(await client.post("/v1/recommend", json={"user_id": "u", "k": 80}))) & set(items)

    asyncio.run(go())


def test_a_long_history_keeps_its_newest_part(serving, model):
    async def go():
        async with serving() as (client, _):
            old, new = model.snapshot.item_ids[0], model.snapshot.item_ids[1]
            long = [old] * 500 + [new] * MAX_HISTORY
            cut = await client.post("/v1/recommend", json={"history": long})
            assert ids(cut) == ids(await client.post("/v1/recommend", json={"history": [new] * MAX_HISTORY}))

    asyncio.run(go())


def test_the_description_has_security_tags_and_operation_ids(serving):
    async def go():
        async with serving() as (client, _):
            document = (await client.get("/openapi.json")).json()
            assert set(document["components"]["securitySchemes"]) == {"bearer", "apiKey"}
            operations = [one for path in document["paths"].values() for one in path.values()]
            names = [one["operationId"] for one in operations]
            assert len(set(names)) == len(names) and all(name.isalnum() for name in names)
            assert all(one["tags"] for one in operations)
            assert document["paths"]["/v1/explain"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
            assert "https://" not in (await client.get("/docs")).text
            for name, schema in document["components"]["schemas"].items():
                for example in schema.get("examples", ()) if name.endswith("Body") else ():
                    json.dumps(example)

    asyncio.run(go())


@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/search"])
def test_examples_of_the_description_work(serving, path):
    async def go():
        async with serving() as (client, _):
            document = (await client.get("/openapi.json")).json()
            name = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            examples = document["components"]["schemas"][name.rsplit("/", 1)[-1]]["examples"]
            for example in examples:
                assert (await client.post(path, json=example)).status_code == 200, example

    asyncio.run(go())


def test_ids_of_events_are_read_as_those_of_logs():
    body = {"user_id": " u1 ", "item_id": "7.0"}
    stored = EventBody.model_validate(body).stored()
    assert (stored.user_id, stored.item_id) == ("u1", "7")
    for word in ("undefined", "null", " "):
        with pytest.raises(ValidationError, match="stands for no id"):
            EventBody.model_validate(body | {"user_id": word})


def test_cursors_go_on_where_the_page_ended_and_belong_to_their_question(serving, model):
    async def go():
        async with serving() as (client, app):
            body = {"history": [model.snapshot.item_ids[0]], "k": 6}
            whole = ids(await client.post("/v1/recommend", json=body | {"k": 18}))
            pages, cursor = [], None
            for _ in range(3):
                reply = await client.post("/v1/recommend", json=body | ({"cursor": cursor} if cursor else {}))
                pages += ids(reply)
                cursor = reply.json()["next_cursor"]
            assert pages == whole
            for wrong, words in ((body | {"k": 7}, "another request"), (body, "start again")):
                damaged = wrong | {"cursor": cursor if "another" in words else cursor[:-4] + "AAA"}
                reply = await client.post("/v1/recommend", json=damaged)
                assert reply.status_code == 422 and words in reply.json()["message"], reply.text
            app.state.server.engine.key = "another"
            assert (
                "bundle changed"
                in (await client.post("/v1/recommend", json=body | {"cursor": cursor})).json()["notes"][0]
            )

    asyncio.run(go())


def test_reasons_name_history_items_and_words(serving, model):
    async def go():
        async with serving() as (client, _):
            history = model.snapshot.item_ids[:4]
            body = {"history": history, "reasons": True, "query": "blue scarf", "k": 10}
            items = (await client.post("/v1/search", json=body)).json()["items"]
            assert any(item["reason"]["words"] for item in items)
            for item in items:
                near = item["reason"]["because"]
                assert {one["item_id"] for one in near} <= set(history) - {item["item_id"]}
                why = model.explain(item["item_id"], history=history, query="blue scarf")
                assert item["reason"]["words"] == why.words
                if near:
                    first = why.neighbours[0]
                    assert near[0]["item_id"] == first.item_id
                    assert near[0]["similarity"] == pytest.approx(first.similarity, abs=1e-5)
            assert "reason" not in (await client.post("/v1/search", json=body | {"reasons": False})).json()["items"][0]

    asyncio.run(go())


def test_baselines_and_the_bundles_description(serving, model):
    async def go():
        async with serving() as (client, app):
            lists = (await client.post("/v1/baselines", json={"k": 5, "fields": ["brand"]})).json()
            assert lists["bm25"] is None and [item["item_id"] for item in lists["popular"]] == [
                answer.item_id for answer in model.recommend(k=5)
            ]
            lists = (await client.post("/v1/baselines", json={"k": 5, "query": "scarf"})).json()
            scores = [item["score"] for item in lists["bm25"]]
            assert scores and scores == sorted(scores, reverse=True) and min(scores) > 0
            blocked = {"query": "scarf", "filters": {"blocked": [lists["bm25"][0]["item_id"]]}}
            again = (await client.post("/v1/baselines", json=blocked)).json()
            assert lists["bm25"][0]["item_id"] not in {item["item_id"] for item in again["bm25"]}
            about = (await client.get("/v1/bundle")).json()
            assert about["bundle"] == app.state.server.key and about["items"] == model.snapshot.n_available
            assert about["columns"]["price"] == "Float64" and about["users"] == len(model.dataset.user_ids)

    asyncio.run(go())


def test_a_request_may_have_a_shorter_timeout(serving):
    async def go():
        async with serving(batch_wait_ms=300.0) as (client, _):
            assert (await client.post("/v1/recommend", json={"timeout_ms": 20})).status_code == 504
            assert (await client.post("/v1/recommend", json={"timeout_ms": 15_000})).status_code == 200
            assert (await client.post("/v1/recommend", json={"timeout_ms": 0})).status_code == 422

    asyncio.run(go())


def test_the_walk_leaves_out_seen_and_blocked_items(serving, model):
    async def go():
        async with serving() as (client, _):
            body = {"history": model.snapshot.item_ids[:5], "width": 20}

            async def leaves(**more):
                walk = (await client.post("/v1/walk", json=body | more)).json()
                return [item["item_id"] for leaf in walk["leaves"] for item in leaf["items"]]

            first = (await leaves())[0]
            assert first not in await leaves(blocked=[first])
            assert not set(await leaves(exclude_seen=True)) & set(body["history"])

    asyncio.run(go())
