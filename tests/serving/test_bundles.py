"""Two bundles side by side, the metrics by stage, and traces."""

from __future__ import annotations

import asyncio

import pytest

from genrec.errors import UserError
from genrec.inference.bundle import export
from genrec.serving.bundles import goes_to_canary
from genrec.serving.settings import ServeSettings


@pytest.fixture(scope="module")
def other_bundle(trained_run, tmp_path_factory):
    return export(trained_run.folder, tmp_path_factory.mktemp("other") / "canary", fitted_on="train")


def test_a_canary_answers_its_users_and_both_are_in_the_metrics(serving, other_bundle):
    async def go():
        async with serving(canary=other_bundle, canary_weight=0.5) as (client, app):
            server = app.state.server
            keys = {"main": server.main.key, "canary": server.canary.key}
            assert len(set(keys.values())) == 2
            answered = {}
            for number in range(20):
                user = f"user-{number}"
                bundle = (await client.post("/v1/recommend", json={"user_id": user})).json()["bundle"]
                again = (await client.post("/v1/search", json={"user_id": user, "query": "scarf"})).json()["bundle"]
                assert bundle == again == keys["canary" if goes_to_canary(user, None, 0.5) else "main"]
                answered[user] = bundle
            assert set(answered.values()) == set(keys.values())
            text = (await client.get("/metrics")).text
            for role, key in keys.items():
                assert f'genrec_bundle_info{{bundle="{key}",name="' in text and f'role="{role}"' in text
                assert f'route="/v1/recommend",status="200"}} {sum(one == key for one in answered.values())}.0' in text
                for stage in ("queue", "network", "search", "ranking", "batch"):
                    assert f'genrec_stage_seconds_count{{bundle="{key}",stage="{stage}"}}' in text
            assert f'genrec_stage_seconds_count{{bundle="{keys["main"]}",stage="store"}}' in text
            item = {"item_id": "new-1", "title": "Blue wool scarf"}
            assert (await client.post("/v1/items", json={"items": [item]})).json()["added"] == 1
            assert all(served.engine.model.snapshot.has("new-1") for served in server.bundles)
            assert (await client.delete("/v1/items/new-1")).status_code == 200
            assert not any(served.engine.model.snapshot.has("new-1") for served in server.bundles)
            assert (await client.get("/readyz")).json()["canary"] == keys["canary"]
            assert (await client.post("/v1/admin/reload")).json()["bundle"] == keys["main"]

    asyncio.run(go())


def test_the_canarys_part_is_its_weight_and_a_wrong_one_is_refused(bundle):
    users = [f"u{number}" for number in range(4000)]
    part = sum(goes_to_canary(user, None, 0.1) for user in users) / len(users)
    assert 0.08 < part < 0.12 and not any(goes_to_canary(user, None, 0.0) for user in users)
    assert all(goes_to_canary(user, None, 1.0) for user in users)
    assert not goes_to_canary(None, None, 1.0), "nobody in particular gets the main bundle"
    with pytest.raises(UserError, match="--canary-weight"):
        ServeSettings(bundle, canary_weight=1.5)


def test_a_batch_is_a_span_that_links_to_its_answers(bundle, tmp_path):
    import httpx
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from genrec.serving.app import create_app
    from genrec.serving.engine import Engine
    from genrec.serving.tracing import Tracing

    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    settings = ServeSettings(bundle, events=str(tmp_path / "e.sqlite"), hosts=("test",), time_budget_ms=20_000.0)

    async def go():
        app = create_app(Engine(settings), Tracing(provider))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
                body = {"history": ["secret-item"], "user_id": "secret-user"}
                reply = await client.post("/v1/recommend", json=body, headers={"traceparent": parent})
                assert reply.status_code == 200
                await client.get("/healthz")

    asyncio.run(go())
    spans = {span.name: span for span in kept.get_finished_spans()}
    answer, batch = spans["answer"], spans["batch"]
    assert answer.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C, "the client's trace goes on"
    assert [link.context.span_id for link in batch.links] == [answer.context.span_id]
    assert batch.attributes["genrec.batch_size"] == 1 and batch.attributes["genrec.network_ms"] > 0
    assert not any("healthz" in span.name for span in kept.get_finished_spans())
    assert "secret" not in "".join(span.to_json() for span in kept.get_finished_spans())
