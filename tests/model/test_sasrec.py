"""The SASRec and BSARec baselines: what they see, and that they are networks of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.config.schema import SEQUENCE_ROWS
from genrec.data.dataset import TRAIN
from genrec.data.sequences import make_windows
from genrec.model.collate import Collator
from genrec.model.query_features import QueryFeatures
from genrec.model.sasrec import FREQUENCIES, BSARec, SASRec, low_pass
from genrec.model.saved import load_network
from genrec.runs.stages import sasrec_config
from genrec.training.fit import FitPlan, fit, new_network

EXACT = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def config(prepared_run):
    return sasrec_config(prepared_run.config, prepared_run.dataset.n_items)


@pytest.fixture(scope="module", params=SEQUENCE_ROWS)
def network(config, prepared_run, request):
    return new_network(config, prepared_run.dataset, prepared_run.ids, False, request.param).eval()


@pytest.fixture(scope="module")
def batch(config, prepared_run):
    data = prepared_run.dataset
    windows = make_windows(data.offsets, data.known_lengths(TRAIN), 10, 5)
    rows = np.flatnonzero(windows.stop - windows.start == 11)[:6]
    collator = Collator(config.model, QueryFeatures.build(data.query_texts, prepared_run.ids.encoder))
    return collator.windows(data, windows, rows, recommend_searches=True, searches=False)


def vectors(network, batch):
    with torch.inference_mode():
        return network.retrieval_vectors(network.encode(batch).requests)


@pytest.mark.parametrize("position", [0, 4, 8])
def test_it_sees_earlier_events_and_no_later_ones(network, batch, position):
    items = batch.items.clone()
    items[:, position] = (items[:, position] + 1) % network.catalogue.n_items
    old, new = vectors(network, batch), vectors(network, replace(batch, items=items))
    live = batch.targets >= 0
    blind, sees = live & (batch.positions <= position), live & (batch.positions > position)
    torch.testing.assert_close(new[blind], old[blind], **EXACT)
    assert ((new - old).abs().amax(-1)[sees] > 1e-4).all()


def test_padding_changes_nothing(network, batch):
    one = replace(
        batch,
        **{
            name: getattr(batch, name)[:1]
            for name in (
                "items",
                "actions",
                "queries",
                "times",
                "positions",
                "targets",
                "request_times",
                "request_queries",
            )
        },
    )
    wide = replace(
        one,
        **{
            name: torch.nn.functional.pad(getattr(one, name), (0, 5))
            for name in ("items", "actions", "queries", "times")
        },
    )
    torch.testing.assert_close(vectors(network, wide), vectors(network, one), **EXACT)


def test_a_request_without_history_has_no_vector(network, batch):
    assert (vectors(network, replace(batch, positions=batch.positions * 0)) == 0).all()


@pytest.mark.parametrize("name, kind", [("sasrec", SASRec), ("bsarec", BSARec)])
def test_saved_and_loaded_it_is_the_same(config, prepared_run, batch, tmp_path, name, kind):
    config = replace(config, training=replace(config.training, epochs=1))
    plan = FitPlan(generate=False, searches=False, epochs=1, network=name)
    folder = fit(config, prepared_run.dataset, prepared_run.ids, tmp_path / name, plan)
    one, _ = load_network(folder, len(prepared_run.dataset.actions_chain), prepared_run.ids)
    two, _ = load_network(folder, len(prepared_run.dataset.actions_chain), prepared_run.ids)
    assert type(one) is kind and torch.equal(vectors(one, batch), vectors(two, batch))
    fresh = new_network(config, prepared_run.dataset, prepared_run.ids, False, name)
    assert not torch.equal(one.item_encoder.ids.weight, fresh.item_encoder.ids.weight)


def test_its_settings_are_its_own(prepared_run):
    large = sasrec_config(prepared_run.config, 10**6)
    assert large.training.negatives is None and sasrec_config(prepared_run.config, 100).training.negatives == 0
    assert (large.model.dim, large.model.layers, large.model.dropout) == (64, 2, 0.5)
    own = replace(
        prepared_run.config, evaluation=replace(prepared_run.config.evaluation, sasrec={"model": {"dim": 32}})
    )
    assert sasrec_config(own, 100).model.dim == 32


@pytest.mark.parametrize("length", [4, 5, 50])
def test_the_filter_of_the_newest_event_is_that_of_the_fourier_transform(length):
    x = torch.randn(length, 3, generator=torch.Generator().manual_seed(0))
    waves = torch.fft.rfft(x, dim=0)
    waves[FREQUENCIES:] = 0
    torch.testing.assert_close((low_pass(length, length) @ x)[-1], torch.fft.irfft(waves, n=length, dim=0)[-1], **EXACT)


def test_a_shorter_history_is_filtered_as_one_padded_in_front():
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (0, 0, 13, 0))
    torch.testing.assert_close(low_pass(7, 20) @ x, (low_pass(20, 20) @ padded)[13:], **EXACT)
