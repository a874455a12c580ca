"""The results table: our model and the baselines on the same requests, per item id, full ranking over the catalogue."""

from __future__ import annotations

import logging
import subprocess
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from genrec.artifacts.checkpoint import Arrays, StageCheckpoint
from genrec.data.dataset import TRAIN, Requests
from genrec.evaluation.baseline_rows import Baselines, Keep, unkept
from genrec.evaluation.baselines import stack
from genrec.evaluation.metrics import bootstrap_interval, difference_text, paired_test, per_request_metrics
from genrec.evaluation.report import RAW, PerRequest, Row
from genrec.generation.options import SearchOptions
from genrec.progress import Progress
from genrec.ranking.ranker import Ranker

log = logging.getLogger(__name__)
AFTER = ", after preference"  # behind the names of rows whose code decoder went through the preference stage
OUR_NAMES = {
    "fused": "genrec, fused",
    "retrieve": "genrec, retrieval alone",
    "generate": "genrec, generation alone",
    "rank": "genrec, ranking head alone",
}


@dataclass
class Task:
    """One list of requests: recommendations, or searches with one kind of query."""

    name: str
    query_kind: str | None
    requests: Requests

    @property
    def label(self) -> str:
        """The task and its kind of query."""
        return self.name if self.query_kind is None else f"search ({self.query_kind})"


