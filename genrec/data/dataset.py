"""The prepared dataset: memory-mapped event arrays, tables, and the requests of each split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from genrec.artifacts.folders import open_artifact
from genrec.data.histories import Histories
from genrec.errors import UserError

KIND = "dataset"
ARRAYS = ("offsets", "items", "timestamps", "actions", "queries", "split")
TRAIN, VALID, TEST = 0, 1, 2
SPLITS = {"train": TRAIN, "valid": VALID, "test": TEST}


@dataclass(frozen=True)
class Requests:
    """Questions to a model: N histories (oldest first) and what is asked of each.

    ``offsets`` (N+1,), ``items`` / ``timestamps`` / ``actions`` / ``queries`` (n_events,) the ragged histories; ``times`` (N,) seconds
    of the request; ``request_queries`` (N,) and ``queries`` index ``query_texts``, -1 for none; ``targets`` (N,) the item that
    followed, -1 when unknown.
    """

    offsets: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    actions: np.ndarray
    queries: np.ndarray
    times: np.ndarray
    request_queries: np.ndarray
    targets: np.ndarray
    query_texts: list[str]

    def __len__(self) -> int:
        return len(self.times)

    @property
    def histories(self) -> Histories:
        return Histories(self.offsets, self.items)

    def reference_times(self, own: bool) -> np.ndarray:
        """Seconds since the epoch up to which a model may look, (N,): the request's own time, or that of the history's last event.

        A request without history only has its own.
        """
        if own or not len(self.items):
            return self.times
        last = np.clip(self.offsets[1:] - 1, 0, len(self.items) - 1)
        return np.where(np.diff(self.offsets) > 0, self.timestamps[last], self.times)

    def take(self, indices: np.ndarray) -> Requests:
        """The requests at these indices, in their order."""
        lengths = np.diff(self.offsets)[indices]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.repeat(self.offsets[indices] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return replace(
            self, offsets=offsets, items=self.items[rows], timestamps=self.timestamps[rows], actions=self.actions[rows],
            queries=self.queries[rows], times=self.times[indices], request_queries=self.request_queries[indices], targets=self.targets[indices],
        )  # fmt: skip


class Dataset:
    """A prepared dataset folder, opened read-only."""

    def __init__(self, folder: Path | str):
        self.folder = folder = Path(folder)
        self.manifest = open_artifact(folder, KIND)
        self.info: dict = self.manifest["info"]
        for name in ARRAYS:
            setattr(self, name, np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
        self._known_lengths: dict[int, np.ndarray] = {}
        self.item_table = pl.read_parquet(folder / "items.parquet")
        self.query_texts: list[str] = pl.read_parquet(folder / "queries.parquet")["query"].to_list()

    @property
    def n_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_items(self) -> int:
        return len(self.item_table)

    @property
    def target_level(self) -> int:
        """The least place in ``actions_chain`` of an event that is to be predicted; weaker events are only ever seen."""
        return self.info.get("target_level", 0)

    @property
    def actions_chain(self) -> list[str]:
        return self.info["actions"]

    def texts_of(self, queries: np.ndarray) -> pl.Series:
        """The texts of query ids, null for -1."""
        texts = pl.Series("query", [*self.query_texts, None], dtype=pl.String)
        return texts[np.where(queries < 0, len(texts) - 1, queries).astype(np.int64)]

    @cached_property
    def user_ids(self) -> pl.Series:
        return pl.read_parquet(self.folder / "users.parquet")["user_id"]

    @cached_property
    def user_index(self) -> dict[str, int]:
        return {user: index for index, user in enumerate(self.user_ids)}

    @cached_property
    def item_index(self) -> dict[str, int]:
        return {item: index for index, item in enumerate(self.item_table["item_id"])}

    def known_lengths(self, last: int) -> np.ndarray:
        """Events per user up to and including split ``last`` (TRAIN, VALID or TEST): (n_users,), counted once."""
        if last not in self._known_lengths:
            totals = np.concatenate([[0], np.cumsum(self.split <= last)])
            self._known_lengths[last] = totals[self.offsets[1:]] - totals[self.offsets[:-1]]
            self._known_lengths[last].flags.writeable = False
        return self._known_lengths[last]

    def histories(self, last: int) -> Histories:
        """Every user's events up to split ``last``."""
        lengths = self.known_lengths(last)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.repeat(self.offsets[:-1] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Histories(offsets, np.asarray(self.items[rows]))

    def heldout_events(self, split: str) -> np.ndarray:
        """One event per user: the first of the split that may be a target. Its history is everything the user did before it."""
        if split not in ("valid", "test"):
            raise UserError(f"--split: '{split}' is not one of valid, test")
        rows = np.flatnonzero(self.split == SPLITS[split])
        rows = rows[self.actions[rows] >= self.target_level] if self.target_level else rows
        owner = np.searchsorted(self.offsets, rows, side="right") - 1
        return rows[np.unique(owner, return_index=True)[1]]

    def requests(self, split: str, query_kind: str | None = None) -> Requests:
        """The split's requests: recommendations, or searches with the queries of a kind (events without one are left out)."""
        events = self.heldout_events(split)
        queries = np.full(len(events), -1, np.int64)
        if query_kind is not None:
            table = self.heldout_queries.filter(pl.col("kind") == query_kind)
            wanted = table.filter(pl.col("event").is_in(events))
            events, queries = wanted["event"].to_numpy(), wanted["query"].to_numpy()
        return self.requests_before(events, queries)

    def requests_before(self, events: np.ndarray, queries: np.ndarray) -> Requests:
        """One request at each event, seeing the user's events before it."""
        owner = np.searchsorted(self.offsets, events, side="right") - 1
        start = self.offsets[owner]
        lengths = events - start
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.repeat(start - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Requests(
            offsets, np.asarray(self.items[rows]), np.asarray(self.timestamps[rows]), np.asarray(self.actions[rows]),
            np.asarray(self.queries[rows]), np.asarray(self.timestamps[events]), queries, np.asarray(self.items[events]), self.query_texts,
        )  # fmt: skip

    @cached_property
    def impressions(self) -> pl.DataFrame | None:
        """What was shown, by user, time and request: dense ``user`` and ``item``, then the reader's columns; None for a log without."""
        return self._optional_table("impressions")

    @cached_property
    def impressions_all(self) -> pl.DataFrame | None:
        """The same with the rows of items that are not in the dataset: theirs are distinct ids from ``n_items`` on."""
        outside = self._optional_table("impressions_outside")
        if self.impressions is None or outside is None:
            return self.impressions
        wide = [table.with_columns(pl.col("item").cast(pl.Int64)) for table in (self.impressions, outside)]
        return pl.concat([wide[0], wide[1].with_columns(pl.col("item") + self.n_items)], how="diagonal_relaxed")

    @cached_property
    def judgments(self) -> pl.DataFrame | None:
        """Graded relevance of items for queries, as the reader gave it; None for a log without."""
        return self._optional_table("judgments")

    def _optional_table(self, name: str) -> pl.DataFrame | None:
        path = self.folder / f"{name}.parquet"
        return pl.read_parquet(path) if path.is_file() else None

    @cached_property
    def heldout_queries(self) -> pl.DataFrame:
        return pl.read_parquet(self.folder / "heldout_queries.parquet")

    @property
    def query_kinds(self) -> list[str]:
        """Kinds of held-out queries: ``logged``, or the synthetic kinds."""
        return self.heldout_queries["kind"].unique(maintain_order=True).to_list()

    def item_counts(self, last: int) -> np.ndarray:
        """Events per item up to split ``last``: (n_items,)."""
        return np.bincount(self.histories(last).items, minlength=self.n_items)
