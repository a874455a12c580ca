"""The gate of an update: the present and the updated model answer the same requests of the log's last hours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from genrec.data.dataset import SPLITS, TRAIN, Dataset, Requests
from genrec.data.impressions import load_impressions
from genrec.errors import UserError
from genrec.evaluation.impression_ranking import head_scores
from genrec.evaluation.metrics import auc, coverage, per_request_metrics
from genrec.generation.options import SearchOptions
from genrec.preference.acceptance import GateDecision, Measured, decide
from genrec.ranking.ranker import Ranker
from genrec.runs.run import Run

K = 10
MAX_REQUESTS = 5_000  # recommendations, searches of all kinds together, and slates: more would cost more than training
MIN_SLATES = 1_000  # an AUC of fewer moves by more than the gate allows
SPLIT = "test"  # the re-ranker is fitted on the validation requests


def decide_update(candidate: Run, present: Ranker, n_known: int) -> GateDecision:
    """Compare the updated run with the ``present`` model, whose catalogue are the first ``n_known`` items.

    The measures are recall and nDCG of recommendations and of each kind of search, coverage, and, where the network
    ranks impressions, their AUC. Raises ``UserError`` where the last hours hold no request.
    """
    updated, data, config = candidate.ranker("train"), candidate.dataset, candidate.config
    before, after = Measured(np.zeros((0, K)), {}, {}), Measured(np.zeros((0, K)), {}, {})
    rng = np.random.default_rng(config.seed)
    kinds = [None, *data.query_kinds]
    for kind in kinds:
        requests = data.requests(SPLIT, kind)
        limit = MAX_REQUESTS if kind is None else MAX_REQUESTS // (len(kinds) - 1)
        requests = requests.take(np.sort(rng.permutation(len(requests))[:limit]))
        if not len(requests):
            continue
        for measured, ranker in ((before, present), (after, updated)):
            readable = without_new_items(requests, n_known) if measured is before else requests
            ids = ranker.rank(readable, SearchOptions(K, exclude_seen=kind is None))["fused"].ids
            if kind is None:
                measured.lists, measured.single["coverage"] = ids, coverage(ids, data.n_items)
            metrics = per_request_metrics(ids, requests.targets, [K])
            task = f"{kind} search " if kind else ""
            measured.paired |= {f"{task}{name}": metrics[f"{name}@{K}"] for name in ("recall", "ndcg")}
    if not after.paired:
        raise UserError("update: the last day of the log has no requests to evaluate the model on")
    _measure_impressions(data, ((before, present), (after, updated)), n_known, rng)
    return decide(before, after, config.preference.tolerance, config.seed)


def without_new_items(requests: Requests, n_items: int) -> Requests:
    """The requests restricted to events of the first ``n_items`` items, which the present model can read."""
    keep = requests.items < n_items
    counted = np.concatenate([[0], np.cumsum(keep)])
    rows = np.flatnonzero(keep)
    events = {name: getattr(requests, name)[rows] for name in ("items", "timestamps", "actions", "queries")}
    return replace(requests, offsets=counted[requests.offsets], **events)


def _measure_impressions(
    data: Dataset, models: tuple[tuple[Measured, Ranker], ...], n_known: int, rng: np.random.Generator
) -> None:
    """Add the AUC of the ranking head's first stage, on slates whose items and history both models can read.

    A GAUC is no measure here: few users have both outcomes within some hours.
    """
    ranker = models[0][1]
    stages = list(ranker.model.stages)
    if ranker.generator.network.ranking is None or not stages:
        return
    impressions = load_impressions(data, stages, TRAIN)
    if impressions is None:
        return
    new_items = np.bincount(impressions.owner, impressions.items >= n_known, len(impressions)) > 0
    new_events = np.bincount(data.event_users, np.asarray(data.items) >= n_known, data.n_users) > 0
    slates = np.flatnonzero((impressions.split == SPLITS[SPLIT]) & ~new_items & ~new_events[impressions.users])
    slates = np.sort(rng.permutation(slates)[:MAX_REQUESTS])
    if len(slates) < MIN_SLATES:
        return
    for measured, model in models:
        collator = model.collator(data.query_texts)
        rows, logits = head_scores(model.generator.network, collator, data, impressions, slates)
        measured.single["auc"] = auc(logits[:, 0], impressions.reached[rows, 0])
