"""What the dry runs share: batches of every kind on the host, and a module whose network is on the meta device."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from genrec.data.dataset import TRAIN
from genrec.data.impressions import load_impressions, stage_indices
from genrec.data.sequences import make_windows
from genrec.model.collate import Collator, impression_windows
from genrec.model.query_features import QueryFeatures
from genrec.objectives import generation, walked_nodes
from genrec.training.fit import new_network
from genrec.training.module import TrainingModule

STAGES = ["click", "cart"]


def _neighbour(name: str):
    """A module of this folder, which tests cannot import by name."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def one_device():
    """Meta tensors that may not mix with CPU tensors: shapes without values."""
    return _neighbour("one_device")


@pytest.fixture(scope="session")
def simulated_device():
    """A device made of host memory: shapes, placements and values."""
    return _neighbour("simulated")


@pytest.fixture
def read_backs(one_device, monkeypatch):
    """Counts what is read back from the device."""
    counter = one_device.ReadBacks()
    for module in (generation, walked_nodes):
        monkeypatch.setattr(module, "read_back", counter)
    return counter


@pytest.fixture(scope="session")
def collated(prepared_run):
    """``collated(model)`` -> a training batch, with impressions where the model ranks stages."""
    data, encoder = prepared_run.dataset, prepared_run.ids.encoder
    windows = make_windows(data.offsets, data.known_lengths(TRAIN), 10, 5)
    features = QueryFeatures.build(data.query_texts, encoder)

    def collate(model):
        stages = stage_indices(data, model.stages) if model.stages else None
        collator = Collator(model, features, stages)
        if model.stages and model.ranking:
            visible = load_impressions(data, model.stages)
            places = impression_windows(visible, windows, np.asarray(data.offsets))
            keep = np.flatnonzero((visible.split == TRAIN) & (places >= 0))
            collator.impressions, collator.impression_windows = visible.take(keep), places[keep]
        rows = np.flatnonzero(windows.stop - windows.start == 11)[:16]
        return collator.windows(data, windows, rows, True, True)

    return collate


@pytest.fixture
def on_device(prepared_run, monkeypatch):
    """``on_device(config, device, **how)`` -> a training module moved to ``device`` as Lightning moves it.

    By its parent, never by the network's own ``to``.
    """

    def make(config, device, generate=True, **how):
        torch.manual_seed(0)
        network = new_network(config, prepared_run.dataset, prepared_run.ids, generate=generate)
        module = TrainingModule(network, config, 10, **how)
        monkeypatch.setattr(TrainingModule, "current_epoch", 0)
        monkeypatch.setattr(module, "log", lambda *_, **__: None)
        return torch.nn.ModuleList([module]).to(device)[0].train()

    return make


@pytest.fixture
def on_meta(on_device):
    """``on_meta(config, **how)``: ``on_device`` for the meta device."""
    return lambda config, generate=True, **how: on_device(config, "meta", generate, **how)


@pytest.fixture(scope="session")
def with_settings(prepared_run):
    """``with_settings(model=..., training=...)`` -> the tiny config with other settings."""

    def change(model=(), training=()):
        config = prepared_run.config
        return replace(
            config, model=replace(config.model, **dict(model)), training=replace(config.training, **dict(training))
        )

    return change
