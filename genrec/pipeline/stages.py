"""The road from a config to a run folder: prepare, tokenize, train, fuse. Each stage is skipped while it is up to date.

``RUN/config.json``, ``dataset/``, ``semantic_ids/``, ``model/`` and ``model_refit/`` (fitted on train, and on train + validation),
``sasrec/`` and ``sasrec_refit/`` (the baseline), ``reranker/``, ``results/``.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from genrec.artifacts.folders import atomic_folder, fingerprint, is_current, open_artifact, write_json
from genrec.config.load import check_keys, to_dict
from genrec.config.schema import Config
from genrec.data.dataset import VALID
from genrec.data.prepare.pipeline import prepare
from genrec.data.registry import DatasetUnavailableError, fetch
from genrec.errors import UserError
from genrec.generation.options import SearchOptions
from genrec.ranking.features import CandidateFeatures
from genrec.ranking.reranker import Reranker
from genrec.runs.run import FEATURES_KIND, FITTED, RERANKER_KIND, TASKS, Run
from genrec.semantic_ids.tokenize import tokenize
from genrec.training.distributed import leader_first

if TYPE_CHECKING:  # slow to import (Lightning, matplotlib); who only opens a run does not need them
    from genrec.evaluation.protocol import Evaluation
    from genrec.training.fit import FitPlan

log = logging.getLogger(__name__)


WHOLE_SOFTMAX = 1 << 15
RERANKER_VERSION = 6


MAX_RERANKER_REQUESTS = {"recommendation": 25_000, "search": 10_000}


def locate_data(config: Config) -> Config:
    """Fetch the configured data set when no path is given; without a network the simulator stands in, and the log says so."""
    if config.data.path or not config.data.fetch:
        return config
    config = copy.deepcopy(config)
    try:
        config.data.path = str(fetch(config.data.fetch, Path("data")))
    except DatasetUnavailableError as error:
        log.warning("%s", error)
        log.warning("running on the built-in simulator instead: its numbers say nothing about real data")
        config.data.reader, config.data.options, config.data.path = (
            "simulator",
            {"n_users": 1000, "n_items": 500, "n_events": 40_000},
            None,
        )
        config.queries.synthetic = []
    return config


def stage_prepare(run: Run) -> None:
    with leader_first():
        run.config = locate_data(run.config)
        prepare(run.config, run.folder / "dataset")
        write_json(run.folder / "config.json", to_dict(run.config))


def stage_tokenize(run: Run) -> None:
    stage_prepare(run)
    with leader_first():
        tokenize(run.config, run.dataset, run.folder / "semantic_ids")


def fit_network(run: Run) -> None:
    """Fit the network and count the evidence: all that answers before the fusion is fitted."""
    from genrec.training.fit import FitPlan

    if not run.dataset.info["events"]:
        raise UserError(
            f"{run.folder / 'dataset'} has no events, only a catalogue: there is nothing to train on; give a log with events"
        )
    _fit_model(run)
    if "sasrec" in run.config.evaluation.baselines:
        _fit_pair(
            run,
            sasrec_config(run.config, run.dataset.n_items),
            "sasrec",
            FitPlan(generate=False, searches=False, network="sasrec"),
        )


def fit_and_fuse(run: Run, generate: bool = True) -> None:
    """Our network, the evidence, and the ranking over both; ``generate`` false leaves the code decoder out. The run must be tokenized."""
    _fit_model(run, generate)
    with leader_first():
        _fuse(run)


def _fit_model(run: Run, generate: bool = True) -> None:
    from genrec.training.fit import FitPlan

    tasks = run.config.training.tasks
    if "recommendation" not in tasks and not run.dataset.query_kinds:
        raise UserError(
            "training.tasks: [search] needs queries and the data have none; give a log with searches, or queries.synthetic"
        )
    _fit_pair(
        run,
        run.config,
        "model",
        FitPlan(generate=generate, searches="search" in tasks, recommends="recommendation" in tasks),
    )
    with leader_first():
        _evidence(run)


def stage_train(run: Run) -> None:
    """Fit on train, weigh the evidence on validation, and refit on train + validation with everything chosen before."""
    stage_tokenize(run)
    fit_network(run)
    with leader_first():
        _fuse(run)


def _fit_pair(run: Run, config: Config, name: str, plan: FitPlan) -> None:
    """Fit on train, and again on train + validation for as many epochs as the first fit chose. The decoder follows where it learns alone."""
    from genrec.training.fit import fit

    apart = plan.generate and config.training.decoder_epochs != 0 and config.training.generate_weight > 0
    plans = [(f"{name}_backbone", replace(plan, generate=False)), (name, plan)] if apart else [(name, plan)]
    for suffix, last in (("", plan.last), ("_refit", VALID))[: 1 + config.training.refit]:
        for stage, wanted in plans:
            chosen = open_artifact(run.folder / stage, "model")["info"]["epochs"] if suffix else plan.epochs
            backbone_folder = run.folder / f"{name}_backbone{suffix}" if apart and stage == name else None
            fit(
                config,
                run.dataset,
                run.ids,
                run.folder / f"{stage}{suffix}",
                replace(wanted, last=last, epochs=chosen, backbone_folder=backbone_folder),
            )


def sasrec_config(config: Config, n_items: int) -> Config:
    """What the SASRec row is trained with: the settings its authors and later re-runs found best, not ours, then ``evaluation.sasrec``.

    Up to ``WHOLE_SOFTMAX`` items the softmax runs over all of them, which is what makes the row strong.
    """
    check_keys(list(_dotted(config.evaluation.sasrec)), "evaluation.sasrec")
    fixed = {
        "model": {"dim": 64, "layers": 2, "heads": 1, "dropout": 0.5, "anchors": 0, "query_anchors": False, "summary_tokens": 0, "user_tokens": False,
                  "reasoning_steps": 0, "stages": [], "ranking": False},
        "training": {"epochs": None, "patience": 5, "weight_decay": 0.0, "learning_rate": 1e-3,
                     "negatives": 0 if n_items <= WHOLE_SOFTMAX else None, "progressive": "none",
                     "infonce_easy": 1.0, "align_epochs": 0, "cooccur_epochs": 0,
                     "compile": False},
    }  # fmt: skip
    tree = OmegaConf.merge(OmegaConf.structured(config), fixed, OmegaConf.create(config.evaluation.sasrec))
    return OmegaConf.to_object(tree)


def _dotted(tree: dict, prefix: str = ""):
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def _evidence(run: Run) -> None:
    """Count what goes with what, up to each fit's split."""
    target, key = run.folder / "candidate_features", fingerprint(2, run.dataset.manifest["key"])
    if is_current(target, FEATURES_KIND, key):
        return
    with atomic_folder(target, FEATURES_KIND, key) as folder:
        for _, table, last in FITTED.values():
            CandidateFeatures.build(run.dataset, run.ids.catalogue.text.cpu().numpy(), last).save(
                folder / f"{table}.npz"
            )


