"""What candidate tokens carry besides the item's vector where no log says what was shown: the retrieval head's score, and what the request's
anchors say of the candidate (GRank's pattern, arXiv 2510.15299: ranking starts from what retrieval knows).

Anchors are counted from training events, and a training request's own person is taken out of every count, so no candidate tells that it is
the answer (``genrec/model/anchors.py``).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genrec.model.anchors import Anchors

SCALE = 4.0  # of the retrieval head's logits, which reach some ten


def n_pair_features(anchor_features: int) -> int:
    """Features of a candidate, ``anchor_features`` being those of an anchor (0: there are none)."""
    return 1 + (1 + anchor_features if anchor_features else 0)


def starting_pair_weights(stages: int, features: int) -> np.ndarray:
    """(stages, features) weights to start from: the retrieval head's score as it is."""
    weights = np.zeros((stages, features), np.float32)
    weights[:, 0] = SCALE
    return weights


def pair_features(dense: Tensor, candidates: Tensor, anchors: Anchors | None) -> Tensor:
    """(N, C, F) features of ``candidates`` (N, C), -1 for padding: ``dense`` (N, C) scores, whether the request's anchors (N, 1, A) name the
    candidate, and their features, summed over the anchors that do.
    """
    parts = [dense[..., None] / SCALE]
    if anchors is not None:
        named = (candidates[:, :, None] == anchors.ids) & anchors.live  # (N, C, A)
        parts += [
            named.any(-1, keepdim=True).to(dense.dtype),
            named.to(dense.dtype) @ anchors.features[:, 0].to(dense.dtype),
        ]
    return torch.cat(parts, dim=-1)
