"""Feedback levels and calibrated rates: what an interaction is worth (OneSearch's PARS, arXiv 2509.03236).

A level's weight says how much a kind of feedback means. An item's smoothed click and conversion rates say how reliable
it is. Both together are the reward of showing the item: ``r = 2 weight ctr cvr / (ctr + cvr)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from genrec.data.impressions import first_feedback
from genrec.errors import UserError

SIMILAR, UNRELATED = "similar", "unrelated"  # without an impression: of the category of the chosen item, and any other
UNOBSERVED = {SIMILAR: 0.2, UNRELATED: 0.0}
SMOOTHING = 10.0  # added to counts before an item's rates are taken: items with few impressions lie in the middle
_IMPRESSION_WEIGHT, _FIRST_WEIGHT, _LAST_WEIGHT = 0.5, 1.0, 2.0


@dataclass(frozen=True)
class Levels:
    """A feedback chain with weights.

    ``chain`` runs from shallow to deep, ``weights`` (stages,); ``click`` and ``order`` index the stages that count as
    such.
    """

    chain: tuple[str, ...]
    weights: np.ndarray
    click: int
    order: int
    similar: float
    unrelated: float

    @classmethod
    def build(cls, chain: Sequence[str], weights: Mapping[str, float], order: str | None = None) -> Levels:
        """Levels of a chain, whose click is the first stage beyond an impression.

        Stages without a given weight get one by rule: an impression .5, the first stage beyond it 1, the deepest 2, the
        others evenly between; items without an impression .2 where similar, else 0. Raises ``UserError`` for a stage
        that is not in the chain and for weights that fall along it.
        """
        chain = tuple(chain)
        if order is not None and order not in chain:
            raise UserError(f"preference.order: '{order}' is not one of {', '.join(chain)}")
        unknown = [name for name in weights if name not in (*chain, *UNOBSERVED)]
        if unknown:
            raise UserError(f"preference.levels: '{unknown[0]}' is not one of {', '.join((*chain, *UNOBSERVED))}")
        first = first_feedback(chain)
        rule = [_IMPRESSION_WEIGHT] * first + np.linspace(_FIRST_WEIGHT, _LAST_WEIGHT, len(chain) - first).tolist()
        values = np.array([weights.get(name, usual) for name, usual in zip(chain, rule, strict=True)], np.float64)
        if (values < 0).any() or (np.diff(values) < 0).any():
            raise UserError(
                f"preference.levels: weights {values.tolist()} of {', '.join(chain)} must not fall along the chain "
                "or below 0"
            )
        ordered = chain.index(order) if order else len(chain) - 1
        if ordered < first:
            raise UserError(
                f"preference.order: '{chain[ordered]}' comes before the click '{chain[first]}' in the chain"
            )
        similar, unrelated = (float(weights.get(name, usual)) for name, usual in UNOBSERVED.items())
        return cls(chain, values, first, ordered, similar, unrelated)


@dataclass(frozen=True)
class Rates:
    """Smoothed rates of every item, (n_items,) each.

    ``ctr`` is the rate of clicks among impressions, ``cvr`` that of orders among clicks.
    """

    ctr: np.ndarray
    cvr: np.ndarray

    @classmethod
    def from_counts(
        cls, impressions: np.ndarray, clicked: np.ndarray, ordered: np.ndarray, smoothing: float = SMOOTHING
    ) -> Rates:
        """Rates from logarithms of smoothed counts.

        ``ctr = log(c + s) / log((n + s)(c + s)(o + s))`` and ``cvr = log(o + s) / log(c + s)``, with s above 1.
        """
        log_n, log_c, log_o = (np.log(counts + smoothing) for counts in (impressions, clicked, ordered))
        return cls(log_c / (log_n + log_c + log_o), log_o / log_c)

    @classmethod
    def of_rows(cls, items: np.ndarray, stages: np.ndarray, n_items: int, levels: Levels) -> Rates:
        """Rates from rows (M,) of items and the stage that each reached.

        The rows of a log without impressions are its events: all of them are clicks, and only ``cvr`` tells items
        apart.
        """
        impressions, clicked, ordered = (
            np.bincount(items[stages >= minimum], minlength=n_items) for minimum in (0, levels.click, levels.order)
        )
        return cls.from_counts(impressions, clicked, ordered)

    def reward(self, items: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The harmonic reward of items (...) at level weights (...)."""
        ctr, cvr = self.ctr[items], self.cvr[items]
        return 2 * weights * ctr * cvr / (ctr + cvr)


def adaptive_margins(better: np.ndarray, worse: np.ndarray, limit: float) -> np.ndarray:
    """Pair weights ``1 / (better - worse)`` of rewards, relative to the mean pair and within [1 / limit, limit].

    Close pairs count more. A pair with equal or reversed rewards gets the limit; NaN in ``worse`` marks no pair and
    gets 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / np.maximum(better - worse, 1e-9)
    known = np.isfinite(inverse)
    # The geometric mean: no single close pair decides it.
    usual = float(np.exp(np.log(inverse[known]).mean())) if known.any() else 1.0
    return np.where(known, np.clip(inverse / usual, 1 / limit, limit), 0.0)
