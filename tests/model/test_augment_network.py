"""What training hides on purpose: items of past events, and one part of a sequence from the other. Never while answering."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from genrec.model.backbone import random_cuts, sequence_mask
from genrec.objectives.retrieval import draw_candidates, sampled_softmax


def test_a_cut_hides_what_is_before_it():
    positions, cuts = torch.tensor([[0, 2, 3, 5], [1, 3, 4, 5]]), torch.tensor([2, 0])
    whole, cut = sequence_mask(5, positions, 2), sequence_mask(5, positions, 2, cuts)
    assert torch.equal(whole[1], cut[1])  # a cut before all events is none
    assert torch.equal(cut[0, :2, :2], whole[0, :2, :2]) and torch.equal(cut[0, 2:5, 2:5], whole[0, 2:5, 2:5])
    assert not cut[0, 2:5, :2].any()
    for lane, seen in enumerate(([], [0, 1], [2], [2, 3, 4])):  # the request at the cut still sees the first part
        for token in range(2):
            assert cut[0, 5 + 2 * lane + token, :5].nonzero().flatten().tolist() == seen
    assert torch.equal(cut[:, 5:, 5:], whole[:, 5:, 5:])


def test_cuts_fall_inside_and_as_often_as_asked():
    torch.manual_seed(0)
    lengths = torch.full((4000,), 7)
    cuts = random_cuts(lengths, 0.5)
    assert cuts.min() == 0 and cuts.max() == 6
    assert 0.40 < float((cuts > 0).float().mean()) < 0.46  # a seventh of the drawn cuts fall before the first event
    assert (random_cuts(lengths, 0.0) == 0).all() and (random_cuts(torch.zeros(5, dtype=torch.long), 1.0) == 0).all()


@pytest.mark.parametrize("what", ["event_dropout", "cut_share"])
def test_nothing_is_hidden_while_answering(network, prepared_run, what):
    from genrec.model.collate import Collator, QueryFeatures

    features = QueryFeatures.build(prepared_run.dataset.query_texts, prepared_run.ids.encoder)
    batch = Collator(prepared_run.config.model, features).requests(prepared_run.dataset.requests("valid"))
    before, config = network.encode(batch).requests, network.config
    anchors = network.choose_anchors(batch)
    try:
        network.config = replace(config, dropout=0.0, **{what: 1.0})
        assert torch.equal(network.encode(batch).requests, before)
        rates = {module: module.dropout for module in network.modules() if hasattr(module, "dropout")}
        network.train()
        for module in rates:
            module.dropout = 0.0
        hidden = network.encode(batch, anchors=anchors).requests
        assert (hidden - before).abs().max() > 1e-3 and hidden.isfinite().all()
    finally:
        network.eval()
        network.config = config
        for module, rate in rates.items():
            module.dropout = rate


def test_smoothing_with_drawn_items_equals_that_over_the_catalogue():
    torch.manual_seed(1)
    requests, index, targets = torch.randn(6, 4), torch.randn(9, 4), torch.tensor([0, 3, 3, 8, 1, 5])
    candidates = draw_candidates(9, targets, 9)
    found = sampled_softmax(requests, index[candidates.ids], targets, candidates, 0.2)
    torch.testing.assert_close(found, F.cross_entropy(requests @ index.T, targets, label_smoothing=0.2))
