"""User IDs of every request of a batch: the same as one history at a time, and blind to what comes after."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genrec.data.histories import Histories
from genrec.errors import UserError
from genrec.semantic_ids.user_ids import code_weights, long_history_vectors, user_codes
from genrec.semantic_ids.user_prefixes import prefix_sums, prefix_user_codes, ranges, recency_pool

SIZES = (40, 9, 5)


@pytest.fixture(scope="module")
def world():
    """Codes of 50 items, 300 events, and ranges that share starts, overlap, are empty or as long as the log."""
    rng = np.random.default_rng(0)
    codes = np.column_stack([rng.integers(0, size, 50) for size in SIZES])
    start = np.concatenate([np.repeat(rng.integers(0, 250, 20), 4), [0, 0, 299, 300]])
    stop = np.minimum(start + rng.integers(0, 50, len(start)), 300)
    stop[-4:] = 300, 0, 299, 300
    return codes, rng.integers(0, 50, 300), start, stop


@pytest.mark.parametrize(("short", "long"), [(5, 1000), (3, 20), (1, 1)])
def test_every_prefix_has_the_user_id_of_its_history(world, short, long):
    codes, items, start, stop = world
    slow = Histories.from_lists([items[begin:end] for begin, end in zip(start, stop, strict=True)])
    assert np.array_equal(ranges(items, start, stop).items, slow.items)
    assert np.array_equal(
        prefix_user_codes(codes, items, start, stop, short, long), user_codes(codes, slow, short, long)
    )


def test_events_from_the_request_on_are_not_read(world):
    codes, items, start, stop = world
    before = prefix_user_codes(codes, items, start, stop, 3, 30)
    for row in range(0, len(start), 7):
        changed = items.copy()
        changed[stop[row] :] = (changed[stop[row] :] + 11) % 50
        assert np.array_equal(prefix_user_codes(codes, changed, start, stop, 3, 30)[row], before[row])


def test_long_sequences_stay_exact():
    codes = np.array([[0], [7]])
    items = np.zeros(5000, np.int64)
    items[-1] = 1
    found = prefix_user_codes(codes, items, np.zeros(3, int), np.array([4999, 5000, 900]), 5, 10_000)
    assert found[:, 1].tolist() == [0, 1, 0]  # the newest of 5,000 weighs some percent of 7


def windows(world, length=12):
    """The same events as padded sequences: items (B, T), positions (B, R) and the histories (B x R) they stand for."""
    _, items, _, _ = world
    table = items[:60].reshape(5, length)
    positions = torch.tensor([[0, 1, 5, 12]]).repeat(5, 1)
    return table, positions, Histories.from_lists([row[:end] for row in table for end in positions[0]])


@pytest.mark.parametrize("last", [1, 5, 12, 1000])
def test_pooled_code_vectors_are_the_blend_of_one_history(world, last):
    codes = world[0]
    table, positions, histories = windows(world)
    tables = [torch.randn(size, 6, generator=torch.Generator().manual_seed(size)) for size in SIZES]
    vectors = sum(level[codes[table, index]] for index, level in enumerate(tables))
    blends = code_weights(codes, SIZES, histories.last_n(last))
    expected = sum(matrix @ level.numpy() for matrix, level in zip(blends, tables, strict=True))
    found = recency_pool(vectors, positions, last)
    np.testing.assert_allclose(found.flatten(0, 1).numpy(), expected, atol=1e-5)


def test_summed_centroids_are_the_pooled_long_history(world):
    codes = world[0]
    table, positions, histories = windows(world)
    centroids = np.random.default_rng(1).normal(size=(SIZES[0], 4)).astype(np.float32)
    expected = long_history_vectors(codes, histories, [centroids])[:, 0, 0]
    found = prefix_sums(torch.from_numpy(centroids)[codes[table, 0]], positions)
    np.testing.assert_allclose(found.flatten(0, 1).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("last", [3, 100])
def test_no_gradient_comes_from_events_a_request_does_not_see(last):
    vectors = torch.randn(1, 8, 3, requires_grad=True)
    recency_pool(vectors, torch.tensor([[4]]), last).sum().backward()
    moved = vectors.grad[0].abs().sum(1) > 0
    assert moved.tolist() == [index < 4 and index >= 4 - last for index in range(8)]


def test_ranges_outside_the_events_are_refused(world):
    with pytest.raises(UserError, match="300 events"):
        ranges(world[1], np.array([5]), np.array([301]))
    with pytest.raises(UserError, match="short=0"):
        prefix_user_codes(*world, short=0)
