"""What training saw of the held-out events: cold users and items, repeats, and later training events.

Read the report before the metrics: with leave-last-out, every model trains on what others did after the test event.
"""

from __future__ import annotations

import numpy as np

from genrec.data.dataset import TEST, TRAIN, VALID
from genrec.data.prepare.splits import UserChunk

TIME_BINS = 1 << 20
MEANING = {
    "requests": "held-out targets: the first held-out event of each user",
    "users_cold": "of these, users without a training event",
    "items": "distinct items among the targets",
    "items_cold": "of these, items without a training event",
    "targets_of_cold_items": "targets whose item has no training event",
    "pairs_seen": "targets whose user did something with the same item in training",
    "exact_events_seen": "targets whose user has a training event with the same item at the same time",
    "targets_before_training_ends": "targets that are not later than the last training event of anybody",
    "train_events_later": "share of all training events that happened after the target, mean over targets",
}


class LeakageReport:
    """Two passes over the sorted log in chunks of whole users: ``see_train`` for all of it, then ``targets``."""

    def __init__(self, n_items: int, first_time: int, last_time: int):
        """Times run from ``first_time`` to ``last_time`` (seconds); later is decided to ``resolution`` seconds."""
        self.first_time = first_time
        self.resolution = -(-(last_time - first_time + 1) // TIME_BINS)
        self.train_items = np.zeros(n_items, np.int64)
        self.train_times = np.zeros((last_time - first_time) // self.resolution + 1, np.int64)
        self.last_train: int | None = None
        self.parts: dict[str, list[dict[str, np.ndarray]]] = {"valid": [], "test": []}

    def see_train(self, items: np.ndarray, times: np.ndarray, split: np.ndarray) -> None:
        """Count the training events of a piece: all (n,)."""
        train = split == TRAIN
        if not train.any():
            return
        np.add.at(self.train_items, items[train], 1)
        index = times[train] - self.first_time
        np.add.at(self.train_times, index if self.resolution == 1 else index // self.resolution, 1)
        latest = int(times[train].max())
        self.last_train = latest if self.last_train is None else max(latest, self.last_train)

    def see_targets(self, targets: dict[str, dict[str, np.ndarray]]) -> None:
        """Add the result of ``targets`` for a piece."""
        for name, part in targets.items():
            self.parts[name].append(part)

    @staticmethod
    def targets(
        chunk: UserChunk, items: np.ndarray, times: np.ndarray, split: np.ndarray, allowed: np.ndarray | None = None
    ) -> dict[str, dict[str, np.ndarray]]:
        """The targets of a piece, by split, compared with their users' training events.

        ``allowed`` (n,) bool: which may be targets (None: all).
        """
        all_targets = {}
        lengths, train = np.diff(chunk.offsets), split == TRAIN
        warm = np.logical_or.reduceat(train, chunk.offsets[:-1])
        for name, number in (("valid", VALID), ("test", TEST)):
            held = np.flatnonzero(split == number if allowed is None else (split == number) & allowed)
            owner = np.searchsorted(chunk.offsets, held, side="right") - 1
            first = np.diff(owner, prepend=-1) > 0  # the first held-out event of each user
            rows, owners = held[first], owner[first]
            target = np.full(len(lengths), -1, items.dtype)
            target[owners] = items[rows]
            same = np.flatnonzero(train & (items == np.repeat(target, lengths)))
            owner = np.searchsorted(chunk.offsets, same, side="right") - 1
            target_time = np.zeros(len(lengths), np.int64)
            target_time[owners] = times[rows]
            pair, exact = np.zeros(len(lengths), bool), np.zeros(len(lengths), bool)
            pair[owner] = True
            exact[owner[times[same] == target_time[owner]]] = True
            all_targets[name] = {
                "item": items[rows],
                "time": times[rows],
                "cold": ~warm[owners],
                "pair": pair[owners],
                "exact": exact[owners],
            }
        return all_targets

    def result(self) -> dict:
        """The report of both splits, as plain numbers, with what they mean."""
        report = {name: self._of(parts) for name, parts in self.parts.items()}
        return {**report, "time_resolution_seconds": self.resolution, "meaning": MEANING}

    def _of(self, parts: list[dict[str, np.ndarray]]) -> dict:
        if not sum(len(part["item"]) for part in parts):
            return {"requests": 0}
        targets = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        items = np.unique(targets["item"])
        total = int(self.train_times.sum())
        later = np.append(np.cumsum(self.train_times[::-1])[::-1][1:], 0)  # training events after each time bin
        fraction = later[(targets["time"] - self.first_time) // self.resolution] / max(total, 1)
        return {
            "requests": len(targets["item"]),
            "users_cold": int(targets["cold"].sum()),
            "items": len(items),
            "items_cold": int((self.train_items[items] == 0).sum()),
            "targets_of_cold_items": int((self.train_items[targets["item"]] == 0).sum()),
            "pairs_seen": int(targets["pair"].sum()),
            "exact_events_seen": int(targets["exact"].sum()),
            "targets_before_training_ends": 0
            if self.last_train is None
            else int((targets["time"] <= self.last_train).sum()),
            "train_events_later": round(float(fraction.mean()), 6),
        }


def summary(report: dict) -> list[str]:
    """The report in a line per split."""
    lines = []
    for name in ("test", "valid"):
        part = report[name]
        if not part["requests"]:
            lines.append(f"{name}: no requests")
            continue
        lines.append(
            f"{name}: {part['requests']} requests, {part['users_cold']} of cold users; {part['items']} items, "
            f"{part['items_cold']} of them cold; "
            f"{part['pairs_seen']} targets repeat an item of the user's training; "
            f"{part['targets_before_training_ends']} targets happened "
            f"before training ends (on average {part['train_events_later']:.1%} of training is later than the target)"
        )
    return lines
