"""A training step that makes the vectors of the items it names alone equals one that makes those of the whole
catalogue."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from genrec.data.dataset import TRAIN
from genrec.data.sequences import make_windows
from genrec.model.collate import Collator
from genrec.model.dropout import Dropout
from genrec.model.query_features import QueryFeatures
from genrec.retrieval.neighbours import cooccurrence_neighbours, top_of_category_and_brand
from genrec.training.fit import new_network
from genrec.training.module import TrainingModule


def losses(config, run, batch, whole, monkeypatch):
    torch.manual_seed(5)
    network = new_network(config, run.dataset, run.ids, generate=False).train()
    if config.model.anchors:
        width, counted = (
            2 * config.model.anchors,
            cooccurrence_neighbours(run.dataset.histories(TRAIN), run.dataset.n_items, 2 * config.model.anchors),
        )
        network.anchor_tables.fill(counted, top_of_category_and_brand(run.dataset.item_table, counted.users, width))
    module = TrainingModule(network, config, 10)
    monkeypatch.setattr(TrainingModule, "current_epoch", 0)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    if whole:

        def everything(batch, candidates):
            return batch, module.network.choose_anchors(batch), module.network.item_encoder(), candidates.ids

        monkeypatch.setattr(module, "item_vectors", everything)
    torch.manual_seed(6)
    loss = module.training_step(batch, 3)
    loss.backward()
    return loss, {name: p.grad for name, p in module.network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("anchors", "more"),
    [
        (0, {}),
        (4, {}),
        (4, {"pointer": True}),
        (4, {"query_anchors": True}),
        (0, {"query_anchors": True}),
        (0, {"user_tokens": True, "summary_tokens": 2}),
    ],
)
def test_the_items_a_step_names_are_enough(prepared_run, monkeypatch, anchors, more):
    model = replace(prepared_run.config.model, item_dropout=0.5, anchors=anchors, dropout=0.0, **more)
    training = replace(prepared_run.config.training, negatives=20)
    config, data = replace(prepared_run.config, model=model, training=training), prepared_run.dataset
    windows = make_windows(data.offsets, data.known_lengths(0), 10, 5)
    features = QueryFeatures.build(data.query_texts, prepared_run.ids.encoder)
    batch = Collator(model, features).windows(data, windows, torch.arange(4).numpy(), True, True)
    some, all_items = (losses(config, prepared_run, batch, whole, monkeypatch) for whole in (False, True))
    torch.testing.assert_close(some[0], all_items[0])
    assert some[1].keys() == all_items[1].keys() and some[1]["item_encoder.ids.weight"].abs().sum() > 0
    for name, gradient in some[1].items():
        torch.testing.assert_close(gradient, all_items[1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_dropout_keeps_the_mean_and_its_rate():
    torch.manual_seed(0)
    drop, x = Dropout(0.3), torch.ones(200, 501, requires_grad=True)
    out = drop(x)
    kept = out != 0
    assert abs(kept.float().mean().item() - 0.7) < 0.01
    assert torch.equal(out[kept], torch.full_like(out[kept], 1 / 0.7))
    # Neighbours share a random word; they must not share their fate.
    pairs = kept.float() - 0.7
    for apart in (1, 2, 3, 4):
        assert abs((pairs[:, apart:] * pairs[:, :-apart]).mean().item()) < 0.005
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    assert drop.eval()(x) is x and isinstance(drop, nn.Module)
