"""Item-level metrics, bootstrap intervals and beyond-accuracy measures. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import torch

from genrec.data.histories import Histories
from genrec.errors import UserError

PAD = -1  # item id of an empty position of a ranked list
_CELLS = 1 << 22  # cells of a temporary table held at once
_FEW_VALUES = 4096  # up to that many distinct values, resample their counts instead of the observations


@overload
def top_k(scores: np.ndarray, k: int, exclude: Histories | None = None) -> tuple[np.ndarray, np.ndarray]: ...
@overload
def top_k(scores: torch.Tensor, k: int, exclude: Histories | None = None) -> tuple[torch.Tensor, torch.Tensor]: ...
def top_k(
    scores: np.ndarray | torch.Tensor, k: int, exclude: Histories | None = None
) -> tuple[np.ndarray, np.ndarray] | tuple[torch.Tensor, torch.Tensor]:
    """The k best items of each row, best first; of equal scores the lower item id comes first.

    ``scores`` (B, n_items) float; ``exclude`` B histories whose items are never returned. Returns ids (B, k) int64
    and scores (B, k), as numpy for numpy and as tensors on the same device for a tensor. An item scored -inf (a mask)
    counts as excluded. Places left over hold id -1 and -inf. Raises ``UserError`` for NaN scores or a misfit of
    shapes.
    """
    # A copy: it is masked below.
    table = torch.tensor(scores) if isinstance(scores, np.ndarray) else scores.clone()
    if table.ndim != 2 or k < 1 or (exclude is not None and len(exclude) != len(table)):
        raise UserError(
            f"top_k got scores {tuple(table.shape)} and k={k}; expected (B, n_items), k of at least 1, and B histories"
        )
    if not table.is_floating_point():
        table = table.double()
    if torch.isnan(table).any():
        raise UserError("top_k got NaN scores; expected numbers, or -inf for items that may not be returned")
    if exclude is not None:
        rows, items = torch.from_numpy(exclude.rows), torch.from_numpy(exclude.items.astype(np.int64))
        table[rows.to(table.device), items.to(table.device)] = -torch.inf
    ids, best = _stable_top(table, min(k, table.shape[1]))
    ids = torch.where(best == -torch.inf, PAD, ids)
    missing = k - ids.shape[1]
    ids = torch.nn.functional.pad(ids, (0, missing), value=PAD)
    best = torch.nn.functional.pad(best, (0, missing), value=-torch.inf)
    return (ids.numpy(), best.numpy()) if isinstance(scores, np.ndarray) else (ids, best)


def _stable_top(table: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and values (B, k) of the k largest per row, lower column first among equals; k at most the width.

    ``torch.topk`` breaks ties as it likes. That matters only for rows where positions k and k + 1 are equal, so
    only those are chosen again.
    """
    if k == 0 or not len(table):
        return torch.zeros((len(table), k), dtype=torch.int64, device=table.device), table[:, :k]
    best, ids = torch.topk(table, min(k + 1, table.shape[1]), dim=1)
    if best.shape[1] > k:
        tied = ((best[:, k] == best[:, k - 1]) & (best[:, k] > -torch.inf)).nonzero()[:, 0]
        ids = ids[:, :k].contiguous()
        if len(tied):
            ids[tied] = _lowest_ids(table[tied], best[tied, k - 1 : k], k)
    ids = ids.sort(dim=1).values  # ascending ids, so a stable sort by score keeps ties in id order
    best, order = table.gather(1, ids).sort(dim=1, descending=True, stable=True)
    return ids.gather(1, order), best


def _lowest_ids(table: torch.Tensor, threshold: torch.Tensor, k: int) -> torch.Tensor:
    """Ascending ids (B, k): columns above the row's ``threshold`` (B, 1), then the lowest equal to it."""
    above, equal = table > threshold, table == threshold
    equal &= equal.cumsum(1, dtype=torch.int32) <= k - above.sum(1, keepdim=True)
    return (above | equal).nonzero()[:, 1].view(len(table), k)


