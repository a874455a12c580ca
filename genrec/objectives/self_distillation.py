"""Self-distillation with privileged information (OneSearch-V2, arXiv 2603.24422): the same weights, asked with the keywords, teach themselves without."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def self_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence from the teacher's to the student's distribution; logits (N, n) each, temperature 1 as in the paper.

    No gradient flows to the teacher.
    """
    wanted = teacher.detach().log_softmax(-1)
    return F.kl_div(student.log_softmax(-1), wanted, log_target=True, reduction="batchmean")
