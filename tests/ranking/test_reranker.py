"""Reranker: informative features get weight, others do not, and padding never wins."""

from __future__ import annotations

import pytest
import torch

from genrec.errors import UserError
from genrec.ranking.candidates import MISSING, Candidates
from genrec.ranking.features import FEATURES
from genrec.ranking.interactions import averaged, interaction_network
from genrec.ranking.reranker import Reranker, hold_out

DECISIVE = FEATURES.index("popularity")  # a feature without a prior weight


def constructed(batch: int, width: int, seed: int) -> tuple[Candidates, torch.Tensor]:
    """Noise in every feature, except that one feature says (noisily) which candidate came next."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(200, generator=generator)[:width].sort().values for _ in range(batch)])
    features = torch.randn(batch, width, len(FEATURES), generator=generator)
    gumbel = -torch.rand(batch, width, generator=generator).log().neg().log()
    target = (3 * features[..., DECISIVE] + gumbel).argmax(1)
    ids[:, -2:] = MISSING
    features[:, -2:] = 50.0  # padding must not be read
    return Candidates(ids, features), torch.where(target < width - 2, ids.gather(1, target[:, None])[:, 0], 999)


@pytest.fixture(scope="module")
def fitted():
    return Reranker.fit([constructed(300, 20, 0), constructed(200, 12, 1)])


def hits(reranker: Reranker, part) -> float:
    candidates, targets = part
    known = targets < 999
    return float((reranker.rank(candidates, 1)[0][:, 0] == targets)[known].float().mean())


def test_the_deciding_feature_gets_the_weight(fitted):
    weights = fitted.weights
    assert weights.argmax() == DECISIVE
    assert weights[DECISIVE] / fitted.scale[DECISIVE] == pytest.approx(
        3, abs=0.7
    )  # the strength the data were made with
    others = torch.cat([weights[:DECISIVE], weights[DECISIVE + 1 :]])
    assert others.abs().max() < 0.5


def test_words_in_a_title_never_speak_against_an_item():
    """In the linear form, where the lists say so by chance; the others are fitted as if the feature were not there."""
    parts, column = [constructed(150, 20, 0)], FEATURES.index("title_order")
    parts[0][0].features[..., column] = -parts[0][0].features[..., DECISIVE] / 3
    weights = Reranker.fit(parts).weights
    parts[0][0].features[..., column] = 0
    assert weights[column] == 0 and weights[DECISIVE] > 1
    torch.testing.assert_close(weights, Reranker.fit(parts).weights, rtol=0.05, atol=0.02)


def test_fit_beats_the_default_on_new_requests(fitted):
    part = constructed(300, 20, 7)
    assert hits(fitted, part) > hits(Reranker.default(), part) + 0.2


def test_the_scale_of_a_feature_does_not_matter(fitted):
    parts = [constructed(300, 20, 0), constructed(200, 12, 1)]
    for candidates, _ in parts:
        candidates.features[..., DECISIVE] *= 100
    scaled = Reranker.fit(parts)
    part = constructed(50, 20, 9)
    before = fitted.rank(part[0], 5)[0]
    part[0].features[..., DECISIVE] *= 100
    assert (scaled.rank(part[0], 5)[0] == before).float().mean() > 0.97


def test_a_constant_feature_does_no_harm():
    parts = [constructed(300, 20, 0)]
    parts[0][0].features[..., 0] = 4.0
    reranker = Reranker.fit(parts)
    assert reranker.weights.isfinite().all() and reranker.weights.argmax() == DECISIVE
    moved = parts[0][0].features.clone()
    moved[..., 0] = -1000.0  # never seen to vary, so it may not decide later
    assert torch.allclose(reranker.scores(moved), reranker.scores(parts[0][0].features))


def test_what_only_matters_together_needs_the_network():
    """Candidates for which two features agree in sign came next: no linear form can tell them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(20).repeat(3000, 1)
    features = torch.zeros(3000, 20, len(FEATURES))
    features[..., :16] = torch.randn(3000, 20, 16, generator=generator)  # as much noise with any number of features
    gumbel = -torch.rand(3000, 20, generator=generator).log().neg().log()
    target = (4 * (features[..., 3] * features[..., 10]).sign() + gumbel).argmax(1)
    reranker = Reranker.fit([(Candidates(ids[:2500], features[:2500]), target[:2500])])
    assert reranker.network is not None
    part = (Candidates(ids[2500:], features[2500:]), target[2500:])
    linear = Reranker(reranker.weights, reranker.mean, reranker.scale)
    assert hits(reranker, part) > hits(linear, part) + 0.04
    again = Reranker.from_state(reranker.state())
    assert torch.equal(again.rank(part[0], 10)[0], reranker.rank(part[0], 10)[0])


