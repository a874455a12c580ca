"""The acceptance gate: measures on validation before and after decide whether a trained decoder is kept.

Preference training often costs recall. A decoder that loses more than a tolerance is refused.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch

from genrec.data.dataset import Requests
from genrec.evaluation.metrics import auc, coverage, paired_test, per_request_metrics, user_aucs
from genrec.model.collate import Collator
from genrec.preference.feedback import Feedback
from genrec.preference.levels import Levels, Rates
from genrec.preference.policy import Policy, chunks
from genrec.preference.ranking_metrics import graded_ndcg

K = 10
WEIGHTED = "exposure-weighted"
AUC_TOLERANCE = 0.005  # maximum loss of AUC, GAUC and reward nDCG; three seeds of the same stage differ by less
BREADTH_TOLERANCE = (
    0.1  # maximum relative loss of coverage and diversity, as far as an editor of lists would not notice
)
_HITS, _BREADTH = ("recall", "ndcg"), ("coverage", "diversity")
_CHUNK = 128


@dataclass
class Measured:
    """What a decoder does with requests.

    ``lists`` (N, 10) items; ``paired`` values per request or user, compared pair by pair; ``single`` numbers of the
    whole.
    """

    lists: np.ndarray
    paired: dict[str, np.ndarray]
    single: dict[str, float]

    def weighted(self, weights: np.ndarray | None) -> Measured:
        """The same with recall and nDCG of the first task by weights (N,) too; rows of weight 0 are left out."""
        if weights is None:
            return self
        live = np.where(weights > 0, weights, np.nan)
        more = {f"{WEIGHTED} {name}": self.paired[name] * live for name in ("recall", "ndcg")}
        return Measured(self.lists, self.paired | more, self.single)

    def means(self) -> dict[str, float]:
        """The mean of every measure, NaN where nothing was measured."""
        return {
            name: float(np.nanmean(values)) if len(values) else math.nan for name, values in self.paired.items()
        } | self.single


def measure(
    policy: Policy,
    collator: Collator,
    tasks: dict[str, Requests],
    feedback: Feedback | None,
    levels: Levels,
    rates: Rates,
    beam: int,
    impression_collator: Collator,
) -> Measured:
    """Measure the policy on the requests of each task and on the impressions of ``feedback``.

    Per task: Recall and nDCG of the generated top 10 without items of the history. Of the first task's lists: coverage
    and diversity. Of impressions scored by the generator: AUC, GAUC by user and reward nDCG@10 by request. ``tasks``
    has the recommendations first, under the name "", then the searches. The collators know the query texts of the tasks
    and of ``feedback``.
    """
    paired: dict[str, np.ndarray] = {}
    lists: dict[str, np.ndarray] = {}
    for task, requests in tasks.items():
        lists[task] = np.full((len(requests), K), -1, np.int64)
        for rows, inputs in chunks(policy, collator, requests, _CHUNK):
            ids = policy.beam(inputs, beam)[0][:, :K].cpu().numpy()
            lists[task][rows, : ids.shape[1]] = ids
        metrics = per_request_metrics(lists[task], requests.targets, [K])
        paired |= {f"{task} {name}".strip(): metrics[f"{name}@{K}"] for name in ("recall", "ndcg")}
    first = next(iter(lists.values()))
    codes = policy.trie.item_path[:, 0].cpu().numpy()
    single = {"coverage": coverage(first, policy.trie.n_items), "diversity": diversity(first, codes)}
    if feedback is not None and feedback.observed and len(feedback):
        scores = impression_scores(policy, impression_collator, feedback)
        clicked = feedback.stages >= levels.click
        gains = np.where(clicked, rates.reward(feedback.items, levels.weights[feedback.stages]), 0.0)
        single["auc"] = auc(scores, clicked)
        paired["gauc"] = user_aucs(scores, clicked, feedback.users[feedback.owner])[1]
        paired["reward_ndcg"] = graded_ndcg(scores, gains, feedback.owner, K)
    return Measured(first, paired, single)


def impression_scores(policy: Policy, collator: Collator, feedback: Feedback) -> np.ndarray:
    """Log-probability of every impression's item under the policy: (n_rows,)."""
    items, _ = feedback.padded()
    result = np.zeros(items.shape, np.float32)
    for rows, inputs in chunks(policy, collator, feedback.requests, _CHUNK):
        width = int((items[rows] >= 0).sum(1).max())
        ids = torch.from_numpy(items[rows, :width]).to(inputs.device)
        result[rows, :width] = policy.item_log_probabilities(inputs, ids).cpu().numpy()
    return result[items >= 0]


