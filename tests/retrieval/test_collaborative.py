"""EASE^R and ALS as sources: the numbers of their models, kept over saving, and blind to items added since."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genrec.data.dataset import Requests
from genrec.data.histories import Histories
from genrec.retrieval import collaborative
from genrec.retrieval.allowed import AllowedItems
from genrec.retrieval.collaborative import EaseWeights, ItemFactors
from genrec.retrieval.ease import EASE
from genrec.retrieval.protocol import RetrievalRequests
from genrec.retrieval.sources import EaseRetriever, FactorRetriever

ITEMS, USERS = 40, 120
ADDED = ITEMS + 2


def log() -> Histories:
    """Users who take items of one of four groups."""
    draw = np.random.default_rng(0)
    groups = draw.integers(0, 4, USERS)
    return Histories.from_lists([(draw.permutation(ITEMS // 4)[:6] * 4 + group).tolist() for group in groups])


HISTORIES = [[0, 4, 8], [1, 5], [], [ADDED], [2, ADDED, 6, 10]]
MODELS = pytest.mark.parametrize("kind", [EaseWeights, ItemFactors])


def requests(lists: list[list[int]]) -> RetrievalRequests:
    histories, n = Histories.from_lists(lists), len(lists)
    events = np.full(len(histories.items), -1)
    whole = Requests(
        histories.offsets, histories.items, events, events, events, np.zeros(n), np.full(n, -1), np.full(n, -1), []
    )
    return RetrievalRequests(whole, torch.zeros(n, 1), torch.zeros(n, 1))


def source(model: EaseWeights | ItemFactors):
    """What the candidate generator reads, over a catalogue with two more items."""
    return EaseRetriever(model) if isinstance(model, EaseWeights) else FactorRetriever(model.grown(2))


@MODELS
def test_a_source_proposes_what_goes_with_the_history_and_no_added_item(kind):
    retriever, every = source(kind.fit(log(), ITEMS)), torch.arange(ADDED).expand(len(HISTORIES), -1)
    seen = torch.tensor([sorted(set(one))[:3] + [-1] * (3 - len(set(one))) for one in [[0, 4, 8], [1, 5], [], [], []]])
    ids, scores = retriever.top(requests(HISTORIES), 5, AllowedItems(excluded=seen.sort(1).values))
    assert (ids[0] % 4 == 0).all() and (ids[1] % 4 == 1).all() and (ids[4] % 4 == 2).all()
    assert not set(ids[0].tolist()) & {0, 4, 8}
    assert (ids[[2, 3]] == -1).all() and torch.isinf(scores[[2, 3]]).all()  # nothing of these histories was fitted
    values = retriever.score(requests(HISTORIES), every)
    assert not values[:, ITEMS:].any() and not values[[2, 3]].any()
    torch.testing.assert_close(values[0].gather(0, ids[0]), scores[0])


@MODELS
def test_saving_keeps_every_bit_and_a_request_does_not_depend_on_its_batch(kind):
    model = kind.fit(log(), ITEMS)
    again = kind.from_state(model.state())
    every = torch.arange(ITEMS)
    together = source(model).score(requests(HISTORIES), every.expand(len(HISTORIES), -1))
    assert torch.equal(source(again).score(requests(HISTORIES), every.expand(len(HISTORIES), -1)), together)
    for row, history in enumerate(HISTORIES):
        assert torch.equal(source(model).score(requests([history]), every[None])[0], together[row])
    assert kind.from_state({}) is None


def test_the_largest_weights_are_kept(monkeypatch):
    monkeypatch.setattr(collaborative, "EASE_WIDTH", 7)
    monkeypatch.setattr(collaborative, "EASE_CELLS", 3 * ITEMS)
    regularisation, decay = collaborative.ease_settings(log(), ITEMS)
    whole = EASE(regularisation, decay).fit(log(), ITEMS).matrix
    kept = EaseWeights.fit(log(), ITEMS).matrix.toarray()
    assert ((kept != 0).sum(1) == 7).all() and (kept == np.where(kept != 0, whole, 0)).all()
    assert (np.abs(kept).max(1) == np.abs(whole).max(1)).all()


def test_settings_follow_the_density_of_the_log():
    dense = Histories.from_lists([list(range(ITEMS)) * 2] * (2 * ITEMS))
    sparse = Histories.from_lists([[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8]])
    assert collaborative.ease_settings(dense, ITEMS) == (500.0, 0.9)
    assert collaborative.ease_settings(sparse, ITEMS) == pytest.approx((10 * 12 / ITEMS, 1 - 1 / 3))
    assert collaborative.ease_settings(Histories.from_lists([[], []]), 3)[0] == 1.0


def test_scores_weigh_a_history_by_the_decay_of_the_fit():
    model = EaseWeights.fit(log(), ITEMS)
    assert model.decay == collaborative.ease_settings(log(), ITEMS)[1] != 0.9
    one, old = Histories.from_lists([[0, 4]]), model.state()
    del old["ease_decay"]
    assert EaseWeights.from_state(old).decay == 0.9
    expected = model.decay * model.matrix[0].toarray() + model.matrix[4].toarray()
    for weights in (model, EaseWeights.from_state(model.state())):
        np.testing.assert_allclose(weights.scores(one).toarray(), expected, rtol=1e-5, atol=1e-7)


def test_a_large_catalogue_has_no_such_source(monkeypatch):
    monkeypatch.setattr(collaborative, "EASE_ITEMS", ITEMS - 1)
    monkeypatch.setattr(collaborative, "ALS_ITEMS", ITEMS - 1)
    assert EaseWeights.fit(log(), ITEMS) is None and ItemFactors.fit(log(), ITEMS) is None


def test_nobody_had_anything():
    nothing = Histories.from_lists([[], []])
    for model in (EaseWeights.fit(nothing, 3), ItemFactors.fit(nothing, 3)):
        assert (source(model).top(requests([[0, 1]]), 2, AllowedItems())[0] == -1).all()
