"""Protocol ``ranking``: impressions of a split, scored by the chance of each kind of feedback.

AUC and GAUC with intervals over users. Beside the ranking head: logistic regression and a DIN-style network on the
same counts, items and histories, tuned on validation. Counts (click rates and the like) come from the fit's splits
alone; the history of a request is everything its user did before it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import torch

from genrec.data.dataset import SPLITS, TRAIN, VALID
from genrec.data.impressions import ImpressionLog, load_impressions
from genrec.errors import UserError
from genrec.evaluation.baselines.click_models import STRENGTHS, LogisticClicks, Rows, TargetAttention
from genrec.evaluation.metrics import auc, bootstrap_areas, gauc

log = logging.getLogger(__name__)
HEAD = "genrec, ranking head"
CHUNK = 256


@dataclass
class AreaResult:
    """The table: per model, ``STAGE_auc`` and ``STAGE_gauc``, and their values in resamples of the users."""

    name: str
    title: str
    seed: int
    notes: list[str] = field(default_factory=list)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    resampled: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    example: None = None  # what other protocols also show
    figure: None = None

    def add(self, model: str, scores: np.ndarray, labels: np.ndarray, users: np.ndarray, stages: list[str]) -> None:
        """``scores`` and ``labels`` (n, stages), ``users`` (n,)."""
        areas: dict[str, float] = {}
        drawn: dict[str, np.ndarray] = {}
        for index, stage in enumerate(stages):
            one = scores[:, index], labels[:, index], users
            areas |= {f"{stage}_auc": auc(*one[:2]), f"{stage}_gauc": gauc(*one)}
            drawn |= {f"{stage}_{name}": values for name, values in bootstrap_areas(*one, self.seed).items()}
        self.metrics[model], self.resampled[model] = areas, drawn
        log.info("%-34s %s", model, " ".join(f"{name} {value:.4f}" for name, value in areas.items()))

    def rows(self) -> list[dict]:
        """Per model: values, and 95 % bootstrap intervals over users."""
        rows = []
        for model, areas in self.metrics.items():
            bounds = {name: np.nanquantile(drawn, [0.025, 0.975]) for name, drawn in self.resampled[model].items()}
            intervals = {name: (float(low), float(high)) for name, (low, high) in bounds.items()}
            rows.append({"model": model, "metrics": areas, "intervals": intervals})
        return rows

    def comparisons(self) -> list[str]:
        """The ranking head minus every other row, paired by user."""
        lines = []
        for model, areas in self.metrics.items():
            if model == HEAD or HEAD not in self.metrics:
                continue
            for name in areas:
                drawn = self.resampled[HEAD][name] - self.resampled[model][name]
                low, high = np.nanquantile(drawn, [0.025, 0.975])
                difference = self.metrics[HEAD][name] - areas[name]
                lines.append(f"ranking head minus {model}, {name}: {difference:+.4f} [{low:+.4f}, {high:+.4f}]")
        return lines

    def markdown(self) -> str:
        """The table with its intervals."""
        rows = self.rows()
        names = list(rows[0]["metrics"])
        lines = [f"## {self.title}", "", *(f"- {note}" for note in self.notes), ""]
        lines += ["| model | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for row in rows:
            cells = [
                f"{row['metrics'][name]:.4f} [{row['intervals'][name][0]:.4f}, {row['intervals'][name][1]:.4f}]"
                for name in names
            ]
            lines.append(f"| {row['model']} | " + " | ".join(cells) + " |")
        return "\n".join([*lines, "", *self.comparisons(), ""])


@torch.inference_mode()
def head_scores(network, collator, dataset, log: ImpressionLog, requests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ranking head's logits of some slates: row indices (n,) into the log and logits (n, stages)."""
    items = network.item_encoder()
    length = log.before[requests] - np.asarray(dataset.offsets)[log.users[requests]]
    requests = requests[np.argsort(np.minimum(length, collator.model.max_length), kind="stable")]
    device = items.device
    index, logits = [], []
    for begin in range(0, len(requests), CHUNK):
        part = requests[begin : begin + CHUNK]
        batch = collator.impression_batch(log, part).to(device)
        rows = batch.impressions
        scores = network.rank(network.encode(batch, items), rows.row, rows.column, rows.items, rows.features)
        logits.append(scores[rows.items >= 0].float().cpu().numpy())
        index.append(log.rows(part)[0])
    return np.concatenate(index), np.concatenate(logits)


