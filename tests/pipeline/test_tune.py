"""Tuning a tiny run: it goes on where it was stopped, prunes, and its result is a config."""

from __future__ import annotations

import pytest
import yaml

from genrec.artifacts.folders import read_json
from genrec.config.load import load_config
from genrec.errors import UserError
from genrec.pipeline import tune as module
from genrec.pipeline.tune import tune

optuna = pytest.importorskip("optuna")
SPACE = {"training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "model.dropout": [0.1, 0.3]}


def studied(folder) -> optuna.Study:
    return optuna.load_study(study_name="genrec", storage=f"sqlite:///{folder / 'study.db'}")


def test_a_study_is_stopped_resumed_and_becomes_a_config(tmp_path, tiny_overrides, genrec, monkeypatch):
    (tmp_path / "shop.yaml").write_text("name: shop\n")
    given = [one for one in tiny_overrides(tmp_path) if not one.startswith("name=")]
    monkeypatch.setattr(module, "SPACE", SPACE)
    fits = []

    def killed(trial, *rest):
        if len(fits) == 1:
            raise KeyboardInterrupt
        fits.append(trial.number)
        return quality(trial, *rest)

    quality = module._quality
    monkeypatch.setattr(module, "_quality", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "shop.yaml", given, 2, SPACE)
    folder = tmp_path / "shop.tune"
    first = studied(folder).trials[0]
    assert first.value > 0 and first.params["model.dropout"] == load_config(None, given).model.dropout
    assert first.params["training.learning_rate"] == load_config(None, given).training.learning_rate
    monkeypatch.setattr(module, "_quality", quality)
    code, out, err = genrec("tune", tmp_path / "shop.yaml", *given, "--trials", 2)
    assert code == 0 and "2 trials finished, 0 stopped early" in out, out + err
    done = [trial for trial in studied(folder).trials if trial.value is not None]
    best = max(done, key=lambda trial: trial.value)
    tuned = load_config(folder / "tuned.yaml")
    assert len(done) == 2 and tuned.name == "shop"
    assert tuned.training.learning_rate == best.params["training.learning_rate"]
    assert tuned.model.dropout == best.params["model.dropout"]
    rows = read_json(next((folder / "trials").glob("*/model*/curves.json")))
    assert any(row.get("val/quality") in (trial.value for trial in done) for row in rows)
    before = {file: file.stat().st_mtime_ns for file in (folder / "trials").rglob("model.safetensors")}
    assert tune(tmp_path / "shop.yaml", given, 2, SPACE).quality == best.value  # nothing is left to do
    assert {file: file.stat().st_mtime_ns for file in (folder / "trials").rglob("model.safetensors")} == before
    with pytest.raises(UserError, match="another config, log or space"):
        tune(tmp_path / "shop.yaml", [*given, "training.epochs=5"], 2, SPACE)


def test_a_trial_that_falls_behind_is_stopped(tmp_path, tiny_overrides, monkeypatch):
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump({"name": "pruned"}))
    given = [one for one in tiny_overrides(tmp_path) if not one.startswith("name=")]
    seen = []
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda trial: trial.number > 0)
    report = optuna.trial.Trial.report
    monkeypatch.setattr(optuna.trial.Trial, "report", lambda *stated: (seen.append(stated[1:]), report(*stated)))
    result = tune(tmp_path / "shop.yaml", given, 2, SPACE)
    assert (result.finished, result.pruned) == (1, 1) and result.quality == result.before
    assert seen[-1][1] == 0 and seen[0][0] > 0  # stopped after its first epoch


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "is empty"),
        ({"data.path": ["a"]}, "cannot be searched"),
        ({"model.layers": 3}, "must be a list"),
        ({"model.dropout": {"low": 0.1}}, "low and high"),
    ],
)
def test_a_wrong_space_is_named(space, message, tmp_path):
    with pytest.raises(UserError, match=message):
        tune(tmp_path / "none.yaml", [], 1, space)
