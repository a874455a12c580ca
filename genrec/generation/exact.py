"""Exact search: scoring of the whole catalogue level by level, and best-first search until the result is proven."""

from __future__ import annotations

import torch
from torch import Tensor

from genrec.catalogue.trie import CatalogueTrie
from genrec.generation.beam import Scorer, SearchResult, as_constraint, expand_children, just_below, select
from genrec.generation.constraints import Constraint
from genrec.retrieval.top_k import sort_keys

ROOM = 1024  # maximum open prefixes before those that cannot enter the result are dropped
# Nats below the fifth best first code; about half of the prefixes within it are needed (measured on a trained network).
NEAR = 1.4


def leaf_scores(trie: CatalogueTrie, scorer: Scorer, batch: int, chunk: int = 4096) -> Tensor:
    """Log-probability of every leaf: (B, n_leaves) float32. Each open prefix runs once, ``chunk`` rows at a time."""
    device = trie.child_start.device
    scores, slots = torch.zeros(batch, 1, device=device), None
    for level in range(trie.depth):
        nodes = torch.arange(trie.level_bounds[level], trie.level_bounds[level + 1], device=device)
        counts = trie.child_start[nodes + 1] - trie.child_start[nodes]
        is_open = (trie.single_leaf(nodes, level) < 0) | (nodes == 0)
        below = scores.repeat_interleave(counts, dim=1)  # a closed node's only child has its score
        below_slots = torch.zeros(len(nodes), dtype=torch.long, device=device)
        for part in torch.nonzero(is_open)[:, 0].split(max(chunk // batch, 1)):
            if not len(part):  # splitting nothing gives one empty part
                continue
            rows = nodes[part].expand(batch, -1)
            slot = scorer.expand(level, rows, None if slots is None else slots[part].expand(batch, -1))
            live = torch.ones_like(rows, dtype=torch.bool)
            children, _, child_scores = expand_children(trie, level, scorer, slot, rows, live, scores[:, part], False)
            below[:, children[0] - trie.level_bounds[level + 1]] = child_scores
            below_slots[part] = torch.arange(slot, slot + len(part), device=device)
        scores, slots = below, below_slots.repeat_interleave(counts)
    return scores


def full_search(
    trie: CatalogueTrie,
    scorer: Scorer,
    batch: int,
    width: int,
    allowed: Tensor | Constraint | None = None,
) -> SearchResult:
    """The best ``width`` leaves by scoring all of them: exact, whatever it costs."""
    scores, constraint = leaf_scores(trie, scorer, batch), as_constraint(allowed)
    leaves = torch.arange(trie.level_bounds[trie.depth], trie.n_nodes, device=scores.device).expand(batch, -1)
    if constraint is not None:
        scores = scores.masked_fill(~constraint.keep(leaves), -torch.inf)
    choice, scores, cut = select(scores, leaves, width)
    return SearchResult(
        leaves.gather(1, choice).masked_fill(scores.isneginf(), -1), scores, just_below(cut), sum(trie.open_nodes)
    )


def best_first(
    trie: CatalogueTrie, scorer: Scorer, batch: int, k: int, width: int, allowed: Tensor | Constraint | None = None,
    rows: int | None = None, limit: int = 4096,
) -> SearchResult:  # fmt: skip
    """Expand the best prefixes, ``rows`` per request and round, until nothing left can enter the top ``k``.

    ``rows``: by default 48 for one request, whose time goes into calls, and 24 for several, whose time goes into rows.
    A prefix's log-probability bounds all leaves below it, so the first ``k`` are then exact; up to ``width`` further
    leaves follow them. After ``limit`` rows per request the search stops unproven (see ``SearchResult.exact``). Every
    round reads back whether it is done.
    """
    rows = rows or (48 if batch == 1 else 24)
    state = _Frontier(trie, scorer, batch, max(width, k), as_constraint(allowed), k)
    done: list[tuple[Tensor, ...]] = []
    alive, spent = torch.arange(batch, device=state.scores.device), 1
    while True:
        left = (state.scores >= state.threshold()).sum(1)
        most = int(left.max()) if spent < limit else 0
        if not most:
            done.append((alive, *state.answer()))
            break
        if batch > 1 and int((left == 0).sum()) * 3 >= len(
            alive
        ):  # a third of them wait for the others: go on without these
            keep, out = torch.nonzero(left)[:, 0], torch.nonzero(left == 0)[:, 0]
            done.append((alive[out], *(part[out] for part in state.answer())))
            alive = alive[keep]
            state.narrow(keep)
            continue
        spent += state.expand(min(rows, most, limit - spent, state.likely() if state.fresh else limit))
    _, leaves, scores, bound = done[0]
    if len(done) > 1:
        order = torch.cat([part[0] for part in done]).argsort()
        leaves, scores, bound = (torch.cat([part[index] for part in done])[order] for index in (1, 2, 3))
    return SearchResult(leaves[:, :width], scores[:, :width], bound, spent)


class _Frontier:
    """Open prefixes (B, F): score, node, slot of the parent; and the best leaves (B, W), best first except for ties."""

    def __init__(
        self,
        trie: CatalogueTrie,
        scorer: Scorer,
        batch: int,
        width: int,
        constraint: Constraint | None,
        k: int,
    ):
        self.trie, self.scorer, self.constraint, self.k = trie, scorer, constraint, k
        device = trie.child_start.device
        self.leaves = torch.full((batch, width), -1, dtype=torch.long, device=device)
        self.best = torch.full((batch, width), -torch.inf, device=device)
        self.lost = torch.full((batch,), -torch.inf, device=device)  # best leaf that fell out of the list ...
        self.cut = self.lost  # ... and best prefix that will not be expanded
        self.scores = torch.full((batch, 0), -torch.inf, device=device)
        self.nodes = self.parents = torch.zeros(batch, 0, dtype=torch.long, device=device)
        self.levels = torch.tensor(trie.level_bounds[1:-1], device=device)  # first node of levels 1, 2, ...
        root = torch.zeros(batch, 1, dtype=torch.long, device=device)
        slot = scorer.expand(0, root, None)
        live = torch.ones_like(root, dtype=torch.bool)
        children, owner, scores = expand_children(
            trie, 0, scorer, slot, root, live, self.best.new_zeros(batch, 1), False
        )
        self._add(children, owner + slot, scores, trie.depth > 1 and trie.open_nodes[1] == children.shape[1])
        self.fresh = True  # all that waits are children of the root

    def likely(self) -> int:
        """How many prefixes of one code are worth running before any leaf is known, of the request with the most."""
        fifth = self.scores.topk(min(5, self.scores.shape[1]), dim=1).values[:, -1:]
        return int((self.scores >= fifth - NEAR).sum(1).max())

    def threshold(self) -> Tensor:
        """The score of the k-th best leaf (B, 1), finite: a prefix with a lower score cannot change the top k."""
        return self.best[:, self.k - 1 : self.k].clamp(min=torch.finfo(torch.float32).min)

    def expand(self, rows: int) -> int:
        """Run the best ``rows`` prefixes of every request; returns the number of rows."""
        score, best = self.scores.topk(min(rows, self.scores.shape[1]), dim=1)  # the order of ties has no effect
        nodes, parents, live = self.nodes.gather(1, best), self.parents.gather(1, best), None
        if len(score) == 1:
            self.scores = self.scores.scatter(1, best, -torch.inf)
        else:  # rows below the request's own threshold are masked
            live = score >= self.threshold()
            self.scores = self.scores.scatter(1, best, score.masked_fill(live, -torch.inf))
            nodes, parents = torch.where(live, nodes, self.trie.level_bounds[1]), torch.where(live, parents, 0)
            score = torch.where(live, score, 0)
        depth = 1 if self.fresh else torch.bucketize(nodes, self.levels, right=True)
        slot, self.fresh = self.scorer.expand(depth, nodes, parents), False
        children, owner, child_scores = expand_children(self.trie, None, self.scorer, slot, nodes, live, score, False)
        self._add(children, owner + slot, child_scores)
        return nodes.shape[1]

    def _add(self, nodes: Tensor, parents: Tensor, scores: Tensor, all_open: bool = False) -> None:
        """Take in children (B, N); ``all_open``: each is known to have several leaves below it."""
        if self.constraint is not None:
            scores = scores.masked_fill(~self.constraint.keep(nodes), -torch.inf)
        if not all_open:
            leaf = self.trie.single_leaf(nodes).long()
            is_open = leaf < 0
            every = torch.cat([self.best, scores.masked_fill(is_open, -torch.inf)], dim=1)
            leaves = torch.cat([self.leaves, leaf], dim=1)
            choice, self.best, lost = select(every, leaves, self.best.shape[1])
            self.leaves, self.lost = leaves.gather(1, choice), torch.maximum(self.lost, lost)
            scores = scores.masked_fill(~is_open, -torch.inf)
        self.scores = torch.cat([self.scores, scores], dim=1)
        self.nodes, self.parents = torch.cat([self.nodes, nodes], dim=1), torch.cat([self.parents, parents], dim=1)
        if self.scores.shape[1] > ROOM:
            self._tidy()

    def _tidy(self) -> None:
        """Drop prefixes below the threshold and keep a bound of them; the width is that of the largest request."""
        useful = self.scores >= self.threshold()
        self.cut = torch.maximum(self.cut, self.scores.masked_fill(useful, -torch.inf).max(1).values)
        self.scores, index = self.scores.masked_fill(~useful, -torch.inf).topk(int(useful.sum(1).max()), dim=1)
        self.nodes, self.parents = self.nodes.gather(1, index), self.parents.gather(1, index)

    def answer(self) -> tuple[Tensor, Tensor, Tensor]:
        """Leaves, scores and bound of every request, equal scores by leaf."""
        rest = self.scores.max(1).values if self.scores.shape[1] else torch.full_like(self.cut, -torch.inf)
        bound = torch.maximum(torch.maximum(self.cut, rest), just_below(self.lost))
        order = sort_keys(self.best, self.leaves.clamp(min=0)).argsort(dim=1, descending=True)
        scores = self.best.gather(1, order)
        return self.leaves.gather(1, order).masked_fill(scores.isneginf(), -1), scores, bound

    def narrow(self, keep: Tensor) -> None:
        """Go on with some of the requests only."""
        for name in ("leaves", "best", "lost", "cut", "scores", "nodes", "parents"):
            setattr(self, name, getattr(self, name)[keep])
        self.scorer.select(keep)
        self.constraint = None if self.constraint is None else self.constraint.select(keep)
