"""The prepared dataset: memory-mapped event arrays, tables, and the requests of each split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from genrec.artifacts.folders import open_artifact
from genrec.data.histories import Histories, gather_ranges
from genrec.errors import UserError

KIND = "dataset"
SURFACES = "surfaces.npy"
ARRAYS = ("offsets", "items", "timestamps", "actions", "queries", "split")
TRAIN, VALID, TEST = 0, 1, 2
SPLITS = {"train": TRAIN, "valid": VALID, "test": TEST}


@dataclass(frozen=True)
class Requests:
    """N requests to a model: a history each (oldest event first), a time, and for searches a query.

    ``offsets`` (N + 1,) delimits the ragged history arrays ``items``, ``timestamps``, ``actions`` and ``queries``
    (n_events,). ``times`` (N,) seconds of the request; ``request_queries`` (N,) and ``queries`` index ``query_texts``,
    -1 for none; ``targets`` (N,) the item that followed, -1 when unknown.

    ``users`` (N,) indices of the dataset's users and ``surfaces`` (N,) of its surface names, -1 for unknown ones, None
    where no request has one. ``situation`` (N, F): what requests state of the fields that the network reads, see
    ``Situation.stated``.
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
    users: np.ndarray | None = None
    surfaces: np.ndarray | None = None
    situation: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.times)

    @property
    def histories(self) -> Histories:
        """The item histories alone."""
        return Histories(self.offsets, self.items)

    @property
    def request_texts(self) -> list[str]:
        """The query text of each request, "" for none."""
        return [self.query_texts[query] if query >= 0 else "" for query in self.request_queries.tolist()]

    def with_used_texts(self) -> Requests:
        """The same with a table of the query texts that these requests name."""
        used = np.unique(np.concatenate([self.queries, self.request_queries]))
        used = used[used >= 0]
        if len(used) == len(self.query_texts):
            return self
        queries, request_queries = (
            np.where(part >= 0, np.searchsorted(used, part), -1) for part in (self.queries, self.request_queries)
        )
        texts = [self.query_texts[query] for query in used.tolist()]
        return replace(self, queries=queries, request_queries=request_queries, query_texts=texts)

    def reference_times(self, own: bool) -> np.ndarray:
        """Seconds up to which a model may look, (N,): the request's own time, or that of the history's last event.

        A request without history only has its own.
        """
        if own or not len(self.items):
            return self.times
        last = np.clip(self.offsets[1:] - 1, 0, len(self.items) - 1)
        return np.where(np.diff(self.offsets) > 0, self.timestamps[last], self.times)

    def take(self, indices: np.ndarray) -> Requests:
        """The requests at these indices, in their order."""
        offsets, rows = gather_ranges(self.offsets[:-1][indices], np.diff(self.offsets)[indices])
        events = {name: getattr(self, name)[rows] for name in ("items", "timestamps", "actions", "queries")}
        names = ("times", "request_queries", "targets", "users", "surfaces", "situation")
        own = {name: column[indices] for name in names if (column := getattr(self, name)) is not None}
        return replace(self, offsets=offsets, **events, **own)


