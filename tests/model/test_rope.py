"""Rotary positions: scores depend on distances alone, each kind as written down, and real Unix seconds lose nothing."""

from __future__ import annotations

import math

import pytest
import torch

from genrec.model.rope import KINDS, rotary_angles, rotate

BATCH, HEADS, LENGTH, PLANES, BASE = 2, 3, 7, 8, 10_000.0


@pytest.fixture(scope="module")
def parts():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(BATCH, HEADS, LENGTH, 2 * PLANES, generator=generator, dtype=torch.float64) for _ in range(2))
    index = torch.arange(LENGTH).expand(BATCH, -1)
    time = torch.rand(BATCH, LENGTH, generator=generator, dtype=torch.float64).cumsum(1) * 5
    return q, k, index, time


def scores(q, k, index, time, share, kind="split"):
    angles = rotary_angles(index, time, PLANES, share, BASE, kind)
    return rotate(q, angles) @ rotate(k, angles).transpose(-1, -2)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_shifting_everything_changes_nothing(parts, share, kind):
    q, k, index, time = parts
    here = scores(q, k, index, time, share, kind)
    torch.testing.assert_close(scores(q, k, index + 13, time, share, kind), here, rtol=0, atol=1e-4)
    torch.testing.assert_close(scores(q, k, index, time + 21, share, kind), here, rtol=0, atol=1e-4)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("kind", ["split", "early"])
def test_distances_in_index_and_in_time_matter(parts, share, kind):
    q, k, index, time = parts
    here = scores(q, k, index, time, share, kind)
    assert (scores(q, k, index * 2, time, share, kind) - here).abs().max() > 1e-2
    assert (scores(q, k, index, time * 2, share, kind) - here).abs().max() > 1e-2


def test_index_alone_ignores_time_and_time_alone_the_index(parts):
    q, k, index, time = parts
    for share, kind in ((0.0, "split"), (0.0, "early"), (0.7, "index")):
        assert torch.equal(scores(q, k, index, time, share, kind), scores(q, k, index, time * 3 + 1, share, kind))
    for share, kind in ((1.0, "split"), (1.0, "early"), (0.3, "time")):
        assert torch.equal(scores(q, k, index, time, share, kind), scores(q, k, index * 3 + 1, time, share, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_angles_equal_the_formula(parts, kind):
    """Plane by plane, as the docstring says it."""
    _, _, index, time = parts
    share, base = 0.25, 50_000.0
    found = rotary_angles(index, time, PLANES, share, base, kind).double()
    n_time = {"index": 0, "time": PLANES, "split": 2, "early": PLANES}[kind]
    for plane in range(PLANES):
        for row in range(BATCH):
            for place in range(LENGTH):
                i, t = float(index[row, place]), float(time[row, place])
                if kind == "early":
                    wanted = (1 - share) * i * 10_000.0 ** (-plane / PLANES) + share * t * base ** (-plane / PLANES)
                elif plane < PLANES - n_time:
                    wanted = i * 10_000.0 ** (-plane / (PLANES - n_time))
                else:
                    wanted = t * base ** (-(plane - PLANES + n_time) / n_time)
                turn = (float(found[row, place, plane]) - wanted) % (2 * math.pi)
                assert min(turn, 2 * math.pi - turn) < 1e-5


@pytest.mark.parametrize("kind", ["time", "split", "early"])
def test_real_seconds_keep_their_place_in_a_turn(kind):
    """Ten years in seconds, seconds apart: float32 holds them to 16 s, and a score would be noise."""
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(1, 1, 6, 2 * PLANES, generator=generator, dtype=torch.float64) for _ in range(2))
    origin = 315_360_000.0
    time = origin + torch.tensor([[0.0, 1.0, 2.0, 60.0, 61.0, 3600.0]], dtype=torch.float64)
    index = torch.arange(6)[None]
    far = scores(q, k, index, time, 0.5, kind)
    near = scores(q, k, index, time - origin, 0.5, kind)
    torch.testing.assert_close(far, near, rtol=0, atol=1e-4)
    assert (scores(q, k, index, time.float(), 0.5, kind) - near).abs().max() > 1e-2


def test_angles_fill_all_planes_and_rotation_keeps_length(parts):
    q, _, index, time = parts
    for kind in KINDS:
        angles = rotary_angles(index, time, PLANES, 0.3, BASE, kind)
        assert angles.shape == (BATCH, LENGTH, PLANES) and angles.dtype == torch.float32
        torch.testing.assert_close(rotate(q, angles).norm(dim=-1), q.norm(dim=-1), rtol=0, atol=1e-5)


def test_a_plane_turns_by_its_angle():
    angles = torch.full((1, 1, 1), 0.3)
    turned = rotate(torch.tensor([[[[1.0, 0.0]]]]), angles)
    torch.testing.assert_close(turned.flatten(), torch.stack([angles[0, 0, 0].cos(), angles[0, 0, 0].sin()]))
