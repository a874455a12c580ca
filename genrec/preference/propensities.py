"""Inverse propensities: what the logging policy seldom showed counts more, as if everything had been shown alike.

A log holds what its policy chose. With the chance of each impression in the log, weights of one over it make sums over
impressions estimates for any other policy (Horvitz and Thompson, 1952; for recommenders Schnabel et al., arXiv
1602.05352). Few large weights make such sums unsure, so weights are clipped.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from genrec.data.dataset import Dataset
from genrec.preference.feedback import Feedback
from genrec.preference.levels import Levels

MIN_KNOWN = 0.2  # of the rows must state a propensity, else the log counts as one without
MIN_SAMPLE = 0.5  # weights are clipped so that they are worth at least this fraction of the rows
_HALVINGS = 40


def inverse_weights(propensities: np.ndarray) -> np.ndarray | None:
    """Weights (n,) with mean 1 over the known rows of propensities (n,), 0 for NaN; None where too few are known.

    They are clipped at the highest value at which the effective sample size (Kish: squared sum over sum of squares) is
    ``MIN_SAMPLE`` of the known rows.
    """
    known = np.isfinite(propensities)
    if not known.any() or known.mean() < MIN_KNOWN:
        return None
    weights = 1 / propensities[known]
    low, high = np.log(weights.min()), np.log(weights.max())
    for _ in range(_HALVINGS):  # the sample size falls as the limit rises
        middle = (low + high) / 2
        low, high = (middle, high) if sample_size(weights.clip(max=np.exp(middle))) >= MIN_SAMPLE else (low, middle)
    limit = np.exp(high if sample_size(weights) >= MIN_SAMPLE else low)
    result = np.zeros(len(propensities))
    result[known] = weights.clip(max=limit)
    return result / result[known].mean()


def sample_size(weights: np.ndarray) -> float:
    """The effective sample size of weights (n,), as a fraction of n."""
    return float(weights.sum() ** 2 / np.square(weights).sum() / len(weights))


def target_propensities(feedback: Feedback, data: Dataset, events: np.ndarray, levels: Levels) -> np.ndarray:
    """The logged chance of the impression behind each event of the log: (n,), NaN where the log names none.

    ``events`` (n,) index the log's events. The impression is the user's last one of the item up to the event that
    reached a click.
    """
    clicked = np.flatnonzero(feedback.stages >= levels.click)
    owner = feedback.owner[clicked]
    shown = pl.DataFrame(
        {
            "user": feedback.users[owner],
            "item": feedback.items[clicked],
            "time": feedback.times[owner],
            "propensity": feedback.propensities[clicked],
        }
    ).sort("time")
    wanted = pl.DataFrame(
        {
            "user": data.event_users[events],
            "item": np.asarray(data.items)[events].astype(np.int64),
            "time": np.asarray(data.timestamps)[events].astype(np.int64),
        }
    ).with_row_index("row")
    joined = wanted.sort("time").join_asof(shown, on="time", by=["user", "item"], check_sortedness=False)
    return joined.sort("row")["propensity"].fill_null(np.nan).to_numpy()
