"""Constrained beam search over the catalogue trie: ragged gather, mask, one flat top-k. No Python per beam.

The engine knows only a trie and a scorer; it emits leaves of the trie, so an identifier that does not exist cannot come out. The
children of all beams of a request lie side by side, as many as there are: nothing is padded to a level's largest fan-out. A beam
whose node has a single leaf below it is finished: its remaining steps have probability 1 and cost nothing. A prefix's score bounds
everything below it, so the best score that was ever cut off says how much of the answer is provably exact (``SearchResult.proven``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from genrec.catalogue.trie import CatalogueTrie
from genrec.errors import UserError
from genrec.generation.constraints import Constraint, NodeMask
from genrec.generation.index import SearchIndex
from genrec.retrieval.top_k import sort_keys, top_lanes


class Scorer(Protocol):
    """What the engine asks of a model. A row that was expanded has a slot, by which its children name it."""

    def expand(self, depth: int | Tensor, nodes: Tensor, parents: Tensor | None) -> int:
        """Run the network on nodes (B, M) of depth ``depth``, one for all or (B, M); ``parents`` (B, M) are the slots of their parents
        (None at the root). Returns the slot of the first row; the others follow.
        """

    def child_logits(self, children: Tensor, slots: Tensor) -> Tensor:
        """Logits (B, N) of children (B, N), each under the expanded row ``slots`` (B, N)."""

    def root_logits(self, first: int, last: int) -> Tensor:
        """Logits (B, last - first) of the root's children, nodes ``first`` to ``last`` - 1."""


