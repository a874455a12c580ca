"""Linear models of who had what, as sources of candidates: EASE^R's item weights, and the factors of implicit ALS.

Of an item that was added since, neither knows anything: it scores 0 and is not proposed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from genrec.catalogue.growing import append_rows
from genrec.data.histories import Histories
from genrec.retrieval.als import ImplicitALS
from genrec.retrieval.ease import EASE
from genrec.retrieval.history_model import recency
from genrec.retrieval.sparse import product, table_arrays, table_of

EASE_ITEMS = 1 << 14  # EASE^R inverts a dense matrix: a minute of one core at 13,000 items, and its cube beyond
EASE_WIDTH = 256  # weights of an item that are kept, the largest in absolute value: on validation as good as all
EASE_REGULARISATION = 10.0, 500.0  # times the mean events of an item, at most: sparse counts need less
EASE_EVENTS = 0.5, 10.0  # of a history, newest first, that count: this fraction of the mean history, at most so many
EARLIER_DECAY = 0.9  # of weights that were saved before the decay followed the log
EASE_CELLS = 1 << 24  # weights of a block of which the largest are found
ALS_ITEMS = 1 << 16  # the factors of all items are multiplied exactly
FACTORS, ALPHA, ALS_REGULARISATION, ALS_DECAY, ITERATIONS = 64, 100.0, 100.0, 0.8, 4
MAX_HISTORY = 500  # newest events of a request that are read


def ease_settings(train: Histories, n_items: int) -> tuple[float, float]:
    """Regularisation and decay of EASE^R for a log, as validation chose them on dense and on sparse logs."""
    events, users = len(train.items), max(int((train.lengths > 0).sum()), 1)
    factor, highest = EASE_REGULARISATION
    fraction, longest = EASE_EVENTS
    count = min(max(fraction * events / users, 1.0), longest)
    return min(max(factor * events / max(n_items, 1), 1.0), highest), max(1 - 1 / count, 0.1)


class EaseWeights:
    """Scores items by ``h B``: history h weighs an item ``decay ** age``, B are the largest weights of EASE^R."""

    def __init__(self, matrix: sp.csr_matrix, decay: float):
        self.matrix, self.decay = matrix, decay

    @classmethod
    def fit(cls, train: Histories, n_items: int) -> Self | None:
        """Fit on one history per user; None for a catalogue of more than ``EASE_ITEMS``."""
        if n_items > EASE_ITEMS:
            return None
        regularisation, decay = ease_settings(train, n_items)
        matrix = EASE(regularisation, decay).fit(train, n_items).matrix
        assert isinstance(matrix, np.ndarray)
        blocks = np.array_split(matrix, max(matrix.size // EASE_CELLS, 1))
        return cls(sp.vstack([_largest(block) for block in blocks], format="csr", dtype=np.float32), decay)

    def scores(self, histories: Histories) -> sp.csr_matrix:
        """Scores of histories (B, n_items), positive or negative; an item that no weight reaches has none."""
        recent = histories.last_n(MAX_HISTORY)
        n_items = max(self.matrix.shape[0], int(recent.items.max(initial=-1)) + 1)
        return product(recency(recent, n_items, self.decay), self.matrix)

    def state(self) -> dict[str, np.ndarray]:
        """Plain arrays that ``from_state`` takes back."""
        return table_arrays("ease", self.matrix) | {"ease_decay": np.asarray(self.decay)}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Self | None:
        """The weights that ``state`` describes; None where there are none."""
        if "ease_indptr" not in state:
            return None
        size = len(state["ease_indptr"]) - 1
        decay = state.get("ease_decay", np.asarray(EARLIER_DECAY))
        return cls(table_of("ease", state, (size, size)), float(decay))


def _largest(rows: np.ndarray) -> sp.csr_matrix:
    """Rows (n, n_items) with their ``EASE_WIDTH`` largest weights in absolute value."""
    if rows.shape[1] > EASE_WIDTH:
        least = np.partition(np.abs(rows), -EASE_WIDTH, axis=1)[:, -EASE_WIDTH, None]
        rows = np.where(np.abs(rows) >= least, rows, 0)
    return sp.csr_matrix(rows)


class ItemFactors:
    """Factors of items by implicit ALS; those of a user follow from the history of a request."""

    def __init__(self, model: ImplicitALS):
        """``model``: a fitted one."""
        assert model.items is not None
        self.model, self.items = model, model.items

    @classmethod
    def fit(cls, train: Histories, n_items: int) -> Self | None:
        """Fit on one history per user; None for a catalogue of more than ``ALS_ITEMS``."""
        if n_items > ALS_ITEMS:
            return None
        return cls(_model().fit(train, n_items))

    def grown(self, more: int) -> ItemFactors:
        """The same with zero factors of ``more`` items behind the others."""
        model = copy.copy(self.model)  # zeros add nothing to what all users' equations share
        model.items = append_rows(self.items, torch.zeros(more, self.items.shape[1]))
        return ItemFactors(model)

    def users(self, histories: Histories) -> Tensor:
        """Factors (B, factors) of users by their histories, zero where nothing of a history was fitted."""
        return self.model.users(histories)

    def state(self) -> dict[str, np.ndarray]:
        """Plain arrays that ``from_state`` takes back."""
        return {"als_items": self.items.numpy()}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Self | None:
        """The factors that ``state`` describes; None where there are none."""
        if "als_items" not in state:
            return None
        return cls(_model().with_items(torch.from_numpy(np.array(state["als_items"]))))


def _model() -> ImplicitALS:
    return ImplicitALS(FACTORS, ALPHA, ALS_REGULARISATION, ALS_DECAY, ITERATIONS, MAX_HISTORY)
