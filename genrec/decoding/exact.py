"""Exact search: the whole catalogue by levels, each distinct prefix once, and best-first search that stops when the answer is proven."""

from __future__ import annotations

import torch
from torch import Tensor

from genrec.decoding.beam import Found, Scorer, as_constraint, expand_children, just_below, select, sort_keys
from genrec.decoding.constraints import Constraint
from genrec.decoding.index import SearchIndex
from genrec.decoding.scorers import CachedScorer
from genrec.model.code_decoder import CodeDecoder, Memory
from genrec.semantic_ids.trie import CatalogueTrie


def leaf_scores(trie: CatalogueTrie | SearchIndex, scorer: Scorer, batch: int, chunk: int = 4096) -> Tensor:
    """Log-probability of every leaf: (B, n_leaves) float32, each distinct open prefix run once, ``chunk`` rows at a time."""
    device = trie.child_start.device
    scores, slots = torch.zeros(batch, 1, device=device), None
    for level in range(trie.depth):
        nodes = torch.arange(trie.level_bounds[level], trie.level_bounds[level + 1], device=device)
        counts = trie.child_start[nodes + 1] - trie.child_start[nodes]
        is_open = (trie.single_leaf(nodes) < 0) | (nodes == 0)
        below = scores.repeat_interleave(counts, dim=1)  # a closed node's only child has its score
        below_slots = torch.zeros(len(nodes), dtype=torch.long, device=device)
        for part in torch.nonzero(is_open)[:, 0].split(max(chunk // batch, 1)):
            if not len(part):  # splitting nothing gives one empty part
                continue
            rows = nodes[part].expand(batch, -1)
            slot = scorer.expand(level, rows, None if slots is None else slots[part].expand(batch, -1))
            live = torch.ones_like(rows, dtype=torch.bool)
            children, _, found = expand_children(trie, level, scorer, slot, rows, live, scores[:, part], False)
            below[:, children[0] - trie.level_bounds[level + 1]] = found
            below_slots[part] = torch.arange(slot, slot + len(part), device=device)
        scores, slots = below, below_slots.repeat_interleave(counts)
    return scores


def full_search(
    trie: CatalogueTrie | SearchIndex, scorer: Scorer, batch: int, width: int, allowed: Tensor | Constraint | None = None
) -> Found:
    """The best ``width`` leaves by scoring all of them: exact, whatever it costs."""
    scores, constraint = leaf_scores(trie, scorer, batch), as_constraint(allowed)
    leaves = torch.arange(trie.level_bounds[trie.depth], trie.n_nodes, device=scores.device).expand(batch, -1)
    if constraint is not None:
        scores = scores.masked_fill(~constraint.keep(leaves), -torch.inf)
    choice, scores, cut = select(scores, leaves, width)
    return Found(leaves.gather(1, choice).masked_fill(scores.isneginf(), -1), scores, just_below(cut), sum(trie.open_nodes))


def exact_scores(decoder: CodeDecoder, memory: Memory, vectors: Tensor, trie: CatalogueTrie, chunk: int = 4096) -> Tensor:
    """Log-probability of every item's leaf for every request: (B, n_items)."""
    scorer = CachedScorer(decoder, memory, vectors, max(sum(trie.open_nodes), 1))
    return leaf_scores(trie, scorer, len(memory.state), chunk)[:, trie.item_leaf - trie.level_bounds[trie.depth]]


def best_first(
    trie: CatalogueTrie | SearchIndex, scorer: Scorer, batch: int, k: int, width: int, allowed: Tensor | Constraint | None = None,
    rows: int = 24, limit: int = 4096,
) -> Found:  # fmt: skip
    """Expand the best prefixes, ``rows`` per request and round, until nothing left can enter the top ``k``.

    A prefix's log-probability bounds all leaves below it, so the first ``k`` are then exact; up to ``width`` leaves met on the way are
    returned behind them. After ``limit`` rows per request the search stops unproven; ``Found.exact`` tells. Every round reads back
    whether it is done.
    """
    state = _Frontier(trie, scorer, batch, max(width, k), as_constraint(allowed), k)
    done, alive, spent = [], torch.arange(batch, device=state.scores.device), 1
    while len(alive):
        waiting = (state.scores >= state.threshold()[:, None]) & state.scores.isfinite()
        working = waiting.any(1)
        if spent >= limit:
            working = torch.zeros_like(working)
        finished = ~working
        if bool(finished.all()) or int(finished.sum()) * 2 >= len(alive):
            done.append((alive[finished], *state.answer(finished)))
            keep = torch.nonzero(working)[:, 0]
            alive = alive[keep]
            if len(alive):
                state.narrow(keep)
            continue
        spent += state.expand(min(rows, int(waiting.sum(1).max()), limit - spent))
    order = torch.cat([part[0] for part in done]).argsort()
    leaves, scores, bound = (torch.cat([part[index] for part in done])[order] for index in (1, 2, 3))
    return Found(leaves[:, :width], scores[:, :width], bound, spent)


class _Frontier:
    """Open prefixes still to expand, (B, F): score, node, level and the slot of the parent; and the best leaves so far, (B, W)."""

    def __init__(self, trie: CatalogueTrie | SearchIndex, scorer: Scorer, batch: int, width: int, constraint: Constraint | None, k: int):
        self.trie, self.scorer, self.constraint, self.k = trie, scorer, constraint, k
        device = trie.child_start.device
        self.leaves = torch.full((batch, width), -1, dtype=torch.long, device=device)
        self.found = torch.full((batch, width), -torch.inf, device=device)
        self.cut = torch.full((batch,), -torch.inf, device=device)  # best leaf that fell out of the list
        self.scores = torch.full((batch, 0), -torch.inf, device=device)
        self.nodes = self.levels = self.parents = torch.zeros(batch, 0, dtype=torch.long, device=device)
        root = torch.zeros(batch, 1, dtype=torch.long, device=device)
        slot = scorer.expand(0, root, None)
        live = torch.ones_like(root, dtype=torch.bool)
        children, owner, scores = expand_children(trie, 0, scorer, slot, root, live, self.found.new_zeros(batch, 1), False)
        self._add(children, torch.ones_like(children), owner + slot, scores)

    def threshold(self) -> Tensor:
        """The score of the k-th leaf found (B,): only a prefix that reaches it can change the top k."""
        return self.found[:, self.k - 1]

    def expand(self, rows: int) -> int:
        """Run the best ``rows`` prefixes of every request; returns the number of rows."""
        # A request with less to do still has so many lanes; those below its threshold are switched off.
        best = sort_keys(self.scores, self.nodes).topk(min(rows, self.scores.shape[1]), dim=1).indices
        score, nodes, levels, parents = (part.gather(1, best) for part in (self.scores, self.nodes, self.levels, self.parents))
        live = (score >= self.threshold()[:, None]) & score.isfinite()
        self.scores = self.scores.scatter(1, best, score.masked_fill(live, -torch.inf))
        nodes = torch.where(live, nodes, self.trie.level_bounds[1])
        levels, parents = torch.where(live, levels, 1), torch.where(live, parents, 0)
        slot = self.scorer.expand(levels, nodes, parents)
        children, owner, found = expand_children(self.trie, None, self.scorer, slot, nodes, live, score.masked_fill(~live, 0), False)
        self._add(children, levels.gather(1, owner) + 1, owner + slot, found)
        return nodes.shape[1]

    def _add(self, nodes: Tensor, levels: Tensor, parents: Tensor, scores: Tensor) -> None:
        if self.constraint is not None:
            scores = scores.masked_fill(~self.constraint.keep(nodes), -torch.inf)
        leaf = self.trie.single_leaf(nodes).long()
        is_open = leaf < 0
        every = torch.cat([self.found, scores.masked_fill(is_open, -torch.inf)], dim=1)
        leaves = torch.cat([self.leaves, leaf], dim=1)
        choice, self.found, cut = select(every, leaves.clamp(min=0), self.found.shape[1])
        self.leaves = leaves.gather(1, choice).masked_fill(self.found.isneginf(), -1)
        self.cut = torch.maximum(self.cut, just_below(cut))
        waiting = [
            torch.cat([old, new], dim=1)
            for old, new in zip(
                (self.scores, self.nodes, self.levels, self.parents),
                (scores.masked_fill(~is_open, -torch.inf), nodes, levels, parents), strict=True,
            )
        ]  # fmt: skip
        # What cannot be reached is only kept as a bound; the frontier stays as wide as the request with the most left needs.
        useful = (waiting[0] >= self.threshold()[:, None]) & waiting[0].isfinite()
        wide = int(useful.sum(1).max())
        if wide < waiting[0].shape[1]:
            dropped = waiting[0].masked_fill(useful, -torch.inf)
            self.cut = torch.maximum(self.cut, dropped.max(1).values)
            place = sort_keys(waiting[0].masked_fill(~useful, -torch.inf), waiting[1]).topk(wide, dim=1).indices
            waiting[0] = waiting[0].masked_fill(~useful, -torch.inf)
            waiting = [part.gather(1, place) for part in waiting]
        self.scores, self.nodes, self.levels, self.parents = waiting

    def answer(self, requests: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left = self.scores[requests]
        rest = left.max(1).values if left.shape[1] else torch.full_like(self.cut[requests], -torch.inf)
        return self.leaves[requests], self.found[requests], torch.maximum(self.cut[requests], rest)

    def narrow(self, keep: Tensor) -> None:
        """Go on with some of the requests only."""
        for name in ("leaves", "found", "cut", "scores", "nodes", "levels", "parents"):
            setattr(self, name, getattr(self, name)[keep])
        self.scorer.select(keep)
        self.constraint = None if self.constraint is None else self.constraint.select(keep)
