"""Beam search against scoring the whole catalogue: exact if wide, always valid, the same with and without a cache."""

from __future__ import annotations

import pytest
import torch

from genrec.catalogue.trie import build_trie
from genrec.errors import UserError
from genrec.generation import beam as beams
from genrec.generation.beam import beam_search, leaf_items, proven, unread_bound
from genrec.generation.constraints import AllowedNodes
from genrec.generation.scorers import CachedScorer, generate
from genrec.model.code_decoder import CodeDecoder
from genrec.objectives.generation import path_log_probabilities
from genrec.retrieval.allowed import EMPTY, AllowedItems
from tests.generation.reference import UncachedScorer

VOCAB, ITEMS, DIM, BATCH = (6, 5, 4), 90, 16, 5


@pytest.fixture(scope="module")
def trie():
    """A ragged catalogue whose leaves are often shared, with nodes that have a single child."""
    codes = torch.stack(
        [
            torch.randint(size, (ITEMS,), generator=torch.Generator().manual_seed(level))
            for level, size in enumerate(VOCAB)
        ],
        1,
    )
    codes[:4] = torch.tensor([[5, 4, 3]])  # four items on one leaf
    return build_trie(codes, VOCAB)


@pytest.fixture(scope="module")
def parts(trie):
    torch.manual_seed(1)
    decoder = CodeDecoder(trie, DIM, 2, 2, 0.1, 0.3).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        visible = torch.arange(4) < torch.tensor([0, 1, 2, 3, 4])[:, None, None]
        memory = decoder.memory(torch.randn(BATCH, 1, DIM), torch.randn(BATCH, 4, DIM), visible)
        vectors = decoder.node_vectors(trie, torch.randn(ITEMS, DIM))
    with torch.inference_mode():
        yield decoder, memory, vectors


def exact_scores(decoder, memory, vectors, trie) -> torch.Tensor:
    """Scores (B, n_items) by teacher forcing of every item's path: an independent reference for the search."""
    paths = trie.item_path.expand(BATCH, -1, -1)
    entered = torch.cat([torch.zeros_like(paths[..., :1]), paths[..., :-1]], dim=-1)
    states, _ = decoder.hidden(memory, vectors, entered)
    steps = path_log_probabilities(states.flatten(0, 1), decoder.log_scale.exp(), vectors, trie, paths.flatten(0, 1))
    return steps.sum(-1).view(BATCH, -1)


def beam(parts, trie, width, kind=CachedScorer, **options):
    return beam_search(trie, kind(*parts), BATCH, width, **options)


def per_leaf(trie, scores: torch.Tensor) -> torch.Tensor:
    """Item scores (B, n_items) -> leaf scores (B, n_leaves)."""
    first = trie.leaf_items[trie.leaf_item_offsets[:-1]]
    assert torch.equal(
        scores[:, trie.leaf_items], scores[:, first].repeat_interleave(trie.leaf_item_offsets.diff(), dim=1)
    )
    return scores[:, first]


def test_the_fixture_has_shared_leaves_and_single_children(trie):
    assert trie.n_leaves < ITEMS and int(trie.leaf_item_offsets.diff().max()) >= 4 and (trie.child_count == 1).any()


def test_exact_scores_are_a_distribution_over_leaves(parts, trie):
    leaves = per_leaf(trie, exact_scores(*parts, trie))
    torch.testing.assert_close(leaves.logsumexp(1), torch.zeros(BATCH), rtol=0, atol=1e-5)
    assert leaves.std(1).min() > 0.1  # the scores differ: a ranking means something
    assert (leaves[0] - leaves[1]).abs().max() > 1e-2  # and so do the requests


