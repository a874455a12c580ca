"""A bundle that answers: its engine, its queue, and what is measured of both."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from genrec.inference.requests import RecommendationRequest, Response
from genrec.serving.batching import Batcher
from genrec.serving.engine import Engine
from genrec.serving.logs import Metrics
from genrec.serving.tracing import Tracing
from genrec.timing import observed

Payload = tuple[RecommendationRequest, Any]  # the request, and the span of its answer


class ServedBundle:
    """An engine behind a queue. ``role``: ``main`` or ``canary``."""

    def __init__(self, engine: Engine, role: str, metrics: Metrics, tracing: Tracing | None = None):
        settings = engine.settings
        self.engine, self.role, self.metrics, self.tracing = engine, role, metrics, tracing
        self.queue = Batcher(
            self._answer, settings.max_batch, settings.batch_wait_ms / 1000, settings.queue, self._on_batch, role
        )
        self.describe()

    @property
    def key(self) -> str:
        """The key of the bundle that answers now."""
        return self.engine.key

    async def ask(self, request: RecommendationRequest, seconds: float) -> Response:
        """The response to one request within ``seconds``, in a batch with others."""
        if self.tracing is None:
            return await self.queue.submit((request, None), seconds)
        with self.tracing.answer(self.key, request.mode) as span:
            return await self.queue.submit((request, span), seconds)

    def describe(self) -> None:
        """Report which bundle this is and how many items it can recommend."""
        self.metrics.bundle_info.remove_by_labels({"role": self.role})
        self.metrics.bundle_info.labels(self.key, self.engine.model.run.config.name, self.role).set(1)
        self.metrics.items.remove_by_labels({"role": self.role})
        self.metrics.items.labels(self.key, self.role).set(self.engine.model.snapshot.n_available)

    def _answer(self, payloads: Sequence[Payload]) -> list[Response | Exception]:
        requests, spans = [request for request, _ in payloads], [span for _, span in payloads]
        seconds: dict[str, float] = defaultdict(float)

        def add(stage: str, spent: float) -> None:
            seconds[stage] += spent

        batch = nullcontext() if self.tracing is None else self.tracing.batch(self.key, spans)
        with batch as span, observed(add):
            results = self.engine.ask(requests)
            for stage, spent in seconds.items():
                self.metrics.stage_seconds.labels(stage, self.key).observe(spent)
                if span is not None:
                    span.set_attribute(f"genrec.{stage}_ms", round(1000 * spent, 3))
        return results

    def _on_batch(self, waited: Sequence[float], seconds: float) -> None:
        self.metrics.batch.labels(self.key).observe(len(waited))
        self.metrics.stage_seconds.labels("batch", self.key).observe(seconds)
        queue = self.metrics.stage_seconds.labels("queue", self.key)
        for one in waited:
            queue.observe(one)


def goes_to_canary(user: str | None, history: Any, weight: float) -> bool:
    """Whether a request belongs to the canary: the same users always do, and requests of a history alone by that."""
    if user is None and not history:
        return False
    text = user if user is not None else json.dumps(history)
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:4], "big")
    return number < weight * 2**32
