"""The results table: our model and the baselines on the same requests, per item id, full ranking over the catalogue."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from genrec.data.dataset import TRAIN, VALID, Requests
from genrec.evaluation.baselines import DenseText, ItemKNN, Popularity
from genrec.evaluation.metrics import bootstrap_interval, difference_text, paired_test, per_request_metrics, top_k
from genrec.evaluation.report import RAW, PerRequest, Row
from genrec.generation.options import SearchOptions
from genrec.retrieval.bm25 import BM25
from genrec.retrieval.cooccurrence import CooccurrenceTransition

log = logging.getLogger(__name__)
_CHUNK = 512
AFTER = ", after preference"  # behind the names of rows whose code decoder went through the preference stage
OUR_NAMES = {"fused": "genrec, fused", "retrieve": "genrec, retrieval alone", "generate": "genrec, generation alone",
             "rank": "genrec, ranking head alone"}  # fmt: skip


@dataclass
class Task:
    """One list of requests: recommendations, or searches with one kind of query."""

    name: str
    query_kind: str | None
    requests: Requests


class Evaluation:
    """Collects rows and per-request arrays of one split."""

    def __init__(self, run, split: str):
        self.run, self.split = run, split
        self.ks = sorted(set(run.config.evaluation.ks) | {10})
        self.rows: list[Row] = []
        self.hits: dict[tuple[str, str, str | None], dict[str, np.ndarray]] = {}

    @cached_property
    def tasks(self) -> list[Task]:
        data = self.run.dataset
        tasks = [Task("recommendation", None, data.requests(self.split))]
        return tasks + [Task("search", kind, data.requests(self.split, kind)) for kind in data.query_kinds]

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
            values |= {
                RAW + name: value for name, value in per_request_metrics(raw, task.requests.targets, self.ks).items()
            }
        intervals = {}
        for name in (name for name in values if name.endswith("@10")):
            intervals[name] = bootstrap_interval(values[name], config.seed, config.evaluation.bootstrap)
        means = {name: float(value.mean()) for name, value in values.items()}
        self.rows.append(Row(model, inputs, fitted, task.name, task.query_kind, means, intervals, request_time))
        self.hits[model, fitted, task.query_kind] = values
        label = task.name if task.query_kind is None else f"search ({task.query_kind})"
        log.info(
            "%-28s %-12s %-22s recall@10 %.4f ndcg@10 %.4f", model, fitted, label, means["recall@10"], means["ndcg@10"]
        )

    def ours(self, fitted: str, model: str | None = None, suffix: str = "") -> None:
        """Our rows of a fit; ``model`` names another of the fit's models, ``suffix`` what its rows are called."""
        ranker = self.run.ranker(model or fitted)
        config = self.run.config.model
        parts = (
            ("ids", config.use_ids),
            ("text", config.use_text),
            ("codes", config.use_codes),
            ("anchors", config.anchors > 0),
        )
        inputs = " + ".join(
            name for name, used in parts if used
        )  # anchors: co-occurrence, transitions, category, brand
        for task in self.tasks:
            if not len(task.requests):
                continue
            options = SearchOptions(max(self.ks), ranker.modes)
            ranked = ranker.rank(task.requests, options)
            raw = ranker.rank(task.requests, replace(options, exclude_seen=False)) if task.query_kind is None else {}
            for mode in ranker.modes:
                extra = " + co-occurrence, brand, category, price, past times" if mode == "fused" else ""
                self.add(
                    OUR_NAMES[mode] + suffix,
                    inputs + extra,
                    fitted,
                    task,
                    ranked[mode][0],
                    raw[mode][0] if raw else None,
                    config.request_time,
                )

    def baselines(self, fitted: str, last: int) -> None:
        names = self.run.config.evaluation.baselines
        for task in self.tasks:
            if not len(task.requests):
                continue
            for name, inputs, scorer in self._scorers(names, task, last, fitted):
                ranked, raw = _rank(scorer, task.requests, max(self.ks), task.query_kind is None)
                self.add(name, inputs, fitted, task, ranked, raw)

    def _scorers(
        self, names: list[str], task: Task, last: int, fitted: str
    ) -> Iterator[tuple[str, str, Callable[[Requests], np.ndarray]]]:
        data = self.run.dataset
        train = data.histories(last)
        if task.name == "recommendation":
            simple = {"popularity": ("popularity", Popularity), "itemknn": ("ItemKNN", ItemKNN),
                      "cooccurrence": ("co-occurrence + transitions", CooccurrenceTransition)}  # fmt: skip
            for key, (label, kind) in simple.items():
                if key in names:
                    model = kind().fit(train, data.n_items)
                    yield label, "ids", lambda chunk, model=model: model.score(chunk.histories)
            if "sasrec" in names:
                yield "SASRec, cross-entropy", "ids", self.run.sasrec_scorer(fitted)
            return
        if "bm25" in names:
            bm25 = BM25().fit(data.item_table)
            yield (
                "BM25",
                "text",
                lambda chunk: bm25.score([chunk.query_texts[query] for query in chunk.request_queries]),
            )
        if "text" in names:
            dense = DenseText().fit(self.run.ids.catalogue.text.numpy())
            encode = self.run.ids.encoder.encode
            yield (
                "dense text",
                "text",
                lambda chunk: dense.score(encode([chunk.query_texts[query] for query in chunk.request_queries])),
            )

    def comparisons(self) -> list[str]:
        """Paired differences in Recall@10 between our fused row and each recommendation baseline, by request."""
        lines = []
        for (model, fitted, kind), values in self.hits.items():
            ours = self.hits.get((OUR_NAMES["fused"], fitted, kind))
            task = "recommendation" if kind is None else f"search ({kind})"
            if model.endswith(AFTER):
                before = self.hits[model.removesuffix(AFTER), fitted, kind]
                found = paired_test(
                    values["recall@10"], before["recall@10"], self.run.config.seed, self.run.config.evaluation.bootstrap
                )
                lines.append(f"{task}, {fitted}: {model}, minus before, Recall@10: {difference_text(*found)}")
                continue
            if model in OUR_NAMES.values() or ours is None:
                continue
            found = paired_test(
                ours["recall@10"], values["recall@10"], self.run.config.seed, self.run.config.evaluation.bootstrap
            )
            lines.append(f"{task}, {fitted}: fused minus {model}, Recall@10: {difference_text(*found)}")
        return lines

    def per_request(self) -> dict[str, PerRequest]:
        """Recall@10 by request of the recommendation rows fitted on train, for the slice figures."""
        requests = self.run.dataset.requests(self.split)
        popularity = self.run.dataset.item_counts(TRAIN)[requests.targets]
        lengths = np.diff(requests.offsets)
        return {
            model: PerRequest(values["recall@10"], lengths, popularity)
            for (model, fitted, kind), values in self.hits.items()
            if fitted == "train" and kind is None
        }


def _rank(
    scorer: Callable[[Requests], np.ndarray], requests: Requests, k: int, with_raw: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    ranked, raw = [], []
    for start in range(0, len(requests), _CHUNK):
        chunk = requests.take(np.arange(start, min(start + _CHUNK, len(requests))))
        scores = scorer(chunk)
        ranked.append(top_k(scores, k, chunk.histories)[0])
        if with_raw:
            raw.append(top_k(scores, k)[0])
    return np.concatenate(ranked), np.concatenate(raw) if with_raw else None


def evaluate(run, split: str) -> Evaluation:
    """All rows of a split. On test also those refitted on train + validation; validation only knows models fitted on train."""
    result = Evaluation(run, split)
    fits = [("train", TRAIN)]
    if split == "test" and "train+valid" in run.fitted:
        fits.append(("train+valid", VALID))
    for fitted, last in fits:
        result.ours(fitted)
        if fitted == "train" and "preferred" in run.fitted:
            result.ours(fitted, "preferred", AFTER)
        result.baselines(fitted, last)
    return result


def commit() -> str | None:
    """The commit of the working folder, where it is a repository."""
    try:
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
