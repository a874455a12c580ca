"""The reward model's arithmetic, and the ranking measures that judge it, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genrec.catalogue.trie import build_trie
from genrec.errors import UserError
from genrec.preference.acceptance import diversity
from genrec.preference.ranking_metrics import graded_ndcg
from genrec.preference.reward_model import (
    RewardData,
    RewardModel,
    calibration,
    expected_calibration_error,
    fit_reward_model,
    losses,
)
from genrec.preference.rewards import REWARDS, Sampled, check_rewards, total_reward


def test_graded_ndcg_equals_a_loop():
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 25, 200)
    groups[groups == 3] = 4
    gains, distinct = rng.random(200) * (rng.random(200) < 0.4), rng.permutation(200).astype(float)
    actual = graded_ndcg(distinct, gains, groups, 5)
    for g in range(25):
        mine = groups == g
        discount = 1 / np.log2(np.arange(2, 2 + mine.sum()))
        discount[5:] = 0
        best = (np.sort(gains[mine])[::-1] * discount).sum()
        assert (
            np.isnan(actual[g])
            if best == 0
            else actual[g] == pytest.approx((gains[mine][np.argsort(-distinct[mine])] * discount).sum() / best)
        )


def test_losses_equal_the_reference():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(50, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    stages = torch.randint(-1, 4, (50,), generator=generator)
    chance = logits.sigmoid()
    click, order = (stages >= 1).double(), (stages >= 3).double()

    def cross(p, y):
        return -(y * p.log() + (1 - y) * (1 - p).log())

    slow = torch.stack(
        [
            cross(chance[:, 0], click).mean(),
            (cross(chance[:, 1], order) * click).sum() / click.sum(),
            cross(chance[:, 2], order).mean(),
        ]
    )
    single = logits.detach().float().requires_grad_()
    fast = losses(single, stages, 1, 3)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(fast.sum(), single)[0].double(), torch.autograd.grad(slow.sum(), logits)[0]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_it_learns_what_is_there_and_is_calibrated():
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(6000, 12, generator=generator)
    true = torch.sigmoid(2 * features[:, 0] - 1)
    clicked = torch.rand(6000, generator=generator) < true
    ordered = clicked & (torch.rand(6000, generator=generator) < torch.sigmoid(features[:, 1]))
    data = RewardData(features, clicked.long() + ordered.long(), torch.arange(6000))
    model = fit_reward_model(data, 1, 2, seed=4)
    fresh = torch.randn(4000, 12, generator=generator)
    chance = model(fresh).sigmoid().detach()
    assert (chance[:, 0] - torch.sigmoid(2 * fresh[:, 0] - 1)).abs().mean() < 0.06
    assert (chance[:, 1] - torch.sigmoid(fresh[:, 1])).abs().mean() < 0.12
    happened = (torch.rand(4000, generator=generator) < torch.sigmoid(2 * fresh[:, 0] - 1)).numpy()
    curve = calibration(chance[:, 0].numpy(), happened)
    assert len(curve) == 10 and sum(row["rows"] for row in curve) == 4000 and expected_calibration_error(curve) < 0.05
    again = fit_reward_model(data, 1, 2, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(UserError, match="clicked"):
        fit_reward_model(RewardData(features, torch.zeros(6000), torch.arange(6000)), 1, 2, seed=4)
    assert not torch.allclose(RewardModel(12).mean, model.mean)


def test_rewards_by_hand():
    trie = build_trie(torch.tensor([[0, 0], [0, 1], [1, 0], [2, 0]]), (3, 2))
    sampled = Sampled(
        torch.tensor([[0, 1, 2, 3]]), torch.tensor([[True, True, True, False]]), torch.tensor([[1.0, 2.0, 3.0, 9.0]]),
        torch.zeros(1, 4),
        torch.tensor([[2, 0, -1]]), torch.tensor([[0.7, 0.1, 0.0]]), torch.zeros(4), trie,
    )  # fmt: skip
    assert REWARDS["behaviour"](sampled)[0].tolist() == pytest.approx([0.1, 0.0, 0.7, 0.0])
    assert REWARDS["diversity"](sampled)[0, :3].tolist() == pytest.approx([0.5, 0.5, 1.0])
    total, means = total_reward(sampled, {"model": 2.0, "relevance": 1.0})
    assert means["model"] == 2.0 and total[0, :3].tolist() == pytest.approx([-2.0, 0.0, 2.0])
    with pytest.raises(UserError, match="clicks"):
        check_rewards({"clicks": 1.0})
    with pytest.raises(UserError, match="no reward"):
        check_rewards({"model": 0.0})


def test_diversity_counts_pairs_of_other_groups():
    assert diversity(np.array([[0, 1, 2], [0, 1, -1]]), np.array([5, 5, 6])) == pytest.approx((2 / 3 + 0) / 2)
