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
    assert {
        name: run.stages.fault(name) for name in run.stages.stages if "prefer" not in name and "valid" not in name
    } == dict.fromkeys(
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
            "results",
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


@pytest.mark.parametrize(
    ("section", "change"),
    [("training", {"refit": False}), ("decoding", {"dense": 39}), ("evaluation", {"ks": [5, 10]})],
)
def test_results_of_another_config_are_named_and_not_used(run, section, change, genrec, tmp_path, caplog):
    """No model has changed in a way that answering would refuse, but the table would be another one."""
    other = Run.open(shutil.copytree(run.folder, tmp_path / "other"))
    assert genrec("compare", run.folder, other.folder)[0] == 0
    card = (export(run.folder, tmp_path / "measured", programs=False) / "README.md").read_text()
    assert "| Recall@10 |" in card
    other = change_config(other, section, **change)
    code, out, err = genrec("compare", run.folder, other.folder)
    assert code == 2 and str(other.folder) in err and "genrec run CONFIG" in err, out + err
    assert len(err.strip().splitlines()) == 1
    if section == "training":
        with caplog.at_level(logging.WARNING):
            card = (export(other.folder, tmp_path / "stale", programs=False) / "README.md").read_text()
        assert "| Recall@10 |" not in card and "the model card holds no metrics" in caplog.text


def test_results_of_an_older_model_are_named(run, genrec):
    """The model was fitted again after the evaluation, under the same config."""
    change_key(run.folder / "model")
    assert "was made from another config" in run.stages.fault("results")
    code, _, err = genrec("compare", run.folder, run.folder)
    assert code == 2 and len(err.strip().splitlines()) == 1


def test_half_written_results_are_named(run, genrec):
    (run.folder / "results" / "per_request.npz").write_bytes(b"cut")
    code, _, err = genrec("compare", run.folder, run.folder)
    assert code == 2 and "per_request.npz is not what was written" in err


def test_settings_of_execution_make_nothing_stale(run):
    other = change_config(run, "decoding", batch_size=7)
    assert other.stages.fault("reranker") is None and other.stages.fault("results") is None
    assert "was made from another config" in change_config(run, "decoding", dense=39).stages.fault("reranker")


def age(folder: Path, config: Path) -> None:
    """The folder as an older version wrote it: another format, and a config with keys that have gone."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format_version": 2}))
    write_json(config, {"a key": "of that time"})


@pytest.mark.parametrize("what", ["run", "bundle"])
def test_folders_of_an_older_version_are_refused_before_their_config_is_read(run, what, genrec, tmp_path):
    folder = run.folder if what == "run" else export(run.folder, tmp_path / "bundle", programs=False)
    age(folder / "dataset" if what == "run" else folder, folder / "config.json")
    with pytest.raises(UserError, match="has format version 2, this genrec reads"):
        Recommender.load(folder)
    for arguments in (("recommend", folder), ("search", folder, "words"), ("serve", folder)):
        code, _, err = genrec(*arguments)
        assert code == 2 and "has format version 2, this genrec reads" in err, (arguments, err)
        assert len(err.strip().splitlines()) == 1
