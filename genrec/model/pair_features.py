"""Features of candidate tokens in logs without impressions.

The retrieval head's score, and what the request's anchors say of the candidate.

GRank's pattern (arXiv 2510.15299): ranking starts from what retrieval knows. Anchors are counted from training
events, and a training request's own user is taken out of every count, so that no feature reveals the answer
(``genrec/model/anchors.py``).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genrec.model.anchors import Anchors

SCALE = 4.0  # divisor of the retrieval head's logits, which reach about ten


def n_pair_features(anchor_features: int) -> int:
    """Number of features of a candidate; ``anchor_features`` is the number an anchor has, 0 without anchors."""
    return 1 + (1 + anchor_features if anchor_features else 0)


def initial_pair_weights(stages: int, features: int) -> np.ndarray:
    """Initial weights (stages, features): the retrieval head's score, unchanged."""
    weights = np.zeros((stages, features), np.float32)
    weights[:, 0] = SCALE
    return weights


def pair_features(dense: Tensor, candidates: Tensor, anchors: Anchors | None) -> Tensor:
    """Features (N, C, F) of ``candidates`` (N, C) item ids, -1 for padding.

    They are the ``dense`` scores (N, C), whether one of the request's anchors (N, 1, A) is the candidate, and the
    features of those anchors, summed.
    """
    features = [dense[..., None] / SCALE]
    if anchors is not None:
        named = (candidates[:, :, None] == anchors.ids) & anchors.live  # (N, C, A)
        features += [
            named.any(-1, keepdim=True).to(dense.dtype),
            named.to(dense.dtype) @ anchors.features[:, 0].to(dense.dtype),
        ]
    return torch.cat(features, dim=-1)
