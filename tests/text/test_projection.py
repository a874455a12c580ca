"""The projection for both tasks: it learns from training events only, the same way each time, and survives a save."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from genrec.data.dataset import TRAIN
from genrec.errors import UserError
from genrec.text.encoder import unit
from genrec.text.factory import load_encoder
from genrec.text.projection import FILE, Pairs, ProjectedEncoder, fit_projection, project, training_pairs
from genrec.text.tfidf import TfidfEncoder

TEXTS = [
    "red running shoes",
    "blue running shoes",
    "red leather bag",
    "blue leather bag",
    "green tea",
    "black tea",
    "red tea pot",
]


@pytest.fixture(scope="module")
def world():
    """Queries equal their item's vector in half of the dimensions; the other half, which is louder, says nothing."""
    rng = np.random.default_rng(0)
    said = rng.normal(size=(400, 6))
    queries, items = (unit(np.concatenate([said, 2 * rng.normal(size=(400, 6))], axis=1)) for _ in range(2))
    order = np.arange(400)
    return queries, items, Pairs(order[:300], order[:300]), Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64))


def test_it_learns_what_pairs_share(world):
    queries, items, searched, together = world
    weight, losses = fit_projection(queries, items, searched, together, seed=1)
    assert losses["after"] < losses["before"]

    def found(weight):  # pairs that were never trained on
        scores = project(queries[300:], weight) @ project(items, weight).T
        return (scores.argmax(1) == np.arange(300, 400)).mean()

    assert found(weight) > 1.3 * found(np.zeros((12, 12)))


def test_the_same_seed_gives_the_same_projection(world):
    assert np.array_equal(fit_projection(*world, seed=1)[0], fit_projection(*world, seed=1)[0])


def test_pairs_that_teach_nothing_leave_the_space_alone(world):
    queries, items, _, together = world
    rng = np.random.default_rng(0)
    weight, losses = fit_projection(queries, items, Pairs(rng.permutation(400), rng.permutation(400)), together, seed=1)
    assert losses["after"] <= losses["before"]  # epoch 0 is among the candidates
    weight, losses = fit_projection(queries, items, together, together, seed=1)
    assert (weight == 0).all() and not losses


def test_round_trip_and_zero_stays_zero(tmp_path):
    base = TfidfEncoder.fit(TEXTS, 5, 1, 0)
    encoder = ProjectedEncoder(base, np.random.default_rng(0).normal(size=(5, 5)))
    encoder.save(tmp_path)
    again = load_encoder(tmp_path)
    assert np.array_equal(again.encode([*TEXTS, ""]), encoder.encode([*TEXTS, ""])) and again.dim == 5
    assert (again.encode(["", "zebra"]) == 0).all() and not np.allclose(again.encode(TEXTS), base.encode(TEXTS))
    (tmp_path / FILE).unlink()
    with pytest.raises(UserError, match="projection.safetensors is missing"):
        load_encoder(tmp_path)


def test_a_projection_of_another_width():
    with pytest.raises(UserError, match=r"its shape is \(3, 3\), the text encoder needs \(5, 5\)"):
        ProjectedEncoder(TfidfEncoder.fit(TEXTS, 5, 1, 0), np.zeros((3, 3)))


def test_pairs_come_from_training_events_only(prepared_run):
    """Change every validation and test event: the pairs must not move; they equal those of a slow count."""
    data = prepared_run.dataset
    searched, together = training_pairs(data)
    slow_searched, moves = set(), {}
    for start, stop in zip(data.offsets, data.offsets[1:], strict=False):
        kept = [event for event in range(start, stop) if data.split[event] == TRAIN]
        slow_searched |= {
            (int(data.queries[event]), int(data.items[event])) for event in kept if data.queries[event] >= 0
        }
        for one, two in pairwise(kept):
            pair = tuple(sorted((int(data.items[one]), int(data.items[two]))))
            if pair[0] != pair[1]:
                moves[pair] = moves.get(pair, 0) + 1
    assert (
        set(zip(searched.left.tolist(), searched.right.tolist(), strict=True)) == slow_searched
        and len(slow_searched) == len(searched) > 0
    )
    assert set(zip(together.left.tolist(), together.right.tolist(), strict=True)) == {
        pair for pair, count in moves.items() if count > 1
    }
    kept_items, kept_queries = data.items, data.queries
    try:
        held_out = np.asarray(data.split) != TRAIN
        data.items = np.where(held_out, 0, kept_items)
        data.queries = np.where(held_out, 0, kept_queries)
        again = training_pairs(data)
    finally:
        data.items, data.queries = kept_items, kept_queries
    assert all(
        np.array_equal(one.left, two.left) and np.array_equal(one.right, two.right)
        for one, two in zip((searched, together), again, strict=True)
    )
