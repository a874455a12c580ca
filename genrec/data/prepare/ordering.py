"""Cleaning and sorting a log of any size: events by user, then time, then their position in the log.

Events are dealt into partitions, each a range of users that fits into memory; a partition is read, sorted, cleaned and
written back. The rules, in this order: chosen actions and time window, duplicates, the newest events of each user,
k-core.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from genrec.config.checks import seconds_of
from genrec.config.schema import Config, DataConfig
from genrec.data.prepare.blocks import BlockFile, Columns
from genrec.data.prepare.parsed import ParsedLog
from genrec.data.prepare.threads import in_threads
from genrec.data.readers.toolkit import did_you_mean
from genrec.errors import UserError

log = logging.getLogger(__name__)
PARTITION_EVENTS = 1 << 20  # events sorted at a time; about 100 bytes of memory each
MAX_PARTITIONS = 256
NEVER = np.iinfo(np.int64).max
DTYPES = {
    "user": np.int32,
    "item": np.int32,
    "time": np.int64,
    "action": np.int16,
    "query": np.int32,
    "surface": np.int32,
    "given": np.int8,
}


@dataclass
class OrderedLog:
    """The cleaned events in partitions of whole users, sorted; users and items are codes of the parsed log.

    ``user_counts`` (n_user_codes,) and ``item_counts`` (n_item_codes,) count the events that are left; an event is left
    when both its user and its item have a count above 0. ``first_user`` and ``first_item``: position in the log of the
    first event that is left.
    """

    files: list[BlockFile]
    user_counts: np.ndarray
    item_counts: np.ndarray
    first_user: np.ndarray
    first_item: np.ndarray
    removed: Counter = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return int(self.user_counts.sum())

    def kept(self, block: Columns) -> np.ndarray:
        """Which events of a partition are left: (n,) bool."""
        return (self.user_counts > 0)[block["user"]] & (self.item_counts > 0)[block["item"]]


def order_events(parsed: ParsedLog, config: Config, scratch: Path) -> OrderedLog:
    """Everything from the parsed events to the sorted ones that are left."""
    n_users, n_items = len(parsed.names("user")), len(parsed.names("item"))
    partitions, removed = partition_events(parsed, config, scratch, n_users)
    ordered = OrderedLog(
        [],
        np.zeros(n_users, np.int64),
        np.zeros(n_items, np.int64),
        np.full(n_users, NEVER),
        np.full(n_items, NEVER),
        removed,
    )
    by_split = config.split.kind == "given"
    if by_split and "given" not in parsed.columns:
        raise UserError(
            f"split.kind: 'given' needs a log with a column 'split'; reader {config.data.reader!r} found none"
        )
    for file in in_threads(lambda part: _clean_partition(ordered, part, config.data, by_split, scratch), partitions):
        ordered.files.append(file)
        if len(ordered.files) % 20 == 0:
            log.info("prepare: sorted %d of %d partitions", len(ordered.files), len(partitions))
    k_core(ordered, config.data.min_user_events, config.data.min_item_events)
    return ordered


def partition_events(parsed: ParsedLog, config: Config, scratch: Path, n_users: int) -> tuple[list[BlockFile], Counter]:
    """The parsed events of the chosen actions and times, in partitions of whole users, in the order of the log."""
    total = parsed.total("events")
    size = max(PARTITION_EVENTS, -(-total // MAX_PARTITIONS))
    columns = [name for name in DTYPES if name in parsed.columns and (name != "given" or config.split.kind == "given")]
    dtypes = {name: DTYPES[name] for name in columns} | {"position": np.uint32 if total < 2**32 else np.int64}
    part_of = None
    if total > size:
        counts = np.zeros(n_users, np.int64)
        for _, part in parsed.events(["user"]):
            add_counts(counts, part["user"].to_numpy())
        part_of = ((np.cumsum(counts) - counts) // size).astype(np.uint16)
    files = [
        BlockFile(scratch / f"dealt-{number:03d}", dtypes)
        for number in range(1 if part_of is None else int(part_of[-1]) + 1)
    ]
    allowed = _chosen_actions(parsed, config.data)
    removed: Counter = Counter()
    window = seconds_of(config.data.start_time, "data.start_time"), seconds_of(config.data.end_time, "data.end_time")

    def by_partition(given: tuple[int, pl.DataFrame]) -> tuple[Columns, np.ndarray, Counter]:
        """A part's events, those of one partition together, and where each partition begins."""
        position, part = given
        left_out: Counter = Counter()
        block = {name: _column(part, name) for name in columns}
        block["position"] = np.arange(position, position + part.height, dtype=dtypes["position"])
        block = _choose(block, allowed, window, left_out)
        if part_of is None:
            return block, np.array([0, len(block["user"])]), left_out
        owner = part_of[block["user"]]
        order = np.argsort(owner, kind="stable")
        edges = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(files)))])
        return {name: column[order] for name, column in block.items()}, edges, left_out

    for block, edges, left_out in in_threads(by_partition, parsed.events(columns)):
        removed.update(left_out)
        for file, start, stop in zip(files, edges[:-1], edges[1:], strict=True):
            file.append({name: column[start:stop] for name, column in block.items()})
    return [file for file in files if len(file)], removed


