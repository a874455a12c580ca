"""Averaged weights: the formula, what is validated and saved, and going on from a checkpoint."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from genrec.artifacts.folders import read_json
from genrec.data.dataset import VALID
from genrec.training.average import Average
from genrec.training.fit import FitPlan, fit
from genrec.training.module import TrainingModule


def test_the_average_follows_the_weights():
    layer = nn.Linear(2, 1, bias=False)
    average, expected = Average(layer, 0.5), layer.weight.detach().clone()
    for step in range(1, 6):
        with torch.no_grad():
            layer.weight.add_(1.0)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
    torch.testing.assert_close(average.values["weight"], expected)
    own = layer.weight.detach().clone()
    average.swap_in()
    assert torch.equal(layer.weight, average.values["weight"]) and not torch.equal(layer.weight, own)
    average.swap_out()
    assert torch.equal(layer.weight, own)


def weights(folder):
    return load_file(folder / "model.safetensors")


class Stopped(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("plan", [FitPlan(generate=False), FitPlan(VALID, 2, generate=False)])
def test_a_stopped_run_with_averages_goes_on_as_if_uninterrupted(synthetic_run, tmp_path, monkeypatch, plan):
    config = copy.deepcopy(synthetic_run.config)
    config.training.ema, config.training.checkpoint_steps, config.training.epochs = 0.9, 2, 2
    job = (synthetic_run.dataset, synthetic_run.ids)
    whole, train_step = fit(config, *job, tmp_path / "whole", plan), TrainingModule.training_step

    def step(self, batch, index):
        if (self.current_epoch, index) == (1, 3):
            raise Stopped
        return train_step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", step)
        with pytest.raises(Stopped):
            fit(config, *job, tmp_path / "model", plan)
    fit(config, *job, tmp_path / "model", plan)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(tmp_path / "model").items())
    assert read_json(tmp_path / "model" / "curves.json") == read_json(whole / "curves.json")
    config.training.ema = 0.0
    plain = weights(fit(config, *job, tmp_path / "plain", plan))
    learnt = {name for name, value in plain.items() if not torch.equal(value, weights(whole)[name])}
    assert "retrieval.weight" in learnt and not any(name.startswith("anchor_tables") for name in learnt)
    ours, theirs = (read_json(folder / "curves.json") for folder in (whole, tmp_path / "plain"))
    same_loss = [
        (a["train/loss"], b["train/loss"]) for a, b in zip(ours, theirs, strict=True) if a["train/loss"] is not None
    ]
    assert same_loss and all(a == b for a, b in same_loss)  # what is learnt is the same; what is validated is not
    if plan.epochs is None:
        assert [row["val/quality"] for row in ours] != [row["val/quality"] for row in theirs]
