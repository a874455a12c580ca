"""The simulator as a reader: a log from a configuration instead of files."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import polars as pl

from genrec.data.readers.common import check_options
from genrec.data.schema import EVENT_SCHEMA, RawLog
from genrec.data.simulator import SimulatorConfig, simulate
from genrec.errors import UserError


def read_simulator(path: Path, options: dict) -> RawLog:
    """The ``simulator`` reader: options are the fields of ``SimulatorConfig``; ``path`` is not used.

    Option ``include_impressions_in_events`` (default false) adds what was only shown as events with action "impression".
    """
    names = [entry.name for entry in fields(SimulatorConfig)]
    check_options("simulator", options, [*names, "include_impressions_in_events"])
    include = options.get("include_impressions_in_events", False)
    if not isinstance(include, bool):
        raise UserError(f"reader 'simulator': include_impressions_in_events must be true or false, not {include!r}")
    log = simulate(SimulatorConfig(**{name: value for name, value in options.items() if name in names}))
    if include:
        shown = log.impressions.filter(pl.col("action") == "impression")
        shown = shown.select(*EVENT_SCHEMA)
        log.events = pl.concat([log.events, shown]).sort("timestamp", maintain_order=True)
        log.rows_read += shown.height
    return log
