"""Trains the same network several ways, with the same budget, and compares the answers person by person.

    python scripts/joint_against_separate.py CONFIG [--arms joint search recommendation] [--seeds 2] [--split valid]
    [key=value ...]

Arms: joint (both tasks), search and recommendation (that task alone), staged (align, co-occur, personalise), aligned
(align alone first). Every arm has as many epochs over the same
events; differences are to the first arm named, paired over requests, over the mean of all seeds. Tables:
OUTPUT/NAME-arms.md and .json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from genrec.artifacts.folders import open_artifact, write_json
from genrec.console import log_handler
from genrec.errors import UserError
from genrec.evaluation.metrics import bootstrap_interval, paired_test, per_request_metrics
from genrec.generation.options import SearchOptions
from genrec.pipeline.stages import fit_model_and_reranker, stage_tokenize
from genrec.runs.run import Run

ARMS = {
    "joint": [],
    "search": ["training.tasks=[search]"],
    "recommendation": ["training.tasks=[recommendation]"],
    "staged": ["training.align_epochs=1", "training.cooccur_epochs=1"],
    "aligned": ["training.align_epochs=1"],
}
METRICS = ("recall@10", "ndcg@10")
Values = dict[tuple[str, str], dict[str, np.ndarray]]


def answers(run: Run, split: str) -> Values:
    """Metrics of every request, by task (``recommendation`` or a kind of query) and mode."""
    ranker, found = run.ranker("train"), {}
    learnt = run.config.training.tasks
    kinds = ([None] if "recommendation" in learnt else []) + (
        list(run.dataset.query_kinds) if "search" in learnt else []
    )
    for kind in kinds:
        requests = run.dataset.requests(split, kind)
        if len(requests):
            for mode, (ranked, *_) in ranker.rank(requests, SearchOptions(10, ranker.modes)).items():
                found[kind or "recommendation", mode] = {
                    name: per_request_metrics(ranked, requests.targets, [10])[name] for name in METRICS
                }
    return found


def train(config: str, overrides: list[str], arm: str, seed: int, first: Path | None) -> Run:
    """The run of an arm; what comes before training is taken over from ``first``, the run of another arm with this
    seed."""
    plain = Run.create(config, overrides)
    run = Run.create(config, [*overrides, *ARMS[arm], f"seed={seed}", f"name={plain.folder.name}-{arm}-{seed}"])
    if not any(plain.folder.iterdir()):
        plain.folder.rmdir()
    for stage in ("dataset", "semantic_ids") if first else ():
        if not (run.folder / stage).is_dir():
            shutil.copytree(first / stage, run.folder / stage, copy_function=os.link)
    stage_tokenize(run)
    fit_model_and_reranker(run)
    return run


def table(values: dict[str, Values], seed: int) -> list[dict]:
    """One row for each arm, task and mode: means with intervals, and the paired difference to the first arm."""
    base, rows = next(iter(values)), []
    for task, mode in dict.fromkeys(key for found in values.values() for key in found):
        for arm, found in values.items():
            if (task, mode) not in found:
                continue
            row = {"task": task, "mode": mode, "arm": arm}
            for name in METRICS:
                own = found[task, mode][name]
                row[name], row[name + " interval"] = float(own.mean()), bootstrap_interval(own, seed)
                if arm != base and (task, mode) in values[base]:
                    row[f"{name} minus {base}"] = paired_test(own, values[base][task, mode][name], seed)
            rows.append(row)
    return rows


def markdown(rows: list[dict], base: str) -> str:
    lines = [f"| task | mode | arm | Recall@10 | nDCG@10 | Recall@10 minus {base} |", "|---" * 6 + "|"]
    for row in rows:
        difference = row.get(f"recall@10 minus {base}")
        shown = "" if difference is None else "{:+.4f} [{:+.4f}, {:+.4f}], p = {:.3f}".format(*difference)
        lines.append(
            f"| {row['task']} | {row['mode']} | {row['arm']} | {row['recall@10']:.4f} | {row['ndcg@10']:.4f} | {shown} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--arms", nargs="+", default=["joint", "search", "recommendation"], choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--split", choices=["valid", "test"], default="valid")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    overrides = [*options.overrides, "training.refit=false"]
    values: dict[str, Values] = {}
    first: dict[int, Path] = {}
    spent: dict[str, dict] = {}
    for arm in dict.fromkeys(options.arms):
        found, began = [], time.process_time()
        for seed in range(42, 42 + options.seeds):
            run = train(options.config, overrides, arm, seed, first.get(seed))
            first.setdefault(seed, run.folder)
            found.append(answers(run, options.split))
        values[arm] = {
            key: {name: np.mean([one[key][name] for one in found], axis=0) for name in METRICS} for key in found[0]
        }
        spent[arm] = {
            "cpu_seconds": time.process_time() - began,
            "epochs": open_artifact(run.folder / "model", "model")["info"]["epochs"],
        }
        rows = table(values, 42)
        base = next(iter(values))
        target = run.folder.parent / f"{run.folder.name.removesuffix(f'-{arm}-{seed}')}-arms"
        write_json(
            target.with_suffix(".json"),
            {"split": options.split, "seeds": options.seeds, "spent": spent, "overrides": overrides, "rows": rows},
        )
        target.with_suffix(".md").write_text(markdown(rows, base))
    sys.stdout.write(markdown(rows, base))


if __name__ == "__main__":
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[log_handler()])
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
