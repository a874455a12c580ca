"""schemathesis over the OpenAPI document: whatever is sent, the server answers, and never with a 5xx."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error

from genrec.serving.app import create_app
from genrec.serving.engine import Engine
from genrec.serving.settings import ServeSettings


@pytest.fixture(scope="module")
def api(bundle, tmp_path_factory):
    engine = Engine(ServeSettings(bundle, events=str(tmp_path_factory.mktemp("fuzz") / "events.sqlite"), time_budget_ms=30_000.0))
    app = create_app(engine)
    yield schemathesis.openapi.from_asgi("/openapi.json", app).exclude(path="/v1/admin/reload")
    app.state.server.close()


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_never_a_5xx(case):
    case.call_and_validate(checks=[not_a_server_error])
