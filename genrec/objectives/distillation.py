"""Distillation of a teacher's scores over items into the code decoder: soft targets at every code level, Margin-MSE and KL over candidates.

A decoder is a product of conditionals along the trie, so a teacher's item distribution t becomes one soft target per node: the share of
t's mass below each child, ``t(child | node) = mass(child) / mass(node)``. By the chain rule, with p the decoder,

    KL(t || p) = sum over nodes of mass(node) x KL(t(. | node) || p(. | node)) = mean over leaves drawn from t of the sum along their path.

``path_losses`` gives the terms along given paths: on paths drawn from the teacher (``draw_items``) their mean is the whole KL, unbiased; on
the paths of observed items they are label smoothing that knows the catalogue. Margin-MSE: Hofstaetter et al., arXiv 2010.02666.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from genrec.catalogue.trie import CatalogueTrie
from genrec.model.pointer import CopyBias


@dataclass(frozen=True)
class TeacherMass:
    """A teacher's probability of every subtree of N requests, looked up node by node; nothing of size (N, n_nodes) is made.

    Items below a node are one range of ``trie.leaf_items``, so a mass is a difference of running sums. ``running`` (N, K + 1) float64, in
    leaf order (float32 would lose the small subtrees); ``places`` (N x K,) sorted ``row x (n_items + 1) + place`` of the candidates, None
    where all items are (K = n_items).
    """

    trie: CatalogueTrie
    running: Tensor
    places: Tensor | None = None

    @classmethod
    def of_items(cls, trie: CatalogueTrie, log_probabilities: Tensor) -> TeacherMass:
        """From log-probabilities (N, n_items), -inf for what may not be taught; rows need not be normalised."""
        return cls.in_leaf_order(trie, log_probabilities.detach()[:, trie.leaf_items])

    @classmethod
    def in_leaf_order(cls, trie: CatalogueTrie, log_probabilities: Tensor) -> TeacherMass:
        """As ``of_items``, of columns that are already in the order of ``trie.leaf_items``."""
        mass = log_probabilities.detach().exp()
        running = torch.zeros(len(mass), trie.n_items + 1, dtype=torch.float64, device=mass.device)
        torch.cumsum(mass, 1, dtype=torch.float64, out=running[:, 1:])
        return cls(trie, running)

    def draw(self) -> Tensor:
        """One item per request, drawn from a teacher over all items: (N,)."""
        total = self.running[:, -1:]
        place = torch.searchsorted(self.running, torch.rand_like(total) * total, right=True)[:, 0] - 1
        return self.trie.leaf_items[place.clamp(max=self.trie.n_items - 1)]

    @classmethod
    def of_candidates(cls, trie: CatalogueTrie, ids: Tensor, log_probabilities: Tensor) -> TeacherMass:
        """From log-probabilities (N, K) of the distinct candidates ``ids`` (N, K), -1 where there is none; everything else has mass 0."""
        live = ids >= 0
        where = torch.where(live, trie.item_place[ids.clamp(min=0)], trie.n_items)
        where, order = where.sort(dim=1)
        mass = torch.where(live, log_probabilities.detach().double(), -torch.inf).gather(1, order).exp()
        row = torch.arange(len(ids), device=ids.device)[:, None]
        return cls(trie, F.pad(mass.cumsum(1), (1, 0)), (row * (trie.n_items + 1) + where).flatten())

    def below(self, rows: Tensor, nodes: Tensor) -> Tensor:
        """The mass below ``nodes`` (M,) for requests ``rows`` (M,): (M,) float64."""
        start = self.trie.node_item_start[nodes]
        stop = start + self.trie.node_item_count[nodes]
        if self.places is not None:
            width, span = self.running.shape[1] - 1, self.trie.n_items + 1
            start, stop = (
                torch.searchsorted(self.places, rows * span + place) - rows * width for place in (start, stop)
            )
        return self.running[rows, stop] - self.running[rows, start]


def draw_items(log_probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One column per row, drawn from log-probabilities (N, K): (N,). Not all of a row may be -inf."""
    weights = (log_probabilities - log_probabilities.amax(1, keepdim=True)).exp()
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