class Evaluation:
    """Collects rows and per-request arrays of one split.

    ``checkpoint`` keeps the lists of each finished row, so that a stopped evaluation goes on where it was.
    """

    def __init__(self, run: Any, split: str, checkpoint: StageCheckpoint | None = None):
        self.run, self.split, self.checkpoint = run, split, checkpoint
        self.ks = sorted(set(run.config.evaluation.ks) | {10})
        self.baselines = Baselines(run)
        self.rows: list[Row] = []
        self.hits: dict[tuple[str, str, str | None], dict[str, np.ndarray]] = {}

    @cached_property
    def tasks(self) -> list[Task]:
        """The tasks of the split that have requests, each with at most ``evaluation.max_requests``."""
        data, limit = self.run.dataset, self.run.config.evaluation.max_requests
        tasks = []
        for kind in (None, *data.query_kinds):
            requests = data.requests(self.split, kind)
            if limit and len(requests) > limit:
                draw = np.random.default_rng(self.run.config.seed)
                requests = requests.take(np.sort(draw.permutation(len(requests))[:limit]))
            if len(requests):
                tasks.append(Task("recommendation" if kind is None else "search", kind, requests))
        return tasks

    def add(
        self,
        model: str,
        inputs: str,
        fitted: str,
        task: Task,
        ranked: np.ndarray,
        raw: np.ndarray | None,
        request_time: bool = False,
    ) -> None:
        """Score ranked item ids (N, K), already-had items removed, and optionally ``raw`` ones, not removed."""
        config = self.run.config
        values = per_request_metrics(ranked, task.requests.targets, self.ks)
        if raw is not None:
            measured = per_request_metrics(raw, task.requests.targets, self.ks)
            values |= {RAW + name: value for name, value in measured.items()}
        intervals = {}
        for name in (name for name in values if name.endswith("@10")):
            intervals[name] = bootstrap_interval(values[name], config.seed)
        means = {name: float(value.mean()) for name, value in values.items()}
        self.rows.append(Row(model, inputs, fitted, task.name, task.query_kind, means, intervals, request_time))
        self.hits[model, fitted, task.query_kind] = values
        gains = means["recall@10"], means["ndcg@10"]
        log.info("%-28s %-12s %-22s recall@10 %.4f ndcg@10 %.4f", model, fitted, task.label, *gains)

    def add_ours(self, fitted: str, model: str | None = None, suffix: str = "") -> None:
        """Add our rows of a fit; ``model`` names another of the fit's models, ``suffix`` ends the names of its rows."""
        ranker = self.run.ranker(model or fitted)
        config = self.run.config.model
        inputs = " + ".join([*config.item_inputs, *(["anchors"] if config.anchors else [])])
        options = SearchOptions(max(self.ks), ranker.modes)
        for task in self.tasks:
            variants = [options] if task.query_kind else [options, replace(options, exclude_seen=False)]
            lists = self._keep(f"{fitted}{suffix}", task)("ours", partial(_our_lists, ranker, task, variants))
            for mode in ranker.modes:
                extra = " + co-occurrence, EASE^R, ALS, brand, category, price, past times" if mode == "fused" else ""
                name, raw = OUR_NAMES[mode] + suffix, lists.get(f"{mode} raw")
                self.add(name, inputs + extra, fitted, task, lists[mode], raw, config.request_time)

    def add_baselines(self, fitted: str) -> None:
        """Add the baselines' rows of a fit."""
        for task in self.tasks:
            keep = self._keep(fitted, task)
            for row in self.baselines.rows(task.requests, task.query_kind, fitted, max(self.ks), keep):
                self.add(row.model, row.inputs, fitted, task, row.ranked, row.raw)

    def _keep(self, fitted: str, task: Task) -> Keep:
        """Makes or reads the lists of a row, by its name."""
        if self.checkpoint is None:
            return unkept
        part = self.checkpoint.part
        return lambda name, make: part(f"{fitted}, {task.label}, {name}", make)

    def comparisons(self) -> list[str]:
        """Paired differences in Recall@10 by request: fused minus each baseline, the classic stack first."""
        lines = []
        for (model, fitted, kind), values in sorted(self.hits.items(), key=lambda entry: entry[0][0] != stack.NAME):
            task = "recommendation" if kind is None else f"search ({kind})"
            if model.endswith(AFTER):
                other, text = self.hits[model.removesuffix(AFTER), fitted, kind], f"{model}, minus before"
                difference = self._difference(values, other)
            elif model in OUR_NAMES.values() or (OUR_NAMES["fused"], fitted, kind) not in self.hits:
                continue
            else:
                text = f"fused minus {model}"
                difference = self._difference(self.hits[OUR_NAMES["fused"], fitted, kind], values)
            lines.append(f"{task}, {fitted}: {text}, Recall@10: {difference}")
        return lines

    def _difference(self, ours: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> str:
        config = self.run.config
        return difference_text(*paired_test(ours["recall@10"], other["recall@10"], config.seed))

    def per_request(self) -> dict[str, PerRequest]:
        """Recall@10 by request of the recommendation rows fitted on train, for the slice figures."""
        requests = next((task.requests for task in self.tasks if task.query_kind is None), None)
        if requests is None:
            return {}
        popularity = self.run.dataset.item_counts(TRAIN)[requests.targets]
        lengths = np.diff(requests.offsets)
        return {
            model: PerRequest(values["recall@10"], lengths, popularity)
            for (model, fitted, kind), values in self.hits.items()
            if fitted == "train" and kind is None
        }


def _our_lists(ranker: Ranker, task: Task, variants: list[SearchOptions]) -> Arrays:
    """Item ids (N, K) by mode, and those of the second of ``variants`` by the mode and "raw"."""
    with Progress(f"lists of {task.label}", len(task.requests)) as progress:
        answers = ranker.rank_each(task.requests, variants, progress.advance)
    ends = ("", " raw")[: len(answers)]
    return {mode + end: ranked[mode].ids for ranked, end in zip(answers, ends, strict=True) for mode in ranked}


def evaluate(run: Any, split: str, checkpoint: StageCheckpoint | None = None) -> Evaluation:
    """All rows of a split; ``checkpoint`` as in ``Evaluation``.

    On test also those refitted on train + validation; on validation only models fitted on train.
    """
    result = Evaluation(run, split, checkpoint)
    fits = ["train"]
    if split == "test" and "train+valid" in run.fitted:
        fits.append("train+valid")
    for fitted in fits:
        result.add_ours(fitted)
        if fitted == "train" and "preferred" in run.fitted:
            result.add_ours(fitted, "preferred", AFTER)
        result.add_baselines(fitted)
    return result


def commit() -> str | None:
    """The commit of the working folder, where it is a repository."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
