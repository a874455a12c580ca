"""The protocols of the search literature: their requests, and the items among which they rank.

Rows are made in ``protocol_rows``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from genrec.data.dataset import SPLITS, TEST, TRAIN, Dataset, Requests
from genrec.data.impressions import split_slates
from genrec.errors import UserError
from genrec.evaluation.metrics import PAD
from genrec.evaluation.qrels import Qrels
from genrec.ranking.impressions import Slates

SAMPLED_NEGATIVES = 99
LIST = 100  # positions read by MAP and MRR of product search


@dataclass(frozen=True)
class ProtocolRequests:
    """The requests of a protocol, their relevant items, and where there are slates the items that may be ranked.

    ``candidates`` (N, C) item ids in the order shown, -1 where empty. ``notes`` say what a reader of the table must
    know. ``logged``: the whole slates, with items outside the catalogue, positions and prices.
    """

    requests: Requests
    qrels: Qrels
    candidates: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    logged: Slates | None = None

    @property
    def slates(self) -> Slates:
        """``logged``, of a protocol that has it."""
        assert self.logged is not None
        return self.logged


def product_search(dataset: Dataset, split: str = "test") -> ProtocolRequests:
    """Topics of a split: a person and a query, answered by every item they bought with it in that split.

    A topic sees the person's events of earlier splits only, as in the benchmark: no topic sees another's purchases.
    """
    part = _split(split)
    rows = np.flatnonzero((np.asarray(dataset.split) == part) & (np.asarray(dataset.queries) >= 0))
    if not len(rows):
        raise UserError(f"protocol product-search: no event of the {split} split has a query; it needs logged searches")
    users = np.searchsorted(dataset.offsets, rows, side="right") - 1
    queries = np.asarray(dataset.queries[rows]).astype(np.int64)
    width = int(queries.max()) + 1
    topics, topic = np.unique(users * width + queries, return_inverse=True)
    lengths = dataset.known_lengths(part - 1)
    first = dataset.offsets[:-1] + lengths  # within a user the splits never interleave
    owner = topics // width
    requests = replace(
        dataset.requests_before(first[owner], topics % width), targets=np.full(len(topics), -1, np.int64)
    )
    known = dataset.item_counts(part - 1)[np.asarray(dataset.items[rows])] > 0
    notes = (
        (
            f"{len(topics)} topics (person and query), {len(rows)} purchases, {1 - known.mean():.1%} of them of "
            "items without an earlier event; "
            f"full ranking over {dataset.n_items} items, MAP and MRR over the first {LIST}; items of the history may "
            "be answered"
        ),
    )
    return ProtocolRequests(requests, Qrels.build(topic, np.asarray(dataset.items[rows]), n=len(topics)), notes=notes)


def session_search(dataset: Dataset, split: str = "test", action: str = "clickout") -> ProtocolRequests:
    """Every click-out of a split with its slate; its history is all the person did before, in this session too.

    A click-out is left out and counted when it has no slate, when its slate does not hold the item (by id) and when
    its slate belongs to another split (``genrec.data.impressions``). ``split`` may be "train" too, for what learns
    from slates.
    """
    part = SPLITS["train"] if split == "train" else _split(split)
    if action not in dataset.actions_chain or dataset.impressions is None:
        missing = "impressions" if dataset.impressions is None else f"action '{action}'"
        raise UserError(
            f"protocol session-search: the data have no {missing}; it needs a log of slates, as reader trivago gives"
        )
    clicked = np.asarray(dataset.actions) == dataset.actions_chain.index(action)
    rows = np.flatnonzero((np.asarray(dataset.split) == part) & clicked)
    clicks = _clicks_with_slate(dataset, rows, part, action)
    if clicks.is_empty():
        raise UserError(f"protocol session-search: no {action} of the {split} split has its slate")
    table = _slate_rows(dataset, clicks)
    slates = _lists(table, len(clicks))
    events = clicks["event"].to_numpy()
    requests = dataset.requests_before(events, np.asarray(dataset.queries[events]).astype(np.int64))
    length = max(table.group_by("row").agg(pl.col("position").max() + 1)["position"].sum(), 1)
    inside = familiar(dataset, requests, slates.items, max(part - 1, 0))
    note = (
        f"{len(clicks)} of {len(rows)} click-outs of the {split} split have their slate; "
        f"{(slates.items >= 0).sum() / length:.1%} of it is ranked. {inside.sum() / length:.1%} of it had an event "
        "before the split or in the person's own past; what had none follows in the order shown in rows that rank by "
        "item alone"
    )
    qrels = Qrels.build(np.arange(len(clicks)), clicks["clicked"].to_numpy(), n=len(clicks))
    return ProtocolRequests(requests, qrels, slates.items, (note,), slates)


def _clicks_with_slate(dataset: Dataset, rows: np.ndarray, part: int, action: str) -> pl.DataFrame:
    """The events ``rows`` whose item is in a slate of the same split: ``event``, ``user``, ``request_id`` and more."""
    events = pl.DataFrame({
        "event": rows, "user": np.searchsorted(dataset.offsets, rows, side="right") - 1,
        "timestamp": np.asarray(dataset.timestamps[rows]), "clicked": np.asarray(dataset.items[rows]).astype(np.int64),
    })  # fmt: skip
    splits = split_slates(dataset)
    assert splits is not None
    lists = splits.filter((pl.col("action") == action) & (pl.col("split") == part)).select(
        pl.col("user").cast(pl.Int64), "timestamp", pl.col("item").cast(pl.Int64).alias("clicked"), "request_id"
    )
    matches = events.join(lists, on=["user", "timestamp", "clicked"], how="inner", maintain_order="left")
    return matches.unique("event", keep="first", maintain_order=True)


def _slate_rows(dataset: Dataset, clicks: pl.DataFrame) -> pl.DataFrame:
    """Distinct items of each click's slate: ``row`` of the click, ``column``, ``item``, ``position``, ``price``."""
    slates = dataset.impressions_all
    assert slates is not None
    price = pl.col("price") if "price" in slates.columns else pl.lit(None)
    slates = slates.select(
        pl.col("user").cast(pl.Int64), "timestamp", "request_id", "position", pl.col("item").cast(pl.Int64),
        price.cast(pl.Float64).alias("price"),
    )  # fmt: skip
    return (
        clicks.with_row_index("row")
        .join(slates, on=["user", "timestamp", "request_id"], maintain_order="left")
        .unique(["row", "item"], keep="first", maintain_order=True)
        .sort("row", "position", maintain_order=True)
        .with_columns(pl.int_range(pl.len()).over("row").alias("column"))
    )


