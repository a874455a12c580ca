"""schemathesis over the OpenAPI document: whatever is sent, the server answers, and never with a 5xx."""

from __future__ import annotations

import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode
from schemathesis.python.asgi import HOST

from genrec.serving.app import create_app
from genrec.serving.engine import Engine
from genrec.serving.settings import ServeSettings


@pytest.fixture(scope="module")
def api(bundle, tmp_path_factory):
    engine = Engine(
        ServeSettings(
            bundle,
            events=str(tmp_path_factory.mktemp("fuzz") / "events.sqlite"),
            time_budget_ms=30_000.0,
            hosts=(HOST,),
        )
    )
    app = create_app(engine)
    torch.set_flush_denormal(False)  # training sets it for its thread, and hypothesis refuses to draw floats then
    yield schemathesis.openapi.from_asgi("/openapi.json", app).exclude(path="/v1/admin/reload")
    app.state.server.close()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
def test_never_a_5xx(api, mode):
    checked = []
    for actual in api.get_all_operations():
        operation = actual.ok()
        try:
            strategy = operation.as_strategy(generation_mode=mode)
        except Unsatisfiable:  # nothing about this operation can be invalid
            continue

        @given(case=strategy)
        @settings(
            max_examples=6,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],  # a failure is reported as it was found: shrinking it takes minutes
            suppress_health_check=list(HealthCheck),
        )
        def check(case):
            reply = case.call(timeout=60)
            own = isinstance(case.body, dict) and "timeout_ms" in case.body  # a client may ask for less than it takes
            assert reply.status_code < 500 or own and reply.status_code == 504, (case.method, case.path, reply.text)
            checked.append((case.method, case.path))

        try:
            check()
        except Unsatisfiable:
            continue
    assert ("POST", "/v1/recommend") in checked and len(set(checked)) > 6
