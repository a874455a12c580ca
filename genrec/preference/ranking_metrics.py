"""nDCG of scores where each impression has a gain of its own. Arrays in, arrays out."""

from __future__ import annotations

import numpy as np


def graded_ndcg(scores: np.ndarray, gains: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """nDCG@k of each group (0, 1, ...

    G - 1; rows of a group in any order) with ``gains`` (M,) >= 0: (G,); NaN where nothing is gained.
    """
    n = int(groups.max(initial=-1)) + 1

    def gain(by: np.ndarray) -> np.ndarray:
        order = np.lexsort((-by, groups))
        starts = np.searchsorted(groups[order], np.arange(n))
        position = np.arange(len(order)) - starts[groups[order]]
        discount = np.where(position < k, 1 / np.log2(position + 2.0), 0.0)
        return np.bincount(groups[order], gains[order] * discount, minlength=n)

    with np.errstate(invalid="ignore", divide="ignore"):
        return gain(scores) / gain(gains)
