"""A small made-up shop for first steps: two tables, no download."""

from __future__ import annotations

import polars as pl

from genrec.data.simulator.simulate import simulate
from genrec.data.simulator.world import SimulatorConfig


def sample(n_users: int = 300, n_items: int = 120, n_events: int = 6000) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events and items of a simulated shop, the same at every call.

    Events have ``user_id``, ``item_id``, ``timestamp``, ``action`` and, for searches, ``query``; items have
    ``item_id``, ``title``,
    ``brand``, ``category`` and ``price``. Numbers measured on them say nothing about real data.
    """
    log = simulate(SimulatorConfig(n_users=n_users, n_items=n_items, n_events=n_events, seed=1), keep_impressions=False)
    events = log.events.select("user_id", "item_id", "timestamp", "action", "query")
    return events, log.items.select("item_id", "title", "brand", "category", "price")