@dataclass(frozen=True)
class SearchResult:
    """Leaves (B, W) best first with float32 log-probabilities; lanes without a leaf have -1 and -inf.

    ``bound`` (B,): nothing that is missing here has a higher log-probability. ``rows``: network rows run per request, root included.
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
        """Whether the first ``k`` are provably the exact top ``k``: (B,) bool. Fewer than ``k`` are exact if nothing was cut off."""
        return (self.proven >= k) | self.bound.isneginf()


def proven(scores: Tensor, bound: Tensor) -> Tensor:
    """How many of scores (B, K), best first, lie above ``bound`` (B,), the best that anything missing can have."""
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
    trie: CatalogueTrie | SearchIndex, scorer: Scorer, batch: int, width: int | Sequence[int], allowed: Tensor | Constraint | None = None,
    per_first: int = 0, static: bool | None = None,
) -> SearchResult:  # fmt: skip
    """The most probable leaves per request that a beam of ``width``, or of one width per level, finds.

    ``allowed`` hides nodes after normalisation: a ``Constraint``, or a bool mask (n_nodes,) or (B, n_nodes) as ``trie.restrict`` makes
    it; the ranking of what remains is exact. ``per_first`` > 0 keeps at most so many beams with the same first code. ``static`` gives
    every tensor a shape that depends on the trie and the widths alone and never reads a value back (the default off the CPU, needed
    for CUDA graphs); else shapes follow the beams' true number of children. Ties go to the lower node.
    Raises ``UserError`` for a bad width.
    """
    device = trie.child_start.device
    widths, constraint = level_widths(width, trie.depth), as_constraint(allowed)
    static = device.type != "cpu" if static is None else static
    nodes, total = torch.zeros(batch, 1, dtype=torch.long, device=device), torch.zeros(batch, 1, device=device)
    bound = torch.full((batch,), -torch.inf, device=device)
    parents = group = None
    rows = 0
    for level in range(trie.depth):
        picked = _open_rows(trie, level, nodes, static)
        if picked.leaf is not None and not picked.nodes.shape[1] and min(widths[level:]) >= nodes.shape[1]:
            nodes = picked.leaf.masked_fill(
                nodes < 0, -1
            )  # every walk is decided, and leaves stand in the order of the nodes above them
            break
        parts = []
        if picked.place is None or picked.place.shape[1]:
            slot = scorer.expand(level, picked.nodes, _take(parents, picked.place))
            rows += picked.nodes.shape[1]
            children, owner, scores = expand_children(
                trie, level, scorer, slot, picked.nodes, picked.live, _take(total, picked.place), static
            )
            place = owner if picked.place is None else picked.place.gather(1, owner)
            parts.append((children, scores, owner + slot, place))
        if not static:
            finished = (nodes >= 0) & ~picked.open
            if bool(finished.any()):
                lane = torch.arange(nodes.shape[1], device=device).expand(batch, -1)
                parts.append(
                    (
                        trie.child_start[nodes.clamp(min=0)].long(),
                        total.masked_fill(~finished, -torch.inf),
                        torch.zeros_like(lane),
                        lane,
                    )
                )
        if not parts:  # nothing is left that is allowed
            break
        children, scores, slots, place = (
            torch.cat(part, dim=1) if len(parts) > 1 else part[0] for part in zip(*parts, strict=True)
        )
        if constraint is not None:
            scores = scores.masked_fill(~constraint.keep(children), -torch.inf)
        group = children if group is None else group.gather(1, place)
        choice, total, cut = select(scores, children, widths[level], group if per_first else None, per_first)
        bound = torch.maximum(bound, just_below(cut) if level == trie.depth - 1 and not per_first else cut)
        parents, group = slots.gather(1, choice), group.gather(1, choice)
        nodes = children.gather(1, choice).masked_fill(total.isneginf(), -1)
    return SearchResult(nodes, total, bound, rows)


def as_constraint(allowed: Tensor | Constraint | None) -> Constraint | None:
    return NodeMask(allowed) if isinstance(allowed, Tensor) else allowed


@dataclass(frozen=True)
class _Rows:
    """Rows the network has to run: ``place`` (B, M) in the beam (None: all), ``nodes``, ``live`` (B, M); ``open`` (B, W) of all beams, and
    the single leaf below each, -1 for several (B, W), or None where nobody asked.
    """

    place: Tensor | None
    nodes: Tensor
    live: Tensor
    open: Tensor
    leaf: Tensor | None = None


def _open_rows(trie: CatalogueTrie | SearchIndex, level: int, nodes: Tensor, static: bool) -> _Rows:
    live = nodes >= 0
    filler = trie.level_bounds[level]
    safe = torch.where(live, nodes, filler)
    if static or level == 0:
        return _Rows(None, safe, live, live)
    leaf = trie.single_leaf(safe, level).long()
    branching = live & (leaf < 0)
    most = int(branching.sum(1).max())
    if most == nodes.shape[1]:
        return _Rows(None, safe, branching, branching, leaf)
    place = torch.argsort(branching, dim=1, descending=True, stable=True)[:, :most]
    return _Rows(place, safe.gather(1, place), branching.gather(1, place), branching, leaf)


def ragged_children(
    trie: CatalogueTrie | SearchIndex, nodes: Tensor, live: Tensor | None, lanes: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The children of the live ones (None: all) of nodes (B, M), side by side: children, owner (position in nodes), valid, each (B, lanes).

    Without ``lanes`` there are as many as the request with the most children has; this reads a value back.
    """
    start = trie.child_start[nodes]
    counts = trie.child_start[nodes + 1] - start
    if live is not None:
        counts = counts.masked_fill(~live, 0)
    ends = counts.cumsum(1)
    lanes = int(ends[:, -1].max()) if lanes is None else lanes
    lane = torch.arange(lanes, device=nodes.device).repeat(len(nodes), 1)
    owner = torch.searchsorted(ends, lane, right=True).clamp_(max=nodes.shape[1] - 1)
    valid = lane < ends[:, -1:]
    children = torch.where(valid, (start - ends + counts).gather(1, owner) + lane, start[:, :1])
    return children, owner, valid


