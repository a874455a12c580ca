"""Tokens made of behaviour: what a request may see, all of it, and nothing else.

Those of several requests are each its own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.config.checks import validate
from genrec.config.schema import Config
from genrec.data.dataset import TRAIN
from genrec.data.sequences import make_windows
from genrec.errors import UserError
from genrec.inference.programs import Prefill, batch_fields
from genrec.model.collate import Collator
from genrec.model.pooling import SHORT
from genrec.model.profile import LEVELS
from genrec.model.query_features import QueryFeatures
from genrec.training.fit import new_network

EXACT = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def config(prepared_run):
    return replace(
        prepared_run.config, model=replace(prepared_run.config.model, user_tokens=True, summary_tokens=3, max_length=6)
    )


@pytest.fixture(scope="module")
def network(config, prepared_run):
    made = new_network(config, prepared_run.dataset, prepared_run.ids, generate=True).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.startswith("profile.") or name == "item_encoder.codes.weight":
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
    return made


@pytest.fixture(scope="module")
def collator(config, prepared_run):
    return Collator(config.model, QueryFeatures.build(prepared_run.dataset.query_texts, prepared_run.ids.encoder))


@pytest.fixture(scope="module")
def batch(collator, prepared_run):
    """Late windows of long sequences: events lie in front of them."""
    data = prepared_run.dataset
    windows = make_windows(data.offsets, data.known_lengths(TRAIN), 6, 3)
    owner = np.searchsorted(data.offsets, windows.start, side="right") - 1
    late = np.flatnonzero(windows.start - data.offsets[owner] > 4)[:5]
    return collator.windows(data, windows, late, recommend_searches=True, searches=False)


def tokens(network, batch):
    older = batch.older_items, batch.older_actions, batch.older_offsets
    with torch.no_grad():
        return network.profile(network.item_encoder, batch.items, batch.actions, batch.positions, older)


def test_they_stand_in_the_block_and_have_an_effect(network, batch):
    with torch.no_grad():
        encoded = network.encode(batch)
        assert encoded.blocks[0].shape[2] == 1 + 2 + 3
        changed = network.encode(replace(batch, older_items=(batch.older_items + 1) % network.catalogue.n_items))
    live = batch.targets >= 0
    assert ((changed.requests - encoded.requests).abs().amax(-1)[live] > 1e-5).all()


@pytest.mark.parametrize("what", ["items", "actions"])
def test_no_later_event_is_read(network, batch, what):
    before, position = tokens(network, batch), 4
    values = getattr(batch, what).clone()
    values[:, position] = (values[:, position] + 1) % (
        network.catalogue.n_items if what == "items" else network.actions.num_embeddings
    )
    after = tokens(network, replace(batch, **{what: values}))
    sees = batch.positions > position
    assert sees.any() and (~sees).any()
    torch.testing.assert_close(after[~sees], before[~sees], rtol=0, atol=0)
    assert ((after - before).abs().amax((-1, -2))[sees] > 1e-6).all()


def test_nobody_reads_the_events_of_others(network, batch):
    before = tokens(network, batch)
    stop = int(batch.older_offsets[1])
    changed = batch.older_items.clone()
    changed[:stop] = (changed[:stop] + 3) % network.catalogue.n_items
    after = tokens(network, replace(batch, older_items=changed))
    torch.testing.assert_close(after[1:], before[1:], rtol=0, atol=0)
    assert (after[0] - before[0]).abs().max() > 1e-6


def test_a_request_that_sees_nothing_has_the_same_as_nobody(network, batch):
    blind = tokens(network, replace(batch, positions=torch.zeros_like(batch.positions)))
    torch.testing.assert_close(blind, blind[:1, :1].expand_as(blind), **EXACT)


def test_training_and_answering_make_the_same_tokens(network, collator, prepared_run, batch):
    """A window's request and the same question asked later, of the whole history."""
    data = prepared_run.dataset
    windows = make_windows(data.offsets, data.known_lengths(TRAIN), 6, 3)
    owner = np.searchsorted(data.offsets, windows.start, side="right") - 1
    late = np.flatnonzero(windows.start - data.offsets[owner] > 4)[:5]
    last = windows.stop[late] - 1
    requested = collator.requests(data.requests_before(last, np.full(len(last), -1)))
    full = batch.positions.amax(1) == 6
    ours = tokens(network, batch)[torch.arange(5), batch.positions.argmax(1)]
    assert full.any()
    torch.testing.assert_close(ours[full], tokens(network, requested)[:, 0][full], **EXACT)


def test_the_long_history_is_a_mean_over_all_events_and_the_user_id_weighs_recent_ones_more(
    network, collator, prepared_run
):
    data, encoder, profile = prepared_run.dataset, network.item_encoder, network.profile
    request = data.requests("test").take(np.array([int(np.diff(data.requests("test").offsets).argmax())]))
    made = collator.requests(request)
    table = encoder.codes.weight.detach()
    items = torch.from_numpy(request.items.astype(np.int64))
    vectors = table[encoder.code_rows[items]]
    newest = vectors[-SHORT:].sum(1)
    weights = torch.arange(1, SHORT + 1).sqrt().softmax(0)
    actual = tokens(network, made)[0, 0]
    torch.testing.assert_close(actual[0], profile.views[0]((weights[:, None] * newest).sum(0)).detach(), **EXACT)
    seen, real = [], profile.norm.forward
    profile.norm.forward = lambda x: seen.append(x) or real(x)
    try:
        tokens(network, made)
    finally:
        del profile.norm.forward
    actions = torch.from_numpy(request.actions.astype(np.int64))
    assert len(items) > 6
    for action in actions.unique().tolist():
        mine = vectors[actions == action][:, :LEVELS]
        expected = mine.mean(0) + profile.kind[action] + profile.amount[action] * np.log1p(len(mine))
        torch.testing.assert_close(seen[0][0, 0, action], expected.detach(), **EXACT)


def test_the_exported_halves_know_them(network, batch):
    names = batch_fields(network)
    assert names[-3:] == ["older_items", "older_actions", "older_offsets"]
    with torch.no_grad():
        vectors, _ = Prefill(network)([getattr(batch, name) for name in names], network.item_encoder())
        torch.testing.assert_close(vectors, network.retrieval_vectors(network.encode(batch).requests[:, 0]))


def test_they_need_codes():
    config = Config()
    config.model.item_inputs, config.model.summary_tokens = ["ids", "text"], 2
    with pytest.raises(UserError, match=r"model\.summary_tokens"):
        validate(config)