def head_areas(run, ranker, split: str, last: int) -> tuple[AreaResult, ImpressionLog, Rows]:
    """The ranking head's row for the impressions of ``split``, counts up to split ``last``; and what it ranked."""
    network, stages = ranker.generator.network, list(ranker.model.stages)
    if network.ranking is None or not stages:
        raise UserError(
            "protocol ranking: the run has no ranking head with stages; train it with model.ranking=true "
            "model.stages=[click,...]"
        )
    dataset = run.dataset
    impressions = load_impressions(dataset, stages, last)
    if impressions is None:
        raise UserError("protocol ranking: the data have no impressions")
    slates = np.flatnonzero(impressions.split == SPLITS[split])
    if not len(slates):
        raise UserError(f"protocol ranking: the {split} split has no impressions")
    config, info = run.config, dataset.info
    rows = Rows(impressions, impressions.rows(slates)[0])
    notes = _notes(impressions, rows, slates, split, last, info)
    result = AreaResult("ranking", f"Ranking of impressions, {split}", config.seed, notes)
    index, logits = head_scores(network, ranker.collator(dataset.query_texts), dataset, impressions, slates)
    result.add(HEAD, logits[np.argsort(index)], rows.labels, rows.users, stages)
    return result, impressions, rows


def impression_ranking(run, ranker, split: str, last: int) -> list[AreaResult]:
    """The table of a run whose network has a ranking head with ``model.stages``: its row and the baselines'."""
    result, impressions, rows = head_areas(run, ranker, split, last)
    dataset, config, stages = run.dataset, run.config, list(ranker.model.stages)
    labelled = rows.labels, rows.users, stages
    train = Rows(impressions, impressions.rows(np.flatnonzero(impressions.split <= last))[0])
    # Settings are chosen on validation by models that have not seen it, as ours were.
    early = impressions if last == TRAIN else load_impressions(dataset, stages, TRAIN)
    assert early is not None
    valid = Rows(early, early.rows(np.flatnonzero(early.split == VALID))[0])

    def quality(scores: np.ndarray) -> float:
        return float(np.mean([auc(*one) for one in zip(scores.T, valid.labels.T, strict=True)]))

    first = train if last == TRAIN else Rows(early, early.rows(np.flatnonzero(early.split == TRAIN))[0])
    trials = {strength: LogisticClicks(strength, config.seed).fit(first) for strength in STRENGTHS}
    best = max(trials, key=lambda strength: quality(trials[strength].score(valid)))
    logistic = trials[best] if last == TRAIN else LogisticClicks(best, config.seed).fit(train)
    result.add(f"logistic regression (C = {best:g})", logistic.score(rows), *labelled)
    din = TargetAttention(seed=config.seed).fit(dataset, first, lambda model: quality(model.score(dataset, valid)))
    result.add("DIN-style target attention", din.score(dataset, rows), *labelled)
    rates = impressions.features(rows.index)
    result.add("item's own rates", rates[:, : len(stages)], *labelled)
    return [result]


def _notes(impressions: ImpressionLog, rows: Rows, slates: np.ndarray, split: str, last: int, info: dict) -> list[str]:
    share = ", ".join(f"{value:.1%}" for value in rows.labels.mean(0))
    return [
        f"{split} split, {info['split']}, fingerprint {info['split_fingerprint']}; "
        f"fitted on {'train' if last == TRAIN else 'train + valid'}; {len(rows.index)} impressions in {len(slates)} "
        "slates of "
        f"{len(np.unique(rows.users))} users, reached stages {share}",
        "GAUC: users with both outcomes, weighted by their rows. Impressions of unknown users or items are not ranked.",
        f"counts (rates of item, user, surface, ...) from {len(impressions.rates.counters[0].order)} rows of the fit's "
        "splits; "
        "the history of a request is everything its user did before it",
    ]
