"""The classic two-stage stack without a network: candidates of cheap sources, ordered by LightGBM's LambdaRank.

The ranking features are ours (``CandidateFeatures``) and the scores and ranks of the sources. Trees are fitted on
validation requests, with sources and counts fitted on train, and on as many training requests, with sources and counts
that lack those requests' events; they then order test requests with the sources of either fit, as our re-ranker does.
With our retrieval among the sources, which has learnt the training requests, trees are fitted on validation requests
alone, and the score of the trees without it is one more feature: again as in our re-ranker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Self

import numpy as np

from genrec.data.dataset import Requests
from genrec.evaluation.metrics import PAD, top_k
from genrec.ranking.features import HISTORY_FEATURES, ITEM_FEATURES, CandidateFeatures

log = logging.getLogger(__name__)
Scorer = Callable[[Requests], np.ndarray]
Example = tuple[np.ndarray, np.ndarray]  # features (K, F) of a request's candidates, and which is its target (K,)
NAME, NETWORKED = "LightGBM stack, no network", "LightGBM stack, with our retrieval"
DEPTH = 50  # candidates of each source
FIT_REQUESTS = 8000  # validation requests that the trees are fitted on, and training requests
MIN_REQUESTS = 50  # with fewer there is no row
MIN_GROUPS = 20  # validation targets among the candidates
CELLS = 1 << 24  # scores of one source held at once
FOLDS, MAX_ROUNDS, PATIENCE = 4, 500, 40
PARAMETERS = {
    "objective": "lambdarank",
    "metric": "ndcg",
    "eval_at": [10],
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 50,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambdarank_truncation_level": 20,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


def installed() -> bool:
    """Whether LightGBM is there; a warning with the remedy where it is not."""
    if find_spec("lightgbm") is None:
        log.warning("no row '%s': LightGBM is missing; pip install '.[stack]'", NAME)
        return False
    return True


@dataclass
class Sources:
    """What proposes and describes candidates: scorers over the catalogue by name, and counts of one fit."""

    scorers: dict[str, Scorer]
    features: CandidateFeatures
    request_time: bool = False

    def candidates(self, requests: Requests, exclude_seen: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Candidates (B, K), rising, -1 where there are fewer, and their features (B, K, F) float32."""
        scores = {name: np.asarray(scorer(requests), np.float32) for name, scorer in self.scorers.items()}
        n_items = next(iter(scores.values())).shape[1]
        histories = requests.histories if exclude_seen else None
        tops = {name: top_k(one, min(DEPTH, n_items), histories)[0] for name, one in scores.items()}
        ids = np.sort(np.concatenate(list(tops.values()), axis=1), axis=1)
        ids[:, 1:][ids[:, 1:] == ids[:, :-1]] = PAD
        ids = -np.sort(-ids, axis=1)
        ids = ids[:, : max(int((ids >= 0).sum(1).max(initial=1)), 1)]
        items, rows = np.maximum(ids, 0).astype(np.int64), np.arange(len(ids))[:, None]
        columns: list[np.ndarray] = []
        for name, one in scores.items():
            columns.append(np.take_along_axis(one, items, 1))
            rank: np.ndarray = np.full(one.shape, 2 * DEPTH, np.int16)
            top = tops[name]
            where = np.where(top >= 0, top, top[:, :1])
            rank[np.broadcast_to(rows, where.shape)[:, ::-1], where[:, ::-1]] = np.arange(where.shape[1])[::-1]
            columns.append(np.take_along_axis(rank, items, 1))
        columns += self.features.item_features(items, requests.reference_times(self.request_time))
        columns += self.features.history_features(items, requests.histories)
        return ids, np.stack([np.asarray(column, np.float32) for column in columns], axis=-1)