def _column(part: pl.DataFrame, name: str) -> np.ndarray:
    """A column of a parsed part; sources without it have no query and an unknown split."""
    if name not in part.columns:
        return np.full(part.height, -1, DTYPES[name])
    return part[name].to_numpy()


def _chosen_actions(parsed: ParsedLog, config: DataConfig) -> np.ndarray | None:
    """Which action codes are chosen; None for all. ``UserError`` for an action that the log does not have."""
    if config.actions is None:
        return None
    names = parsed.names("action").to_list()
    known = list(dict.fromkeys([*parsed.chain, *names]))
    for action in config.actions:
        if action not in known:
            raise UserError(f"data.actions: the log has no action '{action}'; {did_you_mean(action, known)}")
    return np.array([name in config.actions for name in names])


def _choose(
    block: Columns, allowed: np.ndarray | None, window: tuple[int | None, int | None], removed: Counter
) -> Columns:
    """The events of the chosen actions and the time window; the others are counted."""
    start, end = window
    if allowed is not None:
        block = _filter(block, allowed[block["action"]], removed, "other_actions")
    if start is not None or end is not None:
        time = block["time"]
        inside = np.ones(len(time), bool) if start is None else time >= start
        block = _filter(block, inside if end is None else inside & (time < end), removed, "outside_window")
    return block


def _filter(block: Columns, keep: np.ndarray, removed: Counter, rule: str) -> Columns:
    count = len(keep) - int(np.count_nonzero(keep))
    if not count:
        return block
    removed[rule] += count
    return {name: column[keep] for name, column in block.items()}


def _clean_partition(
    ordered: OrderedLog, file: BlockFile, config: DataConfig, by_split: bool, scratch: Path
) -> BlockFile:
    """Sort and clean one partition, count what is left, and write it."""
    removed: Counter = Counter()
    block = clean(file.read(), config, by_split, removed)
    target = BlockFile(scratch / file.path.name.replace("dealt", "sorted"), file.dtypes)
    target.append(block)
    file.remove()
    with ordered.lock:
        ordered.removed.update(removed)
        add_counts(ordered.user_counts, block["user"])
        add_counts(ordered.item_counts, block["item"])
        note_first(ordered, block)
    return target


def add_counts(counts: np.ndarray, codes: np.ndarray) -> None:
    """Add to ``counts`` (n_codes,) how often each is among ``codes`` (n,)."""
    if len(codes) * 8 < len(counts):
        np.add.at(counts, codes, 1)
    else:
        counts += np.bincount(codes, minlength=len(counts))


def note_first(ordered: OrderedLog, block: Columns) -> None:
    """Bring the first positions of users and items up to date with the events of a block."""
    np.minimum.at(ordered.first_item, block["item"], block["position"].astype(np.int64))
    starts = np.flatnonzero(np.diff(block["user"], prepend=-1))
    if len(starts):
        users = block["user"][starts]
        ordered.first_user[users] = np.minimum(
            ordered.first_user[users], np.minimum.reduceat(block["position"], starts)
        )