def path_losses(
    states: Tensor, scale: Tensor, vectors: Tensor, paths: Tensor, teacher: TeacherMass, place: Tensor | None = None, rows: Tensor | None = None,
    copy_bias: CopyBias | None = None, ignored: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Log-probability of each step of ``paths``, and KL(teacher || decoder) over the children it chose from: two (N, levels) tensors.

    Arguments as ``path_log_probabilities`` has them (unit ``states`` (N, levels, dim), inverse temperatures ``scale`` (levels,), node
    ``vectors`` with ``place``, ``paths`` (N, levels) of nodes). ``rows`` (N,) is the teacher's row of each path, by default its own; ``copy_bias``
    what anchors add to the logits of each path's row; ``ignored`` (n_nodes,) bool stays out of the log-probability's softmax, not of the
    KL's: whether such a node is right the teacher knows and what was observed does not. A step without a choice costs nothing; where the teacher has no mass below a node, it has nothing to say and the KL is 0.
    """
    rows = torch.arange(len(paths), device=paths.device) if rows is None else rows
    parents = torch.cat([torch.zeros_like(paths[:, :1]), paths[:, :-1]], dim=1)
    steps = [
        _step(
            states[:, level] * scale[level],
            vectors,
            parents[:, level],
            paths[:, level],
            teacher,
            place,
            rows,
            level == 0,
            copy_bias,
            ignored,
        )
        for level in range(paths.shape[1])
    ]
    chosen, divergence = (torch.stack(part, dim=1) for part in zip(*steps, strict=True))
    return chosen, divergence


def _step(
    states: Tensor, vectors: Tensor, parents: Tensor, chosen: Tensor, teacher: TeacherMass, place: Tensor | None, rows: Tensor, first: bool,
    copy_bias: CopyBias | None, ignored: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    trie = teacher.trie
    if first:  # every walk starts at the root: one dense product
        start, count = int(trie.child_start[0]), int(trie.child_count[0])
        nodes = torch.arange(start, start + count, device=states.device)
        logits = _wide(states @ vectors[nodes if place is None else place[nodes]].T)
        logits = logits if copy_bias is None else logits + copy_bias.for_rows(nodes.expand(len(states), -1))
        logs = logits.log_softmax(-1)
        mass = teacher.below(rows.repeat_interleave(count), nodes.repeat(len(rows))).view(-1, count)
        share = mass / mass.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        observed = logs if ignored is None else logits.masked_fill(ignored[nodes], -torch.inf).log_softmax(-1)
        return observed.gather(1, (chosen - start)[:, None])[:, 0], _divergence(share.to(logs.dtype), logs).sum(1)
    counts = trie.child_count[parents]
    open_rows = torch.nonzero(counts > 1)[:, 0]
    nothing = _wide(states.new_zeros(len(states)))
    if len(open_rows) == 0:
        return nothing, nothing
    counts = counts[open_rows]
    row = torch.repeat_interleave(torch.arange(len(open_rows), device=states.device), counts)
    begin = counts.cumsum(0) - counts
    child = trie.child_start[parents[open_rows]][row] + torch.arange(len(row), device=states.device) - begin[row]
    logits = _wide(
        (F.embedding(row, states[open_rows]) * F.embedding(child if place is None else place[child], vectors)).sum(-1)
    )
    if copy_bias is not None:
        logits = logits + copy_bias.for_pairs(open_rows[row], child)
    top = logits.new_full((len(open_rows),), -torch.inf).scatter_reduce(0, row, logits.detach(), "amax")
    total = torch.zeros_like(top).index_add(0, row, (logits - top[row]).exp())
    logs = logits - (top + total.log())[row]
    share = teacher.below(rows[open_rows][row], child) / teacher.below(rows[open_rows], parents[open_rows])[row].clamp(
        min=torch.finfo(torch.float64).tiny
    )
    divergence = torch.zeros_like(top).index_add(0, row, _divergence(share.to(logs.dtype), logs))
    own = logs[begin + chosen[open_rows] - trie.child_start[parents[open_rows]]]
    if ignored is not None:  # normalised over what is left
        kept = logs.masked_fill(
            ignored[child] & ~ignored[parents[open_rows]][row], -torch.inf
        )  # a drawn walk may be below an ignored node
        top = torch.full_like(top, -torch.inf).scatter_reduce(0, row, kept.detach(), "amax")
        own = own - top - torch.zeros_like(top).index_add(0, row, (kept - top[row]).exp()).log()
    return nothing.index_copy(0, open_rows, own), nothing.index_copy(0, open_rows, divergence)


def _wide(x: Tensor) -> Tensor:
    """Half precisions (autocast) as float32: probabilities of deep levels need its digits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _divergence(share: Tensor, logs: Tensor) -> Tensor:
    """The terms share x (log share - log p) of a KL; 0 where the teacher's share is."""
    return torch.special.xlogy(share, share) - share * logs


def margin_mse(student: Tensor, teacher: Tensor, live: Tensor | None = None) -> Tensor:
    """Mean squared difference of the two models' margins, column 0 against every other: scores (N, K), ``live`` (N, K) bool or all."""
    wanted = torch.ones_like(student, dtype=torch.bool) if live is None else live
    wanted = wanted[:, 1:] & wanted[:, :1]
    gap = (student[:, :1] - student[:, 1:]) - (teacher[:, :1] - teacher[:, 1:]).detach()
    return torch.where(wanted, gap, 0).square().sum() / wanted.sum().clamp(min=1)


def candidate_kl(student: Tensor, teacher: Tensor, live: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Mean KL of the teacher's softmax over K candidates from the student's: scores (N, K); both divided by ``temperature`` (Hinton et al.,
    arXiv 1503.02531; the value is multiplied by its square, so that gradients keep their size).
    """
    if live is not None:
        student, teacher = (scores.masked_fill(~live, torch.finfo(scores.dtype).min) for scores in (student, teacher))
    target = (teacher.detach() / temperature).log_softmax(1)
    terms = target.exp() * (target - (student / temperature).log_softmax(1))
    terms = terms if live is None else torch.where(live, terms, 0)
    return terms.sum(1).mean() * temperature**2
