"""Rotary positions: scores depend on distances alone, and time turns only its own planes."""

from __future__ import annotations

import pytest
import torch

from genrec.model.rope import rotary_angles, rotate

BATCH, HEADS, LENGTH, PLANES, BASE = 2, 3, 7, 8, 10_000.0


@pytest.fixture(scope="module")
def parts():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(BATCH, HEADS, LENGTH, 2 * PLANES, generator=generator, dtype=torch.float64) for _ in range(2))
    index = torch.arange(LENGTH).expand(BATCH, -1)
    time = torch.rand(BATCH, LENGTH, generator=generator).cumsum(1) * 5
    return q, k, index, time


def scores(q, k, index, time, share):
    angles = rotary_angles(index, time, PLANES, share, BASE)
    return rotate(q, angles) @ rotate(k, angles).transpose(-1, -2)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_shifting_everything_changes_nothing(parts, share):
    q, k, index, time = parts
    here = scores(q, k, index, time, share)
    torch.testing.assert_close(scores(q, k, index + 13, time, share), here, rtol=0, atol=1e-4)
    torch.testing.assert_close(scores(q, k, index, time + 21, share), here, rtol=0, atol=1e-4)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_distances_in_index_and_in_time_matter(parts, share):
    q, k, index, time = parts
    here = scores(q, k, index, time, share)
    assert (scores(q, k, index * 2, time, share) - here).abs().max() > 1e-2
    assert (scores(q, k, index, time * 2, share) - here).abs().max() > 1e-2


def test_share_0_ignores_time_and_share_1_ignores_the_index(parts):
    q, k, index, time = parts
    assert torch.equal(scores(q, k, index, time, 0.0), scores(q, k, index, time * 3 + 1, 0.0))
    assert torch.equal(scores(q, k, index, time, 1.0), scores(q, k, index * 3 + 1, time, 1.0))


def test_angles_fill_all_planes_and_rotation_keeps_length(parts):
    q, _, index, time = parts
    for share in (0.0, 0.3, 1.0):
        angles = rotary_angles(index, time, PLANES, share, BASE)
        assert angles.shape == (BATCH, LENGTH, PLANES) and angles.dtype == torch.float32
        torch.testing.assert_close(rotate(q, angles).norm(dim=-1), q.norm(dim=-1), rtol=0, atol=1e-5)


def test_a_plane_turns_by_its_angle():
    angles = torch.full((1, 1, 1), 0.3)
    turned = rotate(torch.tensor([[[[1.0, 0.0]]]]), angles)
    torch.testing.assert_close(turned.flatten(), torch.stack([angles[0, 0, 0].cos(), angles[0, 0, 0].sin()]))
