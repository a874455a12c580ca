"""Whether a query names something of the catalogue: a logistic regression over how it was read.

It is calibrated on real or synthetic queries against the same queries with their letters shuffled, so a threshold means
a stated rate of false alarms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from genrec.retrieval.query_reading import ReadQuery

FALSE_ALARMS = 0.01  # fraction of good queries that may be said to match nothing
EXACT = 0.75  # quality from which a word counts as read with certainty


@dataclass(frozen=True)
class MatchJudge:
    """The probability ``sigmoid(weights . features + bias)`` that a query names something, and what is too little.

    The defaults ask that a third of the query is read; ``fit`` replaces them.
    """

    weights: tuple[float, ...] = (3.0, 3.0, 3.0)
    bias: float = -3.0
    threshold: float = 0.5

    @classmethod
    def fit(cls, good: np.ndarray, nonsense: np.ndarray, mixed: np.ndarray) -> MatchJudge:
        """Fit on features (n, 3) of good queries, of nonsense, and of ``mixed`` ones, which are good in part.

        The threshold says of at most ``FALSE_ALARMS`` of the good queries that they match nothing, and is at most 0.5.
        The defaults where good queries or nonsense are missing.
        """
        if not len(good) or not len(nonsense):
            return cls()
        x = np.concatenate([good, mixed, nonsense])
        y = np.concatenate([np.ones(len(good) + len(mixed)), np.zeros(len(nonsense))])
        model = LogisticRegression(class_weight="balanced", C=10.0).fit(x, y)
        judge = cls(tuple(model.coef_[0].tolist()), float(model.intercept_[0]))
        threshold = min(float(np.quantile(judge.probabilities(good), FALSE_ALARMS)), 0.5)
        return cls(judge.weights, judge.bias, threshold)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Probabilities (n,) of features (n, 3)."""
        return 1 / (1 + np.exp(-(features @ np.asarray(self.weights) + self.bias)))

    def probability(self, read: ReadQuery, best: float) -> float:
        """The probability that a query names something; ``best`` is the best item's score."""
        return float(self.probabilities(match_features(read, best)[None])[0])

    def state(self) -> dict[str, float | list[float]]:
        """JSON-ready values that ``from_state`` takes back."""
        return {"weights": list(self.weights), "bias": self.bias, "threshold": self.threshold}

    @classmethod
    def from_state(cls, state: dict) -> MatchJudge:
        """Inverse of ``state``."""
        return cls(tuple(state["weights"]), state["bias"], state["threshold"])


def match_features(read: ReadQuery, best: float) -> np.ndarray:
    """(3,): the fraction of the query that is read with certainty, that is read at all, and that the best item has."""
    return np.array([read.coverage(EXACT), read.coverage(), min(best / max(read.weight, 1e-9), 1.0)])


def shuffled(queries: Sequence[str], seed: int) -> list[str]:
    """The queries with the letters of each word in a random order: nonsense of the same letters and lengths."""
    rng = np.random.default_rng(seed)
    return [" ".join("".join(rng.permutation(list(word)).tolist()) for word in query.split()) for query in queries]
