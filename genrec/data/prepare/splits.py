"""Which events are held out, by rule, in chunks of whole users; ties in time; the fingerprint of it all.

Within a user the three splits never interleave: train, then valid, then test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from genrec.artifacts.folders import fingerprint
from genrec.config.schema import SplitConfig
from genrec.data.dataset import TEST, TRAIN, VALID
from genrec.data.prepare.blocks import ArrayFile
from genrec.data.queries import mix, string_hash
from genrec.errors import UserError

CHUNK_EVENTS = 1 << 20
QUANTILE_BINS = 1 << 16
HELD_OUT_RULE = (
    "one request per user and split: at its first held-out event (of at least data.target_action), which is the "
    "target; later ones are not evaluated"
)
RULES = {
    "leave-last-out": "the last event of each user with at least 3 is test, the one before it valid",
    "global-time": "two cut times for everybody: events from the first on are valid, from the second on test",
    "session": "the last session of each user with at least 3 is test, the one before it valid",
    "given": "as the log says; without a validation part, the training events of each user's last training time are "
    "valid, for users with at least 2 such times",
}


@dataclass(frozen=True)
class UserChunk:
    """Events ``start`` to ``stop`` - 1 of the sorted log: all events of users ``first`` to ``last`` - 1."""

    first: int
    last: int
    start: int
    stop: int
    offsets: np.ndarray  # (last - first + 1,) from 0

    @property
    def owner(self) -> np.ndarray:
        """(n,) the user of each event, counted from ``first``."""
        return np.repeat(np.arange(self.last - self.first), np.diff(self.offsets))


def user_chunks(offsets: np.ndarray) -> Iterator[UserChunk]:
    """The sorted log in chunks of whole users, about ``CHUNK_EVENTS`` each."""
    first, users = 0, len(offsets) - 1
    while first < users:
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + CHUNK_EVENTS, side="right")) - 1)
        yield UserChunk(
            first, last, int(offsets[first]), int(offsets[last]), offsets[first : last + 1] - offsets[first]
        )
        first = last


def quantile_higher(chunks: Callable[[], Iterator[np.ndarray]], shares: list[float]) -> list[int]:
    """``np.quantile(all, share, method="higher")`` of whole numbers too many to hold.

    ``chunks()`` yields them, once per pass.
    """
    low, high, total = np.inf, -np.inf, 0
    for chunk in chunks():
        if len(chunk):
            low, high, total = min(low, int(chunk.min())), max(high, int(chunk.max())), total + len(chunk)
    return [_ordered(chunks, int(np.ceil((total - 1) * share)), int(low), int(high)) for share in shares]


def _ordered(chunks: Callable[[], Iterator[np.ndarray]], rank: int, low: int, high: int) -> int:
    """The value that ``rank`` others come before, by narrowing its range."""
    while low < high:
        width = -(-(high - low + 1) // QUANTILE_BINS)
        counts = np.zeros(QUANTILE_BINS, np.int64)
        for chunk in chunks():
            inside = chunk[(chunk >= low) & (chunk <= high)]
            counts += np.bincount((inside - low) // width, minlength=QUANTILE_BINS)
        index = int(np.searchsorted(np.cumsum(counts), rank, side="right"))
        rank -= int(counts[:index].sum())
        low, high = low + index * width, min(high, low + (index + 1) * width - 1)
    return low


class Splitter:
    """The split of each piece of the log, under one rule."""

    def __init__(self, config: SplitConfig, times: ArrayFile, offsets: np.ndarray, given_valid: bool = False):
        """``given_valid``: whether the log names a validation part (``given`` only)."""
        self.config, self.given_valid = config, given_valid
        self.cuts: list[int] = []
        if config.kind == "global-time" and len(times):
            shares = [1 - config.valid_share - config.test_share, 1 - config.test_share]
            self.cuts = quantile_higher(lambda: (times.read(p.start, p.stop) for p in user_chunks(offsets)), shares)

    def __call__(self, chunk: UserChunk, times: np.ndarray, given: np.ndarray | None) -> np.ndarray:
        """TRAIN, VALID or TEST (n,) uint8 of a piece.

        ``times`` (n,), ``given`` (n,) the log's own split where the rule needs it.
        """
        if self.config.kind == "global-time":
            split = np.zeros(len(times), np.uint8)
            split[times >= self.cuts[0]] = VALID
            split[times >= self.cuts[1]] = TEST
            return split
        if self.config.kind == "given":
            assert given is not None
            return self._given(chunk, times, given)
        if self.config.kind == "session":
            return _last_groups(chunk, self._session_starts(chunk, times))
        return _last_events(chunk)

    def _session_starts(self, chunk: UserChunk, times: np.ndarray) -> np.ndarray:
        starts = np.ones(len(times), bool)
        starts[1:] = np.diff(times) > self.config.session_gap * 60
        starts[chunk.offsets[:-1]] = True
        return starts

    def _given(self, chunk: UserChunk, times: np.ndarray, given: np.ndarray) -> np.ndarray:
        if (given < 0).any():
            raise UserError(
                f"split.kind: 'given', but {int((given < 0).sum())} events have no split of train, valid or test; "
                "fill the column"
            )
        split = given.astype(np.uint8)
        if not self.given_valid:
            # A user's training events come first. Those of one time may be one act logged several times (a purchase
            # once for each of its queries): either all of them are held out or none.
            known = np.add.reduceat((split == TRAIN).astype(np.int64), chunk.offsets[:-1])
            begins, last = chunk.offsets[:-1], np.maximum(chunk.offsets[:-1] + known - 1, chunk.offsets[:-1])
            enough = (known >= 2) & (times[begins] < times[last])
            latest = np.repeat(np.where(enough, times[last], np.iinfo(np.int64).max), np.diff(chunk.offsets))
            split[(split == TRAIN) & (times == latest)] = VALID
        return split


def _last_events(chunk: UserChunk) -> np.ndarray:
    """Each user's last event is test, the one before valid, where there are three."""
    split = np.zeros(chunk.stop - chunk.start, np.uint8)
    ends = chunk.offsets[1:][np.diff(chunk.offsets) >= 3]
    split[ends - 2] = VALID
    split[ends - 1] = TEST
    return split


