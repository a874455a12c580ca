"""Recently popular items: which items people take at the time of a request, from decayed counts of the whole log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import scipy.sparse as sp

from genrec.errors import UserError
from genrec.retrieval.sparse import table_arrays, table_of

MOMENTS = 256  # times within the log at which popularity is known; a request reads the last before its own
HALF_LIFE = 20  # the log's time span by that of an event's weight
KEPT = 150  # items of a moment: those proposed, and room for what a person had


class RecentPopularity:
    """The most popular items of each of ``MOMENTS`` times, an event's weight halving with its age.

    ``times`` (M,) int64: epoch seconds, rising. ``table`` (M, n_items): decayed counts of the items kept at each. They
    count events before that time alone, so that a request sees none of its future.
    """

    def __init__(self, times: np.ndarray, table: sp.csr_matrix):
        self.times, self.table = times, table

    @classmethod
    def fit(cls, items: np.ndarray, times: np.ndarray, n_items: int) -> Self:
        """Count events: ``items`` and ``times`` (epoch seconds), (n_events,) each."""
        origin, end = (int(times.min()), int(times.max()) + 1) if len(times) else (0, 1)
        bounds = origin + ((end - origin) * np.arange(1, MOMENTS + 1, dtype=np.int64) + MOMENTS - 1) // MOMENTS
        half = max((end - origin) / HALF_LIFE, 1.0)
        period = np.searchsorted(bounds, times, side="right").astype(np.uint8)
        order, stops = np.argsort(period, kind="stable"), np.bincount(period, minlength=MOMENTS).cumsum()
        weights, begin, before = np.zeros(n_items), 0, origin
        ids: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        for stop, bound in zip(stops.tolist(), bounds.tolist(), strict=True):
            weights *= 0.5 ** ((bound - before) / half)
            new = order[begin:stop]
            weights += np.bincount(items[new], 0.5 ** ((bound - times[new]) / half), minlength=n_items)
            begin, before = stop, bound
            ids.append(_largest(weights))
            counts.append(weights[ids[-1]])
        indptr = np.cumsum([0, *map(len, ids)])
        values = np.concatenate(counts).astype(np.float32), np.concatenate(ids).astype(np.int32), indptr
        return cls(bounds, sp.csr_matrix(values, shape=(MOMENTS, n_items)))

    def scores(self, until: np.ndarray) -> sp.csr_matrix:
        """Decayed counts (B, n_items) for requests that may look up to the epoch seconds ``until`` (B,).

        There are none before the first moment.
        """
        moment = np.searchsorted(self.times, until, side="right") - 1
        rows = self.table[np.maximum(moment, 0)]
        return rows if (moment >= 0).all() else sp.diags((moment >= 0).astype(np.float32)) @ rows

    def state(self) -> dict[str, np.ndarray]:
        """Plain arrays that ``from_state`` takes back."""
        return {"recent_times": self.times, **table_arrays("recent", self.table)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], n_items: int) -> Self:
        """The counts that ``state`` describes. Raises ``UserError`` where it has none."""
        if "recent_times" not in state:
            raise UserError("the candidate features lack recent popularity; make them again (genrec train)")
        return cls(state["recent_times"], table_of("recent", state, (len(state["recent_times"]), n_items)))


def _largest(weights: np.ndarray) -> np.ndarray:
    """The ids (at most ``KEPT``,) of the largest positive weights, rising; of equal ones the lower ids."""
    if len(weights) > KEPT:
        least = np.partition(weights, -KEPT)[-KEPT]
        above = np.flatnonzero(weights > least)
        ids = np.sort(np.concatenate([above, np.flatnonzero(weights == least)[: KEPT - len(above)]]))
    else:
        ids = np.arange(len(weights))
    return ids[weights[ids] > 0]
