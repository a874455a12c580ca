"""The guard: the same measures on validation before and after decide whether a decoder is kept. Preference training often hurts recall; ours
may not, or it is refused.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch

from genrec.config.schema import PreferenceConfig
from genrec.data.dataset import Requests
from genrec.evaluation.metrics import auc, coverage, paired_test, per_request_metrics, user_aucs
from genrec.model.collate import Collator
from genrec.preference.feedback import Feedback
from genrec.preference.levels import Levels, Rates
from genrec.preference.policy import Policy, chunks
from genrec.preference.ranking_metrics import graded_ndcg

K = 10
_CHUNK = 128


@dataclass
class Measured:
    """What a decoder does with requests: ``lists`` (N, 10) items; ``paired`` values per request or user, whose means are compared pair by pair;
    ``single`` numbers of the whole.
    """

    lists: np.ndarray
    paired: dict[str, np.ndarray]
    single: dict[str, float]

    def means(self) -> dict[str, float]:
        return {
            name: float(np.nanmean(values)) if len(values) else math.nan for name, values in self.paired.items()
        } | self.single


def measure(
    policy: Policy, collator: Collator, tasks: dict[str, Requests], shown: Feedback | None, levels: Levels, rates: Rates, beam: int,
    shown_collator: Collator,
) -> Measured:  # fmt: skip
    """Recall and nDCG of the generated top 10 of each task (already-had items removed); coverage and diversity of the first one's lists; AUC,
    GAUC by user and reward nDCG@10 by request of the generated scores of ``shown`` items.

    ``tasks``: recommendations first, named "", then searches by name. The collators read the query texts of the tasks and of ``shown``.
    """
    paired, lists = {}, {}
    for task, requests in tasks.items():
        lists[task] = np.full((len(requests), K), -1, np.int64)
        for rows, asked in chunks(policy, collator, requests, _CHUNK):
            ids = policy.beam(asked, beam)[0][:, :K].cpu().numpy()
            lists[task][rows, : ids.shape[1]] = ids
        found = per_request_metrics(lists[task], requests.targets, [K])
        paired |= {f"{task} {name}".strip(): found[f"{name}@{K}"] for name in ("recall", "ndcg")}
    first = next(iter(lists.values()))
    codes = policy.trie.item_path[:, 0].cpu().numpy()
    single = {"coverage": coverage(first, policy.trie.n_items), "diversity": diversity(first, codes)}
    if shown is not None and shown.observed and len(shown):
        scores = shown_scores(policy, shown_collator, shown)
        clicked = shown.stages >= levels.click
        gains = np.where(clicked, rates.reward(shown.items, levels.weights[shown.stages]), 0.0)
        single["auc"] = auc(scores, clicked)
        paired["gauc"] = user_aucs(scores, clicked, shown.users[shown.owner])[1]
        paired["reward_ndcg"] = graded_ndcg(scores, gains, shown.owner, K)
    return Measured(first, paired, single)


def shown_scores(policy: Policy, collator: Collator, shown: Feedback) -> np.ndarray:
    """Log-probability of every shown row's item under the policy: (M,)."""
    items, _ = shown.padded()
    result = np.zeros(items.shape, np.float32)
    for rows, asked in chunks(policy, collator, shown.requests, _CHUNK):
        width = int((items[rows] >= 0).sum(1).max())
        ids = torch.from_numpy(items[rows, :width]).to(asked.device)
        result[rows, :width] = policy.item_log_probabilities(asked, ids).cpu().numpy()
    return result[items >= 0]


def diversity(lists: np.ndarray, groups: np.ndarray) -> float:
    """Mean share of pairs within a list that belong to different ``groups`` (n_items,), here first codes."""
    live = lists >= 0
    group = groups[np.maximum(lists, 0)]
    pairs = live[:, :, None] & live[:, None, :] & ~np.eye(lists.shape[1], dtype=bool)
    count = pairs.sum((1, 2))
    other = ((group[:, :, None] != group[:, None, :]) & pairs).sum((1, 2))
    return float((other[count > 0] / count[count > 0]).mean()) if (count > 0).any() else 0.0


@dataclass
class GateRow:
    """One measure before and after; ``low`` and ``high`` bound the difference where it is paired; ``fault`` says why it speaks against."""

    name: str
    before: float
    after: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    fault: str | None = None


@dataclass
class GateDecision:
    kept: bool
    reasons: list[str]
    rows: list[GateRow]

    def to_dict(self) -> dict:
        return asdict(self)


def decide(
    before: Measured, after: Measured, settings: PreferenceConfig, seed: int, bootstrap: int = 1000
) -> GateDecision:
    """Keep the new decoder if nothing fell beyond its tolerance and something that people feel rose.

    Recall and nDCG (of recommendations and of searches) may fall by the share ``tolerance``, and not significantly; the ranking of shown
    items by ``auc_tolerance``; coverage and diversity by the share ``breadth_tolerance``. A measure that is no number after, but was one before, speaks against.
    """
    rows, old, new = [], before.means(), after.means()
    for name, value in old.items():
        row = GateRow(name, value, new[name])
        if name in before.paired:
            both = np.isfinite(before.paired[name]) & np.isfinite(after.paired[name])
            if both.any():
                _, row.low, row.high, row.p = paired_test(
                    after.paired[name][both], before.paired[name][both], seed, bootstrap
                )
        row.fault = _fault(row, settings)
        rows.append(row)
    faults = [row.fault for row in rows if row.fault]
    better = [row.name for row in rows if row.name not in ("coverage", "diversity") and row.after > row.before]
    if faults:
        return GateDecision(False, faults, rows)
    if not better:
        return GateDecision(False, ["nothing became better"], rows)
    return GateDecision(True, [f"better: {', '.join(better)}; nothing fell beyond its tolerance"], rows)


def _fault(row: GateRow, settings: PreferenceConfig) -> str | None:
    if math.isnan(row.before):
        return None
    if math.isnan(row.after):
        return f"{row.name} is no number any more"
    text = f"{row.name} fell from {row.before:.4f} to {row.after:.4f}"
    if row.name.split()[-1] in ("recall", "ndcg"):
        if row.after < row.before * (1 - settings.tolerance):
            return f"{text}, by more than {settings.tolerance:.0%}"
        if row.high is not None and row.high < 0:
            return f"{text}, surely below 0 [{row.low:+.4f}, {row.high:+.4f}]"
        return None
    if row.name in ("coverage", "diversity"):
        return (
            f"{text}, by more than {settings.breadth_tolerance:.0%}"
            if row.after < row.before * (1 - settings.breadth_tolerance)
            else None
        )
    return f"{text}, by more than {settings.auc_tolerance}" if row.after < row.before - settings.auc_tolerance else None


def markdown(verdict: GateDecision) -> str:
    """The table of the report."""
    lines = ["| measure (validation) | before | after | difference | 95 % interval | |", "|---|---|---|---|---|---|"]
    for row in verdict.rows:
        between = "" if row.low is None else f"[{row.low:+.4f}, {row.high:+.4f}], p = {row.p:.3f}"
        lines.append(
            f"| {row.name} | {row.before:.4f} | {row.after:.4f} | {row.after - row.before:+.4f} | {between} | {row.fault or ''} |"
        )
    return "\n".join(lines) + "\n"
