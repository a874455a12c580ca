"""Distillation losses against brute force over the whole catalogue, in float64."""

from __future__ import annotations

import pytest
import torch

from genrec.catalogue.subtree_mass import SubtreeMass
from genrec.catalogue.trie import build_trie
from genrec.objectives.distillation import candidate_kl, margin_mse
from genrec.objectives.generation import path_log_probabilities, path_losses
from genrec.objectives.walked_nodes import walked_nodes

VOCAB, ITEMS, DIM = (5, 4, 3), 40, 6


@pytest.fixture(scope="module")
def trie():
    generator = torch.Generator().manual_seed(3)
    codes = torch.stack([torch.randint(size, (ITEMS,), generator=generator) for size in VOCAB], dim=1)
    codes[0] = torch.tensor([4, 3, 2])
    return build_trie(codes, VOCAB)


@pytest.fixture(scope="module")
def student(trie):
    """A decoder whose state depends on the node alone: states (n_nodes, dim), scale, node vectors."""
    generator = torch.Generator().manual_seed(4)
    states = torch.nn.functional.normalize(
        torch.randn(trie.n_nodes, DIM, generator=generator, dtype=torch.float64), dim=-1
    )
    vectors = torch.randn(trie.n_nodes, DIM, generator=generator, dtype=torch.float64)
    return states, torch.tensor([3.0, 5.0, 9.0], dtype=torch.float64), vectors


def before(paths):
    return torch.cat([torch.zeros_like(paths[:, :1]), paths[:, :-1]], dim=1)


def teacher_logits(rows):
    return (3 * torch.randn(rows, ITEMS, generator=torch.Generator().manual_seed(6), dtype=torch.float64)).log_softmax(
        1
    )


def leaf_log_probabilities(trie, states, scale, vectors):
    """Every leaf's log-probability, node by node, and its path."""
    first = trie.level_bounds[trie.depth]
    items = trie.leaf_items[trie.leaf_item_offsets[:-1]]
    paths = trie.item_path[items]
    total = torch.zeros(trie.n_leaves, dtype=torch.float64)
    for leaf, path in enumerate(paths.tolist()):
        node = 0
        for level, chosen in enumerate(path):
            begin, count = int(trie.child_start[node]), int(trie.child_count[node])
            logits = scale[level] * (vectors[begin : begin + count] @ states[node])
            total[leaf] = total[leaf] + logits[chosen - begin] - logits.logsumexp(0)
            node = chosen
    assert torch.equal(paths[:, -1], torch.arange(first, trie.n_nodes))
    return total, paths


def test_the_mean_over_the_teachers_paths_is_the_whole_kl(trie, student):
    """The claim that the loss rests on.

    Terms along paths, weighed by the teacher, sum up to KL over leaves (several items may share one).
    """
    states, scale, vectors = student
    own, paths = leaf_log_probabilities(trie, *student)
    teacher = teacher_logits(1)
    leaf = torch.zeros(trie.n_leaves, dtype=torch.float64).index_add(
        0, trie.item_leaf - trie.level_bounds[-2], teacher[0].exp()
    )
    assert trie.n_leaves < ITEMS
    mass = SubtreeMass.of_items(trie, teacher)
    chosen, divergence = path_losses(
        states[before(paths)], scale, vectors, paths, mass, requests=torch.zeros(len(paths), dtype=torch.long)
    )
    torch.testing.assert_close(chosen.sum(1), own)
    torch.testing.assert_close((leaf[:, None] * divergence).sum(), (leaf * (leaf.log() - own)).sum())


def test_gradients_equal_those_of_the_whole_kl(trie, student):
    gradients = []
    teacher = teacher_logits(1)
    leaf = torch.zeros(trie.n_leaves, dtype=torch.float64).index_add(
        0, trie.item_leaf - trie.level_bounds[-2], teacher[0].exp()
    )
    for whole in (True, False):
        states, scale, vectors = (value.clone().requires_grad_() for value in student)
        own, paths = leaf_log_probabilities(trie, states, scale, vectors)
        if whole:
            loss = (leaf * (leaf.log() - own)).sum()
        else:
            mass = SubtreeMass.of_items(trie, teacher)
            parts = path_losses(
                states[before(paths)], scale, vectors, paths, mass, requests=torch.zeros(len(paths), dtype=torch.long)
            )
            loss = (leaf[:, None] * parts[1]).sum()
        gradients.append(torch.autograd.grad(loss, (states, scale, vectors)))
    for slow, fast in zip(*gradients, strict=True):
        assert slow.abs().max() > 1e-3
        torch.testing.assert_close(fast, slow)


def test_a_certain_teacher_gives_cross_entropy_and_chosen_equals_the_generation_loss(trie, student):
    states, scale, vectors = student
    targets = torch.arange(0, ITEMS, 3)
    paths = trie.item_path[targets]
    certain = torch.full((len(targets), ITEMS), -torch.inf).scatter(1, targets[:, None], 0.0)
    nodes, position = walked_nodes(trie, paths)
    chosen, divergence = path_losses(
        states[before(paths)], scale, vectors[nodes], paths, SubtreeMass.of_items(trie, certain), position
    )
    torch.testing.assert_close(divergence, -chosen)
    torch.testing.assert_close(chosen, path_log_probabilities(states[before(paths)], scale, vectors, trie, paths))


