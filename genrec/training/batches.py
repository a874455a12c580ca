"""Training batches, whose order depends on seed and epoch alone.

A batch is what one optimiser step learns from. Processes and gradient accumulation divide it into micro-batches, so
neither the plan of an epoch nor its result depends on their number.

Each step draws its sequences at random. Steps of similar lengths would need no padding but learn worse: a step of
short sequences weighs each of its few requests as much as a step of long ones weighs dozens (on Amazon Beauty, from
item ids alone, that cost a tenth of Recall@10). Padding is saved inside the step: its sequences are sorted by length
and cut where the micro-batches hold equally many events.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils import data as torch_data

from genrec.config.schema import TrainingConfig
from genrec.data.dataset import Dataset
from genrec.data.sequences import Windows
from genrec.model.batch import Batch
from genrec.model.collate import Collator

BLOCK = 1 << 20  # windows counted at a time
GPU_WORKERS = 4  # processes that collate batches for a GPU


@dataclass
class MicroBatch:
    """One process's part of an optimiser step.

    ``weight`` scales its mean loss so that the mean over all micro-batches is the mean over the step's requests.
    """

    batch: Batch
    weight: float

    def pin_memory(self) -> MicroBatch:
        """The same in page-locked memory, from which copies to a GPU run beside the computation."""
        return replace(self, batch=pinned(self.batch))


def pinned(batch: Batch) -> Batch:
    """``batch`` with its tensors in page-locked memory."""
    impressions = None if batch.impressions is None else replace(batch.impressions, **_pinned_fields(batch.impressions))
    return replace(batch, **_pinned_fields(batch) | {"impressions": impressions})


def _pinned_fields(record: Any) -> dict[str, Any]:
    return {name: value.pin_memory() for name, value in vars(record).items() if isinstance(value, torch.Tensor)}


def request_counts(
    data: Dataset,
    windows: Windows,
    recommend_searches: bool,
    searches: bool,
    recommends: bool = True,
    same_time: bool = True,
) -> np.ndarray:
    """How many requests the collator makes of each window: (W,) int64. See ``Collator.windows``."""
    level = data.target_level
    counts = np.empty(len(windows), np.int64)
    for begin in range(0, len(windows), BLOCK):
        rows = slice(begin, begin + BLOCK)
        start, first, stop = windows.start[rows], windows.first[rows], windows.stop[rows]
        low, high = int(start.min()), int(stop.max())
        has_query = np.asarray(data.queries[low:high]) >= 0
        if level:
            target = np.asarray(data.actions[low:high]) >= level
            has_query, targets = has_query & target, np.concatenate([[0], np.cumsum(target)])
        searched = np.concatenate([[0], np.cumsum(has_query)])
        in_window = searched[stop - low] - searched[first - low]
        # Nothing precedes a user's first event, so it is no recommendation. Without ``same_time`` that holds for all
        # of its second.
        begins = start + 1
        if not same_time:
            begins = np.minimum(_second_ends(np.asarray(data.timestamps[low:high]))[start - low] + low, stop)
        predicted = np.maximum(first, begins)
        plain = targets[stop - low] - targets[predicted - low] if level else stop - predicted
        if not recommend_searches:
            plain = plain - (searched[stop - low] - searched[predicted - low])
        counts[rows] = (plain if recommends else 0) + (in_window if searches else 0)
    return counts


def _second_ends(times: np.ndarray) -> np.ndarray:
    """For each event, the index behind the last consecutive event with its time: (n,)."""
    ends = np.flatnonzero(np.concatenate([times[1:] != times[:-1], [True]])) + 1
    return ends[np.searchsorted(ends, np.arange(len(times)), side="right")]


def step_seed(seed: int, epoch: int, index: int, rank: int) -> int:
    """The random seed of one micro-batch of an epoch on one process (rank -1: what all processes draw alike)."""
    return int(np.random.SeedSequence([seed, epoch, index, rank + 1]).generate_state(1, np.uint64)[0] >> 1)


def epoch_batches(
    windows: Windows, batch_size: int, seed: int, epoch: int, counts: np.ndarray | None = None
) -> list[np.ndarray]:
    """Batches of window rows, sorted by length inside each, that depend only on seed and epoch.

    ``counts`` (W,) is the number of requests of each window; windows without one are left out.
    """
    rng = np.random.default_rng([seed, epoch])
    rows = np.arange(len(windows)) if counts is None else np.flatnonzero(counts)
    order = rng.permutation(rows)
    batches = max(1, -(-len(order) // batch_size))
    sizes = len(order) // batches + (np.arange(batches) < len(order) % batches)
    batch = np.repeat(np.arange(batches), sizes)
    length = (windows.stop - windows.start)[order]
    keys = (length, batch) if counts is None else (counts[order], length, batch)
    return np.split(order[np.lexsort(keys)], np.cumsum(sizes)[:-1])


def even_cuts(length: np.ndarray, parts: int) -> np.ndarray:
    """Where to cut rows of ``length`` (B,) so that ``parts`` parts hold about equally many events: (parts - 1,).

    A part may be empty.
    """
    total = np.cumsum(length)
    return np.searchsorted(total, total[-1] * np.arange(1, parts) / parts, side="right")


class EpochBatches(torch_data.Dataset):
    """What one epoch trains on, batch by batch."""

    epoch: int

    def __len__(self) -> int:
        raise NotImplementedError


class WindowBatches(EpochBatches):
    """One process's micro-batches of one epoch; length and content depend only on (seed, epoch) and the division."""

    def __init__(
        self,
        data: Dataset,
        windows: Windows,
        counts: np.ndarray,
        collator: Collator,
        training: TrainingConfig,
        seed: int,
        epoch: int,
        searches: bool,
        rank: int = 0,
        world: int = 1,
        recommends: bool = True,
        pairs: int = 0,
    ):
        """``searches`` and ``recommends`` say what is learnt of an event.

        ``pairs``: windows in a step where searches see no history; 0 where they see it.
        """
        self.data, self.windows, self.counts, self.collator = data, windows, counts, collator
        self.searches, self.recommends, self.cold_searches = searches, recommends, pairs > 0
        self.same_time = training.same_time
        self.batches = epoch_batches(windows, pairs or training.batch_size, seed, epoch, counts)
        self.recommend_searches = recommends_searches(data, searches)
        self.epoch, self.rank, self.world, self.parts = epoch, rank, world, training.accumulate or 1
        # What aligns texts in the first epochs goes on in all: the queries of a log are soon known by heart, and an
        # unknown query would be answered worse than before.
        self.texts_seed = step_seed(seed, epoch, 0, -1) if training.align_epochs else None

    def __len__(self) -> int:
        return len(self.batches) * self.parts

    def __getitem__(self, index: int) -> MicroBatch:
        step, part = divmod(index, self.parts)
        rows = self.batches[step]
        chosen = self._part(rows, part)[self.rank :: self.world]  # every process gets short and long sequences
        weight = self.parts * self.world * float(self.counts[chosen].sum() / self.counts[rows].sum())
        if len(chosen) == 0:  # fewer sequences than parts: take part with one of weight 0
            chosen = rows[:1]
        return MicroBatch(self._collate(chosen), weight)

    def _part(self, rows: np.ndarray, part: int) -> np.ndarray:
        length = (self.windows.stop - self.windows.start)[rows]
        return np.split(rows, even_cuts(length, self.parts))[part]

    def _collate(self, rows: np.ndarray) -> Batch:
        return self.collator.windows(
            self.data,
            self.windows,
            rows,
            self.recommend_searches,
            self.searches,
            recommends=self.recommends,
            cold_searches=self.cold_searches,
            same_time=self.same_time,
            texts_seed=self.texts_seed,
        )


