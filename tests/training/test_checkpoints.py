"""Which checkpoint is gone on from, and which are kept."""

from __future__ import annotations

import logging

import pytest
import torch

from genrec.artifacts.folders import atomic_folder, read_json
from genrec.config.schema import TrainingConfig
from genrec.training.checkpoints import BEST_KIND, Checkpoints, FolderIO, newest


def checkpoint(work, step, best=None):
    state = {
        "epoch": step // 10,
        "global_step": step,
        "callbacks": {"Checkpoints": {"best": best}},
        "weights": torch.full((500,), step),
    }
    FolderIO().save_checkpoint(state, work / f"step-{step:09d}" / "state.ckpt")


def best_weights(work, name):
    with atomic_folder(work / name, BEST_KIND, "", {"epoch": 0}) as folder:
        (folder / "model.safetensors").write_bytes(b"weights")


@pytest.fixture
def work(tmp_path):
    best_weights(tmp_path, "best-1")
    best_weights(tmp_path, "best-2")
    checkpoint(tmp_path, 5, "best-1")
    checkpoint(tmp_path, 12, "best-2")
    return tmp_path


def change_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_one_is_read_back(work):
    assert newest(work) == work / "step-000000012" / "state.ckpt"
    state = FolderIO().load_checkpoint(newest(work))
    assert state["global_step"] == 12 and (state["weights"] == 12).all()
    assert newest(work / "nothing") is None


@pytest.mark.parametrize(
    "harm",
    [
        lambda work: change_a_byte(work / "step-000000012" / "state.ckpt"),
        lambda work: (work / "step-000000012" / "state.ckpt").write_bytes(b""),
        lambda work: (work / "step-000000012" / "state.ckpt").unlink(),
        lambda work: (work / "step-000000012" / "manifest.json").unlink(),
        lambda work: (work / "step-000000012" / "manifest.json").write_text("{"),
        lambda work: (work / "best-2" / "model.safetensors").write_bytes(b"weighTs"),
    ],
)
def test_a_broken_one_is_not_used(work, harm, caplog):
    harm(work)
    with caplog.at_level(logging.WARNING):
        assert newest(work) == work / "step-000000005" / "state.ckpt"
    assert "step-000000012 is broken" in caplog.text and len(caplog.records) == 1
    change_a_byte(work / "step-000000005" / "state.ckpt")
    assert newest(work) is None


def test_two_are_kept_with_the_best_weights_they_rely_on(work):
    best_weights(work, "best-3")
    checkpoint(work, 20, "best-2")
    keeper = Checkpoints(work, TrainingConfig(), True, 1)
    keeper.best = "best-2"
    keeper._prune()
    assert sorted(path.name for path in work.iterdir()) == ["best-2", "step-000000012", "step-000000020"]
    keeper.best = "best-3"  # better, and not yet in a checkpoint
    best_weights(work, "best-3")
    keeper._prune()
    assert sorted(path.name for path in work.glob("best-*")) == ["best-2", "best-3"]


def test_the_clock(tmp_path):
    keeper = Checkpoints(tmp_path, TrainingConfig(checkpoint_minutes=1.0), True, 1)
    assert not keeper._due(1)
    keeper.clock -= 61
    assert keeper._due(2)
    keeper.settings.checkpoint_minutes = 0.0
    assert not keeper._due(3)


def test_what_a_kill_left_of_a_checkpoint_is_put_right(work):
    """Killed while the same step was written again: the old one had been set aside."""
    (work / "step-000000012").rename(work / ".step-000000012.aaaa.old")
    checkpoint(work, 12, "best-2")
    assert newest(work) == work / "step-000000012" / "state.ckpt" and not list(work.glob(".step*"))
    assert read_json(work / "step-000000012" / "manifest.json")["info"] == {"epoch": 1, "step": 12, "best": "best-2"}