class Stack:
    """LightGBM over the candidates of ``Sources``: the mean of the models of ``FOLDS`` folds."""

    def __init__(self, seed: int, base: Stack | None = None):
        """``base``: a stack over all but the last of the sources, whose score is one more feature."""
        self.seed, self.base = seed, base
        self.trees: list[Any] = []

    def fit(self, sources: Sources, requests: Requests, held: Sequence[Example] = ()) -> Self:
        """Fit trees on validation requests, with sources fitted on train, and on examples of training requests."""
        draw = np.random.default_rng(self.seed)
        if len(requests) > FIT_REQUESTS:
            requests = requests.take(np.sort(draw.permutation(len(requests))[:FIT_REQUESTS]))
        return self.fit_examples([*examples(sources, requests, self._with_base), *held], draw)

    def fit_examples(self, given: Sequence[Example], draw: np.random.Generator | None = None) -> Self:
        """Fit trees on ``given``: in each fold, the requests left out choose the number of trees."""
        import lightgbm as library

        if len(given) < MIN_GROUPS:
            log.warning("%s: its sources find %d targets, too few to learn from", NAME, len(given))
            return self
        draw = draw or np.random.default_rng(self.seed)
        fold = draw.permutation(len(given)) % FOLDS
        parameters = PARAMETERS | {"seed": self.seed}
        for left_out in range(FOLDS):
            parts = [library.Dataset(**_joined(given, (fold == left_out) == flag)) for flag in (False, True)]
            stopping = library.early_stopping(PATIENCE, verbose=False)
            trees = library.train(parameters, parts[0], MAX_ROUNDS, valid_sets=[parts[1]], callbacks=[stopping])
            self.trees.append(trees)
        rounds = [trees.best_iteration for trees in self.trees]
        log.info("%s: %s trees from %d requests", NAME, rounds, len(given))
        return self

    def scores(self, features: np.ndarray) -> np.ndarray:
        """The trees' mean score (B, K) of features (B, K, F)."""
        table = features.reshape(-1, features.shape[-1])
        return np.mean([trees.predict(table) for trees in self.trees], axis=0).reshape(features.shape[:-1])

    def _with_base(self, features: np.ndarray) -> np.ndarray:
        """Features, and behind them the score of the base, which does not know the last source's score and rank."""
        if self.base is None or not self.base.trees:
            return features
        last = features.shape[-1] - len(ITEM_FEATURES) - len(HISTORY_FEATURES)
        score = self.base.scores(np.delete(features, (last - 2, last - 1), axis=-1))
        return np.concatenate([features, score[..., None].astype(np.float32)], axis=-1)

    def rank(self, sources: Sources, requests: Requests, k: int, exclude_seen: bool = True) -> np.ndarray:
        """Ranked item ids (N, k), -1 where empty."""
        ranked = np.full((len(requests), k), PAD, np.int64)
        begin = 0
        for chunk in chunks(requests, sources):
            ids, features = sources.candidates(chunk, exclude_seen)
            scores = self.scores(self._with_base(features))
            order = np.argsort(np.where(ids < 0, np.inf, -scores), axis=1, kind="stable")[:, :k]
            ranked[begin : begin + len(chunk), : order.shape[1]] = np.take_along_axis(ids, order, 1)
            begin += len(chunk)
        return ranked


def examples(
    sources: Sources, requests: Requests, extend: Callable[[np.ndarray], np.ndarray] = lambda features: features
) -> list[Example]:
    """Features (K, F) and hits (K,) of each request whose target is among its K candidates."""
    made: list[Example] = []
    for chunk in chunks(requests, sources):
        ids, features = sources.candidates(chunk)
        features, hit = extend(features), ids == chunk.targets[:, None]
        for row in np.flatnonzero(hit.any(1)):
            live = ids[row] >= 0
            made.append((features[row, live], hit[row, live]))
    return made


def chunks(requests: Requests, sources: Sources):
    """Consecutive requests, so few that each source's scores over the catalogue stay within ``CELLS``."""
    size = max(1, min(256, CELLS // max(len(sources.features.counts), 1)))
    for begin in range(0, len(requests), size):
        yield requests.take(np.arange(begin, min(begin + size, len(requests))))


def _joined(given: Sequence[Example], keep: np.ndarray) -> dict[str, Any]:
    """The arguments of ``lightgbm.Dataset``."""
    kept = [given[one] for one in np.flatnonzero(keep).tolist()]
    return {
        "data": np.concatenate([features for features, _ in kept]),
        "label": np.concatenate([hit for _, hit in kept]).astype(np.int8),
        "group": np.array([len(hit) for _, hit in kept]),
    }
