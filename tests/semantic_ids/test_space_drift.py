"""The way in for new items, and the rule that says when the codebooks no longer fit."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.errors import UserError
from genrec.semantic_ids.drift import drift_baseline, drift_report
from genrec.semantic_ids.quantizers import encode, fit_codebooks
from genrec.semantic_ids.space import ItemSpace, joint_vectors


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    text = unit(rng.normal(size=(20, 8))[rng.integers(0, 20, 600)] + 0.1 * rng.normal(size=(600, 8)))
    behaviour = unit(text @ rng.normal(size=(8, 4)) + 0.1 * rng.normal(size=(600, 4)))
    behaviour[:10] = 0  # never consumed
    return text, behaviour


def test_an_item_without_events_gets_the_behaviour_its_text_suggests(world):
    text, behaviour = world
    space = ItemSpace.fit(text[100:], behaviour[100:], 0.5)
    truth = joint_vectors(text[10:100], behaviour[10:100], 0.5)
    bridged, half = space.vectors(text[10:100]), joint_vectors(text[10:100], np.zeros((90, 4), np.float32), 0.5)
    assert (bridged * truth).sum(1).mean() > 0.95 > (half * truth).sum(1).mean() + 0.15
    assert np.allclose(space.vectors(text, behaviour)[10:], joint_vectors(text, behaviour, 0.5)[10:])
    assert np.array_equal(space.vectors(text, behaviour)[:10], space.vectors(text[:10]))


def test_share_zero_is_text_alone(world):
    text, behaviour = world
    space = ItemSpace.fit(text, behaviour, 0.0)
    assert np.allclose(space.vectors(text)[:, :8], text, atol=1e-6) and not space.vectors(text, behaviour)[:, 8:].any()


def test_space_round_trip(world):
    space = ItemSpace.fit(*world, 0.3)
    again = ItemSpace.from_arrays(space.to_arrays())
    assert np.allclose(again.vectors(world[0]), space.vectors(world[0]), atol=1e-6)
    with pytest.raises(UserError, match="bridge"):
        ItemSpace.from_arrays({"share": np.zeros(1)})


@pytest.fixture(scope="module")
def catalogue(world):
    vectors = world[0]
    codebooks, codes = fit_codebooks(vectors[:400], (16, 8), 2, 16, seed=0)
    return codebooks, codes, drift_baseline(codebooks, vectors[:400], codes), vectors[400:]


def test_items_of_the_same_world_are_no_drift(catalogue):
    codebooks, codes, baseline, fresh = catalogue
    report = drift_report(codebooks, baseline, codes, encode(codebooks, fresh), fresh)
    assert (
        not report["retokenize"]
        and report["far_share"] < 0.15
        and report["effective_codes"] == pytest.approx(1, abs=0.2)
    )
    assert report["growth"] == 1.5


@pytest.mark.parametrize("reason", ["far_share", "effective_codes", "taken", "growth"])
def test_each_limit_is_a_reason_of_its_own(catalogue, reason):
    codebooks, codes, baseline, fresh = catalogue
    if reason == "far_share":
        fresh = unit(np.random.default_rng(9).normal(size=(100, 8)))
    elif reason == "effective_codes":
        fresh = np.repeat(fresh[:1], 100, axis=0)
    elif reason == "growth":
        fresh = np.tile(fresh, (3, 1))
    new = encode(codebooks, fresh)
    if reason == "taken":
        codes = np.concatenate([codes, new])  # every new code is taken
        baseline = baseline | {"taken": 0.2}
    report = drift_report(codebooks, baseline, codes, new, fresh)
    assert reason in report["reasons"] and report["retokenize"]


def test_few_or_no_items_say_nothing(catalogue):
    codebooks, codes, baseline, _ = catalogue
    strange = unit(np.random.default_rng(9).normal(size=(5, 8)))
    assert not drift_report(codebooks, baseline, codes, encode(codebooks, strange), strange)["retokenize"]
    assert not drift_report(codebooks, baseline, codes, codes[:0], strange[:0])["retokenize"]
