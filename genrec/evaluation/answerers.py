"""Everything that can answer requests, behind one call, so that a protocol treats the model and the baselines alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from genrec.data.dataset import Requests
from genrec.evaluation.metrics import per_request_metrics, top_k
from genrec.generation.options import SearchOptions
from genrec.ranking.ranker import Ranker
from genrec.retrieval.allowed import AllowedItems, id_lists
from genrec.retrieval.lexical import LexicalIndex

Answerer = Callable[[Requests, int, np.ndarray | None], np.ndarray]
"""(requests, k, allowed) -> ranked item ids (N, k), -1 where empty.

``allowed`` (N, n_items) bool, or None for the whole catalogue.
"""
Scorer = Callable[[Requests], np.ndarray]
"""requests -> scores (N, n_items)."""
CHUNK = 256
CELLS = 1 << 24  # scores of the catalogue held at once
POPULARITY_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def by_model(ranker: Ranker, mode: str) -> Answerer:
    """Our model. All allowed items become candidates; others are masked before."""

    def answer(requests: Requests, k: int, allowed: np.ndarray | None) -> np.ndarray:
        only = None if allowed is None else id_lists([np.flatnonzero(row) for row in allowed])
        options = SearchOptions(k, (mode,), exclude_seen=False, allowed=AllowedItems(only=only))
        return ranker.rank(requests, options)[mode][0]

    return answer


def by_scores(scorer: Scorer) -> Answerer:
    """A baseline that scores the whole catalogue. Of equal scores the lower item id comes first."""

    def answer(requests: Requests, k: int, allowed: np.ndarray | None) -> np.ndarray:
        scores = np.asarray(scorer(requests), np.float64)
        return top_k(scores if allowed is None else np.where(allowed, scores, -np.inf), k)[0]

    return answer


def by_histories(model: Any) -> Answerer:
    """A fitted baseline that scores the catalogue by histories alone."""
    return by_scores(lambda requests: model.score(requests.histories))


def ranked_by_scores(
    scorer: Scorer, requests: Requests, k: int, n_items: int, with_raw: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Lists (N, k) without already-had items, and ``with_raw`` also with them, from one scoring of the catalogue.

    A chunk has so few requests that its scores stay within ``CELLS``.
    """
    ranked, raw, size = [], [], max(1, min(512, CELLS // max(n_items, 1)))
    for start in range(0, len(requests), size):
        chunk = requests.take(np.arange(start, min(start + size, len(requests))))
        scores = scorer(chunk)
        ranked.append(top_k(scores, k, chunk.histories)[0])
        if with_raw:
            raw.append(top_k(scores, k)[0])
    return np.concatenate(ranked), np.concatenate(raw) if with_raw else None


def query_texts(requests: Requests) -> list[str]:
    """The query of each request, "" for none."""
    return [requests.query_texts[query] if query >= 0 else "" for query in requests.request_queries]


def with_popularity(lexical: LexicalIndex, counts: np.ndarray, weight: float) -> Scorer:
    """BM25, each query's scores divided by its best, plus ``weight`` times log popularity scaled to at most 1."""
    popularity = np.log1p(counts) / max(float(np.log1p(counts).max(initial=0)), 1e-9)

    def score(requests: Requests) -> np.ndarray:
        words = lexical.score(query_texts(requests))
        return words / np.maximum(words.max(1, keepdims=True), 1e-9) + weight * popularity

    return score


def best_popularity_weight(lexical: LexicalIndex, counts: np.ndarray, valid: Requests) -> float:
    """The weight with the highest nDCG@10 on validation searches, the smaller of equals; 0.1 without searches."""
    if not len(valid):
        return 0.1
    gains = [
        per_request_metrics(
            answered(by_scores(with_popularity(lexical, counts, weight)), valid, 10), valid.targets, [10]
        )["ndcg@10"].mean()
        for weight in POPULARITY_WEIGHTS
    ]
    return POPULARITY_WEIGHTS[int(np.argmax(gains))]


def answered(
    answerer: Answerer, requests: Requests, k: int, candidates: np.ndarray | None = None, n_items: int = 0
) -> np.ndarray:
    """Ranked ids (N, k), chunk by chunk; with ``candidates`` (N, C) item ids, -1 where empty, only of those."""
    ranked = np.full((len(requests), k), -1, np.int64)
    for start in range(0, len(requests), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(requests)))
        allowed = None if candidates is None else candidate_mask(candidates[rows], n_items)
        lists = answerer(requests.take(rows), k, allowed)
        ranked[rows, : lists.shape[1]] = lists
    return ranked


def candidate_mask(candidates: np.ndarray, n_items: int) -> np.ndarray:
    """(N, n_items) bool, true for the candidates (N, C); -1 is none."""
    mask = np.zeros((len(candidates), n_items + 1), bool)
    mask[np.arange(len(candidates))[:, None], np.where(candidates < 0, n_items, candidates)] = True
    return mask[:, :n_items]