class ItemBatches(WindowBatches):
    """Micro-batches of the texts of items.

    Each item of ``rows`` (n,) comes equally often, in about ``requests`` requests and ``steps`` steps.
    """

    def __init__(
        self,
        rows: np.ndarray,
        requests: int,
        steps: int,
        collator: Collator,
        training: TrainingConfig,
        seed: int,
        epoch: int,
        rank: int = 0,
        world: int = 1,
    ):
        rng = np.random.default_rng([seed, epoch])
        order = np.concatenate([rng.permutation(rows) for _ in range(max(1, round(requests / len(rows))))])
        self.batches = np.array_split(order, min(steps, len(order)))
        self.counts = np.ones(int(rows.max()) + 1, np.int64)
        self.collator = collator
        self.epoch, self.rank, self.world, self.parts = epoch, rank, world, training.accumulate or 1

    def _part(self, rows: np.ndarray, part: int) -> np.ndarray:
        return np.array_split(rows, self.parts)[part]

    def _collate(self, rows: np.ndarray) -> Batch:
        return self.collator.items(rows)


class EpochLoader(torch_data.DataLoader):
    """Loads an epoch's micro-batches in order.

    It resumes behind the last micro-batch that was handed out, without building those before. For a GPU, worker
    processes collate ahead into page-locked memory; on a CPU they would only take cores from the training step.
    """

    def __init__(self, batches: EpochBatches, on_gpu: bool = False):
        self.order, self.epoch = _Order(len(batches)), batches.epoch
        workers = min(GPU_WORKERS, len(os.sched_getaffinity(0))) if on_gpu else 0
        super().__init__(
            batches,
            batch_size=None,
            sampler=self.order,
            num_workers=workers,
            pin_memory=on_gpu,
            collate_fn=_unchanged,
            generator=torch.Generator(),
        )
        self.given = 0  # micro-batches handed out

    def __iter__(self) -> Iterator[MicroBatch]:  # type: ignore[override]  # DataLoader names its iterator class
        batches = super().__iter__()
        self.order.begin, self.given = 0, self.order.begin
        for batch in batches:
            self.given += 1
            yield batch
        self.given = 0

    def state_dict(self) -> dict:
        """The epoch and how many micro-batches were handed out."""
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state: dict) -> None:
        """Go on behind the micro-batches of ``state``.

        A state of another epoch, or of a finished one, starts from the beginning.
        """
        fits = state["epoch"] == self.epoch and state["given"] < len(self)
        self.order.begin = self.given = state["given"] if fits else 0


class _Order(torch_data.Sampler[int]):
    """Indices from ``begin`` on; its length stays that of the whole epoch."""

    def __init__(self, length: int):
        self.begin, self.length = 0, length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.begin, self.length))

    def __len__(self) -> int:
        return self.length


def _unchanged(batch: Any) -> Any:
    return batch


def recommends_searches(data: Dataset, searches: bool) -> bool:
    """Whether an event with a query is also learnt as a recommendation: not where people typed the query."""
    return bool(data.info["synthetic_queries"]) or not searches
