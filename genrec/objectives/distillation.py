"""Self-distillation with privileged information (OneSearch-V2, arXiv 2603.24422): the same weights, asked with the keywords, teach themselves without."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence from the teacher's to the student's distribution; logits (N, n) each, temperature 1 as in the paper.

    No gradient flows to the teacher.
    """
    wanted = teacher.detach().log_softmax(-1)
    return F.kl_div(student.log_softmax(-1), wanted, log_target=True, reduction="batchmean")


def shared_candidates(targets: Tensor, n_items: int, negatives: int) -> Tensor:
    """Items both distributions are compared on: all for ``negatives`` 0 or as many as there are, else the targets and as many drawn ones."""
    if not negatives or negatives >= n_items:
        return torch.arange(n_items, device=targets.device)
    return torch.cat([targets, torch.randint(n_items, (negatives,), device=targets.device)]).unique()