def diversity(lists: np.ndarray, groups: np.ndarray) -> float:
    """Mean fraction of pairs within a list (N, K) that belong to different ``groups`` (n_items,), here first codes."""
    live = lists >= 0
    group = groups[np.maximum(lists, 0)]
    pairs = live[:, :, None] & live[:, None, :] & ~np.eye(lists.shape[1], dtype=bool)
    count = pairs.sum((1, 2))
    other = ((group[:, :, None] != group[:, None, :]) & pairs).sum((1, 2))
    return float((other[count > 0] / count[count > 0]).mean()) if (count > 0).any() else 0.0


@dataclass
class GateRow:
    """One measure before and after.

    ``low`` and ``high`` bound the difference where it is paired; ``fault`` is a reason to refuse.
    """

    name: str
    before: float
    after: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    fault: str | None = None


@dataclass
class GateDecision:
    """Whether the new decoder is kept, why, and the measures behind it."""

    kept: bool
    reasons: list[str]
    rows: list[GateRow]

    def to_dict(self) -> dict:
        """The JSON-ready form."""
        return asdict(self)


def decide(before: Measured, after: Measured, tolerance: float, seed: int) -> GateDecision:
    """Keep the new decoder if nothing fell beyond its tolerance and a measure of lists or scores rose.

    Recall and nDCG may fall by the fraction ``tolerance``, but not significantly; AUC, GAUC and reward nDCG by
    ``AUC_TOLERANCE``; coverage and diversity by the fraction ``BREADTH_TOLERANCE``. A measure that became NaN is a
    fault.

    Where the log states propensities, recommendations are judged by exposure-weighted recall and nDCG instead, which
    estimate what people would choose, with more noise than ``tolerance``: they may fall by ``BREADTH_TOLERANCE``, but
    not significantly. The plain ones then only measure agreement with the logging policy, a kind of breadth.
    """
    rows, old, new = [], before.means(), after.means()
    for name, value in old.items():
        row = GateRow(name, value, new[name])
        if name in before.paired:
            both = np.isfinite(before.paired[name]) & np.isfinite(after.paired[name])
            if both.any():
                _, row.low, row.high, row.p = paired_test(after.paired[name][both], before.paired[name][both], seed)
        exposed = name.startswith(WEIGHTED) or f"{WEIGHTED} {name}" in old
        row.fault = _fault(row, tolerance, exposed)
        rows.append(row)
    faults = [row.fault for row in rows if row.fault]
    better = [row.name for row in rows if row.name not in _BREADTH and row.after > row.before]
    if faults:
        return GateDecision(False, faults, rows)
    if not better:
        return GateDecision(False, ["nothing became better"], rows)
    return GateDecision(True, [f"better: {', '.join(better)}; nothing fell beyond its tolerance"], rows)


def _fault(row: GateRow, tolerance: float, exposed: bool) -> str | None:
    """Why a measure refuses the new decoder; ``exposed``: recall or nDCG of a log that states propensities."""
    if math.isnan(row.before):
        return None
    if math.isnan(row.after):
        return f"{row.name} is no number any more"
    text, kind = f"{row.name} fell from {row.before:.4f} to {row.after:.4f}", row.name.split()[-1]
    if kind not in _HITS + _BREADTH:
        return f"{text}, by more than {AUC_TOLERANCE}" if row.after < row.before - AUC_TOLERANCE else None
    limit = BREADTH_TOLERANCE if exposed or kind in _BREADTH else tolerance
    if row.after < row.before * (1 - limit):
        return f"{text}, by more than {limit:.0%}"
    certain = kind in _HITS and (not exposed or row.name.startswith(WEIGHTED))
    if certain and row.low is not None and row.high is not None and row.high < 0:
        return f"{text}, surely below 0 [{row.low:+.4f}, {row.high:+.4f}]"
    return None


def markdown(decision: GateDecision) -> str:
    """The table of the report."""
    lines = ["| measure (validation) | before | after | difference | 95 % interval | |", "|---|---|---|---|---|---|"]
    for row in decision.rows:
        between = "" if row.low is None else f"[{row.low:+.4f}, {row.high:+.4f}], p = {row.p:.3f}"
        values = f"{row.before:.4f} | {row.after:.4f} | {row.after - row.before:+.4f}"
        lines.append(f"| {row.name} | {values} | {between} | {row.fault or ''} |")
    return "\n".join(lines) + "\n"
