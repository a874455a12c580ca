"""Pooled histories of every request of a batch: the same as one history at a time, and blind to what comes after."""

from __future__ import annotations

import pytest
import torch

from genrec.model.pooling import prefix_sums, recency_pool

POSITIONS = torch.tensor([[0, 1, 5, 12]]).repeat(5, 1)


@pytest.fixture(scope="module")
def vectors():
    return torch.randn(5, 12, 6, generator=torch.Generator().manual_seed(0))


def recency_weights(n: int) -> torch.Tensor:
    """OneSearch's weights of n events, oldest first."""
    raised = torch.arange(1, n + 1, dtype=torch.float64).sqrt().exp()
    return raised / raised.sum()


@pytest.mark.parametrize("last", [1, 5, 12, 1000])
def test_a_pool_is_the_weighted_mean_of_one_history(vectors, last):
    actual = recency_pool(vectors, POSITIONS, last)
    for row, positions in enumerate(POSITIONS.tolist()):
        for request, position in enumerate(positions):
            view = vectors[row, max(0, position - last) : position].double()
            expected = (recency_weights(len(view))[:, None] * view).sum(0)
            torch.testing.assert_close(actual[row, request].double(), expected, rtol=0, atol=1e-5)


def test_sums_are_those_of_the_events_before_each_request(vectors):
    actual = prefix_sums(vectors, POSITIONS)
    expected = torch.stack([vectors[:, :position].sum(1) for position in POSITIONS[0].tolist()], 1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("last", [3, 100])
def test_no_gradient_comes_from_events_a_request_does_not_see(last):
    vectors = torch.randn(1, 8, 3, requires_grad=True)
    recency_pool(vectors, torch.tensor([[4]]), last).sum().backward()
    moved = vectors.grad[0].abs().sum(1) > 0
    assert moved.tolist() == [index < 4 and index >= 4 - last for index in range(8)]


def test_long_histories_stay_finite():
    actual = recency_pool(torch.ones(1, 5000, 1), torch.tensor([[1, 5000]]), 10_000)
    torch.testing.assert_close(actual, torch.ones(1, 2, 1), rtol=0, atol=1e-3)
