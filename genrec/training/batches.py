"""The order of training batches, decided by seed and epoch alone.

A batch is what one optimiser step learns from, whatever the number of processes and of accumulated parts: those divide it. The epoch's
plan, and with it the result, therefore does not depend on them.

Which sequences share a step is drawn at random. Steps of similar lengths would need no padding, but learn worse: a step of short sequences
weighs each of its few requests as much as one of long sequences weighs dozens (on Amazon Beauty, from item ids alone, that cost a tenth of Recall@10).
So padding is saved inside the step: its sequences lie by length, and its parts are cut where they hold equally many events.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from genrec.config.schema import TrainingConfig
from genrec.data.augment import Shuffle
from genrec.data.dataset import Dataset
from genrec.data.sequences import Windows
from genrec.model.batch import Batch
from genrec.model.collate import Collator

BLOCK = 1 << 20  # windows counted at a time


@dataclass
class Part:
    """A piece of a step's batch. ``share`` scales its mean loss so that the mean over all pieces is the mean over the step's requests."""

    batch: Batch
    share: float
    teacher: Batch | None = (
        None  # the same requests with their items' keywords behind the queries, for self-distillation
    )


def request_counts(
    data: Dataset, windows: Windows, recommend_searches: bool, searches: bool, recommends: bool = True, same_time: bool = True
) -> np.ndarray:  # fmt: skip
    """How many requests the collator makes of each window: (W,) int64. See ``Collator.windows``."""
    level = data.target_level
    counts = np.empty(len(windows), np.int64)
    for begin in range(0, len(windows), BLOCK):
        rows = slice(begin, begin + BLOCK)
        start, first, stop = windows.start[rows], windows.first[rows], windows.stop[rows]
        low, high = int(start.min()), int(stop.max())
        asked = np.asarray(data.queries[low:high]) >= 0
        if level:
            target = np.asarray(data.actions[low:high]) >= level
            asked, targets = asked & target, np.concatenate([[0], np.cumsum(target)])
        searched = np.concatenate([[0], np.cumsum(asked)])
        in_window = searched[stop - low] - searched[first - low]
        # A user's first event is no recommendation: nothing was seen before it. Without ``same_time`` that is all of the first second.
        unseen = (
            start + 1
            if same_time
            else np.minimum(_second_ends(np.asarray(data.timestamps[low:high]))[start - low] + low, stop)
        )
        from_here = np.maximum(first, unseen)
        plain = targets[stop - low] - targets[from_here - low] if level else stop - from_here
        if not recommend_searches:
            plain = plain - (searched[stop - low] - searched[from_here - low])
        counts[rows] = (plain if recommends else 0) + (in_window if searches else 0)
    return counts


def _second_ends(times: np.ndarray) -> np.ndarray:
    """For each event, the place behind the last one in a row with its time: (n,)."""
    ends = np.flatnonzero(np.concatenate([times[1:] != times[:-1], [True]])) + 1
    return ends[np.searchsorted(ends, np.arange(len(times)), side="right")]


def step_seed(seed: int, epoch: int, place: int, rank: int) -> int:
    """The random seed of one part of an epoch on one process (rank -1: what all of them draw alike)."""
    return int(np.random.SeedSequence([seed, epoch, place, rank + 1]).generate_state(1, np.uint64)[0] >> 1)


def epoch_batches(
    windows: Windows, batch_size: int, seed: int, epoch: int, counts: np.ndarray | None = None
) -> list[np.ndarray]:
    """Batches of window rows, by length inside each, that depend only on seed and epoch.

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
    """Where to cut rows of ``length`` (B,) so that each of ``parts`` holds about equally many events: (parts - 1,). A part may be empty."""
    total = np.cumsum(length)
    return np.searchsorted(total, total[-1] * np.arange(1, parts) / parts, side="right")


