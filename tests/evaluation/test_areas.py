"""AUC and GAUC against scikit-learn, and their intervals over users."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from genrec.evaluation.metrics import auc, bootstrap_areas, gauc, user_aucs


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    users = rng.integers(0, 40, 600) * 3
    labels = rng.random(600) < 0.4
    scores = np.round(rng.normal(size=600) + labels, 1)  # many ties
    labels[users == 9], labels[users == 12] = True, False
    return scores, labels, users


def test_auc_equals_scikit_learn(rows):
    scores, labels, _ = rows
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert np.isnan(auc(scores, np.zeros(600, bool))) and np.isnan(auc(scores[:0], labels[:0]))


def test_gauc_is_the_mean_of_users_weighted_by_their_rows(rows):
    scores, labels, users = rows
    known, area, weight = user_aucs(scores, labels, users)
    assert 9 not in known and 12 not in known and len(known) >= 30
    for user, value, count in zip(known, area, weight, strict=True):
        mine = users == user
        assert value == pytest.approx(roc_auc_score(labels[mine], scores[mine]), abs=1e-12) and count == mine.sum()
    assert gauc(scores, labels, users) == pytest.approx(np.average(area, weights=weight), abs=1e-12)
    shuffled = np.random.default_rng(1).permutation(600)
    assert gauc(scores[shuffled], labels[shuffled], users[shuffled]) == pytest.approx(
        gauc(scores, labels, users), abs=1e-12
    )


def test_resampling_users_repeats_their_rows(rows):
    """A resample equals the plain metric of a table in which each drawn user stands as often as it was drawn."""
    scores, labels, users = rows
    actual = bootstrap_areas(scores, labels, users, seed=3, n=5)
    known = np.unique(users)
    draws = np.random.default_rng(3).multinomial(len(known), np.full(len(known), 1 / len(known)), size=5)
    for draw in range(5):
        copies = [
            (np.flatnonzero(users == user), copy)
            for user, count in zip(known, draws[draw], strict=True)
            for copy in range(count)
        ]
        index = np.concatenate([rows_of for rows_of, _ in copies])
        assert actual["auc"][draw] == pytest.approx(roc_auc_score(labels[index], scores[index]), abs=1e-12)
        people = np.concatenate([np.full(len(rows_of), number) for number, (rows_of, _) in enumerate(copies)])
        assert actual["gauc"][draw] == pytest.approx(gauc(scores[index], labels[index], people), abs=1e-12)
    assert np.array_equal(bootstrap_areas(scores, labels, users, 3, 5)["auc"], actual["auc"])
