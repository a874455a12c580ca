"""Distillation of a teacher's scores over items: its mass below each trie node, Margin-MSE and KL over candidates.

Use ``SubtreeMass`` (``genrec/catalogue/subtree_mass.py``) with ``path_losses`` (``genrec/objectives/generation.py``)
for the code decoder, the other two where candidates are scored. Margin-MSE: Hofstaetter et al., arXiv 2010.02666.
"""

from __future__ import annotations

import torch
from torch import Tensor


def margin_mse(student: Tensor, teacher: Tensor, live: Tensor | None = None) -> Tensor:
    """Mean squared difference of the two models' margins, column 0 against every other.

    Scores (N, K), ``live`` (N, K) bool or all.
    """
    live = torch.ones_like(student, dtype=torch.bool) if live is None else live
    pairs = live[:, 1:] & live[:, :1]
    gap = (student[:, :1] - student[:, 1:]) - (teacher[:, :1] - teacher[:, 1:]).detach()
    return torch.where(pairs, gap, 0).square().sum() / pairs.sum().clamp(min=1)


def candidate_kl(student: Tensor, teacher: Tensor, live: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Mean KL of the teacher's softmax over K candidates from the student's: scores (N, K).

    Both are divided by ``temperature``, and the value is multiplied by its square, so that gradients keep their size
    (Hinton et al., arXiv 1503.02531).
    """
    if live is not None:
        student, teacher = (scores.masked_fill(~live, torch.finfo(scores.dtype).min) for scores in (student, teacher))
    target = (teacher.detach() / temperature).log_softmax(1)
    terms = target.exp() * (target - (student / temperature).log_softmax(1))
    terms = terms if live is None else torch.where(live, terms, 0)
    return terms.sum(1).mean() * temperature**2
