"""From a config to a run folder: prepare, tokenize, train, evaluate. A stage that is current is skipped.

``RUN/config.json``, ``dataset/``, ``semantic_ids/``, ``model/`` (fitted on train) and ``model_refit/`` (on train and
validation), ``sasrec/`` and ``sasrec_refit/`` (the baseline), ``candidate_features/``, ``reranker/``, ``results/``.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from genrec.artifacts.checkpoint import StageCheckpoint
from genrec.artifacts.folders import atomic_folder, is_current
from genrec.config.load import to_dict
from genrec.config.schema import Config
from genrec.data.prepare.pipeline import prepare
from genrec.data.registry import DatasetUnavailableError, fetch
from genrec.errors import UserError
from genrec.pipeline.reranking import fit_reranker
from genrec.ranking.features import CandidateFeatures
from genrec.retrieval.lexical_fit import fit_lexical
from genrec.runs.run import FITTED, Run
from genrec.runs.stages import (
    FEATURES_KIND,
    RESULTS_KIND,
    Fit,
    baseline_fits,
    features_key,
    model_fits,
    results_key,
)
from genrec.semantic_ids.tokenize import tokenize
from genrec.training.distributed import leader_first

if TYPE_CHECKING:  # slow to import (Lightning, matplotlib); who only opens a run does not need them
    from genrec.evaluation.protocol import Evaluation

log = logging.getLogger(__name__)


def locate_data(config: Config) -> Config:
    """Fetch the configured data set if no path is given; without a network, use the simulator and warn."""
    if config.data.path or not config.data.fetch:
        return config
    config = copy.deepcopy(config)
    try:
        config.data.path = str(fetch(str(config.data.fetch), Path("data")))
    except DatasetUnavailableError as error:
        log.warning("%s", error)
        log.warning("running on the built-in simulator instead: its results do not transfer to real data")
        config.data.reader, config.data.options, config.data.path = (
            "simulator",
            {"n_users": 1000, "n_items": 500, "n_events": 40_000},
            None,
        )
        config.queries.synthetic = []
    return config


def stage_prepare(run: Run) -> None:
    """Bring the prepared dataset up to date and save the config."""
    with leader_first():
        run.config = locate_data(run.config)
        prepare(run.config, run.folder / "dataset")
        run.save()


def stage_tokenize(run: Run) -> None:
    """Bring dataset and semantic IDs up to date."""
    stage_prepare(run)
    with leader_first():
        tokenize(run.config, run.dataset, run.folder / "semantic_ids")


def fit_network(run: Run) -> None:
    """Fit our network, the counts behind candidate features, and baselines that are networks: all but the re-ranker."""
    if not run.dataset.info["events"]:
        raise UserError(f"{run.folder / 'dataset'} has no events, only a catalogue; give a log with events")
    _fit_model(run)
    _fit(run, baseline_fits(run.config, run.dataset.n_items))


def fit_model_and_reranker(run: Run) -> None:
    """Fit our network, the counts and the re-ranker, without the baseline. The run must be tokenized."""
    _fit_model(run)
    with leader_first():
        fit_reranker(run)


def stage_train(run: Run) -> None:
    """Fit on train, fit the re-ranker on validation, and refit on both with everything chosen before."""
    stage_tokenize(run)
    fit_network(run)
    with leader_first():
        fit_reranker(run)


def _fit_model(run: Run) -> None:
    if "recommendation" not in run.config.training.tasks and not run.dataset.query_kinds:
        raise UserError(
            "training.tasks: [search] needs queries, the data have none; give a log with searches or queries.synthetic"
        )
    with leader_first():
        count_candidate_features(run)
    _fit(run, model_fits(run.config))


def _fit(run: Run, fits: list[Fit]) -> None:
    from genrec.training.fit import fit

    for one in fits:
        fit(one.config, run.dataset, run.ids, run.folder / one.name, one.resolved(run.folder), lambda: run.lexical)


def count_candidate_features(run: Run) -> None:
    """Count co-occurrence, popularity and query hits up to each fit's split, and index the items' words."""
    target, key = run.folder / "candidate_features", features_key(run.config, run.dataset.manifest["key"])
    if is_current(target, FEATURES_KIND, key):
        return
    with atomic_folder(target, FEATURES_KIND, key) as folder:
        fit_lexical(run.dataset, run.config.text.language, run.config.seed).save(folder / "lexical.npz")
        for table, last in {table: last for _, table, last in FITTED.values()}.items():  # two fits share one
            CandidateFeatures.build(run.dataset, run.ids.catalogue.text.cpu().numpy(), last).save(
                folder / f"{table}.npz"
            )


def stage_evaluate(run: Run, split: str = "test") -> Evaluation:
    """Rows of a split, written to ``results/`` (test) or ``results_valid/``; rows of a stopped call are kept."""
    from genrec.evaluation.compare import requests_fingerprint, write_per_request
    from genrec.evaluation.protocol import commit, evaluate
    from genrec.evaluation.report import write_report
    from genrec.pipeline.report_page import examples, write_report_page

    key = results_key(run.stages, run.config, split)
    checkpoint = StageCheckpoint(run.results(split), key)
    result = evaluate(run, split, checkpoint)
    config, info = run.config, run.dataset.info
    meta = {
        "split": split,
        "split_kind": info["split"],
        "split_fingerprint": info["split_fingerprint"],
        "tie_rule": info["tie_rule"],
        "test_targets_tied_in_time": info["test_targets_tied_in_time"],
        "requests": len(run.dataset.heldout_events(split)),
        "users": info["users"],
        "items": info["items"],
        "events": info["events"],
        "seed": config.seed,
        "commit": commit(),
        "config": to_dict(config),
    }
    notes = [
        f"{split} split, {info['split']}, fingerprint {info['split_fingerprint']}; full ranking over {info['items']} "
        f"items; one item id per request; {info['test_targets_tied_in_time']} test events share their time with the "
        f"event before them (tie rule: {info['tie_rule']}).",
        *result.comparisons(),
    ]
    fingerprints = {
        task.query_kind: requests_fingerprint(task.requests, info["items"])
        for task in result.tasks
        if len(task.requests)
    }
    with atomic_folder(run.results(split), RESULTS_KIND, key) as folder:
        write_report(folder, result.rows, meta, result.per_request(), notes=notes, seed=config.seed)
        write_per_request(folder, result.hits, fingerprints)
    checkpoint.clear()
    if split == "test":
        write_report_page(run, result.rows, notes, examples(run, split))
    return result
