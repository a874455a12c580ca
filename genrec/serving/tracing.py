"""OpenTelemetry traces (extra ``genrec[otel]``): a span per HTTP request, one per answer, one per batch.

The exporter is configured by OpenTelemetry's own environment variables, as ``OTEL_EXPORTER_OTLP_ENDPOINT``. A batch's
span links to the answers in it and has the milliseconds of its stages as attributes; no span holds an id of a user or
an item, or a query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from genrec.errors import UserError

_UNTRACED = "healthz,readyz,metrics"


class Tracing:
    """Makes spans; ``provider`` is a tracer provider of the OpenTelemetry SDK."""

    def __init__(self, provider: Any):
        self.provider, self._tracer = provider, provider.get_tracer("genrec")

    @classmethod
    def to_collector(cls) -> Tracing:
        """Spans that go to the collector that the environment names. ``UserError`` without the packages."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.instrumentation import asgi  # noqa: F401  # missing packages are found at the start
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise UserError(f"--traces needs the package '{error.name}'; install: pip install '.[otel]'") from error
        provider = TracerProvider(resource=Resource.create({"service.name": "genrec"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def add_to(self, app: Any) -> None:
        """Trace every HTTP request of an ASGI application but health checks and metrics."""
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        app.add_middleware(
            OpenTelemetryMiddleware, excluded_urls=_UNTRACED, tracer_provider=self.provider,
            exclude_spans=["receive", "send"],
        )  # fmt: skip

    @contextmanager
    def answer(self, bundle: str, mode: str) -> Iterator[Any]:
        """The span of one answer; yields what a batch's span links to."""
        with self._tracer.start_as_current_span("answer") as span:
            span.set_attributes({"genrec.bundle": bundle, "genrec.mode": mode})
            yield span.get_span_context()

    @contextmanager
    def batch(self, bundle: str, answers: Sequence[Any]) -> Iterator[Any]:
        """The span of one batch of answers."""
        from opentelemetry.trace import Link

        links = [Link(one) for one in answers if one is not None]
        with self._tracer.start_as_current_span("batch", links=links) as span:
            span.set_attributes({"genrec.bundle": bundle, "genrec.batch_size": len(answers)})
            yield span

    def close(self) -> None:
        """Send what is left."""
        self.provider.shutdown()