def _lists(table: pl.DataFrame, n: int) -> Slates:
    """``item``, ``position`` and ``price`` as arrays (n, C), at ``row`` and ``column``."""
    index = table["row"].to_numpy(), table["column"].to_numpy()
    shape = n, int(index[1].max()) + 1
    items, positions, prices = np.full(shape, PAD, np.int64), np.zeros(shape, np.int64), np.full(shape, np.nan)
    items[index], positions[index] = table["item"].to_numpy(), table["position"].to_numpy()
    prices[index] = table["price"].fill_null(np.nan).to_numpy()
    return Slates(items, positions, prices)


def sampled(
    dataset: Dataset,
    split: str = "test",
    query_kind: str | None = None,
    seed: int = 0,
    negatives: int = SAMPLED_NEGATIVES,
) -> ProtocolRequests:
    """The target of each request among ``negatives`` random items that the user never had, without replacement."""
    requests = dataset.requests(split, query_kind)
    return ProtocolRequests(
        requests, Qrels.build(np.arange(len(requests)), requests.targets, n=len(requests)),
        random_candidates(dataset, requests, split, query_kind, seed, negatives),
        (f"SAMPLED: the target among {negatives} random items; not comparable with full ranking",),
    )  # fmt: skip


def random_candidates(
    dataset: Dataset, requests: Requests, split: str, query_kind: str | None, seed: int, negatives: int
) -> np.ndarray:
    """Distinct item ids (N, 1 + negatives), rising, so that the target's column says nothing.

    There are fewer where the catalogue is too small. Each user has a draw of their own, so recommendation and search
    of one user are ranked among the same items.
    """
    histories = dataset.histories(TEST)
    events = dataset.heldout_events(split)
    if query_kind is not None:
        table = dataset.heldout_queries.filter((pl.col("kind") == query_kind) & pl.col("event").is_in(events))
        events = table["event"].to_numpy()
    users = np.searchsorted(dataset.offsets, events, side="right") - 1
    result = np.full((len(requests), 1 + negatives), dataset.n_items, np.int64)
    for start in range(0, len(users), 1024):
        block = users[start : start + 1024]
        keys = np.stack([np.random.default_rng([seed, user]).random(dataset.n_items, np.float32) for user in block])
        lengths = np.diff(histories.offsets)[block]
        position = np.repeat(histories.offsets[block] - (np.cumsum(lengths) - lengths), lengths) + np.arange(
            lengths.sum()
        )
        keys[np.repeat(np.arange(len(block)), lengths), histories.items[position].astype(np.int64)] = np.inf
        keys[np.arange(len(block)), requests.targets[start : start + 1024]] = -1
        width = min(1 + negatives, dataset.n_items)
        chosen = np.argpartition(keys, width - 1, axis=1)[:, :width]
        chosen = np.where(np.isinf(np.take_along_axis(keys, chosen, 1)), dataset.n_items, chosen)
        result[start : start + 1024, :width] = chosen
    result.sort(axis=1)
    return np.where(result == dataset.n_items, PAD, result)


