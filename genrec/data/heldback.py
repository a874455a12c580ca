"""Training events put aside, so that a ranker learns from requests whose answers nothing has counted."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np

from genrec.data.dataset import TEST, TRAIN, Dataset, Requests

HELD_BACK = TEST + 1  # a split that nothing is fitted on
FOLDS = 4  # users of a fold; the others' events are all there
EVENTS = 10  # newest events of a user that are put aside, at most half of them


def held_back(dataset: Dataset, limit: int, seed: int) -> Iterator[tuple[Dataset, Requests]]:
    """Yield logs that lack the newest training events of a fold of users, and the requests before those events.

    A request sees the user's events before it, held back or not, as a test request sees what came after the fit. The
    folds end where there are ``limit`` requests; the last one is cut at random.
    """
    draw = np.random.default_rng(seed)
    order = np.array_split(draw.permutation(dataset.n_users), FOLDS)
    known = dataset.known_lengths(TRAIN)
    for users in order:
        count = np.minimum(known[users] // 2, EVENTS)
        stop = np.asarray(dataset.offsets)[users] + known[users]
        age = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + 1
        events = np.sort(np.repeat(stop, count) - age)
        log = _without(dataset, events)
        targets = events[np.asarray(dataset.actions)[events] >= dataset.target_level]
        if not len(targets):
            continue
        targets = np.sort(draw.permutation(targets)[:limit])
        limit -= len(targets)
        yield log, dataset.requests_before(targets, np.full(len(targets), -1))
        if limit <= 0:
            return


def _without(dataset: Dataset, events: np.ndarray) -> Dataset:
    """The dataset with ``events`` in no split that is fitted on or asked for."""
    log = copy.copy(dataset)
    log.split = np.array(dataset.split)
    log.split[events] = HELD_BACK
    log._known_lengths = {}
    return log
