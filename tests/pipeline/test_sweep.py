"""A sweep makes every row once, compares request by request, and goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genrec.data.dataset import TRAIN
from genrec.errors import UserError
from genrec.evaluation.impression_ranking import HEAD, head_areas
from genrec.pipeline import sweep as sweeps
from genrec.pipeline.sweep import load_sweep, row_config, run_sweep
from genrec.runs.run import Run

ABLATIONS = sorted((Path(__file__).parents[2] / "configs" / "ablations").glob("*.yaml"))
SWEEP = """
config: base.yaml
name: little
seeds: [1, 2]
requests: 40
rows:
  the whole: []
  without anchors: [model.anchors=0]
  without distillation: [training.distill_weight=0]
"""


@pytest.fixture
def little(tmp_path):
    (tmp_path / "base.yaml").write_text("training: {epochs: 1, decoder_epochs: 1, valid_requests: 20}\n")
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return tmp_path / "sweep.yaml"


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_every_row_of_the_shipped_sweeps_is_a_valid_config(path):
    sweep = load_sweep(path)
    made = [row_config(sweep, row, seed, [])[0] for row in sweep.rows for seed in sweep.seeds]
    assert len({config.name for config in made}) == len(made) and not any(config.training.refit for config in made)


def test_rows_are_compared_and_not_made_twice(little, tmp_path, tiny_overrides, monkeypatch):
    overrides = [*tiny_overrides(tmp_path, "data.options.n_users=60", "data.options.n_events=900"), "training.epochs=1"]
    requested = []
    answers = sweeps._answers

    def stop_after_four(run, sweep):
        if len(requested) == 4:
            raise KeyboardInterrupt
        requested.append(run.folder.name)
        return answers(run, sweep)

    monkeypatch.setattr(sweeps, "_answers", stop_after_four)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(little, overrides)
    half = json.loads((tmp_path / "little" / "sweep.json").read_text())
    assert {row["row"]: row["seeds"] for row in half["rows"]} == {
        "the whole": 2,
        "without anchors": 1,
        "without distillation": 1,
    }
    requested.clear()
    folder = run_sweep(little, overrides)
    assert requested == ["without-anchors-2", "without-distillation-2"]
    backbones = {
        name: (folder / name / "model_backbone" / "model.safetensors").stat()
        for name in (
            "the-whole-1",
            "without-anchors-1",
            "without-distillation-1",
            "the-whole-2",
            "without-distillation-2",
        )
    }
    assert (
        backbones["the-whole-1"].st_ino
        == backbones["without-distillation-1"].st_ino
        != backbones["without-anchors-1"].st_ino
    )
    assert (
        backbones["the-whole-2"].st_ino == backbones["without-distillation-2"].st_ino != backbones["the-whole-1"].st_ino
    )
    rows = json.loads((folder / "sweep.json").read_text())["rows"]
    by = {(row["row"], row["of"]): row for row in rows}
    assert ("the whole", "recommendation|generate") in by
    row = by["without anchors", "recommendation|retrieve"]
    whole = by["the whole", "recommendation|retrieve"]
    assert row["seeds"] == 2 and row["difference"][0] == pytest.approx(row["recall@10"] - whole["recall@10"])
    assert "difference" not in whole and (folder / "sweep.png").stat().st_size > 1000
    assert "without anchors" in (folder / "table.md").read_text()


def test_impressions_are_compared_for_rows_with_a_ranking_head(little, tmp_path, tiny_overrides):
    rows = (
        "the whole: []\n  other: [training.learning_rate=3e-3]\n  no head: [model.ranking=false, 'model.stages=[]']\n"
    )
    little.write_text(SWEEP.partition("seeds")[0] + f"requests: 40\nrows:\n  {rows}")
    given = [
        "data.options.n_users=60",
        "data.options.n_events=900",
        "training.epochs=1",
        "model.ranking=true",
        "model.stages=[click,cart]",
        "split.kind=global-time",
        "training.decoder_epochs=0",
    ]
    folder = run_sweep(little, tiny_overrides(tmp_path, *given))
    areas = json.loads((folder / "sweep.json").read_text())["impressions"]
    by = {(entry["row"], entry["of"]): entry for entry in areas}
    assert {row for row, _ in by} == {"the whole", "other"} and {name for _, name in by} == {
        "click_auc",
        "click_gauc",
        "cart_auc",
        "cart_gauc",
    }
    run = Run.open(folder / "other-42")
    alone = head_areas(run, run.ranker("train", fused=False), "valid", TRAIN)[0].metrics[HEAD]
    assert {name: by["other", name]["value"] for name in alone} == pytest.approx(alone)
    gain, low, high = by["other", "click_auc"]["difference"]
    assert (
        gain == pytest.approx(by["other", "click_auc"]["value"] - by["the whole", "click_auc"]["value"])
        and low <= gain <= high
        and low < high
    )
    assert "click_gauc" in (folder / "table.md").read_text()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("config: base.yaml\nrow: {a: []}\n", "rows"),
        ("config: base.yaml\nrows: {}\n", "at least one row"),
        ("config: base.yaml\nsplit: train\nrows: {a: []}\n", "split"),
        ("config: base.yaml\nrows: {a b: [], a-b: []}\n", "differ"),
        ("config: nowhere.yaml\nrows: {a: []}\n", "nowhere.yaml"),
        ("config: base.yaml\nrows: {a: [model.ancors=0]}\n", "model.anchors"),
    ],
)
def test_mistakes_are_named(text, named, tmp_path):
    (tmp_path / "base.yaml").write_text("seed: 1\n")
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(UserError, match=named):
        run_sweep(tmp_path / "sweep.yaml", [f"output={tmp_path}"])
