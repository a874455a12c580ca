"""A seeded shop-and-feed log: sessions, searches, impressions and the chain impression, click, cart, purchase.

Notable choices:

- Truth is latent (``simulator.world``): a user's drifting taste, an item's vector and popularity. Better models score
  better.
- Sequence matters: a session has one intent category, the next session keeps it or moves to the one that follows, and
  within a session people click on what resembles their last click.
- Slates are drawn from cumulative tables per user cluster, never by scoring the catalogue. All sessions of a chunk of
  users advance together: a few array operations per impression, and memory does not grow with the log.
- The same configuration gives the same log, collected (``simulate``) or streamed (``simulate_chunks``, ``write``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from genrec.data.schema import ITEM_SCHEMA, USER_SCHEMA, RawLog, conform
from genrec.data.simulator.sessions import (
    MAX_REQUESTS,
    SESSION_GAP,
    Chunk,
    draw_sessions,
    make_tables,
    play_round,
)
from genrec.data.simulator.world import (
    SimulatorConfig,
    World,
    build_world,
    item_table,
    user_table,
)

SAME_SESSION = 0.6  # rough chance that the next click falls into the running session
PILOT_SESSIONS = 8_000
CHUNK_SESSIONS = 40_000


@dataclass(frozen=True)
class SimulatedLog:
    """What ``write`` wrote."""

    folder: Path
    events: int
    impressions: int


def simulate(config: SimulatorConfig, keep_impressions: bool = True) -> RawLog:
    """The whole log in memory; events and impressions in order of time.

    ``keep_impressions=False`` leaves the impressions table out (it is some five times the events).
    """
    world = make_world(config)
    chunks = [
        chunk if keep_impressions else Chunk(chunk.events, chunk.impressions.clear())
        for chunk in simulate_chunks(config, world)
    ]
    events = pl.concat([chunk.events for chunk in chunks]).sort("timestamp", maintain_order=True)
    impressions = None
    if keep_impressions:
        impressions = pl.concat([chunk.impressions for chunk in chunks]).sort("timestamp", maintain_order=True)
    items = conform(item_table(world), ITEM_SCHEMA, "simulator")
    users = conform(user_table(world), USER_SCHEMA, "simulator")
    return RawLog(events, items, users, impressions, rows_read=events.height + items.height + users.height)


def write(config: SimulatorConfig, folder: Path, keep_impressions: bool = True) -> SimulatedLog:
    """Stream the log into ``folder`` as Parquet: ``events/part-*``, ``impressions/part-*``, ``items``, ``users``.

    ``keep_impressions=False`` leaves the impressions out (they are some five times the events). Memory stays flat.
    Parts hold whole users, ordered by user and time. The ``table`` reader reads the result back.
    """
    world = make_world(config)
    for name in ("events", "impressions"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for old in (folder / name).glob("part-*.parquet"):
            old.unlink()  # parts of an earlier, longer log would mix in
    item_table(world).write_parquet(folder / "items.parquet")
    user_table(world).write_parquet(folder / "users.parquet")
    events = impressions = 0
    for number, chunk in enumerate(simulate_chunks(config, world)):
        chunk.events.write_parquet(folder / "events" / f"part-{number:05d}.parquet", compression="lz4")
        events += chunk.events.height
        if keep_impressions:
            chunk.impressions.write_parquet(folder / "impressions" / f"part-{number:05d}.parquet", compression="lz4")
            impressions += chunk.impressions.height
    return SimulatedLog(folder, events, impressions)


def make_world(config: SimulatorConfig) -> World:
    """The latent world of a configuration (the same one its log comes from)."""
    return build_world(config, np.random.default_rng([config.seed, 0]))


def simulate_chunks(config: SimulatorConfig, world: World | None = None) -> Iterator[Chunk]:
    """The log in chunks of whole users, about 40,000 sessions each."""
    world = world or make_world(config)
    counts = _session_counts(config, world)
    per_chunk = max(
        1_000, min(CHUNK_SESSIONS, 8_000_000 // config.n_categories)
    )  # bounds the sessions x categories array
    edges = np.cumsum(counts)
    first_user, requests = 0, 0
    for number in range(config.n_users):
        if first_user >= config.n_users:
            return
        done = edges[first_user - 1] if first_user else 0
        last_user = max(first_user + 1, int(np.searchsorted(edges, done + per_chunk, side="right")))
        users = np.arange(first_user, last_user)
        rng = np.random.default_rng([config.seed, 2, number])
        chunk, made = _run(config, world, users, counts[users], rng, requests)
        requests += made
        first_user = last_user
        yield chunk


def _session_counts(config: SimulatorConfig, world: World) -> np.ndarray:
    """Sessions of each user, so that the log comes close to the wanted number of events."""
    rng = np.random.default_rng([config.seed, 1])
    # Several sessions a user: habit and follow-up lead away from the first taste, so first sessions see more clicks.
    sample = rng.choice(config.n_users, PILOT_SESSIONS // 8, p=world.user_activity)
    pilot, _ = _run(config, world, sample, np.full(len(sample), 8), rng, 0)
    sessions = config.n_events / max(pilot.events.height / PILOT_SESSIONS, 1e-3)
    most = max(1, config.days * 86_400 // (2 * SESSION_GAP))
    # One session is everyone's; the rest follows activity.
    return 1 + rng.poisson(max(0.0, sessions - config.n_users) * world.user_activity).clip(max=most - 1)


def _run(
    config: SimulatorConfig,
    world: World,
    users: np.ndarray,
    counts: np.ndarray,
    rng: np.random.Generator,
    first_request: int,
) -> tuple[Chunk, int]:
    """Simulate some users; returns their tables and the number of requests made."""
    sessions = draw_sessions(config, world, users, counts, rng)
    rounds = [play_round(config, world, sessions, number, rng) for number in range(MAX_REQUESTS)]
    columns = {name: np.concatenate([one[name] for one in rounds]) for name in rounds[0]}
    # Rounds ran side by side; the log wants session after session, slot after slot.
    order = np.argsort(columns["request"] * config.slate_size + columns["slot"], kind="stable")
    impressions = {name: column[order] for name, column in columns.items()}
    return make_tables(world, sessions, impressions, first_request), int(sessions.n_requests.sum())