def test_observed_and_drawn_walks_need_one_loss_each(trie, student):
    states, scale, vectors = student
    paths, teacher = trie.item_path[torch.arange(8)], SubtreeMass.of_items(trie, teacher_logits(8))
    given = states[before(paths)], scale, vectors, paths, teacher
    for ignored in (None, torch.arange(trie.n_nodes) == trie.level_bounds[2] - 1):
        chosen, divergence = path_losses(*given, ignored=ignored)
        some, others = path_losses(*given, ignored=ignored, observed=5)
        torch.testing.assert_close(some[:5], chosen[:5])
        torch.testing.assert_close(others[5:], divergence[5:])


def test_candidates_are_a_teacher_that_knows_nothing_else(trie, student):
    states, scale, vectors = student
    generator = torch.Generator().manual_seed(8)
    ids = torch.stack([torch.randperm(ITEMS, generator=generator)[:7] for _ in range(5)])
    ids[2, 4:] = -1
    logs = torch.randn(5, 7, generator=generator, dtype=torch.float64).masked_fill(ids < 0, -torch.inf).log_softmax(1)
    dense = torch.full((5, ITEMS), -torch.inf, dtype=torch.float64)
    for row in range(5):
        dense[row, ids[row][ids[row] >= 0]] = logs[row][ids[row] >= 0]
    paths = trie.item_path[torch.tensor([0, 9, 17, 25, 33])]
    few, all_items = SubtreeMass.of_candidates(trie, ids, logs), SubtreeMass.of_items(trie, dense)
    rows, nodes = torch.arange(5).repeat_interleave(trie.n_nodes), torch.arange(trie.n_nodes).repeat(5)
    torch.testing.assert_close(few.below(rows, nodes), all_items.below(rows, nodes))
    torch.testing.assert_close(
        few.below(torch.arange(5), torch.zeros(5, dtype=torch.long)), torch.ones(5, dtype=torch.float64)
    )
    divergences = [path_losses(states[before(paths)], scale, vectors, paths, mass)[1] for mass in (few, all_items)]
    assert divergences[0].isfinite().all() and (divergences[0] > 0).any()
    torch.testing.assert_close(*divergences)
    silent = few.below(rows, nodes).view(5, -1) == 0
    parents = before(paths)
    unknown = silent.gather(1, parents)
    assert unknown.any() and (path_losses(states[parents], scale, vectors, paths, few)[1][unknown] == 0).all()


def test_small_subtrees_keep_their_digits(trie):
    """A subtree of mass 1e-9 behind one of nearly 1: float32 running sums would give 0."""
    logs = torch.full((1, ITEMS), -torch.inf)
    logs[0, trie.leaf_items[0]], logs[0, trie.leaf_items[-2:]] = 0.0, torch.tensor([1e-9, 3e-9]).log()
    leaf = trie.item_leaf[trie.leaf_items[-1:]]
    share = SubtreeMass.of_items(trie, logs).below(torch.zeros(1, dtype=torch.long), leaf)
    below = 4e-9 if trie.item_leaf[trie.leaf_items[-2]] == leaf else 3e-9
    torch.testing.assert_close(share, torch.tensor([below], dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_teacher_over_candidates_draws_by_its_mass(trie):
    torch.manual_seed(0)
    ids = torch.tensor([[3, 9, 14, 20], [30, -1, 2, 8]])
    chances = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.0, 0.7, 1.0, 0.0]])
    teacher = SubtreeMass.of_candidates(trie, ids.repeat(4000, 1), chances.log().repeat(4000, 1))
    drawn = teacher.draw().view(4000, 2)
    shares = [(drawn[:, 0] == item).float().mean() for item in ids[0]]
    assert (torch.stack(shares) - chances[0]).abs().max() < 0.03 and (drawn[:, 1] == 2).all()


def test_a_teacher_over_all_items_draws_by_its_mass(trie):
    torch.manual_seed(0)
    logs = teacher_logits(1).index_fill(1, torch.tensor([5]), -torch.inf).log_softmax(1)
    teacher = SubtreeMass.of_items(trie, logs.expand(20_000, -1))
    shares = torch.bincount(teacher.draw(), minlength=ITEMS) / 20_000
    torch.testing.assert_close(shares.double(), logs[0].exp(), atol=0.012, rtol=0)
    assert shares[5] == 0


def test_margin_mse_and_kl_against_references():
    generator = torch.Generator().manual_seed(2)
    student, teacher = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    live = torch.rand(6, 4, generator=generator) < 0.7
    live[0], live[1, 0] = True, False
    student.requires_grad_()
    pairs = [(row, column) for row in range(6) for column in range(1, 4) if live[row, 0] and live[row, column]]
    slow = torch.stack(
        [((student[r, 0] - student[r, c]) - (teacher[r, 0] - teacher[r, c])) ** 2 for r, c in pairs]
    ).mean()
    fast = margin_mse(student, teacher, live)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(torch.autograd.grad(fast, student), torch.autograd.grad(slow, student))
    assert margin_mse(student + 3, student.detach()) < 1e-20  # only margins count
    live[:, 0] = True
    rows = []
    for row in range(6):
        t, s = (x[row, live[row]] / 2 for x in (teacher, student))
        rows.append((t.softmax(0) * (t.log_softmax(0) - s.log_softmax(0))).sum())
    slow, fast = torch.stack(rows).mean() * 4, candidate_kl(student, teacher, live, 2.0)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(torch.autograd.grad(fast, student), torch.autograd.grad(slow, student))
