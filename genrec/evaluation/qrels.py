"""Metrics of ranked lists against relevance judgments: several relevant items per request, graded or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genrec.errors import UserError
from genrec.evaluation.metrics import PAD


@dataclass(frozen=True)
class Qrels:
    """The relevant items of ``n`` requests: ``topics`` and ``items`` (M,) int64, ``gains`` (M,) float64 above 0.

    A pair that is given twice counts once, with its higher gain; a gain of 0 is not relevant.
    """

    topics: np.ndarray
    items: np.ndarray
    gains: np.ndarray
    n: int

    @classmethod
    def build(
        cls, topics: np.ndarray, items: np.ndarray, gains: np.ndarray | None = None, n: int | None = None
    ) -> Qrels:
        """From topics, items and gains (default 1), all (M,)."""
        topics, items = np.asarray(topics, np.int64), np.asarray(items, np.int64)
        gains = np.ones(len(topics)) if gains is None else np.asarray(gains, np.float64)
        if not len(topics) == len(items) == len(gains) or (gains < 0).any():
            raise UserError(
                f"qrels got {len(topics)} topics, {len(items)} items and {len(gains)} gains; expected as many of "
                "each, no gain below 0"
            )
        n = int(topics.max(initial=-1)) + 1 if n is None else n
        order = np.lexsort((-gains, items, topics))
        topics, items, gains = topics[order], items[order], gains[order]
        keep = np.ones(len(topics), bool)
        keep[1:] = (topics[1:] != topics[:-1]) | (items[1:] != items[:-1])
        keep &= gains > 0
        return cls(topics[keep], items[keep], gains[keep], n)

    def gains_of(self, ranked: np.ndarray) -> np.ndarray:
        """Gain at each rank of ranked item ids (n, K): (n, K), 0 for irrelevant items and empty ranks."""
        if not len(self.items):
            return np.zeros(ranked.shape)
        width = max(int(self.items.max()), int(ranked.max(initial=0))) + 1
        keys = self.topics * width + self.items  # sorted, as topics and items are
        pairs = np.arange(len(ranked))[:, None] * width + np.maximum(ranked, 0)
        index = np.minimum(np.searchsorted(keys, pairs), len(keys) - 1)
        return np.where((keys[index] == pairs) & (ranked != PAD), self.gains[index], 0.0)


def qrels_metrics(ranked: np.ndarray, qrels: Qrels, ks: Sequence[int] = (10,)) -> dict[str, np.ndarray]:
    """``map``, ``mrr``, ``ndcg`` and ``recall@k``, ``ndcg@k`` of every request, each (n,) float64.

    ``ranked`` (n, K) distinct item ids, best first, -1 where empty. As trec_eval has them: average precision divides
    by the number of relevant items, also of those that the list does not hold; ``mrr`` is 1 over the rank of the
    first; nDCG sums gain / log2(rank + 1) over the best such sum. ``map``, ``mrr`` and ``ndcg`` read the whole list.
    A request without a relevant item scores 0.
    """
    ranked = np.asarray(ranked)
    if ranked.ndim != 2 or len(ranked) != qrels.n or max(ks, default=0) > ranked.shape[1]:
        raise UserError(
            f"ranked lists {ranked.shape} do not fit {qrels.n} requests and metrics at {list(ks)}; rank at least "
            "that many"
        )
    gains = qrels.gains_of(ranked)
    hits = gains > 0
    rank = np.arange(1, ranked.shape[1] + 1)
    relevant = np.bincount(qrels.topics, minlength=qrels.n)
    some = np.maximum(relevant, 1)
    first = np.where(hits.any(1), hits.argmax(1) + 1.0, np.inf)
    metrics = {"map": (hits * hits.cumsum(1) / rank).sum(1) / some, "mrr": 1 / first}
    for name, k in (("ndcg", ranked.shape[1]), *((f"ndcg@{k}", k) for k in ks)):
        best = _ideal(qrels, k)
        metrics[name] = (gains[:, :k] / np.log2(rank[:k] + 1)).sum(1) / np.where(best > 0, best, 1)
    return metrics | {f"recall@{k}": hits[:, :k].sum(1) / some for k in ks}


def _ideal(qrels: Qrels, k: int) -> np.ndarray:
    """The highest possible discounted gain of k positions: (n,)."""
    order = np.lexsort((-qrels.gains, qrels.topics))
    topics, gains = qrels.topics[order], qrels.gains[order]
    start = np.searchsorted(topics, topics)  # where each one's topic begins
    rank = np.arange(len(topics)) - start + 1
    return np.bincount(topics, np.where(rank <= k, gains / np.log2(rank + 1), 0.0), minlength=qrels.n)
