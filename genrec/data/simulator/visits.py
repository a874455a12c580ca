"""Days of visits to the simulated world by anybody's lists: who comes, with which intent, and what they do.

This closes the loop: a policy answers, people react by the latent truth of ``simulator.sessions``, and the log of it,
with the propensities of the policy, is what the next day's policy learns from. A visit is a session of one request.
Who comes with which intent does not depend on the lists, so that policies meet the same days.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from genrec.data.schema import EVENT_SCHEMA, IMPRESSION_SCHEMA, PROPENSITY, conform
from genrec.data.simulator.sessions import ACTIONS, BIAS, EPOCH, INTENT, TASTE, attention, draw_stages
from genrec.data.simulator.value import purchase_chance
from genrec.data.simulator.world import FOLLOW, STAY, World

SECONDS = 86_400
_DELAY = 5  # seconds between an impression and a click, and between the steps of the chain


@dataclass(frozen=True)
class Visits:
    """The visits of a day: ``users`` (N,), ``times`` (N,) in seconds since 1970, ``when`` (N,) in [0, 1] of the log.

    ``leaf`` (N,) is what each is about, which no policy knows.
    """

    users: np.ndarray
    times: np.ndarray
    when: np.ndarray
    leaf: np.ndarray


def draw_visits(world: World, day: int, days: int, leaf: np.ndarray, rate: float, seed: int) -> Visits:
    """The visits of ``day`` of a log of ``days``, or of one after it, when tastes stay as they are.

    ``leaf`` (users,) is what each user's last session was about; it is brought up to date in place. ``rate`` visits a
    user on average, by activity, at most one each.
    """
    rng = np.random.default_rng([seed, day])
    chance = np.minimum(rate * len(leaf) * world.user_activity, 1.0)
    users = np.flatnonzero(rng.random(len(leaf)) < chance)
    seconds = rng.integers(0, SECONDS, len(users))
    when = np.full(len(users), min((day + 0.5) / days, 1.0))
    cumulative = np.cumsum(world.leaf_chances(world.taste(users, when)), axis=1)
    fresh = (cumulative < rng.random(len(users))[:, None] * cumulative[:, -1:]).sum(axis=1)
    mood, before = rng.random(len(users)), leaf[users]
    leaf[users] = np.select([mood < STAY, mood < STAY + FOLLOW], [before, world.leaf_next[before]], fresh)
    return Visits(users, EPOCH + day * SECONDS + seconds, when, leaf[users])


def react(world: World, visits: Visits, lists: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How far each impression of ``lists`` (N, K) of item numbers, -1 empty, goes down the chain: (N, K), -1 empty.

    Also the expected purchases of each list (N,), which are steadier than the drawn ones.
    """
    live, item = lists >= 0, np.maximum(lists, 0)
    taste = TASTE * world.taste(visits.users, visits.when)
    logit = BIAS + np.einsum("nd,nkd->nk", taste, world.item_vectors[item])
    logit += INTENT * (world.item_leaf[item] == visits.leaf[:, None])
    factor = attention(lists.shape[1])
    stages = draw_stages(logit, factor, live, np.random.default_rng([seed, 1, int(visits.times.min(initial=0))]))
    expected = (live * factor * purchase_chance(logit)).sum(1)
    return np.where(live, stages, -1), expected


def best_lists(world: World, users: np.ndarray, when: np.ndarray, leaf: np.ndarray, seen: np.ndarray, k: int):
    """Item numbers (N, k) of the highest expected purchases: an oracle that knows tastes and the last sessions.

    It does not know the intent of the visit. ``leaf`` (N,) of the users' last sessions, ``seen`` (N, items) are left
    out.
    """
    taste = world.taste(users, when)
    liked = BIAS + TASTE * taste @ world.item_vectors.T
    meets = (1 - STAY - FOLLOW) * world.leaf_chances(taste)
    rows = np.arange(len(users))
    meets[rows, leaf] += STAY
    meets[rows, world.leaf_next[leaf]] += FOLLOW
    meets = meets[:, world.item_leaf]
    value = meets * purchase_chance(liked + INTENT) + (1 - meets) * purchase_chance(liked)
    return np.argsort(-np.where(seen, -1.0, value), axis=1, kind="stable")[:, :k]


def tables(
    world: World, visits: Visits, lists: np.ndarray, stages: np.ndarray, propensities: np.ndarray
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events and impressions of a day under the data contract; ``propensities`` (N, K), NaN where not stated."""
    row, column = np.nonzero(lists >= 0)
    request = pl.Series(visits.users[row]).cast(pl.String)
    impressions = pl.DataFrame(
        {
            "request_id": pl.select(pl.format("v{}-{}", pl.lit(pl.Series(visits.times[row])), request)).to_series(),
            "user_id": world.user_ids.gather(visits.users[row]),
            "item_id": world.item_ids.gather(lists[row, column]),
            "timestamp": visits.times[row],
            "position": column,
            "action": pl.Series(ACTIONS).gather(stages[row, column]),
            "query": pl.Series([None], dtype=pl.String).new_from_index(0, len(row)),
            "surface": pl.Series(["feed"]).new_from_index(0, len(row)),
            PROPENSITY: pl.Series(propensities[row, column]).fill_nan(None),
        }
    )
    reached = stages[row, column]
    rows = np.concatenate([np.flatnonzero(reached >= step) for step in (1, 2, 3)])
    step = np.concatenate([np.full(int((reached >= step).sum()), step) for step in (1, 2, 3)])
    late = pl.Series(_DELAY * step + 20 * column[rows])
    events = impressions[rows].with_columns(pl.col("timestamp") + late, pl.Series(ACTIONS).gather(step).alias("action"))
    return (
        conform(events.select(*EVENT_SCHEMA), EVENT_SCHEMA, "simulator").sort("timestamp", maintain_order=True),
        conform(impressions, IMPRESSION_SCHEMA, "simulator"),
    )
