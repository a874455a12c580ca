"""Behaviour levels and calibrated rates: what an interaction is worth (OneSearch's PARS, arXiv 2509.03236).

A level's weight says how much a kind of behaviour means; an item's smoothed click and conversion rates say how much to believe it. Both
together are the reward of showing that item: ``r = 2 weight ctr cvr / (ctr + cvr)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from genrec.data.impressions import first_feedback
from genrec.errors import UserError

SIMILAR, UNRELATED = "similar", "unrelated"  # not shown: of the same category as what was chosen, and any other
NOT_SHOWN = {SIMILAR: 0.2, UNRELATED: 0.0}
_SHOWN_WEIGHT, _FIRST_WEIGHT, _LAST_WEIGHT = 0.5, 1.0, 2.0


@dataclass(frozen=True)
class Levels:
    """A feedback chain with weights: ``chain`` from shallow to deep, ``weights`` (stages,), the stages that count as click and as order."""

    chain: tuple[str, ...]
    weights: np.ndarray
    click: int
    order: int
    similar: float
    unrelated: float

    @classmethod
    def build(
        cls, chain: Sequence[str], weights: Mapping[str, float], click: str | None = None, order: str | None = None
    ) -> Levels:
        """Levels of a chain; stages that ``weights`` leaves out get theirs by rule: shown .5, the first step beyond it 1, the deepest 2,
        evenly between; not shown but similar .2, else 0. Raises ``UserError`` for a stage that the chain does not have, or one out of order.
        """
        chain = tuple(chain)
        for name, value in (("click", click), ("order", order)):
            if value is not None and value not in chain:
                raise UserError(f"preference.{name}: '{value}' is not one of {', '.join(chain)}")
        unknown = [name for name in weights if name not in (*chain, *NOT_SHOWN)]
        if unknown:
            raise UserError(f"preference.levels: '{unknown[0]}' is not one of {', '.join((*chain, *NOT_SHOWN))}")
        first = first_feedback(chain)
        ruled = np.concatenate(
            [np.full(first, _SHOWN_WEIGHT), np.linspace(_FIRST_WEIGHT, _LAST_WEIGHT, len(chain) - first)]
        )
        values = np.array([weights.get(name, rule) for name, rule in zip(chain, ruled, strict=True)], np.float64)
        if (values < 0).any() or (np.diff(values) < 0).any():
            raise UserError(
                f"preference.levels: weights {values.tolist()} of {', '.join(chain)} must not fall along the chain or below 0"
            )
        at = {
            name: chain.index(value) if value else place
            for name, value, place in (("c", click, first), ("o", order, len(chain) - 1))
        }
        if at["o"] < at["c"]:
            raise UserError(
                f"preference.order: '{chain[at['o']]}' comes before preference.click = '{chain[at['c']]}' in the chain"
            )
        return cls(
            chain, values, at["c"], at["o"], *(float(weights.get(name, rule)) for name, rule in NOT_SHOWN.items())
        )


@dataclass(frozen=True)
class Rates:
    """Smoothed rates of every item, (n_items,) each: ``ctr`` of being clicked when shown, ``cvr`` of being ordered when clicked."""

    ctr: np.ndarray
    cvr: np.ndarray

    @classmethod
    def from_counts(cls, shown: np.ndarray, clicked: np.ndarray, ordered: np.ndarray, smoothing: float) -> Rates:
        """Calibrated by logarithms of smoothed counts, so that rarely shown items lie in the middle:
        ``ctr = log(c + s) / log((n + s)(c + s)(o + s))``, ``cvr = log(o + s) / log(c + s)``; s above 1.
        """
        log_shown, log_clicked, log_ordered = (np.log(counts + smoothing) for counts in (shown, clicked, ordered))
        return cls(log_clicked / (log_shown + log_clicked + log_ordered), log_ordered / log_clicked)

    @classmethod
    def of_rows(cls, items: np.ndarray, stages: np.ndarray, n_items: int, levels: Levels, smoothing: float) -> Rates:
        """From rows (M,) of items and how far down the chain each got. A log without impressions has its events as rows: all are clicks,
        and the rates only tell orders from clicks.
        """
        counts = (np.bincount(items[stages >= least], minlength=n_items) for least in (0, levels.click, levels.order))
        return cls.from_counts(*counts, smoothing)

    def reward(self, items: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The harmonic reward of items (...) at level weights (...)."""
        ctr, cvr = self.ctr[items], self.cvr[items]
        return 2 * weights * ctr * cvr / (ctr + cvr)


def adaptive_margins(better: np.ndarray, worse: np.ndarray, limit: float) -> np.ndarray:
    """``1 / (better - worse)`` of rewards, relative to the mean pair and kept within [1 / limit, limit]: close pairs count more.

    A pair whose rewards are equal or turned round gets the limit. ``worse`` may have NaN for no pair: weight 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / np.maximum(better - worse, 1e-9)
    known = np.isfinite(inverse)
    usual = (
        float(np.exp(np.log(inverse[known]).mean())) if known.any() else 1.0
    )  # the geometric mean: no single close pair decides it
    return np.where(known, np.clip(inverse / usual, 1 / limit, limit), 0.0)