@pytest.mark.parametrize("width", [ITEMS, 500])
def test_a_wide_beam_is_exact(parts, trie, width):
    leaves, total = generate(*parts, trie, width)
    exact = per_leaf(trie, exact_scores(*parts, trie))
    order = exact.argsort(dim=1, descending=True, stable=True)
    assert leaves.shape == (BATCH, trie.n_leaves) or (leaves[:, trie.n_leaves :] == -1).all()
    leaves, total = leaves[:, : trie.n_leaves], total[:, : trie.n_leaves]
    torch.testing.assert_close(total, exact.gather(1, order), rtol=0, atol=1e-5)
    index = leaves - trie.level_bounds[trie.depth]
    assert torch.equal(index.sort(1).values, torch.arange(trie.n_leaves).expand(BATCH, -1))
    torch.testing.assert_close(exact.gather(1, index), total, rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [1, 3, 20])
def test_every_leaf_is_real_distinct_and_rightly_scored(parts, trie, width):
    leaves, total = generate(*parts, trie, width)
    exact = per_leaf(trie, exact_scores(*parts, trie))
    assert leaves.shape == (BATCH, width) and total.dtype == torch.float32
    bound = trie.level_bounds[trie.depth]
    assert ((leaves >= bound) & (leaves < trie.n_nodes)).all()
    assert all(len(set(row)) == width for row in leaves.tolist())
    torch.testing.assert_close(total, exact.gather(1, leaves - bound), rtol=0, atol=1e-5)
    assert (total.diff(dim=1) <= 0).all()


def test_a_narrow_beam_finds_most_of_the_best(parts, trie):
    leaves, _ = generate(*parts, trie, 20)
    best = per_leaf(trie, exact_scores(*parts, trie)).topk(5).indices + trie.level_bounds[trie.depth]
    assert (best[..., None] == leaves[:, None]).any(-1).float().mean() > 0.8


@pytest.mark.parametrize("width", [2, 7, ITEMS])
@pytest.mark.parametrize("static", [False, True])
def test_the_pool_and_static_shapes_change_nothing(parts, trie, width, static):
    pooled = beam(parts, trie, width, static=static)
    plain = beam(parts, trie, width, UncachedScorer, static=False)
    columns = min(pooled.scores.shape[1], plain.scores.shape[1])  # what static shapes add is empty
    assert pooled.scores[:, columns:].isneginf().all() and plain.scores[:, columns:].isneginf().all()
    torch.testing.assert_close(pooled.scores[:, :columns], plain.scores[:, :columns], rtol=0, atol=1e-5)
    assert (pooled.leaves[:, :columns] == plain.leaves[:, :columns]).float().mean() > 0.95  # near-ties may swap
    torch.testing.assert_close(pooled.bound, plain.bound, rtol=0, atol=1e-5)
    again = beam(parts, trie, width, static=static)
    assert torch.equal(pooled.leaves, again.leaves) and torch.equal(pooled.scores, again.scores)


def test_a_batch_equals_its_requests_one_by_one(parts, trie):
    decoder, memory, vectors = parts
    whole = beam(parts, trie, 6)
    for row in range(BATCH):
        alone = beam_search(
            trie, CachedScorer(decoder, memory.take(torch.tensor([row]), torch.tensor([0])), vectors), 1, 6
        )
        torch.testing.assert_close(alone.scores[0], whole.scores[row], rtol=0, atol=1e-5)
        assert torch.equal(alone.leaves[0], whole.leaves[row])


@pytest.mark.parametrize("width", [1, 4, 12, 40, ITEMS])
def test_what_is_proven_is_the_exact_top(parts, trie, width):
    actual = beam(parts, trie, width)
    exact = per_leaf(trie, exact_scores(*parts, trie))
    best = exact.topk(trie.n_leaves).indices + trie.level_bounds[trie.depth]
    for row, n in enumerate(actual.proven.tolist()):
        assert torch.equal(actual.leaves[row, :n], best[row, :n])
        missing = exact[row].clone()
        missing[actual.leaves[row][actual.leaves[row] >= 0] - trie.level_bounds[trie.depth]] = -torch.inf
        assert missing.max() <= actual.bound[row] + 1e-5
    if width == ITEMS:
        assert actual.exact(10).all() and (actual.proven == trie.n_leaves).all()
    elif width < 12:
        assert not actual.exact(width + 1).any()