def _last_groups(chunk: UserChunk, starts: np.ndarray) -> np.ndarray:
    """Each user's last group of events is test, the one before valid, where there are three.

    ``starts`` (n,) marks first events.
    """
    group = np.cumsum(starts)
    ends, begins = group[chunk.offsets[1:] - 1], group[chunk.offsets[:-1]]
    from_end = np.repeat(ends, np.diff(chunk.offsets)) - group
    enough = np.repeat(ends - begins >= 2, np.diff(chunk.offsets))
    split = np.zeros(len(starts), np.uint8)
    split[enough & (from_end == 1)] = VALID
    split[enough & (from_end == 0)] = TEST
    return split


def tied_targets(chunk: UserChunk, times: np.ndarray, split: np.ndarray) -> int:
    """How many test events have the time of the user's event before them, so that only the log orders them."""
    test = split == TEST
    test[chunk.offsets[:-1]] = False
    rows = np.flatnonzero(test)
    return int((times[rows] == times[rows - 1]).sum())


class SplitFingerprint:
    """Changes with any user, item, order or split decision; fed piece by piece."""

    def __init__(self) -> None:
        self.sums = {"items": 0, "split": 0}

    def add(self, digests: dict[str, int]) -> None:
        """The ``digest`` of a piece's ``items`` and ``split``."""
        self.sums = {name: (self.sums[name] + value) % 2**64 for name, value in digests.items()}

    def result(self, users: pl.Series, items: pl.Series, offsets: np.ndarray) -> str:
        """The fingerprint, given the ids in order and the users' offsets."""
        with np.errstate(over="ignore"):
            ids = [
                int(mix(string_hash(names) + np.arange(len(names), dtype=np.uint64)).sum(dtype=np.uint64))
                for names in (users, items)
            ]
        return fingerprint(*ids, digest(0, offsets), self.sums["items"], self.sums["split"])


def digest(start: int, values: np.ndarray) -> int:
    """A checksum of the values (n,), the first of which has index ``start``; checksums of chunks add up."""
    with np.errstate(over="ignore"):
        position = np.arange(start, start + len(values), dtype=np.uint64)
        return int(mix(values.astype(np.uint64) * np.uint64(31) + position).sum(dtype=np.uint64))
