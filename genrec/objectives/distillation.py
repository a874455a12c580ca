"""Distillation of a teacher's scores over items: its mass below each trie node, Margin-MSE and KL over candidates.

Use ``TeacherMass`` with ``path_losses`` (``genrec/objectives/generation.py``) for the code decoder, the other two
where candidates are scored. Margin-MSE: Hofstaetter et al., arXiv 2010.02666.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from genrec.catalogue.trie import CatalogueTrie


@dataclass(frozen=True)
class TeacherMass:
    """A teacher's probability of every subtree for N requests, looked up node by node.

    Nothing of size (N, n_nodes) is made.

    Items below a node are one range of ``trie.leaf_items``, so a mass is a difference of running sums. ``running``
    (N, K + 1) float64, in leaf order (float32 would lose the small subtrees); ``keys`` (N x K,) sorted ``request x
    (n_items + 1) + position in leaf_items`` of the candidates, None where all items are candidates (K = n_items).
    """

    trie: CatalogueTrie
    running: Tensor
    keys: Tensor | None = None

    @classmethod
    def of_items(cls, trie: CatalogueTrie, log_probabilities: Tensor) -> TeacherMass:
        """From log-probabilities (N, n_items), -inf for what may not be taught; rows need not be normalised."""
        return cls.in_leaf_order(trie, log_probabilities.detach()[:, trie.leaf_items])

    @classmethod
    def in_leaf_order(cls, trie: CatalogueTrie, log_probabilities: Tensor) -> TeacherMass:
        """``of_items`` for columns that are in the order of ``trie.leaf_items`` already."""
        return cls.of_mass(trie, log_probabilities.detach().exp())

    @classmethod
    def of_mass(cls, trie: CatalogueTrie, mass: Tensor) -> TeacherMass:
        """From probabilities (N, n_items) in the order of ``trie.leaf_items``."""
        running = torch.zeros(len(mass), trie.n_items + 1, dtype=torch.float64, device=mass.device)
        torch.cumsum(mass, 1, dtype=torch.float64, out=running[:, 1:])
        return cls(trie, running)

    @classmethod
    def of_candidates(cls, trie: CatalogueTrie, ids: Tensor, log_probabilities: Tensor) -> TeacherMass:
        """From log-probabilities (N, K) of distinct ``ids`` (N, K), -1 for padding; all other mass is 0."""
        live = ids >= 0
        position = torch.where(live, trie.item_position[ids.clamp(min=0)], trie.n_items)
        position, order = position.sort(dim=1)
        mass = torch.where(live, log_probabilities.detach().double(), -torch.inf).gather(1, order).exp()
        request = torch.arange(len(ids), device=ids.device)[:, None]
        return cls(trie, F.pad(mass.cumsum(1), (1, 0)), (request * (trie.n_items + 1) + position).flatten())

    def draw(self) -> Tensor:
        """One item per request, drawn from a teacher over all items: (N,)."""
        total = self.running[:, -1:]
        position = torch.searchsorted(self.running, torch.rand_like(total) * total, right=True)[:, 0] - 1
        return self.trie.leaf_items[position.clamp(max=self.trie.n_items - 1)]

    def below(self, requests: Tensor, nodes: Tensor) -> Tensor:
        """The mass below ``nodes`` (M,) for ``requests`` (M,), rows of the teacher: (M,) float64."""
        start = self.trie.node_item_start[nodes]
        stop = start + self.trie.node_item_count[nodes]
        if self.keys is not None:
            width, span = self.running.shape[1] - 1, self.trie.n_items + 1
            start, stop = (
                torch.searchsorted(self.keys, requests * span + position) - requests * width
                for position in (start, stop)
            )
        return self.running[requests, stop] - self.running[requests, start]


def draw_items(log_probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One column per row, drawn from log-probabilities (N, K): (N,). A row needs one finite entry."""
    weights = (log_probabilities - log_probabilities.amax(1, keepdim=True)).exp()
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


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
