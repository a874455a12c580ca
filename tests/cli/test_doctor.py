"""What doctor finds: every kind of harm is named with its place, and a sound run is left in peace."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from genrec.artifacts.folders import MANIFEST, _checksum, manifest_digest, read_json
from genrec.cli.doctor import check, machine
from genrec.errors import UserError
from genrec.training.checkpoints import FolderIO


@pytest.fixture
def run(trained_run, tmp_path):
    left_out = shutil.ignore_patterns("results*", "*refit", "sasrec", "baselines", "tensorboard")
    return shutil.copytree(trained_run.folder, tmp_path / "run", ignore=left_out)


def rewrite(path, value) -> None:
    """Change an array or the tensors of an artefact and sign it again: only its content is wrong."""
    save_file(value, path) if isinstance(value, dict) else np.save(path, value)
    manifest = read_json(path.parent / MANIFEST)
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": _checksum(path)}
    manifest["digest"] = manifest_digest(manifest)
    (path.parent / MANIFEST).write_text(json.dumps(manifest))


def broken(path) -> list[str]:
    return [str(finding) for finding in check(path) if finding.broken]


def test_a_sound_run(run):
    findings = {finding.name: finding for finding in check(run)}
    assert not any(finding.broken for finding in findings.values())
    expected = {"dataset", "semantic_ids", "model_backbone", "model", "candidate_features", "reranker"}
    assert {name for name, finding in findings.items() if "whole" in finding.text} == expected
    assert set(findings) == expected, "a sound run gave cause for remarks"
    for part in ("dataset", "model", "model/model.safetensors", "dataset/items.npy"):
        assert not broken(run / part)


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        ("offsets", lambda a: a[::-1].copy(), "does not divide"),
        ("offsets", lambda a: np.append(a[:-1], a[-1] + 1), "does not divide"),
        ("items", lambda a: np.where(np.arange(len(a)) == 3, 10**6, a), "items.npy holds numbers outside 0 to"),
        ("queries", lambda a: a - 1, "queries.npy holds numbers outside -1 to"),
        ("split", lambda a: a[:-1], "split.npy has"),
        ("split", lambda a: np.where(np.arange(len(a)) == 0, 2, a).astype(np.uint8), "training events come after"),
        ("timestamps", lambda a: -a, "not in order of time"),
    ],
)
def test_a_dataset_that_makes_no_sense(run, name, harm, words):
    path = run / "dataset" / f"{name}.npy"
    rewrite(path, harm(np.load(path)))
    actual = broken(run)
    assert len(actual) == 1 and words in actual[0] and "genrec run CONFIG" in actual[0]
    assert broken(run / "dataset") == actual


def test_weights_that_are_not_finite(run):
    path = run / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["last_event.weight"][0, 0] = float("nan")
    rewrite(path, tensors)
    assert "last_event.weight holds numbers that are not finite" in broken(run)[0]


def test_all_that_is_broken_is_found(run):
    (run / "model" / "model.safetensors").write_bytes(b"")
    (run / "dataset" / "items.npy").unlink()
    (run / "reranker" / MANIFEST).unlink()
    actual = broken(run)
    assert len(actual) == 3 and "model.safetensors is not what was written" in " ".join(actual)
    assert "items.npy is missing" in " ".join(actual) and "half-written" in " ".join(actual)


def test_what_is_stale_missing_or_left_over(run):
    shutil.rmtree(run / "reranker")
    config = read_json(run / "config.json")
    config["text"]["dim"] = 8
    (run / "config.json").write_text(json.dumps(config))
    (run / ".model.abcd.partial").mkdir()
    state = {"epoch": 1, "global_step": 7, "callbacks": {"Checkpoints": {"best": None}}}
    for step in (7, 8):
        FolderIO().save_checkpoint(state, run / ".model-key" / f"step-{step:09d}" / "state.ckpt")
    (run / ".model-key" / "step-000000008" / "state.ckpt").write_bytes(b"")
    actual = [str(finding) for finding in check(run)]
    assert not broken(run), "nothing of this stops a run"
    for words in (
        "reranker: not made yet",
        "semantic_ids: stale: ",
        ".model.abcd.partial: left by",
        "step-000000007: whole, epoch 1",
        "step-000000008: broken",
    ):
        assert any(words in line for line in actual), (words, actual)


def test_a_bundle(trained_run, tmp_path):
    from genrec.inference.bundle import export

    bundle = export(trained_run.folder, tmp_path / "bundle", users=False, programs=False)
    findings = list(check(bundle))
    assert not any(finding.broken for finding in findings)
    assert {finding.name for finding in findings} == {
        "bundle",
        "dataset",
        "semantic_ids",
        "model_refit",
        "candidate_features",
        "reranker",
    }
    assert not broken(bundle / "card.json")
    (bundle / "trie.safetensors").write_bytes(b"")
    assert len(broken(bundle)) == 1 and "trie.safetensors is not what was written" in broken(bundle)[0]


def test_what_is_no_run(tmp_path):
    (tmp_path / "file.txt").write_text("")
    for name, words in ((".", "not a run folder"), ("file.txt", "no part of an artefact"), ("gone", "does not exist")):
        with pytest.raises(UserError, match=words):
            list(check(tmp_path / name))


def test_the_machine():
    actual = dict(machine())
    assert actual["torch"] and actual["device"] and "GiB" in actual["memory"] and "GiB" in actual["free disk"]