def test_one_width_per_level(parts, trie):
    actual = beam(parts, trie, (2, 9, 4))
    assert actual.leaves.shape == (BATCH, 4)
    walked = trie.item_path[[int((trie.item_leaf == leaf).nonzero()[0]) for leaf in actual.leaves.flatten()]]
    assert all(len(set(rows[:, 0].tolist())) <= 2 for rows in walked.view(BATCH, 4, -1))
    wide = beam(parts, trie, (6, 30, 4))
    assert (wide.scores >= actual.scores - 1e-6).all() and (wide.scores > actual.scores + 1e-4).any()
    for widths in ((2, 9), (2, 0, 4), 0):
        with pytest.raises(UserError, match="width"):
            beam(parts, trie, widths)


def test_items_excluded_per_request_equal_a_mask(parts, trie):
    generator = torch.Generator().manual_seed(4)
    items = torch.randint(-1, ITEMS, (BATCH, 40), generator=generator)  # with repeated ids and padding
    items[0] = -1
    items[1, :3] = torch.tensor([0, 1, 2])  # three of the four items of a leaf
    rows = items.masked_fill(items < 0, EMPTY).sort(dim=1).values
    stock = torch.rand(ITEMS, generator=generator) < 0.7
    only = torch.randint(0, ITEMS, (BATCH, 30), generator=generator).sort(dim=1).values
    for allowed in (
        AllowedItems(excluded=rows),
        AllowedItems(stock, rows),
        AllowedItems(stock),
        AllowedItems(only=only),
        AllowedItems(stock, rows, only),
    ):
        hidden = allowed.hidden(BATCH, ITEMS)
        sparse, dense = AllowedNodes.of(trie, allowed, BATCH), trie.restrict(~hidden)
        nodes = torch.arange(trie.n_nodes).expand(BATCH, -1)
        assert torch.equal(allowed.keep(torch.arange(ITEMS).expand(BATCH, -1)), ~hidden)
        assert torch.equal(sparse.keep(nodes)[:, 1:], dense[:, 1:])
        assert torch.equal(sparse.select(torch.tensor([2])).keep(nodes[:1])[:, 1:], dense[2:3, 1:])
        assert torch.equal(beam(parts, trie, 20, allowed=sparse).leaves, beam(parts, trie, 20, allowed=dense).leaves)
    assert AllowedNodes.of(trie, AllowedItems(), BATCH) is None


@pytest.mark.parametrize("per_request", [False, True])
def test_what_is_not_allowed_does_not_come_out(parts, trie, per_request):
    keep = torch.rand(BATCH if per_request else 1, ITEMS, generator=torch.Generator().manual_seed(9)) < 0.3
    allowed = trie.restrict(keep if per_request else keep[0])
    leaves, total = generate(*parts, trie, ITEMS, allowed)
    exact = per_leaf(trie, exact_scores(*parts, trie))
    bound = trie.level_bounds[trie.depth]
    open_leaves = (allowed if per_request else allowed[None])[:, bound:].expand(BATCH, -1)
    for row in range(BATCH):
        live = leaves[row] >= 0
        assert open_leaves[row, leaves[row][live] - bound].all() and int(live.sum()) == int(open_leaves[row].sum())
        assert total[row][~live].isneginf().all()
        targets = exact[row].masked_fill(~open_leaves[row], -torch.inf).sort(descending=True).values[: int(live.sum())]
        torch.testing.assert_close(total[row][live], targets, rtol=0, atol=1e-5)
        torch.testing.assert_close(exact[row, leaves[row][live] - bound], total[row][live], rtol=0, atol=1e-5)


def test_nothing_allowed_gives_nothing(parts, trie):
    leaves, total = generate(*parts, trie, 10, trie.restrict(torch.zeros(ITEMS, dtype=torch.bool)))
    assert (leaves == -1).all() and total.isneginf().all()
    ids, scores = leaf_items(trie, leaves, total)
    assert (ids == -1).all() and scores.isneginf().all() and not scores.isnan().any()


