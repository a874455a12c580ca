"""What a fit reads: epochs of training batches, and the validation requests of one process."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import lightning as L
import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from genrec.catalogue.semantic_ids import SemanticIds
from genrec.config.schema import Config
from genrec.data.dataset import VALID, Dataset, Requests
from genrec.data.impressions import ImpressionLog, load_impressions, stage_indices
from genrec.data.situation import Situation, SituationReader
from genrec.errors import UserError
from genrec.model.batch import Batch
from genrec.model.collate import Collator, impression_windows, request_batches
from genrec.model.query_features import QueryFeatures
from genrec.text.encoder import item_texts
from genrec.training.batches import EpochLoader, pinned
from genrec.training.curriculum import Curriculum
from genrec.training.distributed import on_gpu, rank_and_world
from genrec.training.plan import FitPlan
from genrec.training.warm_start import choose_windows

log = logging.getLogger(__name__)
REQUESTS, IMPRESSION_REQUESTS = 64, 256  # of a validation batch


@dataclass
class ValidationBatch:
    """Requests to rank, and the items that their users already had: ``seen_rows`` and ``seen_items`` (n,).

    A batch with impressions is ranked by the ranking head and hides nothing. ``batch`` is None for a process without
    requests: it takes part in the pass, whose metrics wait for everybody.
    """

    batch: Batch | None
    seen_rows: Tensor
    seen_items: Tensor

    def to(self, device: torch.device | str) -> ValidationBatch:
        """The same on ``device``."""
        seen = (indices.to(device, non_blocking=True) for indices in (self.seen_rows, self.seen_items))
        return ValidationBatch(None if self.batch is None else self.batch.to(device), *seen)

    def pin_memory(self) -> ValidationBatch:
        """The same in page-locked memory."""
        batch = None if self.batch is None else pinned(self.batch)
        return ValidationBatch(batch, self.seen_rows.pin_memory(), self.seen_items.pin_memory())


class ValidationSet(TorchDataset[ValidationBatch]):
    """Validation batches, collated already."""

    def __init__(self, batches: list[ValidationBatch]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> ValidationBatch:
        return self.batches[index]


def validation_batches(
    dataset: Dataset,
    collator: Collator,
    limit: int,
    seed: int,
    impressions: ImpressionLog | None = None,
    recommends: bool = True,
    searches: bool = True,
) -> list[ValidationBatch]:
    """This process's validation requests, at most ``limit`` of a kind (0: all).

    Recommendations, and half as many searches over all kinds of query, so that no answer improves at the expense of
    one that is not measured; or one of the two alone, where the network learns nothing else. A search hides nothing:
    a user may look for an item again.
    """
    groups, limit = [], limit or 1 << 62
    if recommends:
        groups.append((dataset.requests("valid"), limit))
        limit = -(-min(limit, len(groups[0][0])) // 2)
    if searches or not recommends:
        groups.append((validation_searches(dataset), limit))
    rank, world = rank_and_world()
    batches = []
    for requests, count in groups:
        if len(requests) > count:
            requests = requests.take(np.sort(np.random.default_rng(seed).permutation(len(requests))[:count]))
        for _, chunk, batch in request_batches(
            requests.take(np.arange(rank, len(requests), world)), collator, REQUESTS
        ):
            rows, items = chunk.histories.rows, chunk.items
            if (chunk.request_queries >= 0).any():
                rows, items = rows[:0], items[:0]
            batches.append(ValidationBatch(batch, *(torch.from_numpy(part.astype(np.int64)) for part in (rows, items))))
    if impressions is not None and rank == 0:  # by one process: an area under a curve is no mean over processes
        batches += _impression_batches(dataset, collator, impressions, limit, seed)
    nothing = torch.zeros(0, dtype=torch.long)
    return batches or [ValidationBatch(None, nothing, nothing)]


def _impression_batches(
    dataset: Dataset, collator: Collator, impressions: ImpressionLog, limit: int, seed: int
) -> list[ValidationBatch]:
    index = np.flatnonzero(impressions.split == VALID)
    if len(index) > limit:
        index = np.sort(np.random.default_rng(seed).permutation(index)[:limit])
    length = impressions.before[index] - dataset.offsets[:-1][impressions.users[index]]
    index, nothing = index[np.argsort(length, kind="stable")], torch.zeros(0, dtype=torch.long)
    return [
        ValidationBatch(
            collator.impression_batch(impressions, index[begin : begin + IMPRESSION_REQUESTS]),
            nothing,
            nothing,
        )
        for begin in range(0, len(index), IMPRESSION_REQUESTS)
    ]


def validation_searches(dataset: Dataset) -> Requests:
    """All validation searches, one kind of query after the other."""
    table = dataset.heldout_queries.filter(pl.col("event").is_in(dataset.heldout_events("valid")))
    return dataset.requests_before(table["event"].to_numpy(), table["query"].to_numpy())


class TrainingData(L.LightningDataModule):
    """Training epochs and validation requests of a fit."""

    def __init__(
        self, dataset: Dataset, ids: SemanticIds, config: Config, plan: FitPlan, situation: Situation | None = None
    ):
        """``situation``: the fields of the network."""
        super().__init__()
        self.dataset, self.settings, self.seed, self.plan = dataset, config.training, config.seed, plan
        self.on_gpu = on_gpu(config.training.accelerator)
        stages = stage_indices(dataset, config.model.stages) if config.model.stages else None
        self.collator = training_collator(dataset, ids, config, stages, situation)
        self.curriculum = Curriculum(dataset, self.collator, config, plan.last, plan.searches, plan.recommends)
        self.windows = self.curriculum.windows
        self.impressions: ImpressionLog | None = None
        if config.model.stages and config.model.ranking:
            self._read_impressions(config.model.stages, plan.last)
        if plan.warm_start:
            self.curriculum.counts = choose_windows(
                dataset, self.windows, self.curriculum.counts, plan.warm_start, config.training.batch_size, config.seed
            )
        if not self.curriculum.counts.any():
            raise UserError(
                "no training request: no user has two events before the split; give more data, or another split.kind"
            )

    def _read_impressions(self, stages: list[str], last: int) -> None:
        """Make the slates up to split ``last`` further requests of the windows."""
        impressions = load_impressions(self.dataset, stages, last)
        if impressions is None:
            raise UserError("model.ranking with model.stages: the log has no impressions; use model.stages=[]")
        window = impression_windows(impressions, self.windows, np.asarray(self.dataset.offsets))
        keep = np.flatnonzero((impressions.split <= last) & (window >= 0))
        self.impressions = impressions
        self.collator.impressions, self.collator.impression_windows = impressions.take(keep), window[keep]
        self.curriculum.counts = self.curriculum.counts + np.bincount(window[keep], minlength=len(self.windows))
        log.info("train: learning from %d of %d slates", len(keep), len(impressions))

    @property
    def counts(self) -> np.ndarray:
        """Requests of each window: (W,)."""
        return self.curriculum.counts

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.curriculum.steps

    def train_dataloader(self) -> EpochLoader:
        """The micro-batches of the trainer's epoch."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        return EpochLoader(self.curriculum.batches(epoch, *rank_and_world()), self.on_gpu)

    def val_dataloader(self) -> DataLoader:
        """The validation requests, collated once for all epochs."""
        return DataLoader(
            ValidationSet(self._validation), batch_size=None, collate_fn=lambda batch: batch, pin_memory=self.on_gpu
        )

    @cached_property
    def _validation(self) -> list[ValidationBatch]:
        tasks = self.plan.recommends, self.plan.searches
        limit = self.settings.valid_requests
        return validation_batches(self.dataset, self.collator, limit, self.seed, self.impressions, *tasks)


_FEATURES: WeakKeyDictionary[Dataset, tuple[str, QueryFeatures]] = WeakKeyDictionary()


def query_features(dataset: Dataset, ids: SemanticIds) -> QueryFeatures:
    """Features of all distinct queries of a log, encoded once for all fits of a process."""
    key, features = _FEATURES.get(dataset, (None, None))
    if features is None or key != ids.key:
        features = QueryFeatures.build(dataset.query_texts, ids.encoder)
        _FEATURES[dataset] = ids.key, features
    return features


def training_collator(
    dataset: Dataset,
    ids: SemanticIds,
    config: Config,
    stages: np.ndarray | None = None,
    situation: Situation | None = None,
) -> Collator:
    """A collator that knows the queries, the situations, and the items' texts where the training aligns them."""
    texts = QueryFeatures.build(item_texts(dataset.item_table), ids.encoder) if config.training.align_epochs else None
    queries = query_features(dataset, ids)
    reader = None if situation is None else SituationReader(situation, dataset)
    return Collator(config.model, queries, stages, texts=texts, target_level=dataset.target_level, situation=reader)