def _fuse(run: Run) -> None:
    """Fit one ranking function for recommendations and one for searches, on validation requests."""
    target = run.folder / "reranker"
    model_manifest = open_artifact(run.folder / "model", "model")
    key = fingerprint(RERANKER_VERSION, model_manifest["key"], to_dict(run.config.decoding))
    if is_current(target, RERANKER_KIND, key):
        return
    ranker = run.ranker("train", fused=False)
    rng = np.random.default_rng(run.config.seed)
    kinds: dict[str, list[str | None]] = dict(zip(TASKS, ([None], list(run.dataset.query_kinds)), strict=True))
    rerankers = {}
    for task, tasks in kinds.items():
        parts, queries = [], []
        for kind in tasks:
            requests = run.dataset.requests("valid", kind)
            keep = rng.permutation(len(requests))[: MAX_RERANKER_REQUESTS[task] // max(len(tasks), 1)]
            for _, chunk, found in ranker.candidates(requests.take(keep), SearchOptions()):
                found.retrieved = found.generated = None  # only the evidence is kept
                parts.append((found, torch.from_numpy(chunk.targets.astype(np.int64)).to(found.ids.device)))
                queries.append(torch.from_numpy(chunk.request_queries.astype(np.int64)))
        rerankers[task] = Reranker.fit(parts, run.config.seed, queries)
        form = "linear" if rerankers[task].network is None else "linear + network"
        largest = sorted(rerankers[task].importance().items(), key=lambda pair: -abs(pair[1]))[:6]
        log.info(
            "fusion: %s, %s; largest linear weights %s", task, form, {name: round(value, 2) for name, value in largest}
        )
    with atomic_folder(target, RERANKER_KIND, key) as folder:
        for task, reranker in rerankers.items():
            save_file(reranker.state(), folder / f"{task}.safetensors")
        write_json(folder / "weights.json", {task: reranker.importance() for task, reranker in rerankers.items()})


def stage_evaluate(run: Run, split: str = "test") -> Evaluation:
    """Rows of a split, written to ``results/`` (test) or ``results_valid/``."""
    from genrec.evaluation.compare import requests_fingerprint, write_per_request
    from genrec.evaluation.protocol import commit, evaluate
    from genrec.evaluation.report import write_report

    result = evaluate(run, split)
    config, info = run.config, run.dataset.info
    meta = {
        "split": split, "split_kind": info["split"], "split_fingerprint": info["split_fingerprint"], "tie_rule": info["tie_rule"],
        "test_targets_tied_in_time": info["test_targets_tied_in_time"], "requests": len(run.dataset.heldout_events(split)),
        "users": info["users"], "items": info["items"], "events": info["events"], "seed": config.seed, "commit": commit(),
        "config": to_dict(config),
    }  # fmt: skip
    notes = [
        f"{split} split, {info['split']}, fingerprint {info['split_fingerprint']}; full ranking over {info['items']} items; one item id per request; "
        f"{info['test_targets_tied_in_time']} test events share their time with the event before them (tie rule: {info['tie_rule']}).",
        *result.comparisons(),
    ]
    folder = run.folder / ("results" if split == "test" else f"results_{split}")
    write_report(folder, result.rows, meta, result.per_request(), notes=notes, seed=config.seed)
    asked = {
        task.query_kind: requests_fingerprint(task.requests, info["items"])
        for task in result.tasks
        if len(task.requests)
    }
    write_per_request(folder, result.hits, asked)
    return result
