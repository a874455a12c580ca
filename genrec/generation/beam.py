"""Constrained beam search over the catalogue trie: ragged gather, mask, one flat top-k. No Python per beam.

The search depends only on a trie and a scorer, and returns leaves of the trie: every result is a valid semantic ID. The
children of all beams of a request are concatenated, not padded to a level's largest fan-out. A beam whose node has a
single leaf below it is finished: its remaining steps have probability 1 and need no network run. A prefix's score is an
upper bound of everything below it, so the best pruned score tells how much of the result is provably exact
(``SearchResult.proven``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from genrec.catalogue.trie import CatalogueTrie
from genrec.errors import UserError
from genrec.generation.constraints import Constraint, NodeMask
from genrec.retrieval.top_k import top_columns

LEAF_ITEMS = 64  # that an answer reads of one leaf; collisions are resolved to at most 16 while there are free codes


class Scorer(Protocol):
    """What the search needs of a model. An expanded row has a slot, by which its children refer to it."""

    def expand(self, depth: int | Tensor, nodes: Tensor, parents: Tensor | None) -> int:
        """Run the network on nodes (B, M); returns the slot of the first row, the others follow.

        ``depth`` is that of all nodes, or (B, M). ``parents`` (B, M) are the slots of their parents, None at the root.
        """
        ...

    def child_logits(self, children: Tensor, slots: Tensor) -> Tensor:
        """Logits (B, N) of children (B, N), each under the expanded row ``slots`` (B, N), which rise along a row."""
        ...

    def root_logits(self, first: int, last: int) -> Tensor:
        """Logits (B, last - first) of the root's children, nodes ``first`` to ``last`` - 1."""
        ...

    def select(self, requests: Tensor) -> None:
        """Continue with some of the requests only."""
        ...


@dataclass(frozen=True)
class SearchResult:
    """Leaves (B, W) best first with float32 log-probabilities; -1 and -inf where there are fewer.

    ``bound`` (B,): an upper bound of the log-probability of every other leaf. ``rows``: network rows per request, root
    included.
    """

    leaves: Tensor
    scores: Tensor
    bound: Tensor
    rows: int

    @property
    def proven(self) -> Tensor:
        """How many of the first leaves are provably the exact best, in exact order: (B,) int64."""
        return proven(self.scores, self.bound)

    def exact(self, k: int) -> Tensor:
        """Whether the first ``k`` are provably the exact top ``k``: (B,) bool.

        A shorter list is exact if nothing was pruned.
        """
        return (self.proven >= k) | self.bound.isneginf()


def proven(scores: Tensor, bound: Tensor) -> Tensor:
    """How many of scores (B, K), best first, exceed ``bound`` (B,), the upper bound of all other scores: (B,)."""
    return (scores > bound[:, None]).sum(1)


