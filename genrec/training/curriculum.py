"""Staged training as a curriculum over how requests are built, with one loss (OneSearch, arXiv 2509.03236, 2.5).

``align``        the text of an item, without history -> the item: every item equally often, items without events too;
               a part of the searches of later epochs ask by the text of their item, too (``TEXT_SEARCHES``)
``co-occur``     a query, without history -> its item; and one event -> the item that followed
``personalise``  the whole history, with or without a query

Every epoch of every stage has about as many optimiser steps, and as many requests in a step, as a ``personalise``
epoch of the same data.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from genrec.config.schema import Config, TrainingConfig
from genrec.data.dataset import Dataset
from genrec.data.sequences import Windows, make_windows
from genrec.model.collate import Collator
from genrec.training.batches import ItemBatches, WindowBatches, recommends_searches, request_counts

BACKBONE_EPOCHS, DECODER_EPOCHS, SASREC_EPOCHS = (4, 20), (2, 8), (8, 30)  # minimum and maximum by rule
FULL_EVENTS = (
    200_000  # up to so many training events: the maximum. Amazon Beauty (154,000) still rises after 8 of 20 epochs
)
ALIGN, CO_OCCUR, PERSONALISE = "align", "co-occur", "personalise"


def epochs_by_size(events: int, bounds: tuple[int, int]) -> int:
    """The number of epochs for a log of ``events`` training events.

    The maximum for a small log, then about as many steps in all, and at least the minimum: an epoch's length grows
    with the log, and many users' events teach as much as rereading a few users' events.
    """
    minimum, maximum = bounds
    return max(minimum, min(maximum, round(maximum * FULL_EVENTS / max(events, 1))))


def stage_name(training: TrainingConfig, epoch: int) -> str:
    """The stage that an epoch, counted from 0, belongs to."""
    if epoch < training.align_epochs:
        return ALIGN
    return CO_OCCUR if epoch < training.align_epochs + training.cooccur_epochs else PERSONALISE


class Curriculum:
    """The batches of one training's epochs. ``searches`` and ``recommends`` say what is learnt of an event."""

    def __init__(
        self, dataset: Dataset, collator: Collator, config: Config, last: int, searches: bool, recommends: bool
    ):
        """``last``: the last split to learn from.

        With ``align_epochs`` the ``collator`` must know the items' texts.
        """
        self.dataset, self.collator, self.training, self.seed = dataset, collator, config.training, config.seed
        self.searches, self.recommends = searches, recommends
        self.lengths = dataset.known_lengths(last)
        stride = config.training.stride or max(config.model.max_length // 2, 1)
        self.windows = make_windows(dataset.offsets, self.lengths, config.model.max_length, stride)
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

    def batches(self, epoch: int, rank: int, world: int) -> WindowBatches:
        """The micro-batches of an epoch, counted from 0."""
        stage, common = stage_name(self.training, epoch), (self.collator, self.training, self.seed, epoch)
        if stage == ALIGN:
            return ItemBatches(self.collator.described, int(self.counts.sum()), self.steps, *common, rank, world)
        windows, counts, pairs = self.windows, self.counts, 0
        if stage == CO_OCCUR:
            windows, counts = self._pairs
            pairs = -(-int((counts > 0).sum()) // self.steps)
        return WindowBatches(self.dataset, windows, counts, *common, self.searches, rank, world, self.recommends, pairs)
