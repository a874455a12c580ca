"""Co-occurrence and windowed transitions: which items follow an item within a few events, and which share its users."""

from __future__ import annotations

from typing import Self

import numpy as np
import scipy.sparse as sp

from genrec.data.histories import Histories
from genrec.retrieval.history_model import HistoryModel, recency
from genrec.retrieval.windowed import windowed_moves


class Transitions(HistoryModel):
    """``S = cooccurrence D^-1/2 C D^-1/2 + (T + backward T^T) D^-power``, with D one plus an item's users.

    C[i, j] counts the users of both items. T[i, j] sums ``lag_decay ** (lag - 1)`` over the times that j came ``lag``
    events after i, up to ``window``.
    """

    SPACE = {
        "decay": (0.8, 0.9, 0.6, 0.4),
        "window": (1, 2, 3, 5, 10),
        "power": (0.0, 0.25, 0.5),
        "lag_decay": (0.5, 0.8),
        "backward": (0.0, 0.5, 1.0),
        "cooccurrence": (0.0, 0.5, 5.0, 20.0),
    }

    def __init__(
        self,
        decay: float = 0.6,
        window: int = 1,
        lag_decay: float = 0.7,
        power: float = 0.0,
        backward: float = 0.5,
        cooccurrence: float = 2.0,
        max_history: int = 500,
    ):
        super().__init__(decay, max_history)
        self.window, self.lag_decay, self.power = window, lag_decay, power
        self.backward, self.cooccurrence = backward, cooccurrence

    def fit(self, train: Histories, n_items: int, times: np.ndarray | None = None) -> Self:
        """Count co-occurrence and transitions."""
        train = train.last_n(self.max_history)
        moves = windowed_moves(train, n_items, self.window, self.lag_decay)
        users = np.bincount(train.items, minlength=n_items) + 1.0
        both = (moves + self.backward * moves.T) @ sp.diags(users**-self.power)
        if self.cooccurrence:
            had = recency(train, n_items, 1.0)
            together = (had.T @ had).tocsr()
            together.setdiag(0)
            scale = sp.diags((np.asarray(had.sum(axis=0), np.float64).ravel() + 1) ** -0.5)
            both = both + self.cooccurrence * (scale @ together @ scale)
        self.matrix = both.tocsr().astype(np.float32)
        return self
