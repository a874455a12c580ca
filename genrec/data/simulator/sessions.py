"""How simulated people spend a session: when it starts, what it is about, its impressions and what follows from them.

All sessions of a chunk of users advance together, one request (a round) at a time. Arrays are (session,) or (session,
slot).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl

from genrec.data.schema import EVENT_SCHEMA, IMPRESSION_SCHEMA, conform
from genrec.data.simulator.vocabulary import COLOURS, STYLES
from genrec.data.simulator.world import FOLLOW, STAY, SimulatorConfig, World

ACTIONS = ("impression", "click", "cart", "purchase")
EPOCH = 1_700_000_000 - 1_700_000_000 % 86_400  # the midnight the log starts at
SESSION_GAP, REQUEST_GAP = 1_800, 180  # seconds, at least, between the starts of sessions and of requests
MAX_REQUESTS = 5
EXPLORE = 0.15  # share of slots filled from the whole catalogue, by the cluster's table
BIAS, TASTE, RESEMBLANCE, INTENT, QUERY_MATCH = -4.6, 5.0, 1.5, 1.0, 1.2  # logit of a click
WANTED_SHOWN = 0.85  # how often a search shows the very item the user had in mind


@dataclass
class Chunk:
    """What a run of users did: events beyond an impression, and all impressions; by user, then time."""

    events: pl.DataFrame
    impressions: pl.DataFrame


@dataclass
class Sessions:
    """The sessions of some users, by user and time; arrays are (session,) or (session, dim)."""

    user: np.ndarray
    start: np.ndarray  # seconds since the log's first midnight
    leaf: np.ndarray  # the category the session is about
    n_requests: np.ndarray
    first_request: np.ndarray  # requests before this session
    taste: np.ndarray  # (session, dim) the user's vector at that time, scaled to logits
    wish: np.ndarray  # (session, dim) what the next click is weighed with: taste, and what was clicked last


def draw_sessions(
    config: SimulatorConfig, world: World, users: np.ndarray, counts: np.ndarray, rng: np.random.Generator
) -> Sessions:
    """Times and intents of ``counts`` sessions for each of ``users``."""
    owner = np.repeat(np.arange(len(users)), counts)
    session = np.arange(len(owner)) - np.repeat(
        np.cumsum(counts) - counts, counts
    )  # number of the session within its user
    # Two humps a day, morning and evening; times are sorted within the user and kept half an hour apart.
    hour = (
        np.where(rng.random(len(owner)) < 0.35, rng.normal(10, 2.5, len(owner)), rng.normal(20, 2.5, len(owner))) % 24
    )
    start = rng.integers(0, config.days, len(owner)) * 86_400 + (hour * 3_600).astype(np.int64)
    start = start[np.lexsort((start, owner))]
    # A running maximum pushes later sessions back; the large step keeps users from touching each other.
    step = owner * (config.days * 86_400 + int(counts.max()) * SESSION_GAP) * 2
    start = np.maximum.accumulate(start - session * SESSION_GAP + step) + session * SESSION_GAP - step
    user = users[owner]
    taste = world.taste(user, np.minimum(start / (config.days * 86_400), 1.0))
    n_requests = 1 + rng.binomial(MAX_REQUESTS - 1, 0.35, len(owner))
    leaf = _draw_intents(world, taste, session, rng)
    return Sessions(user, start, leaf, n_requests, np.cumsum(n_requests) - n_requests, TASTE * taste, TASTE * taste)


def _draw_intents(world: World, taste: np.ndarray, session: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The category of each session: the taste's own, the last session's, or the one that follows that."""
    cumulative = np.cumsum(world.leaf_chances(taste), axis=1)
    leaf = (cumulative < rng.random(len(taste))[:, None] * cumulative[:, -1:]).sum(axis=1)
    mood = rng.random(len(taste))
    by_session = np.argsort(session, kind="stable")
    edges = np.searchsorted(session[by_session], np.arange(1, session.max() + 2))
    for begin, end in pairwise(edges):  # one step per session of the most active user, all users at once
        rows = by_session[begin:end]
        before = leaf[rows - 1]
        leaf[rows] = np.select(
            [mood[rows] < STAY, mood[rows] < STAY + FOLLOW], [before, world.leaf_next[before]], leaf[rows]
        )
    return leaf


