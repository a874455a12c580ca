"""The re-ranker of counts reads no network, learns from targets that counts propose, and stays a sum of features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genrec.config.schema import DecodingConfig
from genrec.data.dataset import TRAIN
from genrec.data.histories import Histories
from genrec.ranking import reranker
from genrec.ranking.candidates import Candidates
from genrec.ranking.counted import NETWORK_FEATURES, counted_lists, without_network
from genrec.ranking.features import FEATURES, CandidateFeatures
from genrec.ranking.fitting import fit_network
from genrec.ranking.interactions import HIDDEN, averaged, interaction_network, keep_apart, n_members
from genrec.ranking.reranker import BASE, Reranker
from genrec.retrieval.windowed import DECAY, LAG_DECAY, POWER, WINDOW, WindowedTransitions

COUNT, NETWORK = FEATURES.index("windowed"), FEATURES.index("retrieved")


def lists(batch: int, seed: int, counts: float, network: float, width: int = 16):
    """Candidates whose target follows from one feature of counts and one of the network."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.arange(width).repeat(batch, 1)
    features = torch.randn(batch, width, len(FEATURES), generator=generator)
    gumbel = -torch.rand(batch, width, generator=generator).log().neg().log()
    target = (counts * features[..., COUNT] + network * features[..., NETWORK] + gumbel).argmax(1)
    return Candidates(ids, features), target


def hits(reranker: Reranker, part) -> float:
    return float((reranker.rank(part[0], 1)[0][:, 0] == part[1]).float().mean())


@pytest.fixture(scope="module")
def base():
    candidates, target = lists(1500, 0, 2.0, 0.0)
    candidates.features[..., [FEATURES.index(name) for name in NETWORK_FEATURES]] = 0
    return Reranker.fit_counts([(candidates, target)])


@pytest.fixture(scope="module")
def fitted(base):
    return Reranker.fit([lists(150, 1, 2.0, 1.0)], base=base)


def test_few_requests_gain_from_a_base_fitted_on_many(base, fitted):
    alone, part = Reranker.fit([lists(150, 1, 2.0, 1.0)]), lists(3000, 2, 2.0, 1.0)
    assert hits(fitted, part) > hits(alone, part) and hits(fitted, part) > hits(base, part) + 0.03
    assert fitted.importance()[BASE] > 0.5


def test_the_networks_of_counts_are_averaged_and_few_lists_are_linear(monkeypatch):
    part, other = lists(300, 8, 2.0, 0.0), lists(50, 9, 2.0, 0.0)[0].features
    assert Reranker.fit_counts([part]).network is None and Reranker.fit_counts([]) is None
    monkeypatch.setattr(reranker, "_MIN_REQUESTS_WITH_BASE", 100)
    whole = Reranker.fit_counts([part], 5).scores(other)
    monkeypatch.setattr(reranker, "_MEMBERS", 1)
    alone = [Reranker.fit_counts([part], 5 + member).scores(other) for member in range(3)]
    assert (alone[0] - alone[1]).abs().max() > 0.01
    torch.testing.assert_close(whole, torch.stack(alone).mean(0))


def test_over_a_base_many_lists_fit_averaged_networks(base, monkeypatch):
    monkeypatch.setattr(reranker, "_MIN_REQUESTS_WITH_BASE", 100)
    fitted = Reranker.fit([lists(300, 8, 2.0, 1.0)], 5, base=base)
    assert fitted.base is base and n_members(fitted.network) == 3
    part = lists(1000, 2, 2.0, 1.0)
    assert hits(fitted, part) > hits(base, part) + 0.03


@pytest.mark.parametrize("members", [1, 3])
def test_averaged_networks_stay_apart_when_they_are_fitted_further(members):
    network = averaged([interaction_network(5, HIDDEN) for _ in range(members)])
    keep_apart(network)
    weight = network[3].weight
    before, rows = weight.detach().clone(), torch.randn(40, 5)
    weights = list(network.train().parameters())
    fit_network(weights, lambda part: network(rows[part]).mean(), torch.arange(40), 0.1, 2, 8)
    assert not torch.equal(weight, before) and n_members(network) == members


