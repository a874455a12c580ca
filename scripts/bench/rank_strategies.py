"""Strategies of the literature that order a final list, over the network's own candidates of one run.

    python scripts/bench/rank_strategies.py RUN [--requests 6000] [--seed 0]

Every validation request has the ``POOL`` items that the network retrieves best, with the features of the re-ranker. The
first pass is the re-ranker's form: a linear one and a small network of interactions, list-wise. Two thirds of the requests
fit it and every strategy, the others are ordered:

- ``pairwise`` (PRP, arXiv 2306.17563): a model of pairs; the order is the sum of won comparisons of all pairs.
- ``tour`` (TSPRank, arXiv 2411.12064): the path through the first ``TOUR`` items that maximises the pair scores of neighbours, exactly.
- ``elimination`` (IRanker, arXiv 2506.21638): the worst item given those that are left goes, until none is left.
- ``list-aware`` (E2Rank, arXiv 2510.22733): a second pass in which the items of the first pass attend to one another.
- ``late attention`` (ICR, arXiv 2410.02642): how much the request's last layer attends to events like the item, less what even
  attention would give; added to the first pass with the weight that is best on the fitted requests.

Prints nDCG@10 and Recall@10, the paired difference to the first pass, and CPU time as a ratio to it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.evaluation.metrics import paired_test
from genrec.generation.options import SearchOptions
from genrec.model.backbone import Block
from genrec.ranking.features import FEATURES
from genrec.ranking.fitting import fit_network, fit_weights, list_loss
from genrec.ranking.interactions import interaction_network
from genrec.ranking.ranker import Ranker
from genrec.runs.run import Run

POOL, TOP, TOUR = 50, 20, 9  # candidates, those that a second pass orders, and those of a tour
_CLIP, _EPOCHS, _RATE, _BATCH, _HIDDEN = 6.0, 8, 3e-3, 128, 64


@dataclass
class Lists:
    """N lists: standardised ``features`` (N, K, F), ``live`` (N, K), ``target`` (N,) column or -1, ``attention`` (N, K)."""

    features: Tensor
    live: Tensor
    target: Tensor
    attention: Tensor

    def take(self, rows: Tensor) -> Lists:
        return Lists(self.features[rows], self.live[rows], self.target[rows], self.attention[rows])

    def top(self, scores: Tensor, k: int) -> tuple[Lists, Tensor, Tensor]:
        """The first k items by scores (N, K), their columns and scores (N, k), best first."""
        best, order = scores.masked_fill(~self.live, -1e9).topk(k, dim=1)
        target = torch.where(self.target >= 0, (order == self.target[:, None]).float().argmax(1), -1)
        target = torch.where((order == self.target[:, None]).any(1), target, -1)
        features = self.features.gather(1, order[..., None].expand(-1, -1, self.features.shape[-1]))
        return Lists(features, self.live.gather(1, order), target, self.attention.gather(1, order)), order, best


class AttentionReader:
    """Reads what the request attends to in the last layer of a network's backbone: (B, T), the mean over heads."""

    def __init__(self, block: Block):
        self.weights = torch.zeros(0, 0)
        forward = block.forward

        def reading(x: Tensor, angles: Tensor, mask: Tensor, past=None, cache_only: int = 0):
            _, q, k, _ = block._project(x, angles, cache_only)
            scores = (q[:, :, -1:] @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
            self.weights = scores.masked_fill(~mask[:, None, -1:], -torch.inf).softmax(-1).mean(1)[:, 0]
            return forward(x, angles, mask, past, cache_only)

        block.forward = reading  # type: ignore[method-assign]


@torch.inference_mode()
def collect(run: Run, ranker: Ranker, count: int, seed: int) -> Lists:
    """Lists of ``count`` validation requests."""
    requests = run.dataset.requests("valid")
    requests = requests.take(np.sort(np.random.default_rng(seed).permutation(len(requests))[:count]))
    generator, reader = ranker.generator, AttentionReader(ranker.generator.network.backbone.blocks[-1])
    vectors, column = F.normalize(generator.items, dim=-1), FEATURES.index("retrieved")
    parts = []
    for rows, chunk, batch in ranker._encoded(requests, None):
        found = ranker._proposed(rows, chunk, batch, SearchOptions())
        ids, features = found.union()
        score = features[..., column].masked_fill(ids < 0, -torch.inf)
        order = score.topk(min(POOL, ids.shape[1]), dim=1)[1]
        ids = ids.gather(1, order)
        features = features.gather(1, order[..., None].expand(-1, -1, features.shape[-1])).float()
        hits = ids == torch.from_numpy(chunk.targets.astype(np.int64))[:, None]
        target = torch.where(hits.any(1), hits.float().argmax(1), -1)
        attention = torch.zeros(ids.shape)
        for row in range(len(ids)):
            history = chunk.items[chunk.offsets[row] : chunk.offsets[row + 1]].astype(np.int64)
            weights = reader.weights[row][: len(history)]
            if len(weights):
                history = torch.from_numpy(history[-len(weights) :])
                alike = vectors[ids[row].clamp(min=0)] @ vectors[history].T
                attention[row] = alike @ (weights - weights.mean())
        parts.append((features, ids >= 0, target, attention))
    features, live, target, attention = (torch.cat(part) for part in zip(*parts, strict=True))
    seen = features[live]
    scale = seen.std(0)
    features = (features - seen.mean(0)) / torch.where(scale > 1e-5, scale, torch.inf)
    return Lists(features.clamp(-_CLIP, _CLIP), live, target, attention)


Scorer = Callable[[Lists], Tensor]


def first_pass(train: Lists) -> Scorer:
    """The form of the re-ranker: scores (N, K)."""
    network, size = interaction_network(train.features.shape[-1], _HIDDEN), train.features.shape[-1]
    start = fit_weights(
        torch.zeros(size),
        lambda w: list_loss(train.features @ w, train.live, train.target) + 20 / len(train.target) * w.square().sum(),
    )
    weights = nn.Parameter(start)

    def loss(rows: Tensor) -> Tensor:
        x = train.features[rows]
        return list_loss(x @ weights + network(x)[..., 0], train.live[rows], train.target[rows])

    fit_network([weights, *network.train().parameters()], loss, _rows(train), _RATE, _EPOCHS, _BATCH)
    network.eval()
    return lambda lists: lists.features @ weights + network(lists.features)[..., 0]


def _rows(lists: Lists) -> Tensor:
    return torch.nonzero(lists.target >= 0)[:, 0]


def with_scores(lists: Lists, scores: Tensor) -> Tensor:
    """Features with the first pass's score and rank: (N, K, F + 2)."""
    ranks = torch.arange(scores.shape[1]).float().add(1).log().expand_as(scores)
    return torch.cat([lists.features, scores[..., None], ranks[..., None]], dim=-1)


class Pairs(nn.Module):
    """Log-odds (N, K, K) that item i is better than item j, antisymmetric; begins as the first pass's difference."""

    def __init__(self, size: int):
        super().__init__()
        self.left, self.right = nn.Linear(size, _HIDDEN), nn.Linear(size, _HIDDEN)
        self.out = nn.Linear(_HIDDEN, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        hidden = F.relu(self.left(x)[:, :, None] + self.right(x)[:, None])
        values = self.out(hidden)[..., 0]
        return scores[:, :, None] - scores[:, None] + values - values.transpose(1, 2)


def fit_pairs(train: Lists, scores: Tensor) -> Pairs:
    """Fit on the target against every other item of the list."""
    x = with_scores(train, scores)
    model = Pairs(x.shape[-1])

    def loss(rows: Tensor) -> Tensor:
        target = train.target[rows]
        own = model(x[rows], scores[rows])[torch.arange(len(rows)), target]  # (n, K)
        others = train.live[rows] & (torch.arange(own.shape[1]) != target[:, None])
        return F.softplus(-own)[others].mean()

    fit_network(list(model.parameters()), loss, _rows(train), _RATE, _EPOCHS, _BATCH)
    return model.eval()


def tour(odds: Tensor) -> Tensor:
    """The order (N, k) of the path through k items with the largest sum of odds (N, k, k) of neighbours (Held-Karp)."""
    n, k, _ = odds.shape
    step = F.logsigmoid(odds)  # of i before j
    best = torch.full((n, 1 << k, k), -torch.inf)
    origin = torch.zeros((n, 1 << k, k), dtype=torch.long)
    for item in range(k):
        best[:, 1 << item, item] = 0.0
    for visited in range(1, 1 << k):
        for item in range(k):
            if visited >> item & 1 and visited != 1 << item:
                values = best[:, visited ^ (1 << item)] + step[:, :, item]
                best[:, visited, item], origin[:, visited, item] = values.max(1)
    rows, visited = torch.arange(n), torch.full((n,), (1 << k) - 1)
    item, order = best[:, -1].argmax(1), []
    for _ in range(k):
        order.append(item)
        before = origin[rows, visited, item]
        visited, item = visited & ~(1 << item), before
    return torch.stack(order[::-1], dim=1)


class InPool(nn.Module):
    """Scores (N, K) of items given the pool (N, K) that is left: relative to the pool's mean features."""

    def __init__(self, size: int):
        super().__init__()
        self.net = interaction_network(2 * size, _HIDDEN)

    def forward(self, x: Tensor, pool: Tensor, scores: Tensor) -> Tensor:
        mean = (x * pool[..., None]).sum(1, keepdim=True) / pool.sum(1).clamp(min=1)[:, None, None]
        return scores + self.net(torch.cat([x, x - mean], dim=-1))[..., 0]


def fit_in_pool(train: Lists, scores: Tensor) -> InPool:
    """Fit on random pools that hold the target."""
    x = with_scores(train, scores)
    model = InPool(x.shape[-1])

    def loss(rows: Tensor) -> Tensor:
        keep = torch.rand(len(rows), 1) > torch.rand(len(rows), x.shape[1])
        pool = train.live[rows] & keep
        pool[torch.arange(len(rows)), train.target[rows]] = True
        return list_loss(model(x[rows], pool, scores[rows]), pool, train.target[rows])

    fit_network(list(model.train().parameters()), loss, _rows(train), _RATE, _EPOCHS, _BATCH)
    return model.eval()


def eliminate(model: InPool, lists: Lists, scores: Tensor) -> Tensor:
    """The number of rounds that each item stays: (N, K)."""
    x, pool, stayed = with_scores(lists, scores), lists.live.clone(), torch.zeros(scores.shape)
    for _ in range(scores.shape[1] - 1):
        worst = model(x, pool, scores).masked_fill(~pool, torch.inf).argmin(1, keepdim=True)
        pool.scatter_(1, worst, False)
        stayed += pool
    return stayed


class SecondPass(nn.Module):
    """Items of the first pass attend to one another: scores (N, K), begins as the first pass."""

    def __init__(self, size: int):
        super().__init__()
        self.enter = nn.Linear(size, _HIDDEN)
        self.layer = nn.TransformerEncoderLayer(_HIDDEN, 4, 2 * _HIDDEN, 0.1, batch_first=True)
        self.out = nn.Linear(_HIDDEN, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, live: Tensor, scores: Tensor) -> Tensor:
        return scores + self.out(self.layer(self.enter(x), src_key_padding_mask=~live))[..., 0]


def fit_second_pass(train: Lists, scores: Tensor) -> SecondPass:
    x = with_scores(train, scores)
    model = SecondPass(x.shape[-1])

    def loss(rows: Tensor) -> Tensor:
        return list_loss(model(x[rows], train.live[rows], scores[rows]), train.live[rows], train.target[rows])

    fit_network(list(model.train().parameters()), loss, _rows(train), 1e-3, _EPOCHS, _BATCH)
    return model.eval()


def measures(scores: Tensor, lists: Lists) -> dict[str, np.ndarray]:
    """nDCG@10 and Recall@10 (N,) of lists in the order of scores (N, K); a target outside the list counts as 0."""
    own = scores.gather(1, lists.target.clamp(min=0)[:, None])
    rank = ((scores > own) & lists.live).sum(1)
    hit = (lists.target >= 0) & (rank < 10)
    return {"nDCG@10": (hit / torch.log2(rank + 2.0)).numpy(), "Recall@10": hit.float().numpy()}


@torch.no_grad()
def second_orders(train: Lists, test: Lists, begin: Tensor, scores: Tensor) -> dict[str, tuple[Tensor, float]]:
    """Scores (N, k) of the first ``TOP`` items under each strategy, and its CPU seconds; ``begin``: of ``train``."""
    found: dict[str, tuple[Tensor, float]] = {}

    def timed(name: str, order: Callable[[], Tensor]) -> None:
        start = time.process_time()
        found[name] = order(), time.process_time() - start

    with torch.enable_grad():
        pairs, pool, second = (fit(train, begin) for fit in (fit_pairs, fit_in_pool, fit_second_pass))
    x = with_scores(test, scores)
    both = test.live[:, :, None] & test.live[:, None]
    timed("pairwise", lambda: (pairs(x, scores).sigmoid() * both).sum(2))

    def by_tour() -> Tensor:
        path = tour(pairs(x[:, :TOUR], scores[:, :TOUR]))
        first = scores.shape[1] + torch.zeros_like(path).scatter(1, path, torch.arange(TOUR, 0, -1).expand_as(path))
        return torch.cat([first, torch.arange(scores.shape[1] - TOUR, 0, -1).expand(len(first), -1)], dim=1).float()

    timed("tour", by_tour)
    timed("elimination", lambda: eliminate(pool, test, scores))
    timed("list-aware second pass", lambda: second(x, test.live, scores))
    deviation = float(train.attention[train.live].std())
    weights = [weight / deviation for weight in (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)]
    best = max(weights, key=lambda weight: measures(begin + weight * train.attention, train)["nDCG@10"].mean())
    timed("late attention", lambda: scores + best * test.attention)
    found["late attention alone"] = test.attention, 0.0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    run = Run.open(arguments.run)
    every = collect(run, run.ranker("train", fused=False), arguments.requests, arguments.seed)
    order = torch.randperm(len(every.target))
    train, test = (every.take(rows) for rows in order.tensor_split([2 * len(order) // 3]))
    score = first_pass(train.take(_rows(train)))
    with torch.no_grad():
        score(test)
        start = time.process_time()
        scores = score(test)
        seconds = time.process_time() - start
        second_train, _, begin = train.top(score(train), TOP)
        second_test, _, scores = test.top(scores, TOP)
    base = measures(scores, second_test)
    print(f"{len(train.target)} requests fit, {len(test.target)} are ordered, {float((test.target >= 0).float().mean()):.4f} of their targets are candidates")  # fmt: skip
    print("| strategy | nDCG@10 | Recall@10 | CPU time |\n|---|---|---|---|")
    print(f"| first pass | {base['nDCG@10'].mean():.4f} | {base['Recall@10'].mean():.4f} | 1 |")
    plain = measures(test.features[..., FEATURES.index("retrieved")], test)
    print(f"| retrieval's order | {plain['nDCG@10'].mean():.4f} | {plain['Recall@10'].mean():.4f} | |")
    for name, (values, cost) in second_orders(second_train, second_test, begin, scores).items():
        cells = []
        for measure, own in measures(values.masked_fill(~second_test.live, -1e9), second_test).items():
            difference, low, high, _ = paired_test(own, base[measure], 0)
            cells.append(f"{own.mean():.4f} ({difference:+.4f} [{low:+.4f}, {high:+.4f}])")
        print(f"| {name} | {' | '.join(cells)} | {1 + cost / seconds:.1f} |")


if __name__ == "__main__":
    main()
