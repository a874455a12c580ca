"""The order of training batches: similar lengths together, decided by seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from genrec.config import TrainingConfig
from genrec.data.dataset import Dataset
from genrec.data.sequences import Windows
from genrec.model.collate import Collator
from genrec.model.network import Batch


def epoch_batches(windows: Windows, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Batches of window rows of similar length, in an order that depends only on seed and epoch."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(windows))
    length = (windows.stop - windows.start)[order]
    # Sorting inside large pools keeps padding low and neighbours random.
    pool = np.arange(len(order)) // (batch_size * 50)
    order = order[np.lexsort((length, pool))]
    batches = np.array_split(order, max(1, -(-len(order) // batch_size)))
    return [batches[index] for index in rng.permutation(len(batches))]


class EpochLoader:
    """One epoch's batches, in order; length and content depend only on (seed, epoch)."""

    def __init__(self, data: Dataset, windows: Windows, collator: Collator, training: TrainingConfig, seed: int, epoch: int, searches: bool):
        self.data, self.windows, self.collator, self.searches = data, windows, collator, searches
        self.batches = epoch_batches(windows, training.batch_size, seed, epoch)
        self.recommend_searches = bool(data.info["synthetic_queries"]) or not searches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.batches:
            yield self.collator.windows(self.data, self.windows, rows, self.recommend_searches, self.searches)
