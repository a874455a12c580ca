"""Vectors made in blocks of items, in files, are those of the whole catalogue at once."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.data.dataset import TRAIN
from genrec.semantic_ids import item_vectors as module
from genrec.semantic_ids import report, space
from genrec.semantic_ids.item_vectors import item_vectors
from genrec.semantic_ids.space import BehaviourSpace, ItemSpace
from genrec.semantic_ids.text_space import TextSpace


@pytest.fixture(scope="module")
def made(synthetic_run, tmp_path_factory):
    """A function from the size of a block to the vectors."""
    data, words = synthetic_run.dataset, TextSpace.load(synthetic_run.folder / "semantic_ids")
    behaviour = BehaviourSpace(data.histories(TRAIN), data.n_items, 0)

    def vectors(block: int, patch) -> module.ItemVectors:
        patch.setattr(module, "BLOCK", block)
        return item_vectors(data.item_table, words, behaviour, 0.5, tmp_path_factory.mktemp("vectors"))

    return vectors, words, behaviour, data


def test_blocks_change_nothing(made, monkeypatch):
    vectors, words, behaviour, data = made
    whole, parts = (vectors(block, monkeypatch) for block in (1 << 20, 7))
    text, enhanced = words.item_vectors(data.item_table)
    expected = ItemSpace.fit(enhanced, behaviour.vectors(), 0.5)
    assert np.array_equal(whole.space.bridge, expected.bridge)
    assert np.array_equal(whole.joint, expected.vectors(enhanced, behaviour.vectors()))
    for name in ("text", "enhanced", "joint"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-5)
    rows = np.array([3, 1])
    assert np.array_equal(whole.without_behaviour[rows], expected.vectors(enhanced[rows]))


def test_many_items_are_kept_in_half_precision(made, monkeypatch):
    vectors, *_ = made
    monkeypatch.setattr(module, "HALF_ITEMS", 10)
    half = vectors(16, monkeypatch)
    assert half.text.dtype == np.float16 and half.joint.dtype == np.float32
    monkeypatch.setattr(module, "HALF_ITEMS", 1 << 20)
    np.testing.assert_allclose(half.text, vectors(16, monkeypatch).text, atol=1e-3)


def test_behaviour_of_popular_items_gives_that_of_all(made, monkeypatch):
    """With all items among the popular ones the two ways span the same space: equal cosines."""
    _, _, behaviour, data = made
    monkeypatch.setattr(space, "POPULAR", data.n_items - 1)
    folded = BehaviourSpace(data.histories(TRAIN), data.n_items, 0)
    assert folded.dim == behaviour.dim
    ours, theirs = folded.vectors(), behaviour.vectors()
    assert np.array_equal(ours.any(1), theirs.any(1))
    cosines = [vectors @ vectors.T for vectors in (ours, theirs)]
    seen = theirs.any(1)
    agreement = np.corrcoef(*(one[np.ix_(seen, seen)].ravel() for one in cosines))[0, 1]
    assert agreement > 0.95


def test_neighbours_of_the_report_do_not_depend_on_blocks(monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    sample = np.arange(0, 300, 11)
    whole = report._nearest(vectors, sample, 11)
    monkeypatch.setattr("genrec.semantic_ids.quantizers.codebooks.BLOCK_ROWS", 37)
    assert np.array_equal(whole, report._nearest(vectors, sample, 11))
