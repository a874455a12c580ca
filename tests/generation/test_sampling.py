"""Constrained sampling: what comes out exists, has its exact log-probability, and comes as often as it should."""

from __future__ import annotations

import pytest
import torch

from genrec.generation.sampling import sample_items
from genrec.generation.scorers import CachedScorer
from genrec.objectives.generation import path_log_probabilities
from tests.generation.reference import exact_scores
from tests.generation.test_exact import make


@torch.no_grad()
@pytest.mark.parametrize(
    ("seed", "items", "vocab"), [(0, 30, (4, 3, 2)), (1, 1, (3,)), (2, 12, (1, 1, 5)), (3, 60, (2, 6, 1, 3))]
)
def test_samples_exist_and_carry_exact_log_probabilities(seed, items, vocab):
    trie, (decoder, memory, vectors) = make(seed, items, vocab, 3, 0.5)
    drawn = sample_items(trie, CachedScorer(decoder, memory, vectors), 3, 50, torch.Generator().manual_seed(seed))
    assert drawn.items.min() >= 0 and drawn.items.max() < items
    assert torch.equal(drawn.paths, trie.item_path[drawn.items])
    exact = exact_scores(decoder, memory, vectors, trie)
    torch.testing.assert_close(drawn.scores, exact.gather(1, drawn.items), rtol=1e-4, atol=1e-5)
    entered = torch.cat([torch.zeros_like(drawn.paths[..., :1]), drawn.paths[..., :-1]], dim=-1)
    states, _ = decoder.hidden(memory, vectors, entered)
    steps = path_log_probabilities(
        states.flatten(0, 1), decoder.log_scale.exp(), vectors, trie, drawn.paths.flatten(0, 1)
    )
    torch.testing.assert_close(drawn.scores.flatten(), steps.sum(-1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_frequencies_match_the_distribution():
    trie, (decoder, memory, vectors) = make(5, 40, (5, 4, 2), 2, 1.0)
    n = 20_000
    drawn = sample_items(
        trie, CachedScorer(decoder, memory, vectors, 2 * n + 1), 2, n, torch.Generator().manual_seed(9)
    )
    leaf = trie.item_leaf - trie.level_bounds[trie.depth]
    share = exact_scores(decoder, memory, vectors, trie).exp() / trie.leaf_item_offsets.diff()[leaf]
    seen = torch.stack([torch.bincount(row, minlength=40) for row in drawn.items]) / n
    assert trie.largest_leaf > 1 and share.max() > 0.05
    # Five standard errors of a share, for 80 comparisons.
    assert ((seen - share).abs() <= 5 * (share * (1 - share) / n).sqrt() + 1e-9).all()


@torch.no_grad()
def test_the_generator_decides_the_draw():
    trie, (decoder, memory, vectors) = make(6, 30, (4, 3, 3), 2, 1.0)
    draws = [
        sample_items(trie, CachedScorer(decoder, memory, vectors), 2, 30, torch.Generator().manual_seed(seed)).items
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
