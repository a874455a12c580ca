"""The situation of a request: nothing before training, the same in training and inference, and of its own request."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.data.dataset import TRAIN
from genrec.data.sequences import make_windows
from genrec.data.situation import Situation, SituationReader
from genrec.model.collate import Collator
from genrec.model.query_features import QueryFeatures
from genrec.training.fit import new_network

FIELDS = ["age_group", "country", "surface", "hour"]


@pytest.fixture(scope="module")
def situation(prepared_run) -> Situation:
    found = Situation.fit(FIELDS, prepared_run.dataset, TRAIN)
    assert all(field.size > 2 for field in found.fields)
    return found


@pytest.fixture(scope="module")
def collator(prepared_run, situation) -> Collator:
    data = prepared_run.dataset
    features = QueryFeatures.build(data.query_texts, prepared_run.ids.encoder)
    model = replace(prepared_run.config.model, request_time=True)
    return Collator(model, features, situation=SituationReader(situation, data))


def made(prepared_run, situation, generate=True):
    config = replace(prepared_run.config, model=replace(prepared_run.config.model, request_time=True))
    return new_network(config, prepared_run.dataset, prepared_run.ids, generate, situation=situation).eval()


@pytest.fixture(scope="module")
def reading(prepared_run, situation):
    """A network whose situation vectors matter."""
    network = made(prepared_run, situation)
    with torch.no_grad():
        torch.nn.init.normal_(network.situation.table.weight, std=0.3, generator=torch.Generator().manual_seed(3))
    return network


@torch.inference_mode()
def vectors(network, batch) -> torch.Tensor:
    return network.retrieval_vectors(network.encode(batch).requests)


def windows_of(data, collator, length: int = 11, count: int = 8):
    windows = make_windows(data.offsets, data.known_lengths(TRAIN), 10, 5)
    rows = np.flatnonzero(windows.stop - windows.start == length)[:count]
    return windows, rows, collator.windows(data, windows, rows, True, False)


def test_an_untrained_situation_changes_nothing(prepared_run, situation, collator):
    batch = collator.requests(prepared_run.dataset.requests("valid"))
    assert batch.situation.shape == (len(batch.items), 1, len(FIELDS)) and batch.situation.any()
    plain, reads = made(prepared_run, None), made(prepared_run, situation)
    assert torch.equal(vectors(plain, batch), vectors(reads, batch))
    weights = reads.state_dict()
    assert {name for name in weights if name not in plain.state_dict()} == {"situation.table.weight"}
    for name, value in plain.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_a_training_window_and_a_request_agree(prepared_run, collator, reading):
    """One pass over a window, whose requests share a context, against each request computed alone."""
    data = prepared_run.dataset
    windows, rows, batch = windows_of(data, collator)
    together, checked = vectors(reading, batch), 0
    for row in np.flatnonzero(windows.first[rows] == windows.start[rows]).tolist():  # it holds the whole history
        live = np.flatnonzero((batch.targets[row] >= 0).numpy())
        events = windows.start[rows[row]] + batch.positions[row].numpy()[live]
        alone = collator.requests(data.requests_before(events, np.full(len(live), -1)))
        assert torch.equal(alone.situation[:, 0], batch.situation[row, live])
        torch.testing.assert_close(vectors(reading, alone)[:, 0], together[row, live], rtol=0, atol=1e-5)
        checked += len(live)
    assert checked > 20


def test_a_situation_is_of_its_own_request_alone(prepared_run, collator, reading, situation):
    _, _, batch = windows_of(prepared_run.dataset, collator)
    for index, field in enumerate(situation.fields):
        changed = batch.situation.clone()
        changed[:, 2, index] = (changed[:, 2, index] + 1) % field.size
        before, after = vectors(reading, batch), vectors(reading, replace(batch, situation=changed))
        others = torch.arange(batch.positions.shape[1]) != 2
        torch.testing.assert_close(after[:, others], before[:, others], rtol=0, atol=1e-6)
        assert ((after - before)[:, 2].abs().amax(-1) > 1e-6).all(), field.name


def test_nothing_of_a_later_event_is_read(prepared_run, collator):
    data = prepared_run.dataset
    windows, rows, batch = windows_of(data, collator)
    later = type("Log", (), {})()
    for name in ("items", "actions", "queries", "timestamps", "offsets", "user_of"):
        setattr(later, name, getattr(data, name))
    surfaces, times = np.array(data.surfaces), np.array(data.timestamps)
    stop = windows.stop[rows]
    surfaces[stop - 1], times[stop - 1] = -1, times[stop - 1] + 7200
    later.surfaces, later.timestamps = surfaces, times
    moved = collator.windows(later, windows, rows, True, False)
    last = batch.positions == torch.from_numpy(stop - windows.start[rows] - 1)[:, None]
    assert torch.equal(moved.situation[~last], batch.situation[~last])
    assert (moved.situation != batch.situation)[last].any()


def test_a_batch_that_does_not_say_knows_nothing(prepared_run, collator, reading):
    batch = collator.requests(prepared_run.dataset.requests("valid"))
    silent, zero = replace(batch, situation=None), replace(batch, situation=torch.zeros_like(batch.situation))
    assert torch.equal(vectors(reading, silent), vectors(reading, zero))
    assert not torch.equal(vectors(reading, silent), vectors(reading, batch))


def test_training_hides_some_values_and_answers_hide_none(situation):
    from genrec.model.situation import SituationVectors

    module = SituationVectors(situation, 4)
    torch.nn.init.ones_(module.table.weight)
    with torch.no_grad():
        for offset in module.offsets.tolist():
            module.table.weight[offset] = 0  # row 0: unknown
    rows = torch.ones(200, 5, len(FIELDS), dtype=torch.long)
    assert (module.eval()(rows) == len(FIELDS)).all()
    torch.manual_seed(0)
    mean = float(module.train()(rows).mean()) / len(FIELDS)
    assert 0.88 < mean < 0.92


def test_item_texts_and_pairs_without_a_user_have_no_situation(prepared_run, collator):
    data = prepared_run.dataset
    windows = make_windows(data.offsets, data.known_lengths(TRAIN), 1, 1)
    rows = np.arange(8)
    assert collator.windows(data, windows, rows, True, True, cold_searches=True).situation is None
    assert collator.windows(data, windows, rows, True, True).situation is not None
