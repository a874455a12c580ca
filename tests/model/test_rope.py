"""Rotary positions: scores depend on distances alone, angles equal the formula.

And Unix seconds keep their precision.
"""

from __future__ import annotations

import math

import pytest
import torch

from genrec.model.rope import rotary_angles, rotate

BATCH, HEADS, LENGTH, PLANES, BASE = 2, 3, 7, 8, 10_000.0


@pytest.fixture(scope="module")
def parts():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(BATCH, HEADS, LENGTH, 2 * PLANES, generator=generator, dtype=torch.float64) for _ in range(2))
    index = torch.arange(LENGTH).expand(BATCH, -1)
    time = torch.rand(BATCH, LENGTH, generator=generator, dtype=torch.float64).cumsum(1) * 5
    return q, k, index, time


def scores(q, k, index, time, share):
    angles = rotary_angles(index, time, PLANES, share, BASE)
    return rotate(q, angles) @ rotate(k, angles).transpose(-1, -2)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_common_shift_changes_nothing(parts, share):
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


def test_index_alone_ignores_time_and_time_alone_the_index(parts):
    q, k, index, time = parts
    assert torch.equal(scores(q, k, index, time, 0.0), scores(q, k, index, time * 3 + 1, 0.0))
    assert torch.equal(scores(q, k, index, time, 1.0), scores(q, k, index * 3 + 1, time, 1.0))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_angles_equal_the_formula(parts, share):
    """Plane by plane, as the docstring says."""
    _, _, index, time = parts
    base, n_time = 50_000.0, round(share * PLANES)
    angles = rotary_angles(index, time, PLANES, share, base).double()
    for plane in range(PLANES):
        for row in range(BATCH):
            for column in range(LENGTH):
                if plane < PLANES - n_time:
                    target = float(index[row, column]) * 10_000.0 ** (-plane / (PLANES - n_time))
                else:
                    target = float(time[row, column]) * base ** (-(plane - PLANES + n_time) / n_time)
                turn = (float(angles[row, column, plane]) - target) % (2 * math.pi)
                assert min(turn, 2 * math.pi - turn) < 1e-5


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_seconds_since_1970_keep_their_precision(share):
    """Ten years in seconds, seconds apart: float32 resolves 16 s, which would turn scores into noise."""
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(1, 1, 6, 2 * PLANES, generator=generator, dtype=torch.float64) for _ in range(2))
    origin = 315_360_000.0
    time = origin + torch.tensor([[0.0, 1.0, 2.0, 60.0, 61.0, 3600.0]], dtype=torch.float64)
    index = torch.arange(6)[None]
    far = scores(q, k, index, time, share)
    near = scores(q, k, index, time - origin, share)
    torch.testing.assert_close(far, near, rtol=0, atol=1e-4)
    assert (scores(q, k, index, time.float(), share) - near).abs().max() > 1e-2


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
