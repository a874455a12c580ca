"""Staged training as a curriculum over how requests are built, with one loss code (OneSearch, arXiv 2509.03236, section 2.5 of its stages).

``align``        the text of an item, asked by nobody -> the item: every item of the catalogue equally often, those without events too
``co-occur``     a query, asked by nobody -> its item; and the one event before -> the item that followed
``personalise``  the whole history, with the query or without

Every epoch of every stage has about as many optimiser steps, and as many requests in a step, as a ``personalise`` epoch of the same data.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from genrec.config.schema import Config, TrainingConfig
from genrec.data.dataset import Dataset
from genrec.data.sequences import Windows, make_windows
from genrec.model.collate import Collator
from genrec.training.batches import EpochLoader, ItemLoader, recommends_searches, request_counts

BACKBONE_EPOCHS, DECODER_EPOCHS, SASREC_EPOCHS = (4, 20), (2, 8), (8, 30)  # fewest and most by rule
FULL_EVENTS = (
    200_000  # up to so many training events the most; Amazon Beauty (154,000) still rises after 8 of 20 epochs
)
ALIGN, CO_OCCUR, PERSONALISE = "align", "co-occur", "personalise"


def epochs_by_size(events: int, bounds: tuple[int, int]) -> int:
    """How many epochs of a log of ``events`` training events: the most for a small one, then about as many steps in all, at least the fewest.

    An epoch's length grows with the log, and what many people did once teaches as much as what few did read again.
    """
    fewest, most = bounds
    return max(fewest, min(most, round(most * FULL_EVENTS / max(events, 1))))


def stage_name(training: TrainingConfig, epoch: int) -> str:
    """The stage that an epoch, counted from 0, belongs to."""
    if epoch < training.align_epochs:
        return ALIGN
    return CO_OCCUR if epoch < training.align_epochs + training.cooccur_epochs else PERSONALISE


class Curriculum:
    """The loaders of one training's epochs. ``searches`` and ``recommends``: what is learnt of an event."""

    def __init__(
        self,
        dataset: Dataset,
        collator: Collator,
        config: Config,
        last: int,
        searches: bool,
        recommends: bool,
        distil: bool,
    ):
        """``last``: the split up to which events are learnt from. ``collator`` must know the items' texts where ``align_epochs`` is above 0."""
        self.dataset, self.collator, self.training, self.seed = dataset, collator, config.training, config.seed
        self.searches, self.recommends, self.distil = searches, recommends, distil
        self.lengths = dataset.known_lengths(last)
        self.windows = make_windows(dataset.offsets, self.lengths, config.model.max_length, config.training.stride)
        self.counts = self._counts(self.windows)

    def _counts(self, windows: Windows) -> np.ndarray:
        plain = recommends_searches(self.dataset, self.searches)
        return request_counts(self.dataset, windows, plain, self.searches, self.recommends, self.training.same_time)

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-int((self.counts > 0).sum()) // self.training.batch_size)

    @cached_property
    def _pairs(self) -> tuple[Windows, np.ndarray]:
        windows = make_windows(self.dataset.offsets, self.lengths, 1, 1)
        return windows, self._counts(windows)

    def loader(self, epoch: int, rank: int, world: int) -> EpochLoader:
        """The batches of an epoch, counted from 0."""
        stage = stage_name(self.training, epoch)
        if stage == ALIGN:
            rows = self.collator.described
            return ItemLoader(
                rows, int(self.counts.sum()), self.steps, self.collator, self.training, self.seed, epoch, rank, world
            )
        windows, counts, pairs = self.windows, self.counts, 0
        if stage == CO_OCCUR:
            windows, counts = self._pairs
            pairs = -(-int((counts > 0).sum()) // self.steps)
        return EpochLoader(
            self.dataset, windows, counts, self.collator, self.training, self.seed, epoch, self.searches, rank, world, self.recommends, pairs,
            self.distil,
        )  # fmt: skip
