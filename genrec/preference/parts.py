"""The feedback of a log divided into feature counts, reward model, policy and held-out parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from genrec.config.schema import PreferenceConfig
from genrec.data.dataset import TEST, TRAIN, VALID, Requests
from genrec.data.rates import FeedbackRates
from genrec.errors import UserError
from genrec.preference.feedback import Feedback
from genrec.preference.levels import Levels

FEATURES_FRACTION = 0.4  # of the training requests, by time: the first are only counted
_RANDOM_ITEMS = 20  # rows that go with an event of a log without impressions


@dataclass(frozen=True)
class FeedbackParts:
    """Training feedback of the reward model and of the policy, from other users, and what is held out.

    Features are counted on events before ``features_until`` (seconds).
    """

    reward: Feedback
    policy: Feedback
    valid: Feedback
    test: Feedback
    features_until: int


def split_feedback(feedback: Feedback, settings: PreferenceConfig, seed: int, valid_limit: int) -> FeedbackParts:
    """Training requests behind those that are only counted, half of the users for each part, and the held-out ones.

    Both parts reach to the newest requests: the reward model learns where the policy went last. It never values the
    requests it was fitted on. ``UserError`` where a part would be empty.
    """
    train = np.flatnonzero((feedback.split == TRAIN) & (feedback.history_lengths > 0))
    times = feedback.times[train]
    cut = int(times[int(FEATURES_FRACTION * len(train))]) if len(times) else 0
    mine = np.random.default_rng([seed, 8]).permutation(feedback.data.n_users)[feedback.users[train]] % 2 == 0
    reward, policy = train[(times >= cut) & mine], train[(times >= cut) & ~mine]
    for name, part in (("the reward model", reward), ("the policy", policy)):
        if not len(part):
            raise UserError(f"preference: no training request is left for {name}; the log is too short")
    held = {}
    for name, split in (("valid", VALID), ("test", TEST)):
        rows = np.flatnonzero((feedback.split == split) & (feedback.history_lengths > 0))
        if valid_limit and len(rows) > valid_limit:
            rows = np.sort(np.random.default_rng(seed).permutation(rows)[:valid_limit])
        held[name] = feedback.take(rows)
    newest = -settings.max_requests
    return FeedbackParts(feedback.take(reward[newest:]), feedback.take(policy[newest:]), features_until=cut, **held)


def draw_requests(requests: Requests, limit: int, seed: int) -> Requests:
    """At most ``limit`` requests (0: all), the same ones for the same seed."""
    rows = drawn_rows(len(requests), limit, seed)
    return requests if len(rows) == len(requests) else requests.take(rows)


def drawn_rows(count: int, limit: int, seed: int) -> np.ndarray:
    """Which of ``count`` requests ``draw_requests`` takes, rising."""
    if not limit or count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit])


def impression_rates(train: Feedback, levels: Levels, brands: np.ndarray, categories: np.ndarray) -> FeedbackRates:
    """Feedback rates of the training impressions, for look-up at any time: only rows strictly before it count."""
    rows = train.owner
    table = pl.DataFrame({"user": train.users[rows], "item": train.items, "timestamp": train.times[rows]})
    reached = np.stack([train.stages >= levels.click, train.stages >= levels.order], axis=1)
    return FeedbackRates(table, brands, categories, reached, int(train.times.max(initial=0)) + 1)


def with_random_items(part: Feedback, n_items: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Items and stages (N, K) of a part's rows; without impressions also random other items per request, stage -1."""
    items, stages = part.padded()
    if part.observed:
        return items, stages
    others = np.random.default_rng([seed, 7]).integers(0, n_items, (len(part), _RANDOM_ITEMS))
    others = np.where((others[:, :, None] == items[:, None, :]).any(2), -1, others)
    others = np.take_along_axis(others, np.argsort(others < 0, axis=1, kind="stable"), 1)
    return np.concatenate([items, others], axis=1), np.concatenate([stages, np.full(others.shape, -1)], axis=1)
