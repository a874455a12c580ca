"""Dense retrieval against brute force."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from genrec.errors import UserError
from genrec.retrieval import dense
from genrec.retrieval.dense import ExactIndex, dense_index, top_k
from genrec.retrieval.rough import RoughScores

ITEMS, DIM, BATCH = 3000, 16, 4


@pytest.fixture(scope="module")
def world():
    torch.manual_seed(0)
    near = torch.randn(40, DIM)[torch.randint(40, (ITEMS,))]  # clusters, as item vectors have them
    vectors = F.normalize(near + 0.5 * torch.randn(ITEMS, DIM), dim=-1)
    return vectors, vectors[:BATCH] + 0.1 * torch.randn(BATCH, DIM)


@pytest.mark.parametrize("kind", ["exact", "flat"])
@pytest.mark.parametrize("k", [1, 10, ITEMS + 5])
def test_exact_kinds_equal_brute_force(world, kind, k):
    vectors, queries = world
    wanted = (queries @ vectors.T).topk(min(k, ITEMS))
    ids, scores = dense_index(kind, vectors).search(queries, k)
    torch.testing.assert_close(scores, wanted.values, rtol=0, atol=1e-5)
    assert (ids == wanted.indices).float().mean() > 0.999  # scores that differ in the last bit may swap


@pytest.mark.parametrize("kind", ["exact", "flat", "ivf", "hnsw"])
def test_every_kind_finds_most_and_nothing_hidden(world, kind):
    vectors, queries = world
    index = dense_index(kind, vectors)
    scores = queries @ vectors.T
    hidden = scores > scores.topk(30).values[:, -1:]  # hide the very best
    for mask in (None, hidden):
        ids, found = index.search(queries, 20, mask)
        wanted = scores if mask is None else scores.masked_fill(mask, -torch.inf)
        recall = (ids[..., None] == wanted.topk(20).indices[:, None]).any(-1).float().mean()
        assert recall == 1 if kind in ("exact", "flat") else recall > 0.7
        assert ids.shape == (BATCH, 20) and all(len(set(row)) == 20 for row in ids.tolist())
        torch.testing.assert_close(found, wanted.gather(1, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["exact", "flat", "ivf", "hnsw"])
def test_everything_hidden_gives_nothing(world, kind):
    vectors, queries = world
    ids, scores = dense_index(kind, vectors[:50]).search(queries, 3, torch.ones(BATCH, 50, dtype=torch.bool))
    assert (ids == -1).all() and scores.isneginf().all()


@pytest.mark.parametrize("block", [7, 64, 100_000])
@pytest.mark.parametrize("k", [3, 40])
def test_blocks_change_nothing_and_ties_go_to_the_lower_id(world, block, k):
    vectors, queries = world
    vectors = (vectors * 3).round()  # many equal scores
    scores = queries.round() @ vectors.T
    wanted = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(ExactIndex(vectors, block).search(queries.round(), k)[0], wanted)
    assert torch.equal(top_k(scores, k)[0], wanted)


@pytest.fixture
def rough(monkeypatch):
    """Exact indices that look at bfloat16 products first, whatever the processor and the size; a few queries too."""
    monkeypatch.setattr(dense, "bfloat16_hardware", lambda: "pairs")
    monkeypatch.setattr(dense, "ROUGH_ITEMS", 1)
    monkeypatch.setattr(dense, "FEW", 0)


@pytest.mark.parametrize("chunk", [1 << 10, 1 << 13, 1 << 23])
@pytest.mark.parametrize("shift", [0.0, -20.0])  # all scores below zero
@pytest.mark.parametrize("k", [1, 30, ITEMS])
def test_a_first_look_in_bfloat16_loses_nothing(world, rough, monkeypatch, chunk, shift, k):
    monkeypatch.setattr(dense, "ROUGH_CHUNK", chunk)
    vectors, queries = (
        torch.cat([part, torch.full((len(part), 1), value)], dim=1)
        for part, value in zip(world, (shift, 1.0), strict=True)
    )
    index = ExactIndex(vectors)
    assert index.rough is not None
    scores = queries.double() @ vectors.double().T
    hidden = torch.rand(scores.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    for mask in (None, hidden):
        wanted = (scores if mask is None else scores.masked_fill(mask, -torch.inf)).topk(k)
        ids, found = index.search(queries, k, mask)
        live = wanted.values.isfinite()
        assert torch.equal(ids >= 0, live)
        torch.testing.assert_close(found.double()[live], wanted.values[live], rtol=0, atol=1e-5)
        torch.testing.assert_close(scores.gather(1, ids.clamp(min=0))[live], wanted.values[live], rtol=0, atol=1e-5)
        assert all(len(set(row[row >= 0].tolist())) == int((row >= 0).sum()) for row in ids)


def test_a_first_look_leaves_few(world):
    vectors, queries = world
    row, _ = RoughScores(vectors).possible(queries, 20, None, 1 << 10)
    assert len(row) < 2 * 20 * len(queries)


def test_an_item_whose_product_is_rounded_down_beside_one_rounded_up_stays_possible():
    """Rounding takes up to 2^-8 of a product: the first item is better by a little, and its rough score a whole step lower."""
    step = 2.0**-8
    vectors = torch.tensor([[1, step * (1 + 0.9 * step), 0], [1, step * (1 + 1.1 * step), -0.4 * step**2]])
    queries = torch.ones(1, 3)
    scores = queries.double() @ vectors.double().T
    rough = queries.bfloat16() @ vectors.bfloat16().T
    assert scores[0, 0] > scores[0, 1] and rough[0, 0] < rough[0, 1]
    assert 0 in RoughScores(vectors).possible(queries, 1, None, 1 << 10)[1].tolist()


@pytest.mark.parametrize("few", [0, 8])
def test_equal_vectors_far_apart_go_to_the_lower_id(world, rough, monkeypatch, few):
    monkeypatch.setattr(dense, "FEW", few)
    monkeypatch.setattr(dense, "ROUGH_CHUNK", 1)
    vectors, queries = world
    twice = torch.cat([vectors, vectors])
    for k in (1, 6, 7):  # the last of an odd number has a twin that is left out
        ids, scores = ExactIndex(twice).search(queries, k)
        wanted = (queries.double() @ vectors.double().T).topk(4).indices
        wanted = torch.stack([wanted, wanted + ITEMS], dim=-1).flatten(1)[:, :k]
        assert torch.equal(ids, wanted)


def test_bad_input_is_told(world):
    vectors, queries = world
    for call in (
        lambda: dense_index("tree", vectors),
        lambda: dense_index("flat", vectors[:0]),
        lambda: dense_index("exact", vectors).search(queries, 0),
    ):
        with pytest.raises(UserError):
            call()
