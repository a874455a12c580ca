"""The division of a step over processes and parts does not change what is learnt."""

from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from genrec.artifacts.folders import open_artifact, read_json
from genrec.config.load import to_dict
from genrec.data.dataset import TRAIN
from genrec.data.sequences import make_windows
from genrec.errors import UserError
from genrec.model.collate import Collator
from genrec.model.query_features import QueryFeatures
from genrec.training.batches import EpochLoader, WindowBatches, request_counts
from genrec.training.fit import FitPlan, fit
from genrec.training.trainer import check_launch
from tests.training.processes import in_processes

WORKER = """
import json, sys
from pathlib import Path
from genrec.config.load import config_from_dict
from genrec.data.dataset import Dataset
from genrec.catalogue.semantic_ids import SemanticIds
from genrec.training.fit import FitPlan, fit
from genrec.training.module import TrainingModule

def write_held(module):
    parameters = [parameter for parameter in module.network.parameters() if hasattr(parameter, "to_local")]
    if parameters:
        held = sum(parameter.to_local().numel() for parameter in parameters)
        blocks = [type(block).__name__ for block in module.network.backbone.blocks]
        text = json.dumps([held / sum(parameter.numel() for parameter in parameters), blocks])
        Path(sys.argv[3] + f"-held-{module.global_rank}.json").write_text(text)

TrainingModule.on_train_end = write_held
run, config, target = Path(sys.argv[1]), config_from_dict(json.loads(sys.argv[2]), "test"), Path(sys.argv[3])
backbone, *tasks = [*sys.argv[4:], ""]
plan = FitPlan(backbone_folder=Path(backbone)) if backbone else FitPlan()
if tasks == ["recommendations", ""]:
    plan = FitPlan(generate=False, searches=False)
fit(config, Dataset(run / "dataset"), SemanticIds.load(run / "semantic_ids"), target, plan)
"""

OFTEN = 1e-9  # minutes between checkpoints: at every look at the clock


@pytest.fixture(scope="module")
def job(synthetic_run):
    """Nothing random that differs between processes: no dropout, every code learnt."""
    config = copy.deepcopy(synthetic_run.config)
    config.model.dropout = config.model.item_dropout = 0.0
    config.training.generate_share, config.training.epochs, config.training.accumulate = 1.0, 2, 1
    config.training.distill_weight = 0.0  # its walks are drawn anew in each part
    return config, synthetic_run


def train(config, run, target):
    return fit(config, run.dataset, run.ids, target, FitPlan())


def together(config, run, target, world: int, *more) -> None:
    """Fit in ``world`` new processes, as torchrun starts them."""
    command = [sys.executable, "-c", WORKER, str(run.folder), json.dumps(to_dict(config)), str(target)]
    in_processes([*command, *map(str, more)], world, target.parent)


def assert_alike(one, other):
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=0, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert open_artifact(one, "model")["info"] == open_artifact(other, "model")["info"]
    curves = [read_json(folder / "curves.json") for folder in (one, other)]
    assert len(curves[0]) == len(curves[1]) > 4
    for row, same in zip(*curves, strict=True):
        assert {name: value for name, value in row.items() if value is not None} == pytest.approx(
            {name: value for name, value in same.items() if value is not None}, rel=1e-4, abs=1e-6
        )


def test_two_processes_equal_one(job, tmp_path):
    """With sampled negatives (shared by all), gradient accumulation, checkpoints inside the epoch and validation."""
    config, run = copy.deepcopy(job[0]), job[1]
    config.training.negatives, config.training.accumulate, config.training.checkpoint_minutes = 20, 2, OFTEN
    one = train(config, run, tmp_path / "one")
    together(config, run, tmp_path / "two", 2)
    assert_alike(one, tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "tensorboard", "two"]


def test_a_process_without_a_validation_request_does_not_hang(job, tmp_path):
    config, run = copy.deepcopy(job[0]), job[1]
    config.training.epochs, config.training.valid_requests = 1, 1
    one = fit(config, run.dataset, run.ids, tmp_path / "one", FitPlan(generate=False, searches=False))
    together(config, run, tmp_path / "two", 2, "", "recommendations")
    assert_alike(one, tmp_path / "two")


def test_two_processes_fit_a_decoder_as_one_does(job, tmp_path):
    """On a frozen backbone, where nobody looks for unused parameters."""
    config, run = copy.deepcopy(job[0]), job[1]
    config.training.epochs, config.training.decoder_epochs = 1, 1
    backbone = fit(config, run.dataset, run.ids, tmp_path / "backbone", FitPlan(generate=False))
    one = fit(config, run.dataset, run.ids, tmp_path / "one", FitPlan(backbone_folder=backbone))
    together(config, run, tmp_path / "two", 2, backbone)
    assert_alike(one, tmp_path / "two")


def test_two_shards_equal_one_process(job, tmp_path):
    """Each process holds half; blocks are units of their own, which a reasoning step runs again."""
    config, run = copy.deepcopy(job[0]), job[1]
    config.model.layers, config.model.reasoning_steps = 2, 1
    config.training.accelerator, config.training.checkpoint_minutes, config.training.epochs = "cpu", OFTEN, 1
    one = train(config, run, tmp_path / "one")
    config.training.strategy = "fsdp"
    together(config, run, tmp_path / "two", 2)
    assert_alike(one, tmp_path / "two")
    for rank in range(2):
        share, blocks = read_json(tmp_path / f"two-held-{rank}.json")
        assert 0.45 < share < 0.55 and blocks == ["FSDPBlock"] * 2


