"""Every config of the repository runs from a log to a table, in miniature, on the simulator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genrec.inference.recommender import Recommender
from genrec.pipeline.stages import stage_evaluate, stage_train
from genrec.preference.stage import stage_prefer
from genrec.runs.run import Run

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SMALL = [
    "data.options.n_users=60",
    "data.options.n_events=900",
    "data.options.n_items=40",
    "data.options.n_categories=4",
    "data.options.n_brands=4",
    "training.epochs=1",
    "training.valid_requests=50",
    "evaluation.sasrec={}",
]


def check(run: Run) -> dict:
    stage_train(run)
    stage_evaluate(run)
    metrics = json.loads((run.folder / "results" / "metrics.json").read_text())
    assert {row["fitted_on"] for row in metrics["rows"]} == (
        {"train", "train+valid"} if run.config.training.refit else {"train"}
    )
    return metrics


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config(path, tmp_path, tiny_overrides):
    own = (
        ["split.kind=leave-last-out"] if "kind: given" in path.read_text() else []
    )  # the simulator's log names no splits
    own += ["model.stages=[click,cart]"] if "stages" in path.read_text() else []  # nor does its chain know long views
    own += ["training.epochs=2", "training.align_epochs=1"] if "align_epochs" in path.read_text() else []
    config = tmp_path / path.name  # without the options of another reader
    config.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("  options:")))
    run = Run.create(config, [*tiny_overrides(tmp_path, *SMALL), *own])
    assert run.folder.name == path.stem
    metrics = check(run)
    kinds = {row["query_kind"] for row in metrics["rows"]}
    assert kinds == {None, "logged"}  # the simulator's searches win over synthetic queries
    assert len(Recommender.load(run.folder).recommend(k=3)) == 3
    if path.stem == "simulator":
        run.config.preference.max_requests = 200
        assert {row.name for row in stage_prefer(run).rows} >= {"recall", "ndcg", "coverage", "gauc"}


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.options.search_share=0", "queries.synthetic=[category,title]", "split.kind=global-time"],
        ["model.request_time=true", "model.time_share=1", "training.negatives=20", "training.refit=false"],
        [
            "data.options.search_share=0",
            "model.item_inputs=[text,codes]",
            "semantic_ids.behaviour_share=0",
            "training.generate_weight=0",
            "decoding.cooccurrence=0",
        ],
        [
            "model.item_inputs=[ids]",
            "training.retrieve_weight=0",
            "training.generate_share=1",
            "data.keep_unseen_items=true",
            "training.refit=false",
        ],
    ],
    ids=["synthetic-by-time", "request-time-sampled", "no-queries-cold-items", "generation-alone"],
)
def test_other_settings(overrides, tmp_path, tiny_overrides):
    lean = ["evaluation.baselines=[popularity,bm25,text]"]
    run = Run.create(None, tiny_overrides(tmp_path, *SMALL, *lean, *overrides))
    metrics = check(run)
    kinds = {row["query_kind"] for row in metrics["rows"]}
    assert kinds == (
        {None, "category", "title"}
        if run.config.queries.synthetic
        else {None, "logged"}
        if run.dataset.query_texts
        else {None}
    )
    assert ("SYNTHETIC" in (run.folder / "results" / "table.md").read_text()) == bool(run.config.queries.synthetic)
    assert {row["uses_request_time"] for row in metrics["rows"] if row["model"].startswith("genrec")} == {
        run.config.model.request_time
    }
