"""Preference losses against slow float64 references: list-wise DPO, group-relative policy loss, Plackett-Luce."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from genrec.objectives.group_relative import group_normalised, policy_loss, position_advantages, prefix_matches
from genrec.objectives.list_preference import listwise_dpo
from genrec.objectives.plackett_luce import (
    discounted_gain,
    leave_one_out,
    list_log_probabilities,
    list_policy_loss,
    sample_lists,
)


@pytest.fixture
def lists():
    generator = torch.Generator().manual_seed(1)
    policy, reference, weights = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    live = torch.rand(6, 5, generator=generator) < 0.7
    live[:4, 0], live[4, 0], live[5, 1:] = True, False, False  # a list without a winner, one without a loser
    live[5, 0] = True
    return policy, reference, live, weights.abs() + 0.5


def slow_dpo(policy, reference, live, beta, weights, margin, anchor):
    preference, own = [], []
    for row in range(len(policy)):
        if not live[row, 0]:
            continue
        own.append(policy[row, 0])
        total = 0
        for column in range(1, policy.shape[1]):
            if live[row, column]:
                gap = beta * (policy[row, 0] - reference[row, 0]) - beta * (
                    policy[row, column] - reference[row, column]
                )
                total = total + torch.exp(-weights[row, column] * (gap - margin))
        if live[row, 1:].any():
            preference.append(-torch.log(torch.sigmoid(-torch.log(total))))
    return torch.stack(preference).mean() - anchor * torch.stack(own).mean()


def test_dpo_and_its_gradient_equal_the_reference(lists):
    policy, reference, live, weights = lists
    policy.requires_grad_()
    fast = listwise_dpo(policy, reference, live, 0.7, weights, 0.2, 0.3)
    slow = slow_dpo(policy, reference, live, 0.7, weights, 0.2, 0.3)
    torch.testing.assert_close(fast.loss, slow)
    torch.testing.assert_close(torch.autograd.grad(fast.loss, policy), torch.autograd.grad(slow, policy))


@pytest.mark.parametrize("losers", [1, 4])
def test_equal_policy_and_reference_cost_log_of_one_plus_losers(losers):
    policy = torch.randn(7, losers + 1, dtype=torch.float64)
    actual = listwise_dpo(policy, policy.clone(), torch.ones(7, losers + 1, dtype=torch.bool), 0.5)
    torch.testing.assert_close(actual.loss, torch.tensor(math.log(1 + losers), dtype=torch.float64))
    assert actual.gap == 0


def test_dpo_without_any_pair_is_zero_and_finite():
    policy = torch.randn(3, 4, requires_grad=True)
    actual = listwise_dpo(policy, policy.detach(), torch.zeros(3, 4, dtype=torch.bool), 1.0, anchor=1.0)
    actual.loss.backward()
    assert actual.loss == 0 and policy.grad.abs().max() == 0


def test_advantages_by_hand():
    """Two codes, four samples: rewards 0, 1, 2 and one that does not count.

    The target's prefix is met by the first two.
    """
    rewards, live = torch.tensor([[0.0, 1.0, 2.0, 99.0]]), torch.tensor([[True, True, True, False]])
    paths = torch.tensor([[[1, 5], [1, 6], [2, 9], [1, 5]]])
    matches = prefix_matches(paths, torch.tensor([[1, 6]]))
    assert matches.tolist() == [[[True, False], [True, True], [False, False], [True, False]]]
    actual = position_advantages(rewards, live, matches, torch.tensor([2.0, 1.0]))
    item = math.sqrt(1.5)  # (2 - 1) / population standard deviation of 0, 1, 2
    first, second = (
        1 / math.sqrt(2),
        1.0,
    )  # matches 1, 1, 0 of three; then 0, 1 among the two whose first code was right
    targets = [[2 * (-item + first), -item - second], [2 * first, second], [2 * (item - 2 * first), item], [0, 0]]
    torch.testing.assert_close(actual, torch.tensor([targets]))
    none = position_advantages(rewards, live, prefix_matches(paths, torch.tensor([[-1, -1]])), torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(none, position_advantages(rewards, live, None, torch.tensor([2.0, 1.0])))


def test_equal_rewards_give_no_advantage():
    assert group_normalised(torch.full((2, 5), 0.1), torch.ones(2, 5, dtype=torch.bool)).abs().max() == 0


def test_policy_loss_and_gradient_equal_the_reference():
    generator = torch.Generator().manual_seed(3)
    steps, reference = (-torch.rand(2, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    advantages, live = (
        torch.randn(2, 4, 3, generator=generator, dtype=torch.float64),
        torch.ones(2, 4, dtype=torch.bool),
    )
    live[1, 2] = False
    steps.requires_grad_()
    gains, divergences, entropies = [], [], []
    for row, sample in itertools.product(range(2), range(4)):
        if live[row, sample]:
            gains.append((advantages[row, sample] * steps[row, sample]).sum())
            ratio = torch.exp(reference[row, sample].sum() - steps[row, sample].sum())
            divergences.append(ratio - torch.log(ratio) - 1)
            entropies.append(-steps[row, sample].sum())
    slow = -torch.stack(gains).mean() + 0.3 * torch.stack(divergences).mean()
    fast = policy_loss(steps, reference, advantages, live, 0.3)
    torch.testing.assert_close(fast.loss, slow)
    torch.testing.assert_close(fast.kl, torch.stack(divergences).mean().detach())
    torch.testing.assert_close(fast.entropy, torch.stack(entropies).mean().detach())
    torch.testing.assert_close(torch.autograd.grad(fast.loss, steps), torch.autograd.grad(slow, steps))


def test_expected_policy_gradient_is_that_of_the_expected_reward():
    """Summed over all actions, the on-policy score-function gradient is the derivative of E[reward]."""
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    rewards, probability = torch.randn(5, dtype=torch.float64), logits.softmax(0)
    true = torch.autograd.grad((probability * rewards).sum(), logits, retain_graph=True)[0]
    total = 0
    for action in range(5):
        loss = policy_loss(
            logits.log_softmax(0)[action].view(1, 1, 1),
            torch.zeros(1, 1, 1),
            rewards[action].view(1, 1, 1),
            torch.ones(1, 1).bool(),
        )
        total = total - probability[action].detach() * torch.autograd.grad(loss.loss, logits)[0]
    torch.testing.assert_close(total, true)


def test_plackett_luce_probabilities_sum_to_one_and_follow_the_definition():
    scores = torch.randn(1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    for k in (1, 2, 4):
        drawn = torch.tensor([list(itertools.permutations(range(4), k))])
        logs = list_log_probabilities(scores, drawn)
        torch.testing.assert_close(logs.sum(-1).exp().sum(), torch.tensor(1.0, dtype=torch.float64))
        slow = []
        for one in drawn[0].tolist():
            left, total = list(range(4)), 0
            for position in one:
                total = total + scores[0, position] - scores[0, left].logsumexp(0)
                left.remove(position)
            slow.append(total)
        torch.testing.assert_close(logs.sum(-1)[0], torch.stack(slow))
        weight = torch.arange(len(slow), dtype=torch.float64)
        fast, reference = (
            torch.autograd.grad((x * weight).sum(), scores, retain_graph=True)[0]
            for x in (logs.sum(-1)[0], torch.stack(slow))
        )
        torch.testing.assert_close(fast, reference)


def test_drawn_lists_follow_plackett_luce():
    scores = torch.tensor([[1.0, 0.0, -1.0, -torch.inf]])
    drawn = sample_lists(scores, 20_000, 2, torch.Generator().manual_seed(5))
    assert (drawn < 3).all()
    pairs = list(itertools.permutations(range(3), 2))
    expected = list_log_probabilities(scores.masked_fill(scores.isinf(), -1e4), torch.tensor([pairs])).sum(-1).exp()[0]
    share = torch.stack([(drawn[0] == torch.tensor(pair)).all(1).float().mean() for pair in pairs])
    assert (share - expected).abs().max() < 0.015


def test_leave_one_out_and_gain():
    torch.testing.assert_close(
        leave_one_out(torch.tensor([[1.0, 2.0, 6.0]])), torch.tensor([[1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5]])
    )
    torch.testing.assert_close(discounted_gain(torch.tensor([1.0, 2.0, 4.0])), torch.tensor(1 + 2 / math.log2(3) + 2.0))
    assert leave_one_out(torch.tensor([[3.0]])).item() == 0


def test_list_policy_loss_raises_the_better_list():
    scores = torch.zeros(1, 3, requires_grad=True)
    drawn = torch.tensor([[[0, 1], [2, 1]]])
    list_policy_loss(scores, drawn, torch.tensor([[1.0, 0.0]])).backward()
    assert scores.grad[0, 0] < 0 < scores.grad[0, 2]