class EpochLoader:
    """One process's parts of one epoch's batches, in order; length and content depend only on (seed, epoch) and the division.

    Every process yields equally many parts. ``state_dict`` holds how many were given out; after ``load_state_dict`` the next one comes,
    and those before it are not built.
    """

    def __init__(
        self, data: Dataset, windows: Windows, counts: np.ndarray, collator: Collator, training: TrainingConfig, seed: int, epoch: int,
        searches: bool, rank: int = 0, world: int = 1, recommends: bool = True, pairs: int = 0, distil: bool = False,
    ):  # fmt: skip
        """``recommends``: learn recommendations; ``pairs``: windows in a step where searches see no history (0: they do); ``distil``: make teachers."""
        self.data, self.windows, self.counts, self.collator, self.searches = data, windows, counts, collator, searches
        self.recommends, self.cold_searches, self.distil, self.same_time = (
            recommends,
            pairs > 0,
            distil,
            training.same_time,
        )
        self.batches = epoch_batches(windows, pairs or training.batch_size, seed, epoch, counts)
        self.recommend_searches = recommends_searches(data, searches)
        self.epoch, self.rank, self.world, self.parts = epoch, rank, world, training.accumulate or 1
        self.given = 0
        self.shuffle = None
        if training.shuffle_ties or training.shuffle_whole:
            self.shuffle = Shuffle(training.shuffle_ties, training.shuffle_whole, step_seed(seed, epoch, 1 << 31, -1))

    def __len__(self) -> int:
        return len(self.batches) * self.parts

    def __iter__(self) -> Iterator[Part]:
        begin, self.given = self.given, 0
        for place in range(begin, len(self)):
            self.given = place + 1
            yield self.part(place)
        self.given = 0

    def part(self, place: int) -> Part:
        """The piece of the epoch at a place."""
        step, part = divmod(place, self.parts)
        rows = self.batches[step]
        piece = self._piece(rows, part)[self.rank :: self.world]  # every process gets short ones and long ones
        share = self.parts * self.world * float(self.counts[piece].sum() / self.counts[rows].sum())
        if len(piece) == 0:  # fewer sequences than pieces: take part with one that does not count
            piece = rows[:1]
        batch = self._batch(piece)
        return Part(batch, share, self.collator.teacher(batch) if self.distil else None)

    def _piece(self, rows: np.ndarray, part: int) -> np.ndarray:
        length = (self.windows.stop - self.windows.start)[rows]
        return np.split(rows, even_cuts(length, self.parts))[part]

    def _batch(self, rows: np.ndarray) -> Batch:
        return self.collator.windows(
            self.data, self.windows, rows, self.recommend_searches, self.searches, self.shuffle, self.recommends, self.cold_searches,
            self.same_time,
        )  # fmt: skip

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state: dict) -> None:
        self.given = state["given"] if state["epoch"] == self.epoch and state["given"] < len(self) else 0


class ItemLoader(EpochLoader):
    """The same for the texts of items: a row of ``rows`` (n,) is an item id, each learnt equally often, ``requests`` in all in ``steps`` steps."""

    def __init__(
        self, rows: np.ndarray, requests: int, steps: int, collator: Collator, training: TrainingConfig, seed: int, epoch: int,
        rank: int = 0, world: int = 1,
    ):  # fmt: skip
        rng = np.random.default_rng([seed, epoch])
        order = np.concatenate([rng.permutation(rows) for _ in range(max(1, round(requests / len(rows))))])
        self.batches = np.array_split(order, min(steps, len(order)))
        self.counts = np.ones(int(rows.max()) + 1, np.int64)
        self.collator, self.distil, self.given = collator, False, 0
        self.epoch, self.rank, self.world, self.parts = epoch, rank, world, training.accumulate or 1

    def _piece(self, rows: np.ndarray, part: int) -> np.ndarray:
        return np.array_split(rows, self.parts)[part]

    def _batch(self, rows: np.ndarray) -> Batch:
        return self.collator.items(rows)


def recommends_searches(data: Dataset, searches: bool) -> bool:
    """Whether an event with a query is also learnt as a recommendation: not where the query is the person's own."""
    return bool(data.info["synthetic_queries"]) or not searches