def test_requests_of_one_query_are_held_out_together():
    """Else a network that learns by heart what each query wants is taken for one that serves new queries."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randint(-1, 30, (1000,), generator=generator)
    order = torch.randperm(1000, generator=generator)
    kept, held = hold_out(order, query)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(1000)) and 150 < len(held) <= 250
    queries = [set(query[rows][query[rows] >= 0].tolist()) for rows in (kept, held)]
    assert queries[0] and queries[1] and not queries[0] & queries[1]
    assert (query[kept] < 0).any() and (query[held] < 0).any()
    alone = hold_out(order, torch.full((1000,), -1))
    assert torch.equal(torch.cat(alone), order) and len(alone[1]) == 250
    assert not len(hold_out(order, torch.full((1000,), 7))[1])


def test_fitting_twice_gives_the_same_and_leaves_the_random_state_alone():
    torch.manual_seed(3)
    first = Reranker.fit([constructed(300, 20, 0)])
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(first.weights, Reranker.fit([constructed(300, 20, 0)]).weights)


def test_nothing_to_learn_from_gives_the_default():
    assert torch.equal(Reranker.fit([]).weights, Reranker.default().weights)
    candidates, targets = constructed(300, 10, 0)
    assert torch.equal(Reranker.fit([(candidates, targets * 0 + 999)]).weights, Reranker.default().weights)


def test_an_update_goes_on_from_the_present_reranker(fitted):
    few = [constructed(60, 12, 3)]
    assert Reranker.fit(few, present=fitted) is fitted and Reranker.fit([], present=fitted) is fitted
    wrong = Reranker(-fitted.weights, fitted.mean, fitted.scale)
    many = [constructed(500, 20, 4)]
    updated = Reranker.fit(many, present=wrong)
    assert hits(updated, constructed(300, 20, 7)) > hits(wrong, constructed(300, 20, 7)) + 0.2
    assert torch.equal(updated.mean, fitted.mean) and updated.weights[DECISIVE] > 0
    lists = constructed(300, 20, 5)
    lists[0].features[..., DECISIVE] = 0  # such a day says nothing about the feature: its weight stays
    kept = Reranker.fit([lists], present=fitted)
    torch.testing.assert_close(kept.weights[DECISIVE], fitted.weights[DECISIVE], atol=0.05, rtol=0)


def test_a_few_requests_move_the_weights_less_than_many(fitted):
    few = Reranker.fit([constructed(6, 12, 0)]).weights
    assert few.isfinite().all() and float(few[DECISIVE]) < float(fitted.weights[DECISIVE]) - 0.5
    assert (few - Reranker.default().weights).norm() < (fitted.weights - Reranker.default().weights).norm()


def test_serialisation(fitted):
    again = Reranker.from_state(fitted.state())
    part = constructed(50, 20, 9)[0]
    assert torch.equal(again.scores(part.features), fitted.scores(part.features))
    with pytest.raises(UserError, match="other features"):
        Reranker.from_state({**fitted.state(), "features": torch.tensor(list(b"generated"), dtype=torch.uint8)})


def test_ranking_ignores_padding_fills_and_breaks_ties_by_id():
    features = torch.zeros(1, 4, len(FEATURES))
    features[0, 3] = 100.0
    ids, scores = Reranker.default().rank(Candidates(torch.tensor([[3, 5, 8, MISSING]]), features), 6)
    assert (
        ids.tolist() == [[3, 5, 8, MISSING, MISSING, MISSING]]
        and scores[0, 3:].isneginf().all()
        and (scores[0, :3] == 0).all()
    )


def test_an_averaged_network_is_computed_member_by_member_and_block_by_block(monkeypatch):
    """What the zeros between the members, and the other rows, would add is nothing."""
    torch.manual_seed(0)
    networks = [interaction_network(len(FEATURES), 64) for _ in range(3)]
    for network in networks:
        torch.nn.init.normal_(network[-1].weight)
    size = len(FEATURES)
    base = Reranker(torch.randn(size), torch.randn(size), torch.rand(size) + 0.5, averaged(networks))
    top = interaction_network(size + 1, 64).eval()
    torch.nn.init.normal_(top[-1].weight)
    whole = Reranker(torch.randn(size + 1), torch.randn(size + 1), torch.rand(size + 1) + 0.5, top, base)
    features = torch.randn(7, 30, size)
    x = (features - base.mean) / base.scale
    x = x.clamp(-6, 6)
    dense = x @ base.weights + torch.stack([network.eval()(x)[..., 0] for network in networks]).mean(0)
    torch.testing.assert_close(base.scores(features), dense, atol=1e-4, rtol=1e-4)
    once = whole.scores(features)
    linear, together = whole.contributions(features)
    torch.testing.assert_close(once, linear.sum(-1) + together)
    monkeypatch.setattr("genrec.ranking.reranker._ROWS", 64)
    torch.testing.assert_close(whole.scores(features), once)
    assert whole.scores(features[0, 0]).shape == () and whole.scores(features[:0]).shape == (0, 30)
    networks[0][3].weight.data.fill_(0.1)
    trained = averaged(networks)
    trained[3].weight.data += 0.01  # an update may connect the members
    trained = Reranker(base.weights, base.mean, base.scale, trained)
    expected = x @ base.weights + trained.network(x)[..., 0]
    torch.testing.assert_close(trained.scores(features), expected, atol=1e-4, rtol=1e-4)
