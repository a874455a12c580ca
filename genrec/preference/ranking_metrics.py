"""How well scores order what was shown: AUC over all rows, within groups, and nDCG with graded gains. Arrays in, arrays out."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive row (bool, (M,)) scores above another, ties counting half; NaN where one kind is missing."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    return float((rankdata(scores)[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def group_auc(scores: np.ndarray, positive: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC within each group that has both kinds: values (G,) and its rows (G,), the usual weights of GAUC."""
    if not len(scores):
        return np.zeros(0), np.zeros(0, np.int64)
    _, group = np.unique(groups, return_inverse=True)
    # Ranks inside a group: sorted by group and score, ties share the mean of their places.
    order = np.lexsort((scores, group))
    ordered_group, ordered = group[order], scores[order]
    starts = np.flatnonzero(np.diff(ordered_group, prepend=-1))
    tie = np.flatnonzero((np.diff(ordered_group, prepend=-1) != 0) | (np.diff(ordered, prepend=np.nan) != 0))
    number = np.cumsum(np.isin(np.arange(len(order)), tie)) - 1
    size = np.diff(np.append(tie, len(order)))
    rank = (tie + (size - 1) / 2)[number] - starts[ordered_group] + 1
    counts, hits = np.bincount(group), np.bincount(group, positive)
    total = np.bincount(ordered_group, rank * positive[order])
    both = (hits > 0) & (hits < counts)
    value = (total - hits * (hits + 1) / 2)[both] / (hits * (counts - hits))[both]
    return value, counts[both]


def graded_ndcg(scores: np.ndarray, gains: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """nDCG@k of each group (0, 1, ... G - 1; rows of a group in any order) with ``gains`` (M,) >= 0: (G,); NaN where nothing is gained."""
    n = int(groups.max(initial=-1)) + 1

    def gain(by: np.ndarray) -> np.ndarray:
        order = np.lexsort((-by, groups))
        starts = np.searchsorted(groups[order], np.arange(n))
        place = np.arange(len(order)) - starts[groups[order]]
        discount = np.where(place < k, 1 / np.log2(place + 2.0), 0.0)
        return np.bincount(groups[order], gains[order] * discount, minlength=n)

    with np.errstate(invalid="ignore", divide="ignore"):
        return gain(scores) / gain(gains)