def per_request_metrics(ranked: np.ndarray, targets: np.ndarray, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """``recall@k``, ``ndcg@k`` and ``mrr@k`` of every request, each (N,) float64, with one relevant item per request.

    ``ranked`` (N, K) item ids, best first, -1 where empty; ``targets`` (N,) item ids. With the target at rank r from 1:
    recall is 1, nDCG 1 / log2(r + 1), MRR 1 / r when r <= k, else all are 0. Raises ``UserError`` for K < max(ks).
    """
    ranked, targets = np.asarray(ranked), np.asarray(targets)
    if ranked.ndim != 2 or targets.shape != ranked.shape[:1]:
        raise UserError(f"ranked lists {ranked.shape} and targets {targets.shape} do not fit; expected (N, K) and (N,)")
    if not len(ks) or min(ks) < 1 or max(ks) > ranked.shape[1]:
        raise UserError(
            f"metrics at {list(ks)} were asked of ranked lists of {ranked.shape[1]} items; rank at least that many"
        )
    hits = (ranked == targets[:, None]) & (ranked != PAD)
    rank = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf)  # (N,) from 1
    metrics: dict[str, np.ndarray] = {}
    for k in ks:
        hit = rank <= k
        metrics[f"recall@{k}"] = hit.astype(np.float64)
        metrics[f"ndcg@{k}"] = np.where(hit, 1 / np.log2(rank + 1), 0.0)
        metrics[f"mrr@{k}"] = np.where(hit, 1 / rank, 0.0)
    return metrics