class _Flat:
    """All children equally good."""

    def expand(self, depth, nodes, parents):
        return 0

    def root_logits(self, first, last):
        return torch.zeros(2, last - first)

    def child_logits(self, children, slots):
        return torch.zeros(children.shape)


@pytest.mark.parametrize("width", [1, 6, 16])
def test_ties_go_to_the_lower_node(width):
    codes = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    actual = beam_search(build_trie(codes, (4, 4)), _Flat(), 2, width)
    assert torch.equal(actual.leaves, torch.arange(5, 5 + width).expand(2, -1))
    torch.testing.assert_close(actual.scores, torch.full((2, width), -torch.tensor(16.0).log()))


@pytest.mark.parametrize("scored", [False, True])
def test_shared_leaves_split_their_mass(parts, trie, scored):
    leaves, total = generate(*parts, trie, trie.n_leaves)
    guide = torch.randn(BATCH, ITEMS, generator=torch.Generator().manual_seed(2)) if scored else None
    ids, scores = leaf_items(
        trie, leaves, total, None if guide is None else lambda some: guide.gather(1, some.clamp(min=0))
    )
    assert torch.equal(scores.isneginf(), ids < 0)
    largest = ids.shape[1] // leaves.shape[1]
    torch.testing.assert_close(scores.view(BATCH, -1, largest).logsumexp(-1), total, rtol=0, atol=1e-5)
    for row in range(BATCH):
        assert sorted(ids[row][ids[row] >= 0].tolist()) == list(range(ITEMS))
        column = {item: position for position, item in enumerate(ids[row].tolist())}
        shares = scores[row, [column[item] for item in range(4)]]
        expected = torch.zeros(4) if guide is None else guide[row, trie.leaf_items[_range_of(trie, 0)]]
        members = trie.leaf_items[_range_of(trie, 0)].tolist()
        if guide is None:
            assert len({round(float(share), 4) for share in shares}) == 1
        else:
            got = scores[row, [column[item] for item in members]]
            torch.testing.assert_close(got - got[0], expected - expected[0], rtol=0, atol=1e-5)


def _range_of(trie, item: int) -> slice:
    leaf = int(trie.item_leaf[item]) - trie.level_bounds[trie.depth]
    return slice(int(trie.leaf_item_offsets[leaf]), int(trie.leaf_item_offsets[leaf + 1]))


def test_a_leaf_of_very_many_items_costs_a_stated_number(parts, trie, monkeypatch):
    """What is left out is no part of the certificate; the items that are read keep their part of the probability."""
    result = beam(parts, trie, 50)
    whole_ids, whole = leaf_items(trie, result.leaves, result.scores)
    assert torch.isneginf(unread_bound(trie, result.leaves, result.scores)).all()
    assert trie.largest_leaf > 2
    monkeypatch.setattr(beams, "LEAF_ITEMS", 2)
    ids, scores = leaf_items(trie, result.leaves, result.scores)
    assert ids.shape[1] == 2 * result.leaves.shape[1] < whole_ids.shape[1]
    bound = unread_bound(trie, result.leaves, result.scores)
    for row in range(BATCH):
        known = dict(zip(whole_ids[row].tolist(), whole[row].tolist(), strict=True))
        read = {item: score for item, score in zip(ids[row].tolist(), scores[row].tolist(), strict=True) if item >= 0}
        assert all(score == pytest.approx(known[item], abs=1e-5) for item, score in read.items())
        left_out = [score for item, score in known.items() if item >= 0 and item not in read]
        assert left_out and max(left_out) <= bound[row]
        kept = scores[row].sort(descending=True).values
        count = int(proven(kept[None], torch.maximum(result.bound, bound)[row : row + 1]))
        best = whole[row].sort(descending=True).values[:count]
        torch.testing.assert_close(kept[:count], best)