def test_the_base_reads_no_network(base):
    part = lists(50, 3, 1.0, 1.0)[0]
    before = base.scores(part.features)
    part.features[..., [FEATURES.index(name) for name in NETWORK_FEATURES]] = 7.0
    assert torch.allclose(base.scores(part.features), before)


def test_contributions_add_up_and_saving_keeps_every_bit(fitted):
    features = lists(40, 4, 1.0, 1.0)[0].features
    linear, together = fitted.contributions(features)
    assert linear.shape == features.shape
    total = linear.sum(-1) + (0 if together is None else together)
    assert torch.equal(fitted.scores(features), total)
    again = Reranker.from_state(fitted.state())
    assert torch.equal(again.scores(features), fitted.scores(features)) and again.base is not None


def test_an_update_keeps_the_base(fitted):
    updated = Reranker.fit([lists(300, 5, 2.0, 2.0)], present=fitted)
    assert updated.base is fitted.base and len(updated.weights) == len(FEATURES) + 1


def test_without_validation_the_base_decides(base):
    part = lists(500, 6, 2.0, 0.0)
    assert hits(Reranker.fit([], base=base), part) > 0.9 * hits(base, part)


def test_a_target_that_the_network_alone_proposes_is_no_lesson():
    features = torch.zeros(2, 4, len(FEATURES))
    features[..., FEATURES.index("retrieved")] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    features[..., COUNT] = torch.tensor([-7.0, -7.0, -1.0, -2.0])
    actual, targets = without_network(
        Candidates(torch.arange(4).repeat(2, 1), features), torch.tensor([0, 2]), DecodingConfig(windowed=2)
    )
    assert targets.tolist() == [2] and actual.features.shape[0] == 1
    assert not actual.features[..., FEATURES.index("retrieved")].any() and actual.features[..., COUNT].any()


def test_lists_of_training_requests_are_the_same_each_time_and_know_no_target(trained_run):
    run, text = trained_run, trained_run.ids.catalogue.text.cpu().numpy()
    ranker = run.ranker("train", fused=False)
    first, second = (list(counted_lists(ranker, run.dataset, text, 60, 3)) for _ in range(2))
    assert sum(len(targets) for _, targets in first) > 5
    for (one, targets), (other, same) in zip(first, second, strict=True):
        assert torch.equal(one.ids, other.ids) and torch.equal(one.features, other.features)
        assert torch.equal(targets, same)
        assert not one.features[..., [FEATURES.index(name) for name in NETWORK_FEATURES]].any()
    assert ranker.generator.searcher is not None  # the ranker that answers is not changed


def test_windowed_transitions_equal_their_definition():
    histories = Histories.from_lists([[0, 1, 2, 3], [2, 2, 1], [3]])
    table = WindowedTransitions.fit(histories, 4)
    moves, counts = np.zeros((4, 4)), np.zeros(4)
    for history in ([0, 1, 2, 3], [2, 2, 1], [3]):
        for index, item in enumerate(history):
            counts[item] += 1
            for lag in range(1, WINDOW + 1):
                if index + lag < len(history) and history[index + lag] != item:
                    moves[item, history[index + lag]] += LAG_DECAY ** (lag - 1)
    expected = np.array([[DECAY, 0, 1, 0], [0, 0, 0, 0.0]]) @ moves @ np.diag((counts + 1) ** -POWER)
    scores = table.scores(Histories.from_lists([[0, 2], []]))
    np.testing.assert_allclose(scores.toarray(), expected, rtol=1e-6)
    again = WindowedTransitions.from_state(table.state())
    assert (again.matrix != table.matrix).nnz == 0
    assert not again.scores(Histories.from_lists([[9]])).nnz  # an item that was added since


def test_features_without_windowed_transitions_are_constant(trained_run):
    ranker = trained_run.ranker("train", fused=False)
    text = trained_run.ids.catalogue.text.cpu().numpy()
    counted = CandidateFeatures.build(trained_run.dataset, text, TRAIN)
    counted.windowed = None
    from genrec.generation.options import SearchOptions

    ranker.generator = ranker.generator.counting(counted)
    _, _, actual = next(ranker.candidates(trained_run.dataset.requests("test").take(np.arange(5)), SearchOptions()))
    assert not actual.features[..., [COUNT, FEATURES.index("windowed_rank")]].any()
