"""The bundle: the same lists as the run, every byte guarded, nothing of the test split or of the machine inside."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import polars as pl
import pytest
import torch

from genrec.artifacts.folders import MANIFEST, manifest_digest
from genrec.data.dataset import VALID, Dataset
from genrec.errors import UserError
from genrec.inference.bundle import export, open_run
from genrec.inference.predict import predict_file, write_requests
from genrec.inference.recommender import Recommender


@pytest.fixture
def copied(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copy")


@pytest.mark.parametrize("mode", ["fused", "retrieve", "generate"])
def test_the_same_lists_as_the_run_to_the_last_id(trained_run, bundle, tmp_path, mode):
    for kind in (None, "logged"):
        write_requests(trained_run.folder, tmp_path, "test", kind)
        answers = []
        for source, fitted in ((trained_run.folder, "train+valid"), (bundle, None)):
            predict_file(source, tmp_path / "requests.parquet", tmp_path / "answers.parquet", 20, mode, fitted, True)
            answers.append(pl.read_parquet(tmp_path / "answers.parquet"))
        assert len(answers[0]) > 500 and answers[0].equals(answers[1])


def test_the_same_answers_to_stored_users(trained_run, bundle):
    ours, theirs = Recommender.load(trained_run.folder), Recommender.load(bundle)
    for user in trained_run.dataset.user_ids[:20]:
        assert ours.recommend(user) == theirs.recommend(user)
    assert ours.recommend() == theirs.recommend()


def test_a_bundle_needs_nothing_of_the_run(bundle, tmp_path):
    """In another process, another folder and without the repository as working folder."""
    moved = shutil.copytree(bundle, tmp_path / "elsewhere")
    history = Recommender.load(bundle).snapshot.item_ids[:3]
    code = (
        "from genrec import Recommender\n"
        f"answers = Recommender.load({str(moved)!r}).recommend(history={history!r}, k=5)\n"
        "print([answer.item_id for answer in answers])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path, timeout=900
    )
    assert done.stdout.strip() == str(
        [answer.item_id for answer in Recommender.load(bundle).recommend(history=history, k=5)]
    ), done.stderr


def test_no_test_event_and_no_path_of_the_machine_inside(trained_run, bundle):
    kept, whole = Dataset(bundle / "dataset"), trained_run.dataset
    assert (np.asarray(kept.split) <= VALID).all() and len(kept.items) == int((np.asarray(whole.split) <= VALID).sum())
    assert np.array_equal(kept.histories(VALID).items, whole.histories(VALID).items)
    assert len(kept.heldout_queries) == 0
    texts = kept.texts_of(np.asarray(kept.queries)).to_list()
    keep = np.asarray(whole.split) <= VALID
    assert texts == whole.texts_of(np.asarray(whole.queries)[keep]).to_list()
    for path in bundle.rglob("*"):
        if path.suffix in (".json", ".md"):
            assert str(trained_run.folder.parent) not in path.read_text(), path


def test_without_users(trained_run, bundle, tmp_path):
    bare = export(trained_run.folder, tmp_path / "bare", users=False, programs=False)
    assert len(Dataset(bare / "dataset").user_ids) == 0 and len(Dataset(bare / "dataset").items) == 0
    history = Recommender.load(bundle).snapshot.item_ids[:4]
    assert Recommender.load(bare).recommend(history=history) == Recommender.load(bundle).recommend(history=history)
    with pytest.raises(UserError, match="not in the data"):
        Recommender.load(bare).recommend(trained_run.dataset.user_ids[0])


def test_any_changed_byte_is_found(copied):
    rng = np.random.default_rng(0)
    paths = sorted(path for path in copied.rglob("*") if path.is_file())
    assert len(paths) > 20
    for path in paths:
        before = path.read_bytes()
        position = int(rng.integers(len(before)))
        changed = bytearray(before)
        changed[position] ^= 1
        path.write_bytes(bytes(changed))
        if path.name == MANIFEST and _means_the_same(before, bytes(changed)):
            continue
        with pytest.raises(UserError) as error:
            open_run(copied)
        assert len(str(error.value).splitlines()) == 1
        path.write_bytes(before)
    open_run(copied)


def _means_the_same(before: bytes, after: bytes) -> bool:
    """A changed byte of JSON's white space is no change."""
    try:
        return json.loads(before) == json.loads(after)
    except ValueError:
        return False