def without_history(requests: Requests) -> Requests:
    """The same requests from somebody who was never seen before. Their time stays."""
    none = slice(0, 0)
    return replace(
        requests,
        offsets=np.zeros(len(requests) + 1, np.int64),
        items=requests.items[none],
        timestamps=requests.timestamps[none],
        actions=requests.actions[none],
        queries=requests.queries[none],
    )


def last_text(requests: Requests, text: np.ndarray) -> np.ndarray:
    """Text similarity of each item to the history's last event: (N, n_items), 0 without a history.

    ``text`` (n_items, d) unit vectors.
    """
    known = np.diff(requests.offsets) > 0
    vectors = np.zeros((len(requests), text.shape[1]), text.dtype)
    vectors[known] = text[requests.items[requests.offsets[1:][known] - 1]]
    return vectors @ text.T


def slate_order(candidates: np.ndarray, scores: np.ndarray | None = None) -> np.ndarray:
    """Candidates (N, C) by ``scores`` (N, C), the earlier column first among equals; without scores as shown."""
    if scores is None:
        return candidates
    order = np.argsort(np.where(candidates < 0, np.inf, -scores), axis=1, kind="stable")
    return np.take_along_axis(candidates, order, 1)


def completed(ranked: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """``ranked`` (N, C) with the items of ``lists`` (N, C) that it leaves out behind it, in the order shown."""
    missing = np.stack([~np.isin(slates, own) for slates, own in zip(lists, ranked, strict=True)]) & (lists >= 0)
    both = np.concatenate([ranked, np.where(missing, lists, PAD)], axis=1)
    order = np.argsort(both < 0, axis=1, kind="stable")
    return np.take_along_axis(both, order, 1)[:, : lists.shape[1]]


def last_interacted(requests: Requests, candidates: np.ndarray) -> np.ndarray:
    """Recency of each candidate in the history: (N, C), 1 for the newest event, 1/2 for the one before, 0 for none."""
    ages = requests.histories.ages
    width = int(max(requests.items.max(initial=0), candidates.max(initial=0))) + 1
    keys = requests.histories.rows.astype(np.int64) * width + requests.items.astype(np.int64)
    order = np.lexsort((ages, keys))
    keys, ages = keys[order], ages[order]
    if not len(keys):
        return np.zeros(candidates.shape)
    pairs = np.arange(len(candidates))[:, None] * width + np.maximum(candidates, 0)
    position = np.minimum(np.searchsorted(keys, pairs), len(keys) - 1)
    return np.where((keys[position] == pairs) & (candidates >= 0), 1 / (1.0 + ages[position]), 0.0)


def familiar(dataset: Dataset, requests: Requests, candidates: np.ndarray, last: int) -> np.ndarray:
    """Which candidates (N, C) had an event up to split ``last`` or stand in the request's own history: (N, C) bool.

    The rest of the catalogue may not count as known: an item that is there for a later click alone would give that
    click away.
    """
    seen = dataset.item_counts(last)[np.clip(candidates, 0, dataset.n_items - 1)] > 0
    return (candidates >= 0) & (candidates < dataset.n_items) & (seen | (last_interacted(requests, candidates) > 0))


def click_counts(dataset: Dataset, last: int = TRAIN, action: str = "clickout") -> np.ndarray:
    """Clicks per item up to split ``last``: (n_items,)."""
    keep = (np.asarray(dataset.split) <= last) & (np.asarray(dataset.actions) == dataset.actions_chain.index(action))
    return np.bincount(np.asarray(dataset.items)[keep], minlength=dataset.n_items)


def _split(split: str) -> int:
    if split not in ("valid", "test"):
        raise UserError(f"--split: '{split}' is not one of valid, test")
    return SPLITS[split]
