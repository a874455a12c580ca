"""Losses against slow float64 references, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch

from genrec.catalogue.subtree_mass import SubtreeMass
from genrec.catalogue.trie import build_trie
from genrec.objectives.generation import nodes_without, path_log_probabilities, path_losses
from genrec.objectives.retrieval import draw_candidates, full_softmax, sampled_softmax
from genrec.objectives.walked_nodes import sampled_nodes, walked_nodes

VOCAB, ITEMS, DIM = (5, 4, 3), 40, 6


@pytest.fixture(scope="module")
def trie():
    generator = torch.Generator().manual_seed(3)
    codes = torch.stack([torch.randint(size, (ITEMS,), generator=generator) for size in VOCAB], dim=1)
    codes[0] = torch.tensor([4, 3, 2])
    codes[1:4, 0] = torch.tensor([4])
    return build_trie(codes, VOCAB)


def slow_paths(states, scale, vectors, trie, paths, known=None):
    """One float64 softmax per step, written out; over children with a known item below, where ``known`` names some."""
    ranges = zip(trie.node_item_start.tolist(), trie.node_item_count.tolist(), strict=True)
    under = {node: set(trie.leaf_items[start : start + count].tolist()) for node, (start, count) in enumerate(ranges)}
    rows = []
    for walk, path in enumerate(paths.tolist()):
        node, steps = 0, []
        for level, chosen in enumerate(path):
            children = range(int(trie.child_start[node]), int(trie.child_start[node]) + int(trie.child_count[node]))
            children = [child for child in children if known is None or under[child] & known]
            logits = {child: scale[level] * (states[walk, level] * vectors[child]).sum() for child in children}
            steps.append(logits[chosen] - torch.stack(list(logits.values())).logsumexp(0))
            node = chosen
        rows.append(torch.stack(steps))
    return torch.stack(rows)


@pytest.fixture
def walk(trie):
    generator = torch.Generator().manual_seed(4)
    paths = trie.item_path[torch.randint(ITEMS, (25,), generator=generator)]
    states = torch.nn.functional.normalize(
        torch.randn(25, len(VOCAB), DIM, generator=generator, dtype=torch.float64), dim=-1
    )
    scale = torch.tensor([3.0, 14.0, 60.0], dtype=torch.float64)
    vectors = torch.randn(trie.n_nodes, DIM, generator=generator, dtype=torch.float64)
    return states, scale, vectors, paths


def test_path_log_probabilities_equal_the_reference(trie, walk):
    states, scale, vectors, paths = walk
    fast = path_log_probabilities(states.float(), scale.float(), vectors.float(), trie, paths)
    slow = slow_paths(states, scale, vectors, trie, paths)
    assert fast.dtype == torch.float32 and fast.shape == paths.shape
    torch.testing.assert_close(fast.double(), slow, rtol=1e-4, atol=1e-4)
    single = trie.child_count[torch.cat([torch.zeros_like(paths[:, :1]), paths[:, :-1]], dim=1)] == 1
    assert single.any() and (fast[single] == 0).all()


@pytest.mark.parametrize("taught", [False, True])
def test_nodes_of_items_that_were_never_answers_are_no_wrong_ones(trie, walk, taught):
    """With and without a teacher beside: its divergence still runs over them, what was observed does not.

    Gradients too.
    """
    states, scale, vectors, paths = walk
    known = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(7))[:22]
    ignored = nodes_without(trie, known)
    keep = ~ignored[paths[:, -1]]
    states, walked, drawn = states[keep], paths[keep], trie.item_path[:ITEMS]
    assert ignored.any() and not ignored[walked].any() and ignored[drawn[:, :-1]].any() and len(walked) > 5
    teacher = SubtreeMass.of_items(trie, torch.zeros(len(drawn), ITEMS, dtype=torch.float64).log_softmax(1))
    gradients = []
    for fast in (True, False):
        inputs = [value.clone().requires_grad_() for value in (states, scale, vectors)]
        if not fast:
            steps = slow_paths(*inputs, trie, walked, set(known.tolist()))
        elif taught:  # drawn walks may be below an ignored node and must leave no NaN
            rows = torch.cat([torch.arange(len(walked)), torch.zeros(len(drawn), dtype=torch.long)])
            steps, divergence = path_losses(
                inputs[0][rows], *inputs[1:], torch.cat([walked, drawn]), teacher, requests=rows * 0, ignored=ignored
            )
            plain = path_losses(inputs[0][rows], *inputs[1:], torch.cat([walked, drawn]), teacher, requests=rows * 0)[1]
            assert torch.equal(divergence, plain)
            steps = steps[: len(walked)]
        else:
            steps = path_log_probabilities(*inputs, trie, walked, ignored=ignored).double()
        gradients.append([steps.detach(), *torch.autograd.grad(steps.sum(), inputs)])
    for one, other in zip(*gradients, strict=True):
        assert other.abs().max() > 1e-2
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(gradients[0][0], slow_paths(states, scale, vectors, trie, walked), atol=1e-3)


def test_vectors_of_the_walked_nodes_alone_are_enough(trie, walk):
    states, scale, vectors, paths = walk
    paths = paths[:4]
    nodes, position = walked_nodes(trie, paths)
    assert (
        len(nodes) < trie.n_nodes
        and nodes.tolist() == sorted(set(nodes.tolist()))
        and set(paths.flatten().tolist()) < set(nodes.tolist())
    )
    whole = path_log_probabilities(states[:4].float(), scale.float(), vectors.float(), trie, paths)
    some = path_log_probabilities(states[:4].float(), scale.float(), vectors.float()[nodes], trie, paths, position)
    assert torch.equal(some, whole)


def test_drawing_all_siblings_is_the_whole_softmax(trie, walk):
    states, scale, vectors, paths = (value.float() if value.is_floating_point() else value for value in walk)
    nodes, position = sampled_nodes(trie, paths, siblings=max(VOCAB))
    whole = path_log_probabilities(states, scale, vectors, trie, paths)
    assert torch.equal(path_log_probabilities(states, scale, vectors[nodes], trie, paths, position), whole)


def test_drawn_siblings_estimate_the_softmax(walk):
    """On average over draws, what the chosen child's exponential is divided by is the sum over all children.

    A node that another path takes, but that was not drawn, adds nothing: such nodes would be too frequent.
    """
    generator = torch.Generator().manual_seed(6)
    codes = torch.randint(12, (300, 3), generator=generator)
    trie = build_trie(codes, (12, 12, 12))
    paths = trie.item_path[torch.randint(300, (40,), generator=generator)]
    states = torch.nn.functional.normalize(torch.randn(40, 3, DIM, generator=generator), dim=-1)
    scale, vectors = torch.ones(3), torch.randn(trie.n_nodes, DIM, generator=generator) / 2
    whole = path_log_probabilities(states, scale, vectors, trie, paths)
    torch.manual_seed(0)
    draws, fewer = [], 0
    for _ in range(600):
        nodes, position = sampled_nodes(trie, paths, siblings=5)
        fewer += len(nodes) < len(walked_nodes(trie, paths)[0])
        draws.append(path_log_probabilities(states, scale, vectors[nodes], trie, paths, position).neg().double())
    assert fewer > 590
    chosen = torch.stack(draws)
    torch.testing.assert_close(chosen[:, :, 0].mean(0), -whole[:, 0].double())  # the first level is never drawn from
    total = chosen.exp()  # one over the estimated probability of the chosen child
    error = (total.mean(0) - (-whole).exp()).abs() / (total.std(0) / 600**0.5 + 1e-4)
    assert total.std(0)[:, 1:].max() > 0.1 and error.max() < 5


def test_a_drawn_walk_teaches_by_its_own_children(trie, walk):
    """With drawn siblings the divergence of a further step is the cross-entropy of the walk that the teacher drew."""
    states, scale, vectors, paths = (value.float() if value.is_floating_point() else value for value in walk)
    teacher = SubtreeMass.of_items(trie, torch.zeros(len(paths), ITEMS, dtype=torch.float64).log_softmax(1))
    nodes, position = sampled_nodes(trie, paths, siblings=2)
    steps, divergence = path_losses(states, scale, vectors[nodes], paths, teacher, position)
    whole = path_losses(states, scale, vectors, paths, teacher)
    assert torch.equal(divergence[:, 0], whole[1][:, 0]) and torch.equal(divergence[:, 1:], -steps[:, 1:])
    inputs = [value.clone().requires_grad_() for value in (states, vectors)]
    steps, divergence = path_losses(inputs[0], scale, inputs[1][nodes], paths, teacher, position)
    gradients = torch.autograd.grad((steps + divergence).sum(), inputs)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_path_gradients_equal_the_reference(trie, walk):
    states, scale, vectors, paths = walk
    weight = torch.rand(paths.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    gradients = []
    for compute, dtype in ((path_log_probabilities, torch.float32), (slow_paths, torch.float64)):
        inputs = [value.to(dtype).requires_grad_() for value in (states, scale, vectors)]
        (compute(*inputs, trie, paths) * weight.to(dtype)).sum().backward()
        gradients.append([value.grad.double() for value in inputs])
    for fast, slow in zip(*gradients, strict=True):
        assert slow.abs().max() > 1e-2
        torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-3)


def test_very_unlikely_steps_stay_finite(trie, walk):
    states, scale, vectors, paths = walk
    steps = path_log_probabilities(states.float(), scale.float() * 1000, vectors.float(), trie, paths)
    assert steps.isfinite().all() and steps.min() < -1000


@pytest.fixture
def dense():
    generator = torch.Generator().manual_seed(6)
    requests = torch.nn.functional.normalize(torch.randn(30, DIM, generator=generator, dtype=torch.float64), dim=-1)
    index = (
        torch.nn.functional.normalize(torch.randn(ITEMS, DIM, generator=generator, dtype=torch.float64), dim=-1) / 0.07
    )
    return requests, index, torch.randint(ITEMS, (30,), generator=generator)


def test_full_softmax_equals_the_reference(dense):
    requests, index, targets = dense
    total = 0.0
    for row, target in zip(requests.tolist(), targets.tolist(), strict=True):
        logits = [sum(a * b for a, b in zip(row, item, strict=True)) for item in index.tolist()]
        top = max(logits)
        norm = top + math.log(sum(math.exp(logit - top) for logit in logits))
        total += norm - logits[target]
    actual = full_softmax(requests.float(), index.float(), targets)
    assert float(actual) == pytest.approx(total / len(targets), rel=1e-5)


def sampled(requests, index, targets, negatives):
    candidates = draw_candidates(len(index), targets, negatives)
    return sampled_softmax(requests, index[candidates.ids], targets, candidates)


@pytest.mark.parametrize("negatives", [ITEMS, 10 * ITEMS])
def test_sampled_softmax_with_every_item_is_the_full_softmax(dense, negatives):
    gradients, values = [], []
    for compute in (lambda q, t: sampled(q, t, dense[2], negatives), lambda q, t: full_softmax(q, t, dense[2])):
        inputs = [value.clone().requires_grad_() for value in dense[:2]]
        loss = compute(*inputs)
        loss.backward()
        values.append(float(loss.detach()))
        gradients.append([value.grad for value in inputs])
    assert values[0] == pytest.approx(values[1], abs=5e-6)
    for mine, full in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, full, rtol=1e-5, atol=1e-6)


def test_sampled_softmax_comes_near_the_full_one(dense):
    """The correction makes up for the missing candidates: without it the loss of half of the items is far too low."""
    requests, index, targets = dense
    torch.manual_seed(0)
    index = index * 0.2  # many items matter, as in a large catalogue
    drawn = torch.stack([sampled(requests, index, targets[:5].repeat(6), 15) for _ in range(400)]).mean()
    full = full_softmax(requests, index, targets[:5].repeat(6))
    assert float(drawn) == pytest.approx(float(full), rel=0.1)


def test_more_targets_than_one_of_a_kind_count_once(dense):
    """A repeated target is one candidate: no row is punished for its own item."""
    requests, index, _ = dense
    same = torch.full((30,), 7)
    assert float(sampled(requests, index, same, 0)) == pytest.approx(0.0, abs=1e-5)