def expand_children(
    trie: CatalogueTrie | SearchIndex,
    level: int | None,
    scorer: Scorer,
    slot: int,
    nodes: Tensor,
    live: Tensor | None,
    total: Tensor,
    static: bool,
    distinct: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Children (B, N) of expanded nodes (B, M), their owner and their log-probabilities, renormalised over legal children.

    ``level`` None means nodes of several levels. Padding lanes have -inf.
    """
    if level == 0:
        first, last = trie.level_bounds[1], trie.level_bounds[2]
        children = torch.arange(first, last, device=nodes.device).expand(len(nodes), -1)
        return children, torch.zeros_like(children), total + scorer.root_logits(first, last).float().log_softmax(-1)
    lanes = None
    if static:
        rows = nodes.shape[1]
        lanes = trie.most_children(level, rows) if distinct else rows * trie.max_branching[level]
    children, owner, valid = ragged_children(trie, nodes, live, lanes)
    logits = scorer.child_logits(children, owner + slot).float().masked_fill_(~valid, -torch.inf)
    highest = (
        logits.new_full(nodes.shape, -torch.inf)
        .scatter_reduce_(1, owner, logits, "amax")
        .clamp_(min=torch.finfo(torch.float32).min)
    )
    step = logits - highest.gather(1, owner)
    mass = torch.zeros_like(highest).scatter_add_(1, owner, step.exp())
    # step <= 0 and mass >= 1 hold exactly in floating point, so a child never scores above its parent: the certificate rests on it.
    scores = total.gather(1, owner) + (step - mass.log().gather(1, owner))
    return children, owner, scores.masked_fill_(~valid, -torch.inf)


def select(
    scores: Tensor, nodes: Tensor, width: int, group: Tensor | None = None, per_group: int = 0, in_order: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``width`` best of lanes (B, N), ties to the lower node: places and scores (B, min(width, N)); and the best score that was cut
    off, (B,), -inf if none. With ``group`` (B, N) at most ``per_group`` lanes of one group are taken. Without ``in_order`` equal scores
    that are all taken may stand in any order.
    """
    if (
        group is None and scores.device.type == "cpu" and scores.shape[1] > width
    ):  # the plain top-k is faster; it leaves open which of equal scores it takes
        best, choice = scores.topk(width + 1, dim=1)
        if not bool(((best[:, width - 1] == best[:, width]) & best[:, width].isfinite()).any()):
            if not in_order:
                return choice[:, :width], best[:, :width], best[:, width]
            order = sort_keys(best[:, :width], nodes.gather(1, choice[:, :width])).argsort(dim=1, descending=True)
            return choice.gather(1, order), best.gather(1, order), best[:, width]
    keys = sort_keys(scores, nodes)
    if group is not None:
        free = scores.masked_fill(_crowded(keys, group, per_group), -torch.inf)
        choice = sort_keys(free, nodes).topk(min(width, scores.shape[1]), dim=1).indices
        taken = free.gather(1, choice)
        left = torch.where(
            torch.zeros_like(free, dtype=torch.bool).scatter(1, choice, taken.isfinite()), -torch.inf, scores
        )
        return choice, taken, left.max(1).values
    choice = top_lanes(keys, min(width + 1, scores.shape[1]))
    best = scores.gather(1, choice)
    cut = best[:, width] if scores.shape[1] > width else scores.new_full((len(scores),), -torch.inf)
    return choice[:, :width], best[:, :width], cut


def just_below(scores: Tensor) -> Tensor:
    """The next smaller float32: the bound that a leaf sets which lost by its number alone. What is kept was rightly kept."""
    return torch.nextafter(scores, scores.new_full((), -torch.inf))


def _crowded(keys: Tensor, group: Tensor, most: int) -> Tensor:
    """Lanes (B, N) with ``most`` or more better lanes of the same group."""
    by_key = keys.argsort(dim=1, descending=True)
    ranked = group.gather(1, by_key)
    by_group = ranked.argsort(dim=1, stable=True)
    ranked = ranked.gather(1, by_group)
    lane = torch.arange(keys.shape[1], device=keys.device).expand_as(keys)
    begins = torch.ones_like(ranked, dtype=torch.bool)
    begins[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    place = lane - torch.where(begins, lane, 0).cummax(1).values
    return torch.zeros_like(begins).scatter(1, by_key.gather(1, by_group), place >= most)


def _take(values: Tensor | None, place: Tensor | None) -> Tensor | None:
    return values if values is None or place is None else values.gather(1, place)


def leaf_items(
    trie: CatalogueTrie | SearchIndex, leaves: Tensor, scores: Tensor, item_scores: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Items of leaves (B, W): ids and log-probabilities (B, W x largest leaf); lanes without an item have -1 and -inf.

    A leaf with several items splits its probability by ``item_scores`` (B, n_items) where given, else evenly.
    """
    start, counts = trie.leaf_range((leaves - trie.level_bounds[trie.depth]).clamp(min=0))
    lane = torch.arange(trie.largest_leaf, device=leaves.device)
    live = lane < counts.masked_fill(leaves < 0, 0)[..., None]
    ids = trie.leaf_items[(start[..., None] + lane).clamp(max=trie.n_items - 1)].long()
    inner = torch.zeros_like(ids, dtype=torch.float32)
    if item_scores is not None:
        inner = item_scores.gather(1, ids.flatten(1)).view_as(ids).float()
    share = inner.masked_fill(~live, -torch.inf).log_softmax(-1)
    share = torch.where(live, share, -torch.inf)
    return torch.where(live, ids, -1).flatten(1), (scores[..., None] + share).flatten(1)