def test_a_missing_file_and_a_missing_manifest(copied):
    (copied / "trie.safetensors").rename(copied / "elsewhere")
    with pytest.raises(UserError, match="trie.safetensors is missing"):
        open_run(copied)
    (copied / "elsewhere").rename(copied / "trie.safetensors")
    (copied / MANIFEST).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        open_run(copied)


def test_a_newer_format_is_refused(copied):
    manifest = json.loads((copied / MANIFEST).read_text())
    manifest["info"]["bundle_format"] += 1
    manifest["digest"] = manifest_digest(manifest)
    (copied / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"bundle format 3, this genrec reads up to 2; install a newer genrec"):
        open_run(copied)


def test_nothing_is_unpickled(bundle, monkeypatch):
    def never(*_args, **_options):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, never)
    monkeypatch.setattr(torch, "load", never)
    assert Recommender.load(bundle).recommend(k=3)


def test_mistakes_of_an_export(trained_run, prepared_run, bundle, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    for call, words in (
        (lambda: export(prepared_run.folder, tmp_path / "b"), "no trained model"),
        (lambda: export(trained_run.folder, tmp_path / "b", "test"), "--fitted-on.*train, train\\+valid"),
        (lambda: export(trained_run.folder, tmp_path / "full"), "is not a bundle"),
        (lambda: export(bundle, tmp_path / "b"), "is a bundle already"),
        (lambda: Recommender.load(bundle, "train"), "fitted on train\\+valid"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            call()
    assert not (tmp_path / "b").exists() and (tmp_path / "full" / "mine.txt").read_text() == "precious"


def test_the_card_says_what_it_is(trained_run, bundle):
    card = json.loads((bundle / "card.json").read_text())
    assert card["fitted_on"] == "train+valid" and card["licence"] == "for tests only" and card["holds_users"] is True
    assert card["split"]["fingerprint"] == trained_run.dataset.info["split_fingerprint"]
    assert {row["model"] for row in card["metrics"]} >= {"genrec, fused", "popularity"}
    text = (bundle / "README.md").read_text()
    assert "for tests only" in text and card["split"]["fingerprint"] in text


def test_its_size_is_what_its_parts_need(trained_run, bundle):
    parts = sum((trained_run.folder / name).stat().st_size for name in (
        "model_refit/model.safetensors", "candidate_features/features_refit.npz",
        "reranker/recommendation.safetensors", "reranker/search.safetensors",
    ))  # fmt: skip
    parts += sum(
        path.stat().st_size for path in (trained_run.folder / "semantic_ids").iterdir() if path.suffix != ".png"
    )
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    assert size < parts + 200_000


def test_exported_programs_equal_the_network(trained_run, tmp_path):
    """The export itself compares them at two sizes; here they also read a third one, and hold no weights."""
    from genrec.inference.programs import Prefill, example_batch, export_programs

    generator = trained_run.ranker("train").generator
    report = export_programs(generator, tmp_path / "programs")
    assert set(report["greatest_difference"]) == {"prefill", *(f"step_{level}" for level in range(5))}
    assert max(report["greatest_difference"].values()) <= 1e-5
    assert all("model.pt" not in name or info.file_size == 0 for path in (tmp_path / "programs").iterdir()
               for name, info in ((one.filename, one) for one in zipfile.ZipFile(path).infolist()))  # fmt: skip
    network = generator.network
    batch = example_batch(network, 6, 9, network.catalogue.text.shape[1], seed=7)
    program = torch.export.load(tmp_path / "programs" / "prefill.pt2").module()
    weights = dict(network.state_dict())
    with torch.no_grad():
        expected = Prefill(network)(batch, generator.items)[0]
        actual = program(weights, [batch, generator.items])[0]
        assert (expected - actual).abs().max() <= 1e-5
        weights["last_event.weight"] = weights["last_event.weight"] * 2 + 1
        assert (program(weights, [batch, generator.items])[0] - actual).abs().max() > 1e-3, (
            "the program ignores the weights it is given"
        )
