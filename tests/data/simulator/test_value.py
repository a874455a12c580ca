"""The simulator's true value of lists: against the frequencies that its own sessions produce, and by its order."""

from __future__ import annotations

import numpy as np

from genrec.data.simulator.sessions import draw_stages
from genrec.data.simulator.simulate import make_world
from genrec.data.simulator.value import list_value
from genrec.data.simulator.world import SimulatorConfig


def world():
    config = SimulatorConfig(n_users=40, n_items=60, n_events=100, n_categories=6, n_brands=4, seed=3)
    return make_world(config)


def test_value_is_what_sessions_yield_in_the_mean():
    """A new session of a user without history: draw its category, show the list, count what the simulator draws."""
    truth, rng, n = world(), np.random.default_rng(0), 60_000
    lists = np.array([[3, 14, 15, 9]])
    value = list_value(truth, np.array([7]), np.array([0.4]), np.array([-1]), lists)
    taste = truth.taste(np.array([7]), np.array([0.4]))
    leaf = rng.choice(6, n, p=truth.leaf_chances(taste)[0])
    logit = -4.6 + 5.0 * (taste @ truth.item_vectors[lists[0]].T) + 1.0 * (truth.item_leaf[lists[0]] == leaf[:, None])
    stage = draw_stages(logit, 1 / (1 + 0.06 * np.arange(4)), np.ones((n, 4), bool), rng)
    for expected, seen in ((value.clicks[0], (stage >= 1).sum(1)), (value.purchases[0], (stage >= 3).sum(1))):
        assert abs(seen.mean() - expected) < 5 * seen.std() / np.sqrt(n)
    assert value.clicks[0] > 0.01


def test_order_length_and_last_click_count():
    truth = world()
    users, when = np.arange(40), np.full(40, 0.9)
    one = np.tile(np.arange(10), (40, 1))
    whole = list_value(truth, users, when, np.full(40, -1), one)
    half = list_value(truth, users, when, np.full(40, -1), np.where(np.arange(10) < 5, one, -1))
    assert (half.purchases < whole.purchases).all() and (whole.purchases < whole.clicks / 4).all()
    alone = np.stack(
        [list_value(truth, users, when, np.full(40, -1), np.full((40, 1), item)).purchases for item in range(10)], 1
    )
    best = np.argsort(-alone, axis=1)
    assert (list_value(truth, users, when, np.full(40, -1), best).purchases >= whole.purchases - 1e-12).all()
    alike = list_value(truth, users, when, np.full(40, 5), np.full((40, 1), 5)).clicks
    assert (alike > list_value(truth, users, when, np.full(40, -1), np.full((40, 1), 5)).clicks).mean() > 0.9