def clean(block: Columns, config: DataConfig, by_split: bool, removed: Counter) -> Columns:
    """Sort all events of some users, given in the order of the log, and apply the rules for single users."""
    order = sort_order(block["user"], block["time"], block["given"] if by_split else None)
    block = {name: column[order] for name, column in block.items()} if order is not None else block
    if config.duplicates != "keep":
        block = _filter(block, ~_exact_repeats(block, by_split), removed, "duplicates")
    if config.duplicates == "drop-consecutive":
        again = np.zeros(len(block["user"]), bool)
        again[1:] = (block["user"][1:] == block["user"][:-1]) & (block["item"][1:] == block["item"][:-1])
        block = _filter(block, ~again, removed, "consecutive_repeats")
    return block


def sort_order(user: np.ndarray, time: np.ndarray, given: np.ndarray | None = None) -> np.ndarray | None:
    """The stable order by user, (given split,) time: (n,) int64, or None where it is that order already."""
    if not len(user):
        return None
    low_user, low_time = int(user.min()), int(time.min())
    span = int(time.max()) - low_time + 1
    splits = 1 if given is None else 4
    bits = (len(user) - 1).bit_length()
    if (int(user.max()) - low_user + 1) * span * splits >= 2**63 >> bits:
        return np.lexsort((time, user) if given is None else (time, given, user))
    key = user.astype(np.int64) - low_user
    if given is not None:
        key = key * splits + given + 1
    key = key * span + (time - low_time)
    if (key[1:] >= key[:-1]).all():
        return None
    # The position in the low bits makes every key distinct: sorting the keys themselves is stable, and much faster than
    # an
    # argsort.
    key = (key << bits) | np.arange(len(key))
    key.sort()
    return key & ((1 << bits) - 1)


def _exact_repeats(block: Columns, by_split: bool) -> np.ndarray:
    """Events with the user, time, item, action and query of one before them, in a sorted block: (n,) bool.

    An event that the log gives to two splits is no repeat where the log's split is used: ``by_split``.
    """
    user, time = block["user"], block["time"]
    repeated = np.zeros(len(user), bool)
    if len(user) < 2:
        return repeated
    tied = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    if by_split:
        tied &= block["given"][1:] == block["given"][:-1]
    near = np.zeros(len(user), bool)
    near[1:] |= tied
    near[:-1] |= tied
    rows = np.flatnonzero(near)  # only events that share user and time with another are worth a closer look
    if not len(rows):
        return repeated
    group = np.cumsum(np.concatenate([[True], ~tied]))[rows]
    same = [block[name][rows] for name in ("query", "action", "item") if name in block] + [group]
    order = np.lexsort(same)  # stable: among equals the earlier position stays first
    equal = np.ones(len(rows) - 1, bool)
    for column in same:
        equal &= column[order][1:] == column[order][:-1]
    repeated[rows[order[1:][equal]]] = True
    return repeated


def k_core(ordered: OrderedLog, min_user: int, min_item: int) -> None:
    """Drop users and items with too few events until none is left; counts and first positions are brought up to date.

    Only counts are held in memory, one for each id; the events are read from disk once a round.
    """
    before, rounds = len(ordered), 0
    while True:
        weak_users = (ordered.user_counts > 0) & (ordered.user_counts < min_user)
        weak_items = (ordered.item_counts > 0) & (ordered.item_counts < min_item)
        if not weak_users.any() and not weak_items.any():
            break
        ordered.user_counts[weak_users] = 0
        ordered.item_counts[weak_items] = 0
        users, items = np.zeros_like(ordered.user_counts), np.zeros_like(ordered.item_counts)
        for block in in_threads(lambda file: remaining_events(ordered, file, ["user", "item"]), ordered.files):
            add_counts(users, block["user"])
            add_counts(items, block["item"])
        ordered.user_counts, ordered.item_counts = users, items
        rounds += 1
    ordered.removed["below_minimum"] += before - len(ordered)
    if rounds:
        log.info("prepare: k-core took %d rounds", rounds)
        ordered.first_user.fill(NEVER)
        ordered.first_item.fill(NEVER)
        for block in in_threads(
            lambda file: remaining_events(ordered, file, ["user", "item", "position"]), ordered.files
        ):
            note_first(ordered, block)


def remaining_events(ordered: OrderedLog, file: BlockFile, names: list[str]) -> Columns:
    """The events of a partition that are left."""
    block = file.read(names)
    return _filter(block, ordered.kept(block), Counter(), "")
