"""Cross-entropy of a semantic ID, level by level over the legal children of each node on the path.

And a teacher's KL over the same children.

Use it for the code decoder. Its distribution over items is a product of conditionals along the trie, so a teacher's
item distribution t gives one soft target per node, ``t(child | node) = mass(child) / mass(node)``. By the chain rule,
with p the decoder,

    KL(t || p) = sum over nodes of mass(node) x KL(t(. | node) || p(. | node)) = mean over leaves drawn from t of the
    sum along their path.

On paths that the teacher drew, the mean of the KL terms is the whole KL, unbiased; on the paths of observed items
they smooth labels by what the teacher knows of the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from genrec.catalogue.subtree_mass import SubtreeMass
from genrec.catalogue.trie import CatalogueTrie
from genrec.model.device import read_back, scores, wide
from genrec.model.pointer import CopyBias
from genrec.model.prior import RetrievalPrior
from genrec.objectives.walked_nodes import NodeRows, SampledNodes
from genrec.retrieval.products import ragged_products


def nodes_without(trie: CatalogueTrie, items: Tensor) -> Tensor:
    """Which nodes have none of ``items`` (K,) below them: (n_nodes,) bool."""
    running = torch.zeros(trie.n_items + 1, dtype=torch.long, device=items.device)
    running[1:] = torch.zeros_like(running[1:]).index_fill(0, trie.item_position[items], 1).cumsum(0)
    return running[trie.node_item_start + trie.node_item_count] == running[trie.node_item_start]


def path_log_probabilities(
    states: Tensor,
    scale: Tensor,
    vectors: Tensor,
    trie: CatalogueTrie,
    paths: Tensor,
    row: Tensor | NodeRows | None = None,
    biases: Sequence[CopyBias | RetrievalPrior] = (),
    ignored: Tensor | None = None,
) -> Tensor:
    """Log-probability of each step of ``paths``: (N, levels).

    ``states`` (N, levels, dim) unit states that score the children of the node before each step; ``scale`` (levels,)
    inverse temperatures; ``vectors`` (n_nodes, dim) node vectors, or those of ``walked_nodes`` with ``row``
    (n_nodes,) the row of each; ``paths`` (N, levels) nodes; ``biases`` what is added to the logits, path by
    path; ``ignored`` (n_nodes,) bool nodes, on no path, that stay out of the softmax. A step with one legal child
    costs nothing. With ``SampledNodes`` the softmax over children is estimated from those that were drawn.
    """
    return _Paths(states, scale, vectors, trie, paths, row, biases, ignored).losses()[0]


def path_losses(
    states: Tensor,
    scale: Tensor,
    vectors: Tensor,
    paths: Tensor,
    teacher: SubtreeMass,
    row: Tensor | NodeRows | None = None,
    requests: Tensor | None = None,
    biases: Sequence[CopyBias | RetrievalPrior] = (),
    ignored: Tensor | None = None,
    observed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each step, and KL(teacher || decoder) over the children it chose from.

    Two (N, levels) tensors. ``observed``: log-probabilities are wanted of that many first paths alone, and KLs of the
    others alone; what the tensors hold besides has no meaning.

    Arguments are those of ``path_log_probabilities``. ``requests`` (N,) is the teacher's row of each path, by default
    its own. ``ignored`` nodes stay in the KL: unlike an observation, the teacher knows whether such a node is right.
    Where it has no mass below a node the KL is 0. With ``SampledNodes`` the KL of a step behind the first is the
    cross-entropy of the child on the path: on paths that the teacher drew, its gradient is right on average.
    """
    requests = torch.arange(len(paths), device=paths.device) if requests is None else requests
    walk = _Paths(states, scale, vectors, teacher.trie, paths, row, biases, ignored)
    return walk.losses(teacher, requests, observed)


