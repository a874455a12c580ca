"""Exact search: agreement with scoring everything, over random catalogues, networks and constraints."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from genrec.catalogue.trie import build_trie
from genrec.generation.beam import beam_search
from genrec.generation.constraints import AllowedNodes
from genrec.generation.exact import best_first, full_search, leaf_scores
from genrec.generation.scorers import CachedScorer
from genrec.model.code_decoder import CodeDecoder
from genrec.objectives.generation import path_log_probabilities
from genrec.retrieval.allowed import EMPTY, AllowedItems
from tests.generation.reference import UncachedScorer, exact_scores

DIM = 8


def make(seed: int, items: int, vocab: tuple[int, ...], batch: int, temperature: float):
    """A random catalogue and network: trie, (decoder, memory, vectors)."""
    torch.manual_seed(seed)
    codes = torch.stack([(torch.rand(items) ** 2 * size).long() for size in vocab], 1)  # skewed, with shared leaves
    trie = build_trie(codes, vocab)
    decoder = CodeDecoder(trie, DIM, 1, 2, 0.0, temperature).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        visible = torch.ones(batch, 1, 3, dtype=torch.bool)
        memory = decoder.memory(torch.randn(batch, 1, DIM), torch.randn(batch, 3, DIM), visible)
        return trie, (decoder, memory, decoder.node_vectors(trie, torch.randn(items, DIM)))


def reference(trie, decoder, memory, vectors) -> torch.Tensor:
    """Leaf scores (B, n_leaves) by teacher forcing of whole paths."""
    batch = len(memory.state)
    paths = trie.item_path[trie.leaf_items[trie.leaf_item_offsets[:-1]]].expand(batch, -1, -1)
    entered = torch.cat([torch.zeros_like(paths[..., :1]), paths[..., :-1]], dim=-1)
    states, _ = decoder.hidden(memory, vectors, entered)
    steps = path_log_probabilities(states.flatten(0, 1), decoder.log_scale.exp(), vectors, trie, paths.flatten(0, 1))
    return steps.sum(-1).view(batch, -1)


worlds = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**16),
        "items": st.integers(1, 60),
        "vocab": st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
        "batch": st.integers(1, 4),
        "temperature": st.sampled_from([0.1, 0.5, 2.0]),
    }
)


@torch.no_grad()
@settings(max_examples=30, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(world=worlds, width=st.integers(1, 70), k=st.integers(1, 12), rows=st.integers(1, 9), constrained=st.booleans())
def test_every_search_keeps_its_word(world, width, k, rows, constrained):
    trie, parts = make(**world)
    batch, first = world["batch"], trie.level_bounds[trie.depth]
    exact = reference(trie, *parts)
    constraint = None
    if constrained:
        left_out = torch.randint(-1, world["items"], (batch, world["items"] // 2 + 1))
        excluded = left_out.masked_fill(left_out < 0, EMPTY).sort(dim=1).values
        constraint = AllowedNodes.of(trie, AllowedItems(excluded=excluded), batch)
        keep = torch.ones(batch, world["items"], dtype=torch.bool)
        for row in range(batch):
            keep[row, left_out[row][left_out[row] >= 0]] = False
        exact = exact.masked_fill(~trie.restrict(keep)[:, first:], -torch.inf)
    searches = {
        "beam": beam_search(trie, CachedScorer(*parts), batch, width, constraint),
        "static": beam_search(trie, CachedScorer(*parts), batch, width, constraint, static=True),
        "full": full_search(trie, CachedScorer(*parts, 1), batch, width, constraint),
        "best-first": best_first(trie, CachedScorer(*parts, 1), batch, k, width, constraint, rows=rows),
    }
    for name, actual in searches.items():
        for row in range(batch):
            live = actual.leaves[row] >= 0
            leaves, scores = actual.leaves[row][live], actual.scores[row][live]
            assert ((leaves >= first) & (leaves < trie.n_nodes)).all(), name
            assert len(leaves.unique()) == len(leaves), name
            assert actual.scores[row][~live].isneginf().all() and scores.isfinite().all(), name
            torch.testing.assert_close(scores, exact[row, leaves - first], rtol=1e-5, atol=1e-5)
            best = exact[row].sort(descending=True).values
            n = int(actual.proven[row])
            torch.testing.assert_close(actual.scores[row, :n], best[:n], rtol=1e-5, atol=1e-5)
        if name == "full" or (name in ("beam", "static") and width >= trie.n_leaves):
            assert actual.exact(width).all() and torch.equal(
                (actual.leaves >= 0).sum(1), exact.isfinite().sum(1).clamp(max=width)
            ), name
        if name == "best-first":
            assert actual.exact(min(k, width)).all()


@torch.no_grad()
def test_exact_scores_give_every_item_its_leafs_score():
    trie, parts = make(3, 50, (5, 4, 3), 3, 0.5)
    expected = reference(trie, *parts)[:, trie.item_leaf - trie.level_bounds[trie.depth]]
    for chunk in (4096, 7, 1):
        torch.testing.assert_close(exact_scores(*parts, trie, chunk=chunk), expected, rtol=0, atol=1e-5)
    assert expected.std(1).min() > 0.1


class _Counting(UncachedScorer):
    """Counts the rows that were run."""

    ran = 0

    def expand(self, depth, nodes, parents):
        self.ran += nodes.shape[1]
        return super().expand(depth, nodes, parents)


@torch.no_grad()
def test_best_first_runs_fewer_rows_than_the_catalogue_and_than_a_wide_beam():
    trie, parts = make(5, 400, (12, 8, 6), 1, 0.1)
    scorer = _Counting(*parts)
    actual = best_first(trie, scorer, 1, 5, 20, rows=4)
    assert actual.rows == scorer.ran < min(sum(trie.open_nodes), beam_search(trie, CachedScorer(*parts), 1, 50).rows)
    assert (
        torch.equal(actual.leaves[:, :5], full_search(trie, CachedScorer(*parts), 1, 5).leaves)
        and actual.exact(5).all()
    )


@torch.no_grad()
@pytest.mark.parametrize("limit", [1, 3])
def test_a_search_stopped_early_says_so(limit):
    trie, parts = make(5, 400, (12, 8, 6), 3, 2.0)
    actual = best_first(trie, CachedScorer(*parts), 3, 10, 20, limit=limit)
    assert actual.rows <= limit and not actual.exact(10).any()
    exact = leaf_scores(trie, CachedScorer(*parts), 3)
    for row in range(3):
        missing = exact[row].clone()
        missing[actual.leaves[row][actual.leaves[row] >= 0] - trie.level_bounds[trie.depth]] = -torch.inf
        assert missing.max() <= actual.bound[row] + 1e-5