def bootstrap_interval(values: np.ndarray, seed: int, n: int = 1000, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values`` (N,), one value per user, from n resamples."""
    means = _bootstrap_means(_checked(values), seed, n)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_test(
    a: np.ndarray, b: np.ndarray, seed: int, n: int = 1000, level: float = 0.95
) -> tuple[float, float, float, float]:
    """Paired bootstrap over users: mean of a - b, its interval (low, high) and a two-sided p.

    ``a``, ``b`` (N,): the metric of two models for the same users in the same order. p is the share of resamples,
    centred on no difference, that lie at least as far from 0 as the mean seen (Efron & Tibshirani 1993, 16.4); never
    below 1 / (n + 1).
    """
    if np.shape(a) != np.shape(b):
        raise UserError(f"a paired test got {np.shape(a)} and {np.shape(b)} values; expected the same users in both")
    difference = _checked(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    mean = float(difference.mean())
    means = _bootstrap_means(difference, seed, n)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    at_least = np.abs(means - mean) >= abs(mean) - 1e-12  # the slack keeps equal models at p = 1 despite rounding
    return mean, float(low), float(high), float((1 + at_least.sum()) / (1 + n))


def difference_text(mean: float, low: float, high: float, p: float) -> str:
    """What ``paired_test`` found, as every table and note says it."""
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}], p = {p:.3f}"


def _checked(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise UserError(f"a bootstrap got values of shape {values.shape}; expected (N,) with at least one user")
    return values


def _bootstrap_means(values: np.ndarray, seed: int, n: int) -> np.ndarray:
    """(n,) means of resamples with replacement.

    Recall@k has 2 distinct values and nDCG@k k + 1. Drawing how often each comes up is the same distribution as
    drawing users, and its cost does not grow with them. Values with many levels are drawn in chunks of bounded size.
    """
    rng = np.random.default_rng(seed)
    levels, counts = np.unique(values, return_counts=True)
    if len(levels) <= _FEW_VALUES:
        resampled = max(1, _CELLS // len(levels))
        shares = counts / len(values)
        draws = (
            rng.multinomial(len(values), shares, size=min(resampled, n - start)) for start in range(0, n, resampled)
        )
        return np.concatenate([drawn @ levels for drawn in draws]) / len(values)
    resampled, means = max(1, _CELLS // len(values)), np.empty(n)
    for start in range(0, n, resampled):
        stop = min(n, start + resampled)
        means[start:stop] = values[rng.integers(0, len(values), size=(stop - start, len(values)))].mean(axis=1)
    return means


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """The chance that a row with label 1 scores above one with label 0, a tie counting half; all (n,).

    nan where one of the two labels is missing.
    """
    from scipy.stats import mannwhitneyu

    labels = np.asarray(labels, bool)
    positive, negative = np.asarray(scores)[labels], np.asarray(scores)[~labels]
    if not len(positive) or not len(negative):
        return float("nan")
    return float(mannwhitneyu(positive, negative, method="asymptotic").statistic) / (len(positive) * len(negative))


def user_aucs(scores: np.ndarray, labels: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUC of each user's own rows: the users that have both labels (U,), their AUC (U,) and their number of rows (U,).

    ``scores``, ``labels``, ``users`` (n,).
    """
    labels = np.asarray(labels, bool)
    order = np.lexsort((scores, users))
    scores, labels, owner = np.asarray(scores)[order], labels[order], np.asarray(users)[order]
    known, first, total = np.unique(owner, return_index=True, return_counts=True)
    tie = np.ones(len(scores), bool)
    tie[1:] = (scores[1:] != scores[:-1]) | (owner[1:] != owner[:-1])
    start = np.flatnonzero(tie)
    size = np.diff(np.append(start, len(scores)))
    rank = np.repeat(start + (size + 1) / 2, size) - np.repeat(
        first, total
    )  # from 1 within the user, ties share their mean
    positives = np.add.reduceat(labels, first, dtype=np.int64) if len(first) else np.zeros(0, np.int64)
    sums = np.add.reduceat(rank * labels, first) if len(first) else np.zeros(0)
    negatives = total - positives
    both = (positives > 0) & (negatives > 0)
    area = (sums[both] - positives[both] * (positives[both] + 1) / 2) / (positives[both] * negatives[both])
    return known[both], area, total[both]


def gauc(scores: np.ndarray, labels: np.ndarray, users: np.ndarray) -> float:
    """AUC per user, weighted by the user's rows; users with one label only are left out (DIN, 2018)."""
    _, area, weight = user_aucs(scores, labels, users)
    return float((area * weight).sum() / weight.sum()) if len(area) else float("nan")


def bootstrap_areas(
    scores: np.ndarray, labels: np.ndarray, users: np.ndarray, seed: int, n: int = 1000
) -> dict[str, np.ndarray]:
    """``auc`` and ``gauc`` of n resamples of the users: (n,) each.

    The same seed draws the same users, so models can be compared in pairs.
    """
    known, owner = np.unique(users, return_inverse=True)
    rng = np.random.default_rng(seed)
    judged, area, weight = user_aucs(scores, labels, users)
    index = np.searchsorted(known, judged)
    order, flags, start = _by_score(scores, labels)
    step = max(1, _CELLS // max(len(scores), 1))
    result: dict[str, list[np.ndarray]] = {"auc": [], "gauc": []}
    for begin in range(0, n, step):
        draws = rng.multinomial(len(known), np.full(len(known), 1 / len(known)), size=min(step, n - begin)).astype(
            np.float64
        )
        result["auc"].append(_weighted_auc(order, flags, start, draws[:, owner]))
        mass = draws[:, index] * weight
        result["gauc"].append((mass @ area) / np.maximum(mass.sum(1), 1e-12))
    return {name: np.concatenate(parts) for name, parts in result.items()}


def _by_score(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows in rising order of score, their labels in that order, and where each run of equal scores starts."""
    order = np.argsort(scores, kind="stable")
    values = np.asarray(scores)[order]
    start = (
        np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else np.zeros(0, np.int64)
    )
    return order, np.asarray(labels, bool)[order], start


def _weighted_auc(order: np.ndarray, labels: np.ndarray, start: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC (m,) of rows that count ``weights`` (m, n) times; the others as ``_by_score`` gives them."""
    if not len(order):
        return np.full(len(weights), np.nan)
    sorted_weights = weights[:, order]
    positive = np.add.reduceat(sorted_weights * labels, start, axis=1)
    negative = np.add.reduceat(sorted_weights * ~labels, start, axis=1)
    below = negative.cumsum(1) - negative
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positive * (below + negative / 2)).sum(1) / (positive.sum(1) * negative.sum(1))


def exposure(ranked: np.ndarray | Iterable[np.ndarray], n_items: int) -> np.ndarray:
    """How often each item is recommended: (n_items,) int64, pads not counted.

    ``ranked`` (N, K), or an iterable of such chunks.
    """
    chunks = [ranked] if isinstance(ranked, np.ndarray) else ranked
    total = np.zeros(n_items, np.int64)
    for chunk in chunks:
        total += np.bincount(chunk[chunk != PAD].ravel(), minlength=n_items)
    return total


def coverage(ranked: np.ndarray, n_items: int) -> float:
    """Share of the catalogue that appears in at least one list of ``ranked`` (N, K)."""
    return float((exposure(ranked, n_items) > 0).mean())


def gini(ranked: np.ndarray, n_items: int) -> float:
    """Gini index of exposure over the catalogue: 0 when all items are shown equally often, towards 1 for one item."""
    counts = np.sort(exposure(ranked, n_items))
    if not counts.sum():
        return 0.0
    weights = 2 * np.arange(1, n_items + 1) - n_items - 1
    return float((weights * counts).sum() / (n_items * counts.sum()))
