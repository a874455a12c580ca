"""Dense retrieval against brute force."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from genrec.errors import UserError
from genrec.retrieval.allowed import AllowedItems
from genrec.retrieval.dense import DenseRetriever, ExactIndex, dense_index
from genrec.retrieval.products import pair_products

ITEMS, DIM, BATCH = 3000, 16, 4


@pytest.fixture(scope="module")
def world():
    torch.manual_seed(0)
    near = torch.randn(40, DIM)[torch.randint(40, (ITEMS,))]  # clusters, as item vectors have them
    vectors = F.normalize(near + 0.5 * torch.randn(ITEMS, DIM), dim=-1)
    return vectors, vectors[:BATCH] + 0.1 * torch.randn(BATCH, DIM)


def search(vectors, queries, k, kind="exact", allowed=None):
    """Ids and scores of a retriever over ``vectors``."""
    return DenseRetriever(vectors, lambda requests: requests.vectors, kind).search(
        queries, k, allowed or AllowedItems()
    )


@pytest.mark.parametrize("k", [1, 10, ITEMS + 5])
def test_the_exact_kind_equals_brute_force(world, k):
    vectors, queries = world
    expected = (queries @ vectors.T).topk(min(k, ITEMS))
    ids, scores = search(vectors, queries, k)
    torch.testing.assert_close(scores, expected.values, rtol=0, atol=1e-5)
    assert (ids == expected.indices).float().mean() > 0.999  # scores that differ in the last bit may swap


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_every_kind_finds_most_and_nothing_that_is_not_allowed(world, kind):
    vectors, queries = world
    scores = queries @ vectors.T
    best = scores.topk(30).indices.sort(dim=1).values
    mask = torch.arange(ITEMS) % 3 > 0
    for allowed in (
        AllowedItems(),
        AllowedItems(mask),
        AllowedItems(excluded=best),
        AllowedItems(mask, best),
        AllowedItems(mask, best[:, ::2], best),
    ):
        hidden = allowed.hidden(BATCH, ITEMS)
        masked = scores if hidden is None else scores.masked_fill(hidden, -torch.inf)
        ids, actual = search(vectors, queries, 10, kind, allowed)
        expected = masked.topk(10)
        live = expected.values.isfinite()
        assert torch.equal((ids >= 0).sum(1), live.sum(1))
        recall = (ids[..., None] == expected.indices[:, None]).any(-1)[ids >= 0].float().mean()
        assert recall == 1 if kind == "exact" or allowed.only is not None else recall > 0.7
        assert all(len(set(row[row >= 0].tolist())) == int((row >= 0).sum()) for row in ids)
        torch.testing.assert_close(actual[ids >= 0], masked.gather(1, ids.clamp(min=0))[ids >= 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_nothing_allowed_and_zero_queries_give_nothing(world, kind):
    vectors, queries = world
    nothing = AllowedItems(torch.zeros(50, dtype=torch.bool))
    for ids, scores in (
        search(vectors[:50], queries, 3, kind, nothing),
        search(vectors[:50], torch.zeros_like(queries), 3, kind),
    ):
        assert (ids == -1).all() and scores.isneginf().all()


@pytest.mark.parametrize("block", [7, 64, 100_000, None])
@pytest.mark.parametrize("k", [3, 40])
def test_blocks_change_nothing_and_ties_go_to_the_lower_id(world, block, k):
    vectors, queries = world
    vectors = (vectors * 3).round()  # many equal scores
    scores = queries.round() @ vectors.T
    expected = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(ExactIndex(vectors, block).nearest(queries.round(), k), expected)


def test_scores_do_not_depend_on_the_batch(world):
    vectors, queries = world
    ids, scores = search(vectors, queries.repeat(20, 1), 50)
    for row in range(BATCH):
        alone = search(vectors, queries[row : row + 1], 50)
        assert torch.equal(alone[0][0], ids[row]) and torch.equal(alone[1][0], scores[row])
    assert torch.equal(pair_products(queries, vectors, ids[:BATCH]), scores[:BATCH])


def test_bad_input_is_named(world):
    vectors, queries = world
    for call in (
        lambda: dense_index("tree", vectors),
        lambda: dense_index("ivf", vectors[:0]),
        lambda: search(vectors, queries, 0),
    ):
        with pytest.raises(UserError):
            call()