def _draw_items(
    world: World, cluster: np.ndarray, leaf: np.ndarray, everywhere: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Items of a category from a cluster's table, or of the whole catalogue; the arrays broadcast."""
    n_items, shape = len(world.order), everywhere.shape
    row = np.broadcast_to(cluster, shape) * n_items
    first = row + np.where(everywhere, 0, world.leaf_bounds[leaf])
    last = row + np.where(everywhere, n_items, world.leaf_bounds[leaf + 1]) - 1
    low = np.where(first == row, np.broadcast_to(cluster, shape), world.table[first - 1])
    slot = np.searchsorted(world.table, low + rng.random(shape) * (world.table[last] - low), side="right")
    return world.order[np.clip(slot, first, last) - row]  # rounding may step over a category's edge


def _propensity(
    world: World, cluster: np.ndarray, leaf: np.ndarray, items: np.ndarray, exploration: float
) -> np.ndarray:
    """The chance (session, slot) of each item to be drawn for its slot: by ``_draw_items`` or uniform exploration."""
    within = np.exp(world.slot_log_chance[cluster, items])
    anywhere = np.empty_like(world.slot_log_chance)
    anywhere[:, world.order] = np.diff(
        world.table.reshape(anywhere.shape) - np.arange(len(anywhere))[:, None], prepend=0
    )
    same = world.item_leaf[items] == leaf
    drawn = EXPLORE * anywhere[cluster, items] + (1 - EXPLORE) * within * same
    return exploration / len(world.order) + (1 - exploration) * drawn


def play_round(
    config: SimulatorConfig, world: World, sessions: Sessions, number: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Request ``number`` of every session that gets so far: flat arrays, one entry per impression."""
    active = np.flatnonzero(sessions.n_requests > number)
    # Neighbours that read the same part of the candidate tables: the binary search then stays in the processor's cache.
    active = active[np.lexsort((sessions.leaf[active], world.user_cluster[sessions.user[active]]))]
    size = config.slate_size
    cluster, leaf = world.user_cluster[sessions.user[active]][:, None], sessions.leaf[active][:, None]
    items = _draw_items(world, cluster, leaf, rng.random((len(active), size)) < EXPLORE, rng)
    if config.exploration:
        explored = rng.random(items.shape) < config.exploration
        items = np.where(explored, rng.integers(0, config.n_items, items.shape), items)
    searches = rng.random(len(active)) < config.search_share
    wanted = _draw_items(world, cluster, leaf, np.zeros((len(active), 1), dtype=bool), rng)[:, 0]
    placed = searches & (rng.random(len(active)) < WANTED_SHOWN)
    items[placed, rng.integers(0, size, len(active))[placed]] = wanted[placed]
    parts = np.where(searches, rng.integers(0, 8, len(active)), -1)  # which words the query has, one bit each
    logit = np.einsum("sd,skd->sk", sessions.wish[active], world.item_vectors[items])
    logit += BIAS + INTENT * (world.item_leaf[items] == leaf)
    for bit, trait in enumerate((world.item_brand, world.item_colour, world.item_style)):
        queried = (searches & (parts >> bit & 1 == 1))[:, None]
        logit += QUERY_MATCH * (queried & (trait[items] == trait[wanted][:, None]))
    kept = np.ones(items.shape, dtype=bool)
    for slot in range(1, size):
        kept[:, slot] = (items[:, slot : slot + 1] != items[:, :slot]).all(axis=1)
    stage = draw_stages(logit, attention(size), kept, rng)
    clicked = stage > 0
    rows = np.flatnonzero(clicked.any(axis=1))
    last = size - 1 - np.argmax(clicked[rows, ::-1], axis=1)
    fresh = RESEMBLANCE * world.item_vectors[items[rows, last]]
    sessions.wish[active[rows]] = sessions.taste[active[rows]] + fresh
    propensity = _propensity(world, cluster, leaf, items, config.exploration)
    propensity[placed] = np.nan  # the item in mind was put in: these slates were not drawn by the tables alone
    row, column = np.nonzero(kept)
    return {
        "session": active[row],
        "request": sessions.first_request[active[row]] + number,
        "slot": column,
        "position": (np.cumsum(kept, axis=1) - 1)[row, column],
        "item": items[row, column],
        "stage": stage[row, column],
        "propensity": propensity[row, column],
        "time": sessions.start[active[row]] + number * REQUEST_GAP,
        "parts": parts[row],
        "wanted": wanted[row],
    }


def attention(slots: int) -> np.ndarray:
    """The factor of a click's chance in each slot from the first: (slots,)."""
    return 1 / (1 + 0.06 * np.arange(slots))


def draw_stages(logit: np.ndarray, factor: np.ndarray, kept: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How far down the chain each impression goes: 0 impression, 1 click, 2 cart, 3 purchase.

    ``logit`` of a click and ``kept`` (row, slot), ``factor`` (slot,) as of ``attention``.
    """
    chance = factor / (1 + np.exp(-logit))
    click = kept & (rng.random(logit.shape, dtype=np.float32) < chance)
    # What is liked more is also bought more.
    cart = click & (rng.random(logit.shape, dtype=np.float32) < 0.1 + 0.4 / (1 + np.exp(-logit)))
    purchase = cart & (rng.random(logit.shape, dtype=np.float32) < 0.5)
    return click.astype(np.int8) + cart + purchase


def make_tables(world: World, sessions: Sessions, log: dict[str, np.ndarray], first_request: int) -> Chunk:
    """Numbers to the tables of the data contract; ``log`` is in order of request and slot."""
    first = np.flatnonzero(np.diff(log["request"], prepend=-1))
    per_request = np.diff(np.append(first, len(log["request"])))
    index = pl.Series(np.repeat(np.arange(len(first)), per_request))
    query = _queries(world, log["parts"][first], log["wanted"][first])
    request_id = pl.select(
        pl.lit("r") + pl.lit(pl.Series(log["request"][first] + first_request)).cast(pl.String).str.zfill(9)
    ).to_series()
    impressions = pl.DataFrame(
        {
            "request_id": request_id.gather(index),
            "user_id": world.user_ids.gather(sessions.user[log["session"]]),
            "item_id": world.item_ids.gather(log["item"]),
            "timestamp": log["time"] + EPOCH,
            "position": log["position"],
            "action": pl.Series(ACTIONS).gather(log["stage"]),
            "query": query.gather(index),
            "surface": pl.Series(("feed", "search")).gather((log["parts"] >= 0).astype(np.int64)),
            "propensity": pl.Series(log["propensity"]).fill_nan(None),
        }
    )
    # One event for each step that was taken: a purchase is also a click and a cart.
    rows = np.concatenate([np.flatnonzero(log["stage"] >= step) for step in (1, 2, 3)])
    step = np.concatenate([np.full(int((log["stage"] >= step).sum()), step) for step in (1, 2, 3)])
    delay = np.select(
        [step == 1, step == 2],
        [3 + 5 * log["slot"][rows], 5 + 5 * log["slot"][rows]],
        100 + 3 * log["slot"][rows],
    )
    order = np.argsort(log["request"][rows] * REQUEST_GAP + delay, kind="stable")
    events = impressions[rows[order]].with_columns(
        pl.col("timestamp") + pl.Series(delay[order]), pl.Series(ACTIONS).gather(step[order]).alias("action")
    )
    return Chunk(
        conform(events.select(*EVENT_SCHEMA), EVENT_SCHEMA, "simulator"),
        conform(impressions, IMPRESSION_SCHEMA, "simulator"),
    )


def _queries(world: World, parts: np.ndarray, wanted: np.ndarray) -> pl.Series:
    """The query of each request: the category's name, with brand, colour and style as the bits say; null in a feed."""
    words = []
    for bit, names, trait in (
        (2, STYLES, world.item_style),
        (1, COLOURS, world.item_colour),
        (0, [name.lower() for name in world.brand_names], world.item_brand),
    ):
        number = np.where((parts >= 0) & (parts >> bit & 1 == 1), trait[wanted], len(names))
        words.append(pl.Series(f"w{bit}", [*names, None], dtype=pl.String).gather(number))
    leaf = np.where(parts >= 0, world.item_leaf[wanted], len(world.leaf_names))
    words.append(pl.Series("leaf", [*world.leaf_names, None], dtype=pl.String).gather(leaf))
    joined = pl.concat_str([column.name for column in words], separator=" ", ignore_nulls=True)
    return pl.DataFrame(words).select(pl.when(pl.col("leaf").is_not_null()).then(joined).alias("query"))["query"]