class Dataset:
    """A prepared dataset folder, opened read-only.

    Events of a user follow each other in time; users are in order of their ids.
    """

    offsets: np.ndarray  # (n_users + 1,) int64: events of user u are offsets[u] to offsets[u + 1] - 1
    items: np.ndarray  # (n_events,) int32
    timestamps: np.ndarray  # (n_events,) int64 seconds
    actions: np.ndarray  # (n_events,) int16 index into actions_chain
    queries: np.ndarray  # (n_events,) int32 index into query_texts, -1 for none
    split: np.ndarray  # (n_events,) uint8 TRAIN, VALID or TEST
    surfaces: np.ndarray | None  # (n_events,) int16 index into surface_names, -1 for none; None for a log without

    def __init__(self, folder: Path | str):
        self.folder = folder = Path(folder)
        self.manifest = open_artifact(folder, KIND)
        self.info: dict = self.manifest["info"]
        for name in ARRAYS:
            setattr(self, name, np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
        surfaces = folder / SURFACES
        self.surfaces = np.load(surfaces, mmap_mode="r", allow_pickle=False) if surfaces.is_file() else None
        self._known_lengths: dict[int, np.ndarray] = {}
        self.item_table = pl.read_parquet(folder / "items.parquet")
        self.query_texts: list[str] = pl.read_parquet(folder / "queries.parquet")["query"].to_list()

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.offsets) - 1

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.item_table)

    @property
    def target_level(self) -> int:
        """The lowest index in ``actions_chain`` of a possible target; weaker events only occur in histories."""
        return self.info.get("target_level", 0)

    @property
    def actions_chain(self) -> list[str]:
        """The actions of the log, from shallow to deep."""
        return self.info["actions"]

    @property
    def surface_names(self) -> list[str]:
        """Where events happened, in order of appearance; none for a log that does not say."""
        return self.info.get("surfaces", [])

    @cached_property
    def event_users(self) -> np.ndarray:
        """(n_events,) int64 the user of each event."""
        return np.repeat(np.arange(self.n_users), np.diff(self.offsets))

    def texts_of(self, queries: np.ndarray) -> pl.Series:
        """The texts of query ids, null for -1."""
        texts = pl.Series("query", [*self.query_texts, None], dtype=pl.String)
        return texts[np.where(queries < 0, len(texts) - 1, queries).astype(np.int64)]

    @cached_property
    def users(self) -> pl.DataFrame:
        """The users in dense order: ``user_id``, then the attributes that the log gives."""
        return pl.read_parquet(self.folder / "users.parquet")

    @cached_property
    def user_ids(self) -> pl.Series:
        """The log's user ids in dense order."""
        return pl.read_parquet(self.folder / "users.parquet", columns=["user_id"])["user_id"]

    @cached_property
    def user_index(self) -> dict[str, int]:
        """User id to dense id."""
        return {user: index for index, user in enumerate(self.user_ids)}

    @cached_property
    def item_index(self) -> dict[str, int]:
        """Item id to dense id."""
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
        offsets, rows = gather_ranges(self.offsets[:-1], self.known_lengths(last))
        return Histories(offsets, np.asarray(self.items[rows]))

    def heldout_events(self, split: str) -> np.ndarray:
        """One event per user: the first of the split that may be a target.

        Its history is everything the user did before it.
        """
        if split not in ("valid", "test"):
            raise UserError(f"--split: '{split}' is not one of valid, test")
        rows = np.flatnonzero(self.split == SPLITS[split])
        rows = rows[self.actions[rows] >= self.target_level] if self.target_level else rows
        return rows[np.unique(self.user_of(rows), return_index=True)[1]]

    def user_of(self, events: np.ndarray) -> np.ndarray:
        """The user of some events: (n,)."""
        return np.searchsorted(self.offsets, events, side="right") - 1

    def requests(self, split: str, query_kind: str | None = None) -> Requests:
        """The split's requests: recommendations, or the searches with queries of a kind (other events are left out)."""
        events = self.heldout_events(split)
        queries = np.full(len(events), -1, np.int64)
        if query_kind is not None:
            table = self.heldout_queries.filter((pl.col("kind") == query_kind) & pl.col("event").is_in(events))
            events, queries = table["event"].to_numpy(), table["query"].to_numpy()
        return self.requests_before(events, queries)

    def requests_before(self, events: np.ndarray, queries: np.ndarray) -> Requests:
        """One request at each event, which sees the user's events before it and has the event's item as target."""
        times, targets = np.asarray(self.timestamps[events]), np.asarray(self.items[events])
        surfaces = None if self.surfaces is None else np.asarray(self.surfaces[events]).astype(np.int64)
        return self.requests_at(self.user_of(events), events, times, queries, targets, self.query_texts, surfaces)

    def requests_at(
        self,
        users: np.ndarray,
        stops: np.ndarray,
        times: np.ndarray,
        queries: np.ndarray,
        targets: np.ndarray,
        query_texts: list[str],
        surfaces: np.ndarray | None = None,
    ) -> Requests:
        """Requests of ``users`` (N,), each of which sees the user's events before index ``stops`` (N,) of the log.

        ``surfaces`` (N,): where they are made.
        """
        start = np.asarray(self.offsets)[users]
        offsets, rows = gather_ranges(start, stops - start)
        items, timestamps, actions, own_queries = (
            np.asarray(column[rows]) for column in (self.items, self.timestamps, self.actions, self.queries)
        )
        history = offsets, items, timestamps, actions, own_queries
        return Requests(*history, times, queries, targets, query_texts, users, surfaces)

    @cached_property
    def impressions(self) -> pl.DataFrame | None:
        """Impressions by user, time and request: dense ``user`` and ``item``, then the reader's columns.

        None for a log without.
        """
        return self._optional_table("impressions")

    @cached_property
    def impressions_all(self) -> pl.DataFrame | None:
        """``impressions`` with those of items outside the dataset, which get distinct ids from ``n_items`` on."""
        outside = self._optional_table("impressions_outside")
        if self.impressions is None or outside is None:
            return self.impressions
        inside, outside = (table.with_columns(pl.col("item").cast(pl.Int64)) for table in (self.impressions, outside))
        return pl.concat([inside, outside.with_columns(pl.col("item") + self.n_items)], how="diagonal_relaxed")

    @cached_property
    def judgments(self) -> pl.DataFrame | None:
        """Graded relevance of items for queries, as the reader gave it; None for a log without."""
        return self._optional_table("judgments")

    def _optional_table(self, name: str) -> pl.DataFrame | None:
        path = self.folder / f"{name}.parquet"
        return pl.read_parquet(path) if path.is_file() else None

    @cached_property
    def heldout_queries(self) -> pl.DataFrame:
        """``event``, ``kind`` and ``query`` of the held-out events that have a query."""
        return pl.read_parquet(self.folder / "heldout_queries.parquet")

    @property
    def query_kinds(self) -> list[str]:
        """Kinds of held-out queries: ``logged``, or the synthetic kinds."""
        return self.heldout_queries["kind"].unique(maintain_order=True).to_list()

    def item_counts(self, last: int) -> np.ndarray:
        """Events per item up to split ``last``: (n_items,)."""
        return np.bincount(self.histories(last).items, minlength=self.n_items)
