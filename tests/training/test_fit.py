"""Fitting: the same seed the same weights, a stopped run goes on as if nothing had happened, and nothing is fitted twice."""

from __future__ import annotations

import copy
import logging
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from genrec.artifacts import open_artifact, read_json
from genrec.config import load_config
from genrec.data.dataset import VALID
from genrec.data.sequences import make_windows
from genrec.errors import UserError
from genrec.model.collate import Collator, QueryFeatures, request_batches
from genrec.training import fit as fit_module
from genrec.training.batches import epoch_batches
from genrec.training.fit import FitPlan, fit, load_network, model_key, new_network
from genrec.training.module import TrainingModule

CHOOSING, REFIT = FitPlan(), FitPlan(VALID, 3)


@pytest.fixture(scope="module")
def job(synthetic_run, tiny_overrides):
    config = copy.deepcopy(synthetic_run.config)
    config.training.epochs = 3
    return config, synthetic_run.dataset, synthetic_run.ids


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def fitted(job, tmp_path_factory):
    """Uninterrupted runs of both plans."""
    folder = tmp_path_factory.mktemp("fitted")
    return {"choosing": fit(*job, folder / "model", CHOOSING), "refit": fit(*job, folder / "model_refit", REFIT)}


@pytest.fixture
def keep_signals():
    handler = signal.getsignal(signal.SIGINT)  # Lightning's shutdown turns Ctrl+C off
    yield
    signal.signal(signal.SIGINT, handler)


def test_the_same_seed_gives_the_same_weights(job, fitted, tmp_path):
    torch.manual_seed(999)  # what ran before must not matter
    again = fit(*job, tmp_path / "again", CHOOSING)
    assert same(weights(again), weights(fitted["choosing"]))
    other = copy.deepcopy(job[0])
    other.seed += 1
    assert not same(weights(fit(other, *job[1:], tmp_path / "other", FitPlan(epochs=1))), weights(again))


def test_training_moves_every_weight_that_it_should(job, fitted):
    start = new_network(*job, generate=True).state_dict()
    moved = weights(fitted["choosing"])
    still = [name for name, value in start.items() if torch.equal(value, moved[name])]
    assert still == []


@pytest.mark.parametrize("plan", ["choosing", "refit"])
@pytest.mark.parametrize("moment", ["between epochs", "inside an epoch"])
def test_a_stopped_run_goes_on_as_if_uninterrupted(job, fitted, tmp_path, monkeypatch, keep_signals, plan, moment):
    seen = {"epochs": []}
    train_step, epoch_start = TrainingModule.training_step, TrainingModule.on_train_epoch_start

    def start(self):
        seen["epochs"].append(self.current_epoch)
        if moment == "between epochs" and self.current_epoch == 1:
            raise KeyboardInterrupt
        epoch_start(self)

    def step(self, batch, index):
        if moment == "inside an epoch" and self.current_epoch == 1 and index == 2:
            raise KeyboardInterrupt
        return train_step(self, batch, index)

    target = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "on_train_epoch_start", start)
        patch.setattr(TrainingModule, "training_step", step)
        with pytest.raises(KeyboardInterrupt):
            fit(*job, target, CHOOSING if plan == "choosing" else REFIT)
    assert seen["epochs"] == [0, 1] and not target.exists()
    with monkeypatch.context() as patch:
        seen["epochs"].clear()
        moment = "later"
        patch.setattr(TrainingModule, "on_train_epoch_start", start)
        fit(*job, target, CHOOSING if plan == "choosing" else REFIT)
    assert seen["epochs"] == [1, 2], "the first epoch was run again or one was left out"
    assert same(weights(target), weights(fitted[plan]))
    assert open_artifact(target, "model")["info"] == open_artifact(fitted[plan], "model")["info"]
    steps, uninterrupted = ([row["step"] for row in read_json(folder / "curves.json")] for folder in (target, fitted[plan]))
    assert steps == uninterrupted, "the curves of the first epoch are lost"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "tensorboard"]


@pytest.fixture
def fits_nothing(monkeypatch):
    def refuse(*_):
        raise AssertionError("it was fitted again")

    monkeypatch.setattr(fit_module, "new_network", refuse)


def test_up_to_date_is_skipped(job, fitted, fits_nothing, caplog):
    path = fitted["choosing"] / "model.safetensors"
    before = path.stat().st_mtime_ns
    changed = copy.deepcopy(job[0])
    changed.training.threads, changed.training.refit, changed.evaluation.ks, changed.name = (
        1,
        False,
        [3],
        "elsewhere",
    )  # do not touch weights
    with caplog.at_level(logging.INFO):
        fit(changed, *job[1:], fitted["choosing"], CHOOSING)
    assert path.stat().st_mtime_ns == before and "up to date" in caplog.text