@dataclass(frozen=True)
class _Paths:
    """Paths with what scores them; see ``path_log_probabilities``."""

    states: Tensor
    scale: Tensor
    vectors: Tensor
    trie: CatalogueTrie
    paths: Tensor
    row: Tensor | NodeRows | None
    biases: Sequence[CopyBias | RetrievalPrior]
    ignored: Tensor | None

    def losses(
        self, teacher: SubtreeMass | None = None, requests: Tensor | None = None, observed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and KLs, (N, levels) each; without a teacher the KLs are 0."""
        counts = self.trie.child_count[self.paths[:, :-1]]
        several = counts > 1
        if isinstance(self.row, SampledNodes):
            counts = self.row.children(self.trie, self.paths[:, :-1])[1]
        sizes = read_back(torch.stack([several.sum(0), torch.where(several, counts, 0).sum(0)], dim=1))
        levels = [self._first(teacher, requests, observed)]
        for level in range(1, self.paths.shape[1]):
            n_open, n_children = sizes[2 * level - 2], sizes[2 * level - 1]
            open_paths = torch.nonzero_static(several[:, level - 1], size=n_open)[:, 0]
            levels.append(self._step(level, open_paths, n_children, teacher, requests))
        chosen, divergence = (torch.stack(values, dim=1) for values in zip(*levels, strict=True))
        return chosen, divergence

    def _vectors(self, nodes: Tensor) -> Tensor:
        return nodes if self.row is None else self.row[nodes]

    def _first(
        self, teacher: SubtreeMass | None, requests: Tensor | None, observed: int | None
    ) -> tuple[Tensor, Tensor]:
        """The step from the root: one dense product with all nodes of the first level."""
        start, stop = self.trie.level_bounds[1:3]
        states = self.states[:, 0] * self.scale[0]
        nodes = torch.arange(start, stop, device=states.device)
        logits = scores(states, F.embedding(self._vectors(nodes), self.vectors))
        for bias in self.biases:
            logits = logits + bias.for_range(start, stop)
        seen = logits if observed is None else logits[:observed]
        if self.ignored is not None:
            seen = seen.masked_fill(self.ignored[nodes], -torch.inf)
        own = seen.gather(1, (self.paths[: len(seen), 0] - start)[:, None])[:, 0] - seen.logsumexp(1)
        own = F.pad(own, (0, len(logits) - len(own)))
        if teacher is None or requests is None:
            return own, torch.zeros_like(own)
        taught = logits if observed is None else logits[observed:]
        mass = teacher.first_level()[requests[len(logits) - len(taught) :]]
        target = mass / mass.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        target = target.to(logits.dtype)
        entropy = torch.special.xlogy(target, target).sum(1)
        divergence = entropy - (target * taught).sum(1) + target.sum(1) * taught.logsumexp(1)
        return own, F.pad(divergence, (len(logits) - len(taught), 0))

    def _step(
        self, level: int, open_paths: Tensor, n_children: int, teacher: SubtreeMass | None, requests: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """A further step of ``open_paths`` (n,), those with a choice; their children lie side by side."""
        trie, device = self.trie, self.paths.device
        states = self.states[:, level] * self.scale[level]
        free = wide(states.new_zeros(len(states)))
        if not len(open_paths):
            return free, free
        parents = self.paths[open_paths, level - 1]
        chosen_child = self.paths[open_paths, level]
        sampled = self.row if isinstance(self.row, SampledNodes) else None
        if sampled is None:
            first_row, counts = self._vectors(trie.child_start[parents]), trie.child_count[parents]
        else:
            first_row, counts = sampled.children(trie, parents)
        owner = torch.repeat_interleave(torch.arange(len(open_paths), device=device), counts, output_size=n_children)
        begin = counts.cumsum(0) - counts
        offset = torch.arange(n_children, device=device) - begin[owner]
        row = first_row[owner] + offset  # siblings are walked together
        child = trie.child_start[parents][owner] + offset if sampled is None else sampled.nodes[row]
        logits = wide(ragged_products(states[open_paths], self.vectors, owner, begin, row))
        for bias in self.biases:
            logits = logits + bias.for_pairs(open_paths[owner], child)
        if sampled is not None:
            logits = logits + sampled.log_weights(trie, row, parents[owner], child == chosen_child[owner])
        top, log_total = _log_sum_exp(logits, owner, len(open_paths))
        logs = logits - (top + log_total)[owner]
        own = logs[begin + self._vectors(chosen_child) - first_row]
        drawn_step = own
        if self.ignored is not None:  # normalise over what is left; a drawn path may be below an ignored node
            hidden = self.ignored[child] & ~self.ignored[parents][owner]
            top, log_total = _log_sum_exp(logs.masked_fill(hidden, -torch.inf), owner, len(open_paths))
            own = own - top - log_total
        chosen = free.index_copy(0, open_paths, own)
        if teacher is None or requests is None:
            return chosen, free
        if sampled is not None:
            return chosen, free.index_copy(0, open_paths, -drawn_step)
        rows = requests[open_paths]
        mass = teacher.below(rows, parents).clamp(min=torch.finfo(torch.float64).tiny)
        below = teacher.below_children(rows, parents, level, begin, owner, child)
        target = (below / mass[owner]).to(logs.dtype)
        divergence = torch.zeros_like(top).index_add(0, owner, _divergence(target, logs))
        return chosen, free.index_copy(0, open_paths, divergence)


def _log_sum_exp(logits: Tensor, owner: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Per group of ragged logits (c,) the maximum, without a gradient, and the log of the sum above it."""
    top = logits.new_full((groups,), -torch.inf).scatter_reduce(0, owner, logits.detach(), "amax")
    return top, torch.zeros_like(top).index_add(0, owner, (logits - top[owner]).exp()).log()


def _divergence(target: Tensor, logs: Tensor) -> Tensor:
    """The terms target x (log target - log p) of a KL; 0 where the teacher's target is."""
    return torch.special.xlogy(target, target) - target * logs