def level_widths(width: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """One beam width per level. ``UserError`` for a width below 1 or another number of widths."""
    widths = (width,) * depth if isinstance(width, int) else tuple(width)
    if len(widths) != depth:
        raise UserError(f"decoding: {len(widths)} beam widths for {depth} levels; give one width, or one per level")
    if min(widths) < 1:
        raise UserError(f"decoding: beam width {min(widths)}; expected at least 1")
    return widths


def beam_search(
    trie: CatalogueTrie,
    scorer: Scorer,
    batch: int,
    width: int | Sequence[int],
    allowed: Tensor | Constraint | None = None,
    static: bool | None = None,
) -> SearchResult:
    """The most probable leaves per request that a beam of ``width``, or of one width per level, finds.

    ``allowed`` masks nodes after normalisation: a ``Constraint``, or a bool mask (n_nodes,) or (B, n_nodes) from
    ``trie.restrict``; the order of the remaining nodes is exact. With ``static``, shapes depend only on the trie and
    the widths, and no value is read back: the default off the CPU, required by CUDA graphs. Otherwise shapes follow the
    beams' number of children. Ties go to the lower node. Raises ``UserError`` for an invalid width.
    """
    device = trie.child_start.device
    widths, constraint = level_widths(width, trie.depth), as_constraint(allowed)
    static = device.type != "cpu" if static is None else static
    nodes, total = torch.zeros(batch, 1, dtype=torch.long, device=device), torch.zeros(batch, 1, device=device)
    bound = torch.full((batch,), -torch.inf, device=device)
    parents, rows = None, 0
    for level in range(trie.depth):
        picked = _open_rows(trie, level, nodes, static)
        if picked.leaf is not None and not picked.nodes.shape[1] and min(widths[level:]) >= nodes.shape[1]:
            nodes = picked.leaf.masked_fill(
                nodes < 0, -1
            )  # all beams are finished; leaves are in the order of their nodes
            break
        parts = []
        if picked.beams is None or picked.beams.shape[1]:
            slot = scorer.expand(level, picked.nodes, _take(parents, picked.beams))
            rows += picked.nodes.shape[1]
            above = total if picked.beams is None else total.gather(1, picked.beams)
            children, owner, scores = expand_children(
                trie, level, scorer, slot, picked.nodes, picked.live, above, static
            )
            parts.append((children, scores, owner + slot))
        if not static:
            finished = (nodes >= 0) & ~picked.open
            if bool(finished.any()):
                only_child = trie.child_start[nodes.clamp(min=0)].long()
                carried = total.masked_fill(~finished, -torch.inf)
                parts.append((only_child, carried, torch.zeros_like(only_child)))
        if not parts:  # nothing is left that is allowed
            break
        children, scores, slots = (
            torch.cat(part, dim=1) if len(parts) > 1 else part[0] for part in zip(*parts, strict=True)
        )
        if constraint is not None:
            scores = scores.masked_fill(~constraint.keep(children), -torch.inf)
        choice, total, cut = select(scores, children, widths[level])
        bound = torch.maximum(bound, just_below(cut) if level == trie.depth - 1 else cut)
        parents = slots.gather(1, choice)
        nodes = children.gather(1, choice).masked_fill(total.isneginf(), -1)
    return SearchResult(nodes, total, bound, rows)


def as_constraint(allowed: Tensor | Constraint | None) -> Constraint | None:
    """A node mask as a ``Constraint``."""
    return NodeMask(allowed) if isinstance(allowed, Tensor) else allowed


@dataclass(frozen=True)
class _Rows:
    """Rows for the network to run.

    ``beams`` (B, M): their columns, None for all; ``nodes`` and ``live`` (B, M). Of all beams: ``open`` (B, W), and the
    single ``leaf`` (B, W) below each, -1 for several; None if it was not looked up.
    """

    beams: Tensor | None
    nodes: Tensor
    live: Tensor
    open: Tensor
    leaf: Tensor | None = None


def _open_rows(trie: CatalogueTrie, level: int, nodes: Tensor, static: bool) -> _Rows:
    live = nodes >= 0
    filler = trie.level_bounds[level]
    safe = torch.where(live, nodes, filler)
    if static or level == 0:
        return _Rows(None, safe, live, live)
    leaf = trie.single_leaf(safe, level).long()
    branching = live & (leaf < 0)
    width = int(branching.sum(1).max())
    if width == nodes.shape[1]:
        return _Rows(None, safe, branching, branching, leaf)
    beams = torch.argsort(branching, dim=1, descending=True, stable=True)[:, :width]
    return _Rows(beams, safe.gather(1, beams), branching.gather(1, beams), branching, leaf)


def ragged_children(
    trie: CatalogueTrie, nodes: Tensor, live: Tensor | None, columns: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The concatenated children of nodes (B, M), of the ``live`` ones only unless None.

    Returns children, owner (column in ``nodes``) and valid, each (B, columns). ``columns`` None stands for the largest
    number of children of a request; this reads a value back.
    """
    start = trie.child_start[nodes]
    counts = trie.child_start[nodes + 1] - start
    if live is not None:
        counts = counts.masked_fill(~live, 0)
    ends = counts.cumsum(1)
    columns = int(ends[:, -1].max()) if columns is None else columns
    column = torch.arange(columns, device=nodes.device).repeat(len(nodes), 1)
    owner = torch.searchsorted(ends, column, right=True).clamp_(max=nodes.shape[1] - 1)
    valid = column < ends[:, -1:]
    children = torch.where(valid, (start - ends + counts).gather(1, owner) + column, start[:, :1])
    return children, owner, valid


def expand_children(
    trie: CatalogueTrie,
    level: int | None,
    scorer: Scorer,
    slot: int,
    nodes: Tensor,
    live: Tensor | None,
    total: Tensor,
    static: bool,
    distinct: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Children (B, N) of expanded nodes (B, M), their owners and log-probabilities, normalised over valid children.

    ``level`` None means nodes of several levels, and is not ``static``. Padding has -inf.
    """
    if level == 0:
        first, last = trie.level_bounds[1], trie.level_bounds[2]
        children = torch.arange(first, last, device=nodes.device).expand(len(nodes), -1)
        return children, torch.zeros_like(children), total + scorer.root_logits(first, last).float().log_softmax(-1)
    columns = None
    if static:
        assert level is not None
        rows = nodes.shape[1]
        columns = trie.most_children(level, rows) if distinct else rows * trie.max_branching[level]
    children, owner, valid = ragged_children(trie, nodes, live, columns)
    logits = scorer.child_logits(children, owner + slot).float().masked_fill(~valid, -torch.inf)
    highest = (
        logits.new_full(nodes.shape, -torch.inf)
        .scatter_reduce_(1, owner, logits, "amax")
        .clamp_(min=torch.finfo(torch.float32).min)
    )
    step = logits - highest.gather(1, owner)
    mass = torch.zeros_like(highest).scatter_add_(1, owner, step.exp())
    # step <= 0 and mass >= 1 hold exactly in floating point, so no child scores above its parent: the bound needs it.
    scores = total.gather(1, owner) + (step - mass.log().gather(1, owner))
    return children, owner, scores.masked_fill_(~valid, -torch.inf)


def select(scores: Tensor, nodes: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Select the ``width`` best of candidates (B, N), ties to the lower node.

    Returns columns and scores (B, min(width, N)), and the best pruned score (B,), -inf if nothing was pruned.
    """
    choice = top_columns(scores, nodes, width + 1)
    best = scores.gather(1, choice)
    cut = best[:, width] if scores.shape[1] > width else scores.new_full((len(scores),), -torch.inf)
    return choice[:, :width], best[:, :width], cut


def just_below(scores: Tensor) -> Tensor:
    """The next smaller float32: a bound for pruned leaves, which may have lost a tie only by their node number."""
    return torch.nextafter(scores, scores.new_full((), -torch.inf))


def _take(values: Tensor | None, columns: Tensor | None) -> Tensor | None:
    return values if values is None or columns is None else values.gather(1, columns)


def leaf_items(
    trie: CatalogueTrie, leaves: Tensor, scores: Tensor, item_scores: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Items of leaves (B, W): ids and log-probabilities (B, W x largest leaf), -1 and -inf behind the items of a leaf.

    The items of a leaf share its probability by the softmax of ``item_scores``, a function from ids (B, N) to scores
    (B, N), or evenly without it. Of a leaf with more than ``LEAF_ITEMS`` items, which only a full code space has, the
    first so many are read, and share as much of its probability as they are of its items.
    """
    start, counts = trie.leaf_range((leaves - trie.level_bounds[trie.depth]).clamp(min=0))
    width = min(trie.largest_leaf, LEAF_ITEMS)
    column = torch.arange(width, device=leaves.device)
    live = column < counts.masked_fill(leaves < 0, 0)[..., None]
    ids = trie.leaf_items[(start[..., None] + column).clamp(max=trie.n_held - 1)].long()
    inner = torch.zeros_like(ids, dtype=torch.float32)
    if item_scores is not None and width > 1:
        inner = item_scores(ids.flatten(1)).view_as(ids).float()
    fraction = inner.masked_fill(~live, -torch.inf).log_softmax(-1)
    if width < trie.largest_leaf:
        fraction = fraction - (counts / width).clamp(min=1).log()[..., None]
    fraction = torch.where(live, fraction, -torch.inf)
    return torch.where(live, ids, -1).flatten(1), (scores[..., None] + fraction).flatten(1)


def unread_bound(trie: CatalogueTrie, leaves: Tensor, scores: Tensor) -> Tensor:
    """Upper bound of the log-probability of the items of leaves (B, W) that ``leaf_items`` leaves out: (B,)."""
    if trie.largest_leaf <= LEAF_ITEMS:
        return scores.new_full((len(scores),), -torch.inf)
    counts = trie.leaf_range((leaves - trie.level_bounds[trie.depth]).clamp(min=0))[1]
    return scores.masked_fill((counts <= LEAF_ITEMS) | (leaves < 0), -torch.inf).amax(1)
