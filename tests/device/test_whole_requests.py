"""Everything a recommender answers, on a simulated device: the CPU's answers, and a bounded number of waits."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from genrec import Recommender
from genrec.evaluation.protocol import evaluate
from genrec.inference.requests import RecommendationRequest
from genrec.preference import phases, training
from genrec.preference.stage import stage_prefer
from genrec.runs.run import Run

CALLS = {
    "fused": lambda model, user, item: model.recommend(user=user, k=5),
    "retrieve": lambda model, user, item: model.recommend(user=user, k=5, mode="retrieve"),
    "generate": lambda model, user, item: model.recommend(user=user, k=5, mode="generate"),
    "history": lambda model, user, item: model.recommend(history=[item], k=5),
    "nobody": lambda model, user, item: model.recommend(history=[], k=5),
    "search": lambda model, user, item: model.search("lamp", user=user, k=5),
    "search by nobody": lambda model, user, item: model.search("lamp", k=5),
    "suggest": lambda model, user, item: model.suggest(user=user, k=5),
    "similar": lambda model, user, item: model.similar(item, k=5),
    "explain": lambda model, user, item: model.explain(item, user=user),
    "walk": lambda model, user, item: model.walk(user=user, width=4),
    "several": lambda model, user, item: model.ask([RecommendationRequest(user), RecommendationRequest(query="lamp")]),
}
# Waits of one call for its device: the candidates come down once, the lists once. Some calls look at single values. The
# exact search of tiny catalogues waits for each level.
WAITS, LONGER = 14, {"explain": 32, "walk": 20}


def plain(value):
    """An answer as nested lists and dicts."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def assert_same(got, expected, where=""):
    """Equal but for the last digits of floats."""
    assert type(got) is type(expected), where
    if isinstance(expected, dict):
        assert list(got) == list(expected), where
        got, expected = list(got.values()), list(expected.values())
    if isinstance(expected, list):
        assert len(got) == len(expected), where
        for index, pair in enumerate(zip(got, expected, strict=True)):
            assert_same(*pair, f"{where}/{index}")
    else:
        assert got == (pytest.approx(expected, abs=2e-4, nan_ok=True) if isinstance(expected, float) else expected), (
            where
        )


@pytest.fixture(scope="module")
def on_cpu(trained_run):
    return Recommender.load(trained_run.folder, "train")


@pytest.fixture
def simulated(simulated_device, monkeypatch):
    """The device, with every network that a run opens on it."""
    monkeypatch.setattr("genrec.runs.run.compute_device", lambda accelerator: torch.device("meta"))
    monkeypatch.setattr("genrec.preference.stage.compute_device", lambda accelerator: torch.device("meta"))
    with simulated_device.SimulatedDevice() as device:
        yield device


def test_answers_are_those_of_the_cpu(on_cpu, simulated):
    moved = Recommender.load(on_cpu.run.folder, "train")
    assert moved.ranker.generator.items.device.type == "meta"
    user, item = on_cpu.dataset.user_ids[3], on_cpu.dataset.item_table["item_id"][2]
    for name, call in CALLS.items():
        expected = call(on_cpu, user, item)
        simulated.reads.clear()
        got = call(moved, user, item)
        assert_same(plain(got), plain(expected), name)
        assert simulated.reads.total() <= LONGER.get(name, WAITS), (name, simulated.reads)


@pytest.fixture
def grows(trained_run):
    return Recommender.load(trained_run.folder, "train")


def test_a_catalogue_grows_on_its_device(grows, simulated):
    moved = Recommender.load(grows.run.folder, "train")
    new = pl.DataFrame({"item_id": ["new lamp"], "title": ["a lamp of brass"], "category": [["home"]]})
    for model in (grows, moved):
        model.add_items(new)
        model.remove_items([grows.dataset.item_table["item_id"][4]])
    user = grows.dataset.user_ids[3]
    for name in ("fused", "generate", "search", "similar", "explain"):
        assert_same(plain(CALLS[name](moved, user, "new lamp")), plain(CALLS[name](grows, user, "new lamp")), name)


@pytest.fixture
def table(trained_run):
    """``table()``: the metrics of a fresh evaluation by model and kind of request."""

    def make():
        run = Run.open(trained_run.folder, ["evaluation.baselines=[popularity,sasrec]", "evaluation.max_requests=60"])
        return {(row.model, row.fitted_on, row.query_kind): row.metrics for row in evaluate(run, "test").rows}

    return make


@pytest.fixture
def cpu_table(table):
    return table()


def test_the_table_is_that_of_the_cpu(cpu_table, table, simulated):
    rows = table()
    assert rows.keys() == cpu_table.keys() and len({model for model, _, _ in rows}) > 3
    for key, metrics in rows.items():
        assert metrics == pytest.approx(cpu_table[key], abs=0.02), key  # two equal scores may change places


@pytest.mark.parametrize("teacher", ["reward", "fused"])
def test_the_preference_stage_trains_on_the_device(teacher, copied_run, simulated, monkeypatch):
    monkeypatch.setattr(training, "BATCH_SIZE", 128)
    monkeypatch.setattr(phases, "BEAM", 10)
    monkeypatch.setattr(phases, "SAMPLES", 4)
    monkeypatch.setattr(phases, "generator_on", lambda device, generator: generator)  # PyTorch has none for meta
    # Lightning would take the decoder to the accelerator that it sees, the host; and simulated tensors have no file.
    monkeypatch.setattr(SingleDeviceStrategy, "model_to_device", lambda strategy: None)
    for name in ("save", "keep"):
        monkeypatch.setattr(training.Checkpoints, name, lambda *_: None)
    phase_names = "distil" if teacher == "fused" else "distil,dpo,grpo,plackett-luce"
    more = (f"preference.phases=[{phase_names}]", f"preference.teacher={teacher}", "preference.strengths=[1]")
    decision = stage_prefer(copied_run("preference.max_requests=200", *more))
    assert decision.rows and all(np.isfinite([row.before, row.after]).all() for row in decision.rows)


def test_the_simulated_device_has_a_gpus_rules(simulated_device):
    with simulated_device.SimulatedDevice() as device:
        here, there = torch.arange(4.0), torch.arange(4.0).to("meta")
        for mixed in (lambda: there + here, lambda: there[here.long()], lambda: torch.cat([there, here])):
            with pytest.raises(RuntimeError, match="mixes devices"):
                mixed()
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        assert not device.reads
        assert (there * 2).sum().item() == 12 and (there + torch.tensor(1.0)).tolist() == [1, 2, 3, 4]
        assert there[there > 1].cpu().tolist() == [2, 3] and device.reads.total() == 4
