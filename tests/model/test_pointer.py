"""The pointer: what anchors add to the logits of the codes above them, in training and in every search alike."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.catalogue.subtree_mass import SubtreeMass
from genrec.config.schema import DecodingConfig
from genrec.generation.beam import beam_search
from genrec.generation.engine import Searcher
from genrec.generation.exact import best_first
from genrec.generation.scorers import CachedScorer
from genrec.inference.programs import DecodeStep, Prefill, example_batch
from genrec.model.batch import Batch
from genrec.model.collate import Collator
from genrec.model.network import GenerativeRecommender
from genrec.model.pointer import CopyBias
from genrec.model.prior import MIN_MASS
from genrec.model.query_features import QueryFeatures
from genrec.objectives.generation import path_log_probabilities, path_losses
from genrec.preference.policy import Policy
from genrec.training.fit import new_network
from genrec.training.generation_losses import dense_teacher
from genrec.training.module import TrainingModule
from tests.generation.reference import UncachedScorer

CLOSE = {"rtol": 0, "atol": 5e-5}


@pytest.fixture(scope="module")
def pointing(prepared_run) -> GenerativeRecommender:
    """An untrained network whose pointer has much to say."""
    config = replace(prepared_run.config, model=replace(prepared_run.config.model, pointer=True, prior=True))
    network = new_network(config, prepared_run.dataset, prepared_run.ids, generate=True).eval()
    with torch.no_grad():
        network.decoder.pointer.strength.bias.fill_(1.0)
        network.decoder.pointer.strength.weight.mul_(3)
    n_items = network.catalogue.n_items
    made = torch.Generator().manual_seed(1)
    network.anchor_tables.neighbours.copy_(
        torch.randint(n_items, network.anchor_tables.neighbours.shape, generator=made)
    )
    network.anchor_tables.counts.copy_(torch.rand(network.anchor_tables.counts.shape, generator=made) * 5)
    network.anchor_tables.users.fill_(9.0)
    return network


@pytest.fixture(scope="module")
def requested(pointing, prepared_run):
    """Eight requests: memory, node vectors, and what was shown."""
    features = QueryFeatures.build(prepared_run.dataset.query_texts, prepared_run.ids.encoder)
    requests = prepared_run.dataset.requests("valid").take(np.arange(8))
    with torch.no_grad():
        encoded = pointing.encode(Collator(prepared_run.config.model, features).requests(requests))
        vectors = pointing.decoder.node_vectors(pointing.catalogue.trie, encoded.items)
        return encoded, pointing.decoder_memory(encoded), vectors


def test_a_range_of_nodes_gains_what_its_nodes_gain():
    nodes = torch.tensor([[[1, 3, 3, 7, 9]], [[0, 2, 5, 9, 9]]])  # a node twice; 9: padding
    bonus = torch.tensor([[[0.5, 1.0, 1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0, 7.0, 7.0]]]).requires_grad_()
    bias = CopyBias(nodes, bonus)
    for first, last in ((1, 8), (0, 3), (3, 4)):
        ranges, rows = bias.for_range(first, last), bias.for_rows(torch.arange(first, last).expand(2, -1))
        assert torch.equal(ranges, rows) and ranges.any()
        assert torch.equal(*(torch.autograd.grad((part**2).sum(), bonus)[0] for part in (ranges, rows)))


def test_the_bonus_of_a_node_is_that_of_the_anchors_below_it(pointing, requested):
    encoded, memory, _ = requested
    trie, anchors, pointer = pointing.catalogue.trie, encoded.anchors, pointing.decoder.pointer
    every = torch.arange(trie.n_nodes).expand(8, -1)
    actual = memory.copy_bias.for_rows(every)
    relevance = torch.einsum(
        "brd,brad->bra", pointing.retrieval_vectors(encoded.requests), pointing.item_index(encoded.items)[anchors.ids]
    )
    known = torch.cat([anchors.features, relevance[..., None]], -1)
    strength = pointer.strength(
        torch.nn.functional.gelu(pointer.counts(known) + pointer.state(encoded.requests)[:, :, None])
    )
    wanted = torch.zeros(8, trie.n_nodes)
    for row, _, anchor in anchors.live.nonzero().tolist():
        for level, node in enumerate(trie.item_path[anchors.ids[row, 0, anchor]].tolist()):
            wanted[row, node] += strength[row, 0, anchor, level].exp()
    assert (wanted > 0).sum() > 100 and (wanted == 0).any()
    torch.testing.assert_close(actual, wanted.log1p(), rtol=1e-4, atol=1e-5)
    rows, nodes = torch.arange(8).repeat_interleave(trie.n_nodes), torch.arange(trie.n_nodes).repeat(8)
    assert torch.equal(memory.copy_bias.for_pairs(rows, nodes).view(8, -1), actual)


def test_training_and_every_search_agree(pointing, requested):
    _, memory, vectors = requested
    trie, decoder = pointing.catalogue.trie, pointing.decoder
    paths = trie.item_path.expand(8, -1, -1)
    with torch.no_grad():
        states, _ = decoder.hidden(memory, vectors, torch.cat([torch.zeros_like(paths[..., :1]), paths[..., :-1]], -1))
        every_item = torch.arange(8).repeat_interleave(trie.n_items)
        spread = [bias.take(every_item) for bias in memory.biases]
        assert len(spread) == 2
        flat = paths.flatten(0, 1)
        steps = path_log_probabilities(
            states.flatten(0, 1), decoder.log_scale.exp(), vectors, trie, flat, biases=spread
        )
        silent = path_log_probabilities(
            states.flatten(0, 1), decoder.log_scale.exp(), vectors, trie, flat, biases=spread[:1]
        )
        teacher = SubtreeMass.of_items(trie, torch.randn(8, trie.n_items).log_softmax(-1))
        rows = torch.arange(8).repeat_interleave(trie.n_items)
        taught, divergence = path_losses(
            states.flatten(0, 1), decoder.log_scale.exp(), vectors, flat, teacher, None, rows, spread
        )
        torch.testing.assert_close(taught, steps, **CLOSE)
        assert (divergence > -1e-6).all()
        scores = steps.sum(-1).view(8, -1)
        first = trie.leaf_items[trie.leaf_item_offsets[:-1]]
        torch.testing.assert_close(scores[:, first].logsumexp(1), torch.zeros(8), **CLOSE)
        assert (scores - silent.sum(-1).view(8, -1)).abs().max() > 0.5
        best = scores[:, first].topk(10).values
        for kind in (CachedScorer, UncachedScorer):
            for static in (False, True):
                actual = beam_search(trie, kind(decoder, memory, vectors), 8, trie.n_leaves, static=static)
                torch.testing.assert_close(actual.scores[:, :10], best, **CLOSE)
        actual = best_first(trie, CachedScorer(decoder, memory, vectors), 8, 10, 10)
        torch.testing.assert_close(actual.scores, best, **CLOSE)
        assert actual.exact(10).all()
        actual = Searcher(decoder, vectors, trie, DecodingConfig(beam=10)).search(memory)
        for row in range(8):
            for rank in range(int(actual.proven[row].clamp(max=10))):
                assert actual.scores[row, rank] == pytest.approx(float(best[row, rank]), abs=5e-5)


def test_without_anchors_the_decoder_speaks_alone(pointing, requested):
    encoded, memory, vectors = requested
    hidden = replace(encoded, anchors=replace(encoded.anchors, live=torch.zeros_like(encoded.anchors.live)))
    with torch.no_grad():
        copy_bias = pointing.decoder_memory(hidden).copy_bias
        assert (copy_bias.for_rows(torch.arange(pointing.catalogue.trie.n_nodes).expand(8, -1)) == 0).all()
        scorer = CachedScorer(pointing.decoder, replace(pointing.decoder_memory(hidden), copy_bias=None), vectors)
        alone = beam_search(pointing.catalogue.trie, scorer, 8, 10)
        again = beam_search(
            pointing.catalogue.trie, CachedScorer(pointing.decoder, pointing.decoder_memory(hidden), vectors), 8, 10
        )
    assert torch.equal(alone.leaves, again.leaves) and torch.equal(alone.scores, again.scores)


def test_a_request_points_at_its_own_anchors_alone(pointing, requested):
    encoded, memory, _ = requested
    anchors = encoded.anchors
    other = replace(encoded, anchors=replace(anchors, ids=anchors.ids.index_fill(0, torch.tensor([0]), 3)))
    with torch.no_grad():
        changed = pointing.decoder_memory(other).copy_bias
    nodes = torch.arange(pointing.catalogue.trie.n_nodes).expand(8, -1)
    difference = (changed.for_rows(nodes) - memory.copy_bias.for_rows(nodes)).abs().amax(1)
    assert difference[0] > 1e-3 and (difference[1:] == 0).all()


def test_the_policy_draws_and_scores_alike(pointing, prepared_run):
    policy = Policy(copy.deepcopy(pointing))
    features = QueryFeatures.build(prepared_run.dataset.query_texts, prepared_run.ids.encoder)
    requested = policy.encode(
        Collator(prepared_run.config.model, features), prepared_run.dataset.requests("valid").take(np.arange(8))
    )
    drawn = policy.sample(requested, 4, torch.Generator().manual_seed(0))
    steps = policy.steps(requested, drawn.paths)
    torch.testing.assert_close(steps.sum(-1), drawn.scores, **CLOSE)
    torch.testing.assert_close(policy.reference_steps(requested, drawn.paths), steps.detach(), **CLOSE)


def test_the_exported_halves_say_what_the_pointer_adds(pointing, requested):
    encoded, memory, vectors = requested
    batch = example_batch(pointing, 3, 5, pointing.catalogue.text.shape[1])
    with torch.no_grad():
        given = Prefill(pointing)(batch, encoded.items)[1]
        state, _ = DecodeStep(pointing, 0)(given, vectors, torch.zeros(3, 1, dtype=torch.long), [])
        first, last = pointing.catalogue.trie.level_bounds[1:3]
        logits = state[:, 0] @ vectors[first:last].T
        trie, running = pointing.catalogue.trie, given[-3]
        start, stop = trie.node_item_start[first:last], (trie.node_item_start + trie.node_item_count)[first:last]
        mass = running[:, stop] - running[:, start]
        logits += pointing.decoder.prior_weight * mass.clamp(min=MIN_MASS).log().float()
        for row in range(3):
            for node, bonus in {
                int(n): float(b) for n, b in zip(given[-2][row, 0], given[-1][row, 0], strict=True)
            }.items():
                if first <= node < last:
                    logits[row, node - first] += bonus
        own = pointing.decoder_memory(pointing.encode(Batch(*batch), encoded.items))
        scorer = CachedScorer(pointing.decoder, own, vectors)
        scorer.expand(0, torch.zeros(3, 1, dtype=torch.long), None)
        torch.testing.assert_close(logits, scorer.root_logits(first, last), **CLOSE)


def test_every_weight_of_the_pointer_learns(pointing, prepared_run):
    config = replace(prepared_run.config, model=replace(prepared_run.config.model, pointer=True))
    config.training.negatives = 20
    features = QueryFeatures.build(prepared_run.dataset.query_texts, prepared_run.ids.encoder)
    batch = Collator(config.model, features).requests(prepared_run.dataset.requests("valid").take(np.arange(8)))
    module = TrainingModule(pointing, config, 1)
    loss = module.generation_loss(batch, pointing.encode(batch), (batch.targets >= 0).nonzero(as_tuple=True))
    gradients = torch.autograd.grad(loss, list(pointing.decoder.pointer.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_the_teacher_of_a_pointer_is_the_heads_distribution_with_what_anchors_weigh(pointing, prepared_run):
    config = replace(prepared_run.config, model=replace(prepared_run.config.model, pointer=True))
    features = QueryFeatures.build(prepared_run.dataset.query_texts, prepared_run.ids.encoder)
    batch = Collator(config.model, features).requests(prepared_run.dataset.requests("valid").take(np.arange(8)))
    trie, n_items = pointing.catalogue.trie, pointing.catalogue.trie.n_items
    encoded = pointing.encode(batch)
    row, column = (batch.targets >= 0).nonzero(as_tuple=True)
    targets = batch.targets[row, column]
    mass, loss = dense_teacher(pointing, encoded, row, column, targets)
    with torch.no_grad():
        logits = pointing.retrieval_vectors(encoded.requests[row, column]) @ pointing.item_index(encoded.items).T
        anchors, state = encoded.anchors.take(row, column), encoded.requests[row, column][:, None]
        copied = torch.zeros_like(logits)
        strength = pointing.decoder.pointer._mass(
            state, anchors, pointing.relevance(state, anchors.ids, encoded.items)
        )[:, 0, :, -1]
        for request in range(len(row)):
            for ids, live, value in zip(
                anchors.ids[request, 0], anchors.live[request, 0], strength[request], strict=True
            ):
                copied[request, ids] += value if live else 0
        logs = (logits + copied.log1p()).log_softmax(-1)
    assert copied.count_nonzero() > len(row)
    leaves = trie.item_leaf.expand(len(row), -1)
    below = mass.below(torch.arange(len(row)).repeat_interleave(n_items), leaves.flatten()).view(-1, n_items)
    expected = torch.zeros(len(row), trie.n_nodes).index_add(1, trie.item_leaf, logs.exp())[:, trie.item_leaf]
    torch.testing.assert_close(below.float(), expected)
    torch.testing.assert_close(loss, -logs.gather(1, targets[:, None]).mean())
    assert torch.autograd.grad(loss, pointing.decoder.pointer.strength.weight)[0][-1].abs().max() > 0


def test_without_anchors_there_is_nothing_to_point_at(prepared_run):
    config = replace(
        prepared_run.config, model=replace(prepared_run.config.model, pointer=True, anchors=0, query_anchors=False)
    )
    assert new_network(config, prepared_run.dataset, prepared_run.ids, generate=True).decoder.pointer is None
