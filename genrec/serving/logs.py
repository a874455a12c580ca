"""Metrics and the log: one JSON object per line, without personal data."""

from __future__ import annotations

import json
import logging
import sys

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

log = logging.getLogger("genrec.serve")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Prometheus metrics of one app, in a registry of its own."""

    def __init__(self, budget: float = 2.0) -> None:
        """``budget``: seconds that an answer may take; the buckets of times end there."""
        self.registry = registry = CollectorRegistry()
        buckets = (*(one for one in _SECONDS if one < budget), budget, 2 * budget)
        self.requests = Counter(
            "genrec_requests", "Requests by route, status and bundle.", ["route", "status", "bundle"], registry=registry
        )
        self.seconds = Histogram(
            "genrec_request_seconds", "Time to answer, by route and bundle.", ["route", "bundle"], buckets=buckets,
            registry=registry,
        )  # fmt: skip
        self.stage_seconds = Histogram(
            "genrec_stage_seconds",
            "Seconds by stage and bundle: queue (of one request), batch (a whole pass), and its parts store, network, "
            "search (vectors and codes) and ranking.",
            ["stage", "bundle"], buckets=buckets, registry=registry,
        )  # fmt: skip
        self.batch = Histogram(
            "genrec_batch_size", "Requests per pass of the network.", ["bundle"], buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )  # fmt: skip
        self.waiting = Gauge("genrec_queue", "Requests that wait for a pass.", ["role"], registry=registry)
        self.bundle_info = Gauge(
            "genrec_bundle_info", "The bundles that answer: 1.", ["bundle", "name", "role"], registry=registry
        )
        self.items = Gauge("genrec_items", "Items that can be recommended.", ["bundle", "role"], registry=registry)
        self.events = Counter("genrec_events", "Events kept.", registry=registry)
        self.reloads = Counter("genrec_reloads", "Reloads by result.", ["result"], registry=registry)
        self.store_failures = Counter(
            "genrec_store_failures", "Calls of the event store that failed.", ["store"], registry=registry
        )
        self.store_up = Gauge(
            "genrec_store_up", "Whether the last call of the store succeeded.", ["store"], registry=registry
        )
        self.connections_refused = Counter(
            "genrec_connections_refused",
            "Connections closed by reason: limit, evicted, timeout.",
            ["reason"],
            registry=registry,
        )


class JsonLines(logging.Formatter):
    """One JSON object per line; fields come with ``extra={"fields": ...}``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of one record."""
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def json_logs() -> None:
    """Send the server's log, and uvicorn's, to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for logger in (log, logging.getLogger("uvicorn.error")):
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
