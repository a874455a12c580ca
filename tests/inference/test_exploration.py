"""Explored lists: the share of drawn slots, propensities against frequencies, pages, and answers without it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from genrec.errors import UserError
from genrec.inference.exploration import POOL, Exploration, explored
from genrec.inference.recommender import Diversity, RecommendationRequest

SCORES = np.array([2.0, 1.5, 1.5, 0.0, -1.0, -np.inf])


def many(exploration: Exploration, slots: int, draws: int = 20_000):
    lists = [
        explored(SCORES, slots, Exploration(exploration.share, exploration.temperature, seed), b"somebody")
        for seed in range(draws)
    ]
    orders, propensities = (np.stack(part) for part in zip(*lists, strict=True))
    return orders, propensities


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_propensities_are_the_frequencies_of_the_draws(temperature):
    share, n = 0.4, 20_000
    orders, propensities = many(Exploration(share, temperature), 3, n)
    chances = np.exp(SCORES / temperature) / np.exp(SCORES / temperature).sum()
    stated = share * chances + (1 - share) * (np.arange(6) == 0)
    frequency = np.bincount(orders[:, 0], minlength=6) / n
    np.testing.assert_allclose(frequency, stated, atol=4 * np.sqrt(0.25 / n))
    np.testing.assert_allclose(propensities[:, 0], stated[orders[:, 0]], rtol=1e-12)
    assert frequency[5] == 0  # an item without a chance
    # Slot by slot, given the slots before.
    for prefix, rows in ((0, orders[:, 0] == 0), (1, orders[:, 0] == 1)):
        later, stated = orders[rows, 1], propensities[rows, 1]
        for item, count in Counter(later.tolist()).items():
            chance = stated[later == item]
            assert np.ptp(chance) == 0 and item != prefix
            assert count / rows.sum() == pytest.approx(chance[0], abs=4 * np.sqrt(0.25 / rows.sum()))
    # One over the propensity makes every possible item count as one: what estimates for other policies rest on.
    for item in range(5):
        drawn = orders[:, 0] == item
        spread = 1 / np.sqrt(n * (share * chances[item] + (1 - share) * (item == 0)))
        assert (drawn / propensities[:, 0]).mean() == pytest.approx(1, abs=5 * spread)
    assert all(len(set(row)) == 3 for row in orders.tolist())


def test_a_share_of_the_slots_is_drawn():
    flat = Exploration(0.25, 1e6)  # all items alike: a drawn slot is the first item once in n left
    orders, _ = many(flat, 4)
    for slot in range(4):
        left = np.array([min(set(range(6)) - set(row[:slot])) for row in orders.tolist()])
        expected = 0.25 * (1 - 1 / (5 - slot + (SCORES[-1] > -np.inf)))
        assert (orders[:, slot] != left).mean() == pytest.approx(expected, abs=0.015)


def test_without_a_share_nothing_moves_and_beyond_the_pool_nothing_is_drawn():
    order, propensities = explored(SCORES, 4, Exploration(0.0), b"")
    assert order.tolist() == [0, 1, 2, 3] and (propensities == 1).all()
    order, propensities = explored(np.zeros(POOL + 30), POOL + 20, Exploration(1.0), b"")
    assert order[POOL:].tolist() == list(range(POOL, POOL + 20)) and sorted(order[:POOL].tolist()) == list(range(POOL))
    assert (propensities[POOL:] == 1).all() and (propensities[: POOL - 1] < 1).all()
    assert explored(np.zeros(0), 5, Exploration(), b"")[0].tolist() == []
    for wrong in ({"share": 1.1}, {"share": -0.1}, {"temperature": 0.0}):
        with pytest.raises(UserError, match="exploration"):
            Exploration(**wrong)


@pytest.mark.parametrize("mode", ["fused", "generate", "retrieve"])
def test_pages_fit_together_and_a_history_changes_the_draws(model, mode):
    history = [model.snapshot.item_ids[index] for index in (3, 9, 27)]
    exploration = Exploration(0.5, 2.0, seed=3)
    plain = model.recommend(history=history, k=12, mode=mode)
    whole = model.recommend(history=history, k=12, mode=mode, exploration=exploration)
    pages = [
        model.ask([RecommendationRequest(history=history, k=4, mode=mode, offset=offset, exploration=exploration)])[0]
        for offset in (0, 4, 8)
    ]
    assert [item for page in pages for item in page.items] == whole
    assert len({item.item_id for item in whole}) == 12 and {item.item_id for item in whole} != {
        item.item_id for item in plain
    }
    assert all(0 < item.propensity <= 1 for item in whole) and all(item.propensity is None for item in plain)
    assert model.recommend(history=history, k=12, mode=mode, exploration=exploration) == whole
    assert model.recommend(history=history, k=12, mode=mode) == plain
    others = [model.recommend(history=history, k=12, mode=mode, exploration=Exploration(0.5, 2.0, n)) for n in range(4)]
    assert len({tuple(item.item_id for item in answers) for answers in others}) > 1
    shifted = model.recommend(history=history[:2], k=12, mode=mode, exploration=exploration)
    assert [item.propensity for item in shifted] != [item.propensity for item in whole]


def test_proofs_end_where_a_list_was_explored_and_popular_lists_are_not(model):
    history = [model.snapshot.item_ids[3]]
    for seed in range(5):
        request = RecommendationRequest(history=history, k=8, mode="retrieve", exploration=Exploration(0.3, 5.0, seed))
        response = model.ask([request])[0]
        best = model.recommend(history=history, k=8, mode="retrieve")
        own = [item.item_id for item in response.items]
        assert own[: response.n_proven] == [item.item_id for item in best][: response.n_proven]
        assert response.n_proven == 8 or own[response.n_proven] != best[response.n_proven].item_id
    diverse = model.recommend(history=history, k=8, diversity=Diversity(), exploration=Exploration(0.5))
    assert len({item.item_id for item in diverse}) == 8
    assert model.recommend(k=5, exploration=Exploration(1.0)) == model.recommend(k=5)
