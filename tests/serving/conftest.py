"""One bundle of the tiny run, a recommender on it, and an app around it."""

from __future__ import annotations

import contextlib

import httpx
import pytest

from genrec.inference.recommender import Recommender


@pytest.fixture
def model(bundle) -> Recommender:
    """A fresh recommender: tests change its catalogue."""
    return Recommender.load(bundle)


@pytest.fixture
def serving(bundle, tmp_path):
    """``async with serving(**settings) as (client, app)``: the app with its lifespan, on a loop of the test's own."""
    from genrec.serving.app import create_app
    from genrec.serving.engine import Engine
    from genrec.serving.settings import ServeSettings

    @contextlib.asynccontextmanager
    async def start(**settings):
        given = {
            "bundle": bundle,
            "events": str(tmp_path / "events.sqlite"),
            "batch_wait_ms": 1.0,
            "time_budget_ms": 20_000.0,
            "hosts": ("test",),
        } | settings
        app = create_app(Engine(ServeSettings(**given)))
        async with app.router.lifespan_context(app):
            # httpx returns only once the app is done; an exception in the app must be an answer, not raised here
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                yield client, app

    return start
