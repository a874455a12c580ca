"""Events held back are in no count, requests see them in their histories, and a log is never changed."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.data.dataset import TRAIN, VALID
from genrec.data.heldback import EVENTS, FOLDS, HELD_BACK, held_back
from genrec.ranking.features import CandidateFeatures


@pytest.fixture(scope="module")
def parts(prepared_run):
    return list(held_back(prepared_run.dataset, 1 << 30, 0))


def test_each_user_is_in_one_fold_and_loses_at_most_half_of_the_events(prepared_run, parts):
    data = prepared_run.dataset
    before, total = data.known_lengths(TRAIN), np.zeros(data.n_users, np.int64)
    assert len(parts) == FOLDS
    for log, requests in parts:
        lost = before - log.known_lengths(TRAIN)
        assert (lost <= EVENTS).all() and (lost <= before // 2).all() and lost.any() and not (total * lost).any()
        assert len(requests) == lost.sum()  # every action of this log may be a target
        total += lost
    assert (total == np.minimum(before // 2, EVENTS)).all()
    assert not (np.asarray(data.split) == HELD_BACK).any() and (data.known_lengths(TRAIN) == before).all()
    for split in ("valid", "test"):
        assert np.array_equal(parts[0][0].heldout_events(split), data.heldout_events(split))


def test_a_request_ends_before_its_target_and_sees_what_was_held_back_before(prepared_run, parts):
    data = prepared_run.dataset
    log, requests = parts[0]
    events = np.flatnonzero(np.asarray(log.split) == HELD_BACK)
    users = data.user_of(events)
    assert (requests.targets == np.asarray(data.items)[events]).all()
    assert (np.diff(requests.offsets) == events - np.asarray(data.offsets)[users]).all()
    longest = int(np.argmax(np.diff(requests.offsets)))
    start, stop = requests.offsets[longest : longest + 2]
    own = np.asarray(data.items)[np.asarray(data.offsets)[users[longest]] : events[longest]]
    assert (requests.items[start:stop] == own).all()


def test_no_count_depends_on_what_was_held_back(prepared_run, parts):
    """The counts are those of a log in which other items stand in the place of the targets."""
    log = parts[1][0]
    text = prepared_run.ids.catalogue.text.numpy()
    counted = CandidateFeatures.build(log, text, TRAIN).state()
    other = _copy(log)
    events = np.flatnonzero(np.asarray(log.split) == HELD_BACK)
    other.items = np.array(log.items)
    other.items[events] = (other.items[events] + 1) % log.n_items
    assert (other.items != np.asarray(log.items)).any()
    changed = CandidateFeatures.build(other, text, TRAIN).state()
    assert all(np.array_equal(values, changed[name]) for name, values in counted.items())
    whole = CandidateFeatures.build(prepared_run.dataset, text, TRAIN).state()
    assert len(whole["event_keys"]) - len(counted["event_keys"]) == len(events)


def test_the_limit_cuts_the_last_fold_at_random(prepared_run, parts):
    size = len(parts[0][1])
    cut = list(held_back(prepared_run.dataset, size + 5, 0))
    assert [len(requests) for _, requests in cut] == [size, 5]
    again = list(held_back(prepared_run.dataset, size + 5, 0))
    assert np.array_equal(cut[1][1].targets, again[1][1].targets)
    assert [len(requests) for _, requests in held_back(prepared_run.dataset, size, 0)] == [size]


def test_refits_are_not_touched(prepared_run, parts):
    log, _ = parts[0]
    lost = prepared_run.dataset.known_lengths(VALID) - log.known_lengths(VALID)
    assert lost.sum() == (np.asarray(log.split) == HELD_BACK).sum()


def _copy(log):
    import copy

    other = copy.copy(log)
    other._known_lengths = {}
    return other