@pytest.mark.parametrize("change", ["training.learning_rate=0.01", "model.dropout=0.3", "training.epochs=4", "seed=7", "training.stride=4"])
def test_changed_settings_fit_again(job, fitted, fits_nothing, change, tiny_overrides):
    changed = copy.deepcopy(job[0])
    section, _, name = change.split("=")[0].rpartition(".")
    place = getattr(changed, section) if section else changed
    setattr(place, name, type(getattr(place, name))(float(change.split("=")[1])))
    with pytest.raises(AssertionError, match="fitted again"):
        fit(changed, *job[1:], fitted["choosing"], CHOOSING)


def test_the_key_tells_plans_and_ids_apart(job):
    config = job[0]
    plans = [CHOOSING, REFIT, FitPlan(VALID, 2), FitPlan(generate=False), FitPlan(searches=False)]
    keys = {model_key(config, "ids", plan) for plan in plans} | {model_key(config, "other ids", CHOOSING)}
    assert len(keys) == 6


def test_round_trip(job, fitted):
    config, dataset, ids = job
    network, saved = load_network(fitted["choosing"], len(dataset.actions_chain), ids)
    assert saved == config and not network.training
    network_again, _ = load_network(fitted["choosing"], len(dataset.actions_chain), ids)
    requests = dataset.requests("test", "title")
    collator = Collator(config.model, QueryFeatures.build(dataset.query_texts, ids.encoder))
    _, _, batch = next(request_batches(requests, collator, 20))
    fresh = new_network(*job, generate=True).eval()
    with torch.inference_mode():
        a, b, untrained = (model.encode(batch).requests for model in (network, network_again, fresh))
    assert torch.equal(a, b) and not torch.allclose(a, untrained, atol=1e-2)
    info = open_artifact(fitted["choosing"], "model", verify=True)["info"]
    assert info["fitted_on"] == "train" and 1 <= info["epochs"] <= 3 and info["time_base"] == fresh.time_base
    refit = open_artifact(fitted["refit"], "model")["info"]
    assert refit["fitted_on"] == "train+valid" and refit["epochs"] == 3


def test_the_best_epoch_is_kept(fitted):
    curves = read_json(fitted["choosing"] / "curves.json")
    quality = {row["epoch"]: row["val/quality"] for row in curves if row["val/quality"] is not None}
    assert sorted(quality) == [0, 1, 2]
    assert open_artifact(fitted["choosing"], "model")["info"]["epochs"] == max(quality, key=quality.get) + 1


def test_losses_fall(fitted):
    curves = read_json(fitted["refit"] / "curves.json")
    losses = [row["train/loss"] for row in curves if row.get("train/loss") is not None]
    assert len(losses) > 4 and np.isfinite(losses).all() and np.mean(losses[-3:]) < np.mean(losses[:3])


def test_nothing_to_validate_on_is_said(prepare_table, synthetic_run, tmp_path):
    data = prepare_table([{"user_id": f"u{u}", "item_id": f"i{e}", "timestamp": e} for u in range(5) for e in range(2)])
    with pytest.raises(UserError, match="no validation event"):
        fit(load_config(None), data, synthetic_run.ids, tmp_path / "model", CHOOSING)


def test_a_network_of_nan_is_not_the_best(job):
    """Comparisons with NaN are false: a broken network must not look perfect to early stopping."""
    config, dataset, ids = job
    network = new_network(*job, generate=True).eval()
    module = TrainingModule(network, config, 1)
    collator = Collator(config.model, QueryFeatures.build(dataset.query_texts, ids.encoder))
    requests = dataset.requests("valid")
    _, chunk, batch = next(request_batches(requests, collator, 30))
    with torch.no_grad():
        network.retrieval.weight.fill_(float("nan"))
        module.validation_step((batch, torch.zeros(len(chunk), dataset.n_items, dtype=torch.bool)), 0)
    assert (torch.cat(module.ranks["retrieve"]) >= 10).all()


def test_the_order_of_batches_depends_on_seed_and_epoch(job):
    _, dataset, _ = job
    windows = make_windows(dataset.offsets, dataset.known_lengths(VALID), 10, 5)
    orders = [epoch_batches(windows, 32, *pair) for pair in ((1, 0), (1, 0), (1, 1), (2, 0))]
    flat = [np.concatenate(order) for order in orders]
    assert all(np.array_equal(np.sort(rows), np.arange(len(windows))) for rows in flat)
    assert np.array_equal(flat[0], flat[1]) and not np.array_equal(flat[0], flat[2]) and not np.array_equal(flat[0], flat[3])
    assert len(orders[0]) == -(-len(windows) // 32) and max(map(len, orders[0])) <= 32
