"""Artefacts that do not belong to the present config are named in one line and never used."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import polars as pl
import pytest

from genrec.artifacts.folders import MANIFEST, atomic_folder, read_json, write_json
from genrec.errors import UserError
from genrec.inference.bundle import export
from genrec.inference.recommender import Recommender
from genrec.pipeline.stages import stage_prepare
from genrec.runs.run import Run
from genrec.runs.stages import PREFERENCE_KIND, preference_key


@pytest.fixture
def run(trained_run, tmp_path) -> Run:
    """A copy of the tiny trained run, which a test may spoil."""
    shutil.copytree(trained_run.folder, tmp_path / "run")
    return Run.open(tmp_path / "run")


def change_config(run: Run, section: str, **values) -> Run:
    tree = read_json(run.folder / "config.json")
    tree[section] |= values
    write_json(run.folder / "config.json", tree)
    return Run.open(run.folder)


def change_key(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"key": "of another config"}))


def test_everything_of_a_finished_run_is_current(run, caplog):
    assert run.fitted == ["train", "train+valid"] and not caplog.records
    assert {name: run.stages.fault(name) for name in run.stages.stages if "prefer" not in name} == dict.fromkeys(
        [
            "dataset",
            "semantic_ids",
            "candidate_features",
            "reranker",
            "model_backbone",
            "model",
            "model_backbone_refit",
            "model_refit",
            "sasrec",
            "sasrec_refit",
        ]
    )


@pytest.mark.parametrize("how", ["another config", "not asked for", "half-written"])
def test_a_refit_that_does_not_belong_is_named_and_left_aside(run, how, caplog, genrec, tmp_path):
    if how == "another config":
        change_key(run.folder / "model_refit")
    elif how == "half-written":
        (run.folder / "model_refit" / MANIFEST).unlink()
    else:
        run = change_config(run, "training", refit=False)
    with caplog.at_level(logging.WARNING):
        assert run.fitted == ["train"]
    assert [str(run.folder / "model_refit") in record.message for record in caplog.records] == [True]
    assert Recommender.load(run.folder).fitted_on == "train"
    assert read_json(export(run.folder, tmp_path / "bundle", programs=False) / MANIFEST)["info"]["fitted_on"] == "train"
    code, _, err = genrec("recommend", run.folder, "--fitted-on", "train+valid")
    assert code == 2 and "model_refit" in err and len(err.strip().splitlines()) == 1
    with pytest.raises(UserError, match="'train\\+valid' is not one of train"):
        export(run.folder, tmp_path / "other", "train+valid", programs=False)


def test_a_model_of_another_config_answers_nothing(run, genrec, tmp_path):
    change_config(run, "training", learning_rate=0.5)
    for arguments in (
        ("recommend", run.folder),
        ("search", run.folder, "words"),
        ("evaluate", run.folder),
        ("serve", run.folder),
        ("export", run.folder, "--output", tmp_path / "bundle"),
    ):
        code, _, err = genrec(*arguments)
        assert code == 2 and "made from another config" in err and "genrec run CONFIG" in err, (arguments, err)


def test_a_changed_log_makes_everything_stale(run, genrec):
    change_config(run, "data", options=run.config.data.options | {"seed": 2})
    code, _, err = genrec("recommend", run.folder)
    assert code == 2 and f"{run.folder / 'dataset'} was made from another config, log or version" in err


def test_a_log_file_that_was_edited_is_noticed_and_one_that_is_gone_is_not_needed(tmp_path):
    log = tmp_path / "events.csv"
    rows = {"user_id": ["a", "a", "a", "b", "b", "b"], "item_id": list("xyzxyz"), "timestamp": [1, 2, 3, 4, 5, 6]}
    pl.DataFrame(rows).write_csv(log)
    run = Run.create(None, [f"output={tmp_path}", f"data.path={tmp_path}", "data.options.events=events.csv"])
    stage_prepare(run)
    assert run.stages.fault("dataset") is None
    text = log.read_text()
    log.write_text(text.replace("z,6", "x,6"))
    assert "was made from another config, log or version" in run.stages.fault("dataset")
    run.config.data.path = str(tmp_path / "nowhere")
    assert run.stages.fault("dataset") is None


def test_a_refused_preference_stage_is_left_aside(run, caplog):
    key = preference_key(run.folder, run.config)
    for name, kind in (("preference", PREFERENCE_KIND), ("model_preferred", "model")):
        with atomic_folder(run.folder / name, kind, key, {"kept": False}):
            pass
    assert "preferred" not in run.fitted and "refused by the acceptance gate" in caplog.text
    with pytest.raises(UserError, match="refused by the acceptance gate"):
        Recommender.load(run.folder, "preferred")


def test_a_preferred_model_of_other_settings_is_left_aside(run, caplog):
    key = preference_key(run.folder, run.config)
    for name, kind in (("preference", PREFERENCE_KIND), ("model_preferred", "model")):
        with atomic_folder(run.folder / name, kind, key, {"kept": True}):
            pass
    assert "preferred" in run.fitted
    assert "preferred" not in change_config(run, "preference", kl=0.7).fitted and "preference" in caplog.text


def test_a_run_of_an_older_version_is_refused_before_its_config_is_read(run, genrec):
    manifest = json.loads((run.folder / "dataset" / MANIFEST).read_text())
    (run.folder / "dataset" / MANIFEST).write_text(json.dumps(manifest | {"format_version": 2}))
    write_json(run.folder / "config.json", {"a key": "of that time"})
    code, _, err = genrec("recommend", run.folder)
    assert code == 2 and "has format version 2, this genrec reads" in err and len(err.strip().splitlines()) == 1
