"""What candidates carry where no log says what was shown.

Right, not taught through, and nothing of the request's own answer.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.data.dataset import TRAIN
from genrec.data.histories import Histories
from genrec.data.sequences import make_windows
from genrec.model.anchors import Anchors
from genrec.model.collate import Collator
from genrec.model.pair_features import SCALE, n_pair_features, pair_features
from genrec.model.query_features import QueryFeatures
from genrec.objectives.ranking import pairwise, pointwise
from genrec.retrieval.neighbours import cooccurrence_neighbours
from genrec.training import auxiliary_losses
from genrec.training.auxiliary_losses import drawn_candidates, ranking_loss
from genrec.training.fit import fill_anchors, new_network


@pytest.fixture(scope="module")
def world(prepared_run):
    """A network with a ranking head and anchors counted from training; ``make(rows)`` -> a batch of training windows.

    The windows.
    """
    data = prepared_run.dataset
    config = replace(
        prepared_run.config,
        model=replace(
            prepared_run.config.model, ranking=True, anchors=4, query_anchors=False, dropout=0.0, item_dropout=0.0
        ),
    )
    torch.manual_seed(3)
    network = new_network(config, data, prepared_run.ids, generate=True)
    fill_anchors(network.anchor_tables, data, TRAIN)
    windows = make_windows(data.offsets, data.known_lengths(TRAIN), 10, 5)
    collator = Collator(config.model, QueryFeatures.build(data.query_texts, prepared_run.ids.encoder))
    return network, lambda rows: collator.windows(data, windows, rows, True, True), windows


def requested(network, batch, training: bool):
    """The live requests with their target, the anchors, and seven random items as candidates."""
    encoded = network.train(training).encode(batch)
    row, slot = (batch.targets >= 0).nonzero(as_tuple=True)
    drawn = torch.randint(network.catalogue.n_items, (len(row), 7), generator=torch.Generator().manual_seed(1))
    return encoded, row, slot, torch.cat([batch.targets[row, slot][:, None], encoded.anchors.ids[row, slot], drawn], 1)


def test_features_equal_a_loop():
    made = torch.Generator().manual_seed(0)
    ids, live = torch.randint(6, (3, 1, 5), generator=made), torch.rand(3, 1, 5, generator=made) > 0.3
    anchors = Anchors(ids, live, torch.randn(3, 1, 5, 4, generator=made))
    candidates, dense = torch.tensor([[0, 1, -1], [2, 3, 4], [5, 0, 2]]), torch.randn(3, 3, generator=made)
    actual = pair_features(dense, candidates, anchors)
    assert actual.shape == (3, 3, n_pair_features(4)) and pair_features(dense, candidates, None).shape == (
        3,
        3,
        n_pair_features(0),
    )
    named = 0
    for row in range(3):
        for column in range(3):
            places = [
                position
                for position in range(5)
                if live[row, 0, position] and ids[row, 0, position] == candidates[row, column]
            ]
            named += len(places) > 1
            expected = torch.cat(
                [
                    (dense[row, column] / SCALE)[None],
                    torch.tensor([float(bool(places))]),
                    anchors.features[row, 0, places].sum(0),
                ]
            )
            torch.testing.assert_close(actual[row, column], expected)
    assert named


def test_ranking_starts_from_what_retrieval_knows(world):
    network, batch = world[0], world[1](np.arange(24))
    with torch.inference_mode():
        encoded, row, slot, candidates = requested(network, batch, False)
        logits = network.rank(encoded, row, slot, candidates)[..., 0]
        dense = network.retrieval_vectors(encoded.requests[row, slot]) @ network.item_index(encoded.items).T
    same = (logits + math.log(network.catalogue.n_items) - dense.gather(1, candidates)).abs()
    assert (
        same.max() < 1.5 < dense.std()
        and (logits.argmax(1) == dense.gather(1, candidates).argmax(1)).float().mean() > 0.8
    )


def test_the_ranking_loss_does_not_move_the_retrieval_head_through_it(world):
    network, batch = world[0], world[1](np.arange(24))
    encoded, row, slot, candidates = requested(network, batch, True)
    assert not network._pair_features(encoded, row, slot, candidates).requires_grad
    network.zero_grad()
    network.rank(encoded, row, slot, candidates).square().sum().backward()
    assert network.ranking.direct.weight.grad[0, 0].abs() > 0
    network.eval()


def test_no_candidate_tells_that_its_own_person_took_it(world, prepared_run):
    """In training, a candidate's features exclude the user's own events."""
    network, make, windows = world
    data, tables = prepared_run.dataset, network.anchor_tables
    counted = data.histories(TRAIN)
    people = [counted.items[counted.offsets[one] : counted.offsets[one + 1]] for one in range(len(counted))]
    person = next(
        one for one, items in enumerate(people) if 6 <= len(items) == len(set(items.tolist())) <= 10
    )  # one window, nothing twice
    batch = make(np.flatnonzero(windows.start == data.offsets[person]))
    encoded, row, slot, candidates = requested(network, batch, True)
    mine = network._pair_features(encoded, row, slot, candidates)
    stated = network._pair_features(requested(network, batch, False)[0], row, slot, candidates)
    before = {name: getattr(tables, name).clone() for name in ("neighbours", "counts", "users")}
    others = cooccurrence_neighbours(
        Histories.from_lists(people[:person] + people[person + 1 :]),
        data.n_items,
        tables.neighbours.shape[1],
    )
    for name, values in (("neighbours", others.ids), ("counts", others.counts), ("users", others.users)):
        getattr(tables, name).copy_(torch.as_tensor(values))
    without = network._pair_features(requested(network, batch, False)[0], row, slot, candidates)
    for name, values in before.items():
        getattr(tables, name).copy_(values)
    assert (
        len(row) >= 4 and (stated[:, 0] - without[:, 0]).abs().max() > 0.1
    )  # who counts the answer sees it look better
    # Wide tables are cut: what stands at the very end of one may be missing in the other.
    assert ((mine - without).abs().amax(-1) < 0.02).float().mean() > 0.9
    torch.testing.assert_close(mine[:, 0, 1:], without[:, 0, 1:], rtol=0, atol=1e-4)


def test_chances_are_how_often_negatives_are_drawn(world, monkeypatch):
    """Over many draws, the mean number of times an item is a negative is the chance that corrects the loss."""
    network, batch = world[0], world[1](np.arange(2))
    monkeypatch.setattr(auxiliary_losses, "RANDOM_CANDIDATES", 3)
    monkeypatch.setattr(auxiliary_losses, "HARD_NEGATIVES", 2)
    n_items = network.catalogue.n_items
    with torch.no_grad():  # far apart: items within a rounding error of the last one taken count as taken
        monkeypatch.setattr(network.item_encoder.ids.weight, "data", torch.randn_like(network.item_encoder.ids.weight))
        encoded = network.eval().encode(batch)
        row, slot = (batch.targets >= 0).nonzero(as_tuple=True)
        counted, said = torch.zeros(len(row), n_items), torch.zeros(len(row), n_items)
        torch.manual_seed(0)
        for _ in range(1500):
            candidates, chance = drawn_candidates(network, batch, encoded, row, slot)
            live = candidates[:, 1:] >= 0
            position = candidates[:, 1:].clamp(min=0)
            counted.scatter_add_(1, position, live.float() / 1500)
            said.scatter_(1, position, torch.where(live, chance[:, 1:], said.gather(1, position)))
    target = batch.targets[row, slot]
    assert (candidates[:, 0] == target).all() and (counted.gather(1, target[:, None]) == 0).all()
    hard = said > 3.5 / n_items
    assert hard.sum(1).tolist() == [4] * len(row)  # twice as many as are taken
    assert (counted[hard] - said[hard]).abs().max() < 0.06 and abs(said[hard].mean() - 0.5) < 0.1
    soft = ~hard & (said > 0)
    torch.testing.assert_close(said[soft], torch.full_like(said[soft], 3 / n_items))
    assert abs(counted[soft].mean() - 3 / n_items) < 0.1 * 3 / n_items
    own = network.retrieval_vectors(encoded.requests[row, slot]) @ network.item_index(encoded.items).T
    assert any(  # the history scores high and is never mined
        own[n, batch.items[row[n], : batch.positions[row[n], slot[n]]]].max() > own[n][hard[n]].min()
        for n in range(len(row))
    )
    at_the_top = own.gather(1, target[:, None]) >= torch.where(hard, own, torch.inf).amin(1, keepdim=True)
    torch.testing.assert_close(
        chance[:, :1], at_the_top * 0.5 + 3 / n_items
    )  # an answer at the top would have been drawn as often


def test_a_ranking_loss_learns_whole_catalogue_odds_from_hard_draws():
    """With the correction, scores order items by how often they are targets, not by how seldom they are drawn."""
    expected = torch.tensor([0.6, 0.25, 0.1, 0.03, 0.02])  # items 0 and 1 are the hard ones
    chance = torch.tensor([0.9, 0.9, 0.1, 0.1, 0.1])
    actual = []
    often = (
        (1000 * expected[:, None] * chance[None] * (1 - torch.eye(5))).round().long()
    )  # how often i is the answer and j beside it
    lists = torch.repeat_interleave(often.nonzero(), often[often > 0], dim=0)
    labels, live = torch.tensor([True, False]).expand(len(lists), -1), torch.ones(len(lists), 2, dtype=torch.bool)
    for corrected in (True, False):
        logits = torch.zeros(5, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=0.05)
        for _ in range(800):
            scores = logits - chance.log() if corrected else logits
            loss = pairwise(scores[lists], labels, live)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        actual.append(logits.detach())
    torch.testing.assert_close(actual[0] - actual[0].mean(), expected.log() - expected.log().mean(), rtol=0, atol=0.05)
    assert actual[1][0] < actual[1][2]


def test_the_ranking_loss_corrects_its_logits(world, prepared_run, monkeypatch):
    network, batch = world[0], world[1](np.arange(24))
    for name, value in (("RANDOM_CANDIDATES", 3), ("HARD_NEGATIVES", 2), ("RANKED_FRACTION", 1.0)):
        monkeypatch.setattr(auxiliary_losses, name, value)
    settings = replace(prepared_run.config.training, rank_pair_weight=0.5)
    with torch.no_grad():
        encoded = network.eval().encode(batch)
        live = row, slot = (batch.targets >= 0).nonzero(as_tuple=True)
        torch.manual_seed(0)
        loss = ranking_loss(network, batch, encoded, live, settings)
        torch.manual_seed(0)
        torch.rand(len(row))  # which requests rank
        candidates, chance = drawn_candidates(network, batch, encoded, row, slot)
        values = network.rank(encoded, row, slot, candidates)[..., 0]
    known, labels = candidates >= 0, torch.zeros_like(candidates, dtype=torch.bool)
    labels[:, 0] = True
    expected = [
        pointwise(one, labels, known) + 0.5 * pairwise(one, labels, known) for one in (values - chance.log(), values)
    ]
    torch.testing.assert_close(loss, expected[0])
    assert (loss - expected[1]).abs() > 0.1
