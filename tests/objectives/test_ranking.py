"""Ranking, progressive and hard-negative losses against slow float64 references, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

import genrec.objectives.ranking
from genrec.catalogue.trie import build_trie
from genrec.model.batch import BatchImpressions
from genrec.objectives.hard_negatives import contrast, ignored_impressions, mined
from genrec.objectives.progressive import multi_label_loss, prefix_loss, step_levels, step_stages
from genrec.objectives.ranking import area_under_curve, pairwise, pointwise

N, C = 9, 7


@pytest.fixture
def slates():
    made = torch.Generator().manual_seed(1)
    logits = torch.randn(N, C, generator=made, dtype=torch.float64) * 3
    labels, live = torch.rand(N, C, generator=made) < 0.3, torch.rand(N, C, generator=made) < 0.8
    labels[3], labels[4] = True, False  # slates without a pair
    return logits, labels, live


def slow_pairwise(logits, labels, live):
    pairs = [
        torch.log(1 + torch.exp(logits[n, j] - logits[n, i]))
        for n in range(N)
        for i in range(C)
        for j in range(C)
        if live[n, i] and live[n, j] and labels[n, i] and not labels[n, j]
    ]
    return sum(pairs) / len(pairs)


def slow_pointwise(logits, labels, live):
    return -torch.stack(
        [torch.sigmoid(one if label else -one).log() for one, label in zip(logits[live], labels[live], strict=True)]
    ).mean()


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize(
    ("fast", "slow"),
    [(pointwise, slow_pointwise), (pairwise, slow_pairwise)],
    ids=["pointwise", "pairwise"],
)
def test_ranking_losses_equal_the_reference(slates, fast, slow, everywhere, monkeypatch):
    """With ``everywhere`` all entries are computed and weighed, as on a device that is not to be waited for."""
    if everywhere:
        monkeypatch.setattr(genrec.objectives.ranking, "selected", lambda mask: (torch.arange(len(mask)), mask.float()))
    logits, labels, live = slates
    actual = []
    for compute, dtype in ((fast, torch.float32), (slow, torch.float64)):
        given = logits.to(dtype).requires_grad_()
        loss = compute(given, labels, live)
        loss.backward()
        actual.append((loss.detach().double(), given.grad.double()))
    torch.testing.assert_close(actual[0][0], actual[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual[0][1], actual[1][1], rtol=1e-4, atol=1e-6)
    assert actual[1][1].abs().max() > 1e-3


def test_without_a_pair_there_is_nothing_to_learn(slates):
    logits, labels, live = slates
    assert float(pairwise(logits, torch.ones_like(labels), live)) == 0


def test_area_under_curve_equals_scikit_learn(slates):
    logits, labels = slates[0].flatten(), slates[1].flatten()
    tied = logits.round()
    assert area_under_curve(tied, labels) == pytest.approx(roc_auc_score(labels, tied), abs=1e-12)
    assert math.isnan(area_under_curve(logits, torch.zeros(N, dtype=torch.bool)))


@pytest.fixture(scope="module")
def catalogue():
    made = torch.Generator().manual_seed(3)
    codes = torch.stack([torch.randint(size, (40,), generator=made) for size in (4, 3, 3)], dim=1)
    return build_trie(codes, (4, 3, 3)), codes, torch.randn(40, 6, generator=made, dtype=torch.float64)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_prefix_loss_is_the_softmax_over_prefixes(catalogue, level):
    """A prefix's vector is the unit mean of its items; the loss is that of the target's own prefix."""
    from genrec.model.node_vectors import node_means

    trie, codes, items = catalogue
    targets = torch.tensor([0, 5, 5, 17, 39])
    states = torch.nn.functional.normalize(
        torch.randn(5, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64), dim=-1
    )
    actual = []
    for dtype in (torch.float32, torch.float64):
        given, vectors = (value.detach().clone().to(dtype).requires_grad_() for value in (states, items))
        if dtype == torch.float32:
            loss = prefix_loss(given, node_means(trie, vectors), trie, targets, level, 0.2)
        else:
            prefixes = [tuple(row) for row in codes[:, :level].tolist()]
            names = sorted(set(prefixes))
            means = torch.stack(
                [vectors[[position for position, one in enumerate(prefixes) if one == name]].mean(0) for name in names]
            )
            logits = given @ (means / means.norm(dim=-1, keepdim=True)).T / 0.2
            loss = torch.stack(
                [
                    row.logsumexp(0) - row[names.index(prefixes[item])]
                    for row, item in zip(logits, targets.tolist(), strict=True)
                ]
            ).mean()
        loss.backward()
        actual.append([loss.detach().double(), given.grad.double(), vectors.grad.double()])
    for fast, slow in zip(*actual, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-5)


def test_feedback_of_a_step_equals_the_reference():
    made = torch.Generator().manual_seed(5)
    states = torch.nn.functional.normalize(torch.randn(9, 4, generator=made, dtype=torch.float64), dim=-1)
    vectors, labels = torch.randn(9, 4, generator=made, dtype=torch.float64), torch.rand(9, generator=made) < 0.5
    actual = []
    for dtype in (torch.float32, torch.float64):
        inputs = [value.to(dtype).requires_grad_() for value in (states, vectors, torch.tensor(0.3), torch.tensor(4.0))]
        if dtype == torch.float32:
            loss = multi_label_loss(inputs[0], inputs[1], labels, inputs[2], inputs[3])
        else:
            cosine = (inputs[0] * inputs[1]).sum(-1) / inputs[1].norm(dim=-1)
            chance = torch.sigmoid(inputs[3] * cosine + inputs[2])
            loss = -torch.where(labels, chance, 1 - chance).log().mean()
        loss.backward()
        actual.append([loss.detach().double(), *(value.grad.double() for value in inputs)])
    for fast, slow in zip(*actual, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)


def test_steps_go_from_easy_to_hard():
    assert step_levels(3, 5) == [1, 2, 3] and step_levels(4, 2) == [1, 2, 2, 2]
    assert (
        step_stages(2, 2) == [0, 1]
        and step_stages(1, 2) == [1]
        and step_stages(3, 2) == [0, 1, 1]
        and step_stages(2, 4) == [2, 3]
    )


def test_contrast_equals_the_reference():
    made = torch.Generator().manual_seed(6)
    requests, index = (
        torch.randn(4, 5, generator=made, dtype=torch.float64),
        torch.randn(12, 5, generator=made, dtype=torch.float64),
    )
    targets, hard = torch.tensor([1, 2, 3, 4]), torch.tensor([[5, 6, -1], [2, 7, 8], [-1, -1, -1], [9, 10, 11]])
    actual = []
    for dtype in (torch.float32, torch.float64):
        q, t = requests.to(dtype).requires_grad_(), index.to(dtype).requires_grad_()
        if dtype == torch.float32:
            loss = contrast(q, t, targets, hard)
        else:
            rows = {
                0: [1, 5, 6],
                1: [2, 7, 8],
                3: [4, 9, 10, 11],
            }  # an own target among the hard ones is none; nobody for row 2
            loss = sum((q[row] @ t[items].T).logsumexp(0) - q[row] @ t[items[0]] for row, items in rows.items()) / 3
        loss.backward()
        actual.append([loss.detach().double(), q.grad.double(), t.grad.double()])
    for fast, slow in zip(*actual, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_mined_negatives_are_the_nearest_unknown_ones():
    index = torch.eye(8)
    requests = torch.tensor([[0.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.0, 0.0]])
    torch.manual_seed(0)
    drawn = {
        tuple(sorted(mined(requests, index, torch.tensor([1]), torch.tensor([[2, 2]]), 1)[0].flatten().tolist()))
        for _ in range(40)
    }
    assert drawn == {(3,), (4,)}
    drawn = {
        tuple(
            mined(requests, index, torch.tensor([1]), torch.tensor([[2, 2]]), 1, torch.tensor([1, 2, 4, 7]))[0]
            .flatten()
            .tolist()
        )
        for _ in range(40)
    }
    assert drawn == {(4,), (7,)}


def test_items_shown_in_vain_are_the_rows_own():
    reached = torch.tensor([[True, False], [False, False], [False, False]])[..., None]
    visible = BatchImpressions(
        torch.tensor([0, 0, 2]),
        torch.tensor([0, 1, 0]),
        torch.tensor([[4, 5], [4, 6], [7, -1]]),
        reached,
        torch.zeros(3, 2, 0),
    )
    torch.manual_seed(0)
    table = ignored_impressions(visible, 3, 3, 10)[torch.tensor([0, 1, 2, 0])]
    assert set(table[0].tolist()) == {5, 6, -1} and table[1].tolist() == [-1, -1, -1]  # 4 was clicked later
    assert table[2].tolist() == [7, -1, -1] and torch.equal(table[0], table[3])
