"""Supervision of each reasoning step, from easy to hard (OnePiece, arXiv 2509.18091, section 3.3).

Where the log has a feedback chain, step k learns what reached its k-th stage. Elsewhere step k learns the first k
codes of the target's semantic ID, coarse to fine.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from genrec.catalogue.trie import CatalogueTrie
from genrec.objectives.linear_cross_entropy import linear_cross_entropy


def prefix_loss(
    states: Tensor, means: Tensor, trie: CatalogueTrie, targets: Tensor, level: int, temperature: float
) -> Tensor:
    """Mean cross-entropy of the targets' first ``level`` codes over all prefixes of that many codes.

    ``states`` (N, dim) unit vectors of the step, ``means`` (n_nodes, dim) the mean item vector below each trie node,
    ``targets`` (N,) items.
    """
    first, last = trie.level_bounds[level], trie.level_bounds[level + 1]
    table = F.normalize(means[first:last], dim=-1) / temperature
    return linear_cross_entropy(states, table, trie.item_path[targets, level - 1] - first)


def step_levels(steps: int, depth: int) -> list[int]:
    """The code level of each of K reasoning steps: 1, 2, ... and the deepest for all that are left."""
    return [min(step + 1, depth) for step in range(steps)]


def step_stages(steps: int, stages: int) -> list[int]:
    """The stage (0 .. stages - 1) of the feedback chain of each of K steps: the last step learns the deepest."""
    return (
        [max(0, stages - steps + step) for step in range(steps)]
        if steps < stages
        else [min(step, stages - 1) for step in range(steps)]
    )


def multi_label_loss(states: Tensor, vectors: Tensor, labels: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    """Mean binary cross-entropy of ``scale x cosine + bias``: did the person do this with the impression?

    ``states`` (n, dim) unit vectors of the step, ``vectors`` (n, dim) those of the impressions, ``labels`` (n,) bool.
    """
    logits = scale * (states * F.normalize(vectors, dim=-1)).sum(-1) + bias
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
