"""Feedback rates: how often an item reached each stage, by item, user and situation, before a time.

Counts come from the impressions of a fit's split alone, and of these from the ones strictly earlier than the request:
no row knows its own outcome, in training as in use. Rates are shrunk towards the log's mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

KEYS = ("item", "user", "surface", "brand", "category", "user_category", "item_surface")
_STRENGTH = 10.0  # impressions of average rates added to every count


def n_features(stages: int) -> int:
    """Features of a candidate: per key a rate for each stage and the logarithm of the count."""
    return len(KEYS) * (stages + 1)


def starting_weights(stages: int) -> np.ndarray:
    """Weights (stages, n_features) that a model may start from.

    Half the sum of a stage's own log-odds over all keys: naive Bayes would add them up, and they overlap.
    """
    weights = np.zeros((stages, len(KEYS), stages + 1), np.float32)
    weights[np.arange(stages), :, np.arange(stages)] = 0.5
    return weights.reshape(stages, -1)


@dataclass(frozen=True)
class _Counter:
    """Rows sorted by key and time: ``order`` (n,) key x span + time, ``reached`` (n + 1, stages) running sums."""

    order: np.ndarray
    reached: np.ndarray


class FeedbackRates:
    """Rates of impressions; see the module's docstring."""

    def __init__(
        self, impressions: pl.DataFrame, brands: np.ndarray, categories: np.ndarray, reached: np.ndarray, until: int
    ):
        """``impressions`` (n rows): dense ``user`` and ``item``, ``timestamp`` and perhaps ``surface``.

        ``reached`` (n, stages) bool.

        ``brands``, ``categories`` (n_items,) int64 codes, -1 unknown. Rows from ``until`` (seconds) on are not counted.
        """
        self.brands, self.categories = _dense(brands), _dense(categories)
        self.stages = reached.shape[1]
        times = impressions["timestamp"].to_numpy().astype(np.int64)
        known = times < until
        self.origin = int(times[known].min()) if known.any() else 0
        self.span = (int(times[known].max()) - self.origin if known.any() else 0) + 2
        names = sorted(set(impressions["surface"].drop_nulls())) if "surface" in impressions.columns else []
        self.surfaces = {name: index for index, name in enumerate(names)}
        part = impressions.filter(pl.Series(known))
        self.mean = reached[known].mean(0) if known.any() else np.zeros(self.stages)
        keys = self.keys(part["user"].to_numpy(), part["item"].to_numpy(), self.surface_codes(part))
        self.counters = [self._counter(key, times[known], reached[known]) for key in keys]

    def surface_codes(self, table: pl.DataFrame) -> np.ndarray:
        """Codes (n,) of a table's surfaces, -1 where there is none or it is new."""
        if "surface" not in table.columns or not self.surfaces:
            return np.full(len(table), -1, np.int64)
        return (
            table["surface"].replace_strict(self.surfaces, default=-1, return_dtype=pl.Int64).fill_null(-1).to_numpy()
        )

    def keys(self, users: np.ndarray, items: np.ndarray, surfaces: np.ndarray) -> list[np.ndarray]:
        """One key (n,) per ``KEYS``; -1 where a part of it is unknown."""
        users, items, surfaces = (part.astype(np.int64) for part in (users, items, surfaces))
        category = self.categories[items]
        width, spots = int(self.categories.max(initial=0)) + 1, len(self.surfaces) + 1

        def pair(one: np.ndarray, other: np.ndarray, size: int) -> np.ndarray:
            return np.where((one < 0) | (other < 0), -1, one * size + other)

        return [
            items,
            users,
            surfaces,
            self.brands[items],
            category,
            pair(users, category, width),
            pair(items, surfaces, spots),
        ]

    def _counter(self, key: np.ndarray, times: np.ndarray, reached: np.ndarray) -> _Counter:
        live = key >= 0
        values = key[live] * self.span + (times[live] - self.origin)
        order = np.argsort(values, kind="stable")
        sums = np.concatenate([np.zeros((1, self.stages)), reached[live][order].cumsum(0)])
        return _Counter(values[order], sums)

    def features(self, users: np.ndarray, items: np.ndarray, surfaces: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Features (n, n_features) float32 of items for ``users`` on ``surfaces`` (-1 unknown) at ``times``."""
        when = np.clip(times - self.origin, 0, self.span - 1)
        columns = []
        for key, counter in zip(self.keys(users, items, surfaces), self.counters, strict=True):
            base = np.maximum(key, 0) * self.span
            first, last = np.searchsorted(counter.order, base), np.searchsorted(counter.order, base + when)
            known = key >= 0
            count = np.where(known, last - first, 0)
            sums = (counter.reached[last] - counter.reached[first]) * known[:, None]
            rate = (sums + _STRENGTH * self.mean) / (count + _STRENGTH)[:, None]
            columns += [_logit(rate) - _logit(self.mean), np.log1p(count)[:, None] / 4]
        return np.concatenate(columns, axis=1).astype(np.float32)


def _dense(codes: np.ndarray) -> np.ndarray:
    """The same codes as numbers from 0 on, which a key of several parts has room for; -1 stays."""
    dense = np.unique(np.append(codes, -1), return_inverse=True)[1]  # -1 is the lowest
    return dense[:-1].astype(np.int64) - 1


def _logit(rate: np.ndarray) -> np.ndarray:
    rate = np.clip(rate, 1e-4, 1 - 1e-4)
    return np.log(rate / (1 - rate))
