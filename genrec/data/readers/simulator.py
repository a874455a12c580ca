"""The simulator as a reader: a log from a configuration instead of files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import polars as pl

from genrec.data.readers.toolkit import check_options
from genrec.data.schema import EVENT_SCHEMA, ITEM_SCHEMA, USER_SCHEMA, RawLog, conform
from genrec.data.simulator.sessions import ACTIONS
from genrec.data.simulator.simulate import make_world, simulate_chunks
from genrec.data.simulator.world import SimulatorConfig, item_table, user_table
from genrec.errors import UserError


def read_simulator(path: Path, options: dict) -> Iterator[RawLog]:
    """The ``simulator`` reader: options are the fields of ``SimulatorConfig``; ``path`` is not used.

    One part per block of users, each in order of time. Every impression is in ``impressions``; ``rows_read`` does not
    count these. Option ``include_impressions_in_events`` (default false) adds mere impressions as events with
    action "impression".
    """
    names = [entry.name for entry in fields(SimulatorConfig)]
    check_options("simulator", options, [*names, "include_impressions_in_events"])
    include = options.get("include_impressions_in_events", False)
    if not isinstance(include, bool):
        raise UserError(f"reader 'simulator': include_impressions_in_events must be true or false, not {include!r}")
    config = SimulatorConfig(**{name: value for name, value in options.items() if name in names})
    world = make_world(config)
    for chunk in simulate_chunks(config, world):
        events = chunk.events
        if include:
            only_shown = chunk.impressions.filter(pl.col("action") == "impression").select(*EVENT_SCHEMA)
            events = pl.concat([events.sort("timestamp", maintain_order=True), only_shown])
        events = events.sort("timestamp", maintain_order=True)
        yield RawLog(events, impressions=chunk.impressions, rows_read=events.height, chain=ACTIONS)
    items = conform(item_table(world), ITEM_SCHEMA, "simulator")
    users = conform(user_table(world), USER_SCHEMA, "simulator")
    yield RawLog(items=items, users=users, rows_read=items.height + users.height, chain=ACTIONS)