def test_accumulated_parts_equal_the_whole_step(job, tmp_path):
    config = copy.deepcopy(job[0])
    whole = train(config, job[1], tmp_path / "whole")
    config.training.accumulate = 3
    assert_alike(whole, train(config, job[1], tmp_path / "parts"))


def test_bf16_trains(job, tmp_path):
    config = copy.deepcopy(job[0])
    config.training.precision = "bf16"
    curves = {}
    for name in ("32", "bf16"):
        config.training.precision = name
        curves[name] = [
            row["train/loss"]
            for row in read_json(train(config, job[1], tmp_path / name) / "curves.json")
            if row["train/loss"]
        ]
    assert curves["bf16"] != curves["32"] and np.allclose(curves["bf16"], curves["32"], rtol=0.05)
    kept = load_file(tmp_path / "bf16" / "model.safetensors").values()
    assert all(value.dtype == torch.float32 for value in kept if value.is_floating_point())


@pytest.fixture(scope="module", params=["logged", "synthetic"])
def loader(request, prepared_run, synthetic_run):
    """``loader(searches, rank, world, parts, epoch)`` over windows of a log, with its counts."""
    run = prepared_run if request.param == "logged" else synthetic_run
    data, config = run.dataset, copy.deepcopy(run.config)
    collator = Collator(config.model, QueryFeatures.build(data.query_texts, run.ids.encoder))
    windows = make_windows(data.offsets, data.known_lengths(TRAIN), 10, 5)

    def make(searches=True, rank=0, world=1, parts=1, epoch=0, batch_size=64):
        config.training.accumulate, config.training.batch_size = parts, batch_size
        recommends = bool(data.info["synthetic_queries"]) or not searches
        counts = request_counts(data, windows, recommends, searches)
        return WindowBatches(data, windows, counts, collator, config.training, 3, epoch, searches, rank, world)

    return make


@pytest.mark.parametrize("searches", [False, True])
def test_requests_are_counted_as_the_collator_makes_them(loader, searches):
    one = loader(searches)
    for begin in range(0, len(one.windows), 16):
        rows = np.arange(begin, min(begin + 16, len(one.windows)))
        batch = one.collator.windows(one.data, one.windows, rows, one.recommend_searches, searches)
        assert ((batch.targets >= 0).sum(1).numpy() == one.counts[rows]).all()


@pytest.mark.parametrize(("world", "parts"), [(1, 3), (2, 1), (3, 2), (40, 2)])
def test_parts_and_processes_divide_each_step(loader, world, parts):
    """Together they hold each request once, weighted so that the mean over the pieces is the mean over the requests."""
    whole = loader()
    pieces = [loader(rank=rank, world=world, parts=parts) for rank in range(world)]
    assert {len(one) for one in pieces} == {len(whole) * parts}
    for step in range(3):
        targets = whole[step].batch.targets
        expected = sorted(targets[targets >= 0].tolist())
        actual, mean = [], 0.0
        for one in pieces:
            for part in range(parts):
                piece = one[step * parts + part]
                own = piece.batch.targets[piece.batch.targets >= 0]
                assert len(own), "a piece without a request has no loss"
                mean += piece.weight * float(own.double().mean()) / (world * parts)
                actual += own.tolist() if piece.weight else []
        assert sorted(actual) == expected and mean == pytest.approx(np.mean(expected))


def test_a_loader_goes_on_where_its_state_says(loader):
    whole = [part.batch.targets for part in EpochLoader(loader(parts=2))]
    first = EpochLoader(loader(parts=2))
    steps = iter(first)
    for _ in range(5):
        next(steps)
    state, batches = first.state_dict(), loader(parts=2)
    built = []
    batches.collator, collator = copy.copy(batches.collator), batches.collator
    batches.collator.windows = lambda *args, **more: built.append(1) or collator.windows(*args, **more)
    again = EpochLoader(batches)
    again.load_state_dict(state)
    rest = [part.batch.targets for part in again]
    assert len(rest) == len(built) == len(whole) - 5 and len(again) == len(whole)
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[5:], strict=True))
    later = EpochLoader(loader(parts=2, epoch=1))
    later.load_state_dict(state)  # of the epoch before
    assert len(list(later)) == len(later)


def test_worker_processes_give_the_same_batches_and_go_on(loader, monkeypatch):
    """As for a GPU, without the page-locked memory that needs one."""
    whole, init = [part.batch.targets for part in EpochLoader(loader())], DataLoader.__init__
    monkeypatch.setattr(
        DataLoader, "__init__", lambda self, *args, **more: init(self, *args, **more | {"pin_memory": False})
    )
    workers = EpochLoader(loader(), on_gpu=True)
    steps = iter(workers)
    first = [next(steps).batch.targets for _ in range(3)]
    again = EpochLoader(loader(), on_gpu=True)
    again.load_state_dict(workers.state_dict())
    assert workers.num_workers > 0 and workers.state_dict()["given"] == 3
    for one, other in zip([*first, *(part.batch.targets for part in again)], whole, strict=True):
        assert torch.equal(one, other)


def test_every_window_with_a_request_is_in_the_epoch_once(loader):
    one = loader()
    assert np.array_equal(np.sort(np.concatenate(one.batches)), np.flatnonzero(one.counts)) and (one.counts == 0).any()


def test_a_wrong_launch_is_said(job):
    settings = copy.deepcopy(job[0].training)
    settings.strategy = "fsdp"
    with pytest.raises(UserError, match="training.strategy=ddp"):
        check_launch(settings)
