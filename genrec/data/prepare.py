"""From a raw log to a prepared dataset: duplicates, k-core, dense ids, order, split, queries.

Tie rule: events are ordered by user, then time, then their place in the log.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import polars as pl

from genrec.artifacts import atomic_folder, file_fingerprint, fingerprint, is_current
from genrec.config import Config, to_dict
from genrec.data import queries as query_rules
from genrec.data.dataset import ARRAYS, KIND, TEST, TRAIN, VALID
from genrec.data.readers import read_log
from genrec.data.schema import RawLog
from genrec.errors import UserError

log = logging.getLogger(__name__)
PREPARE_VERSION = 1  # raised when the same config would give another dataset


def prepare_key(config: Config) -> str:
    """The fingerprint of everything a prepared dataset depends on."""
    path = Path(config.data.path) if config.data.path else None
    files = file_fingerprint(path) if path and path.exists() else None
    return fingerprint(PREPARE_VERSION, to_dict(config.data), to_dict(config.split), to_dict(config.queries), files, config.seed)


def prepare(config: Config, target: Path) -> Path:
    """Read the configured log and write the prepared dataset to ``target``; skipped when it is up to date."""
    key = prepare_key(config)
    if is_current(target, KIND, key):
        log.info("prepare: up to date (%s)", target)
        return target
    raw = read_log(config.data.reader, config.data.path, config.data.options)
    check_quarantine(raw, config.data.max_quarantine_share)
    events, counts = clean_events(raw.events, config)
    if events.is_empty():
        raise UserError(f"data.path {config.data.path}: no event is left after filtering (read {raw.rows_read}, {counts})")
    tables, arrays, info = build(events, raw, config)
    info["rows"] = {"read": raw.rows_read, "quarantined": len(raw.quarantine), **counts}
    with atomic_folder(target, KIND, key, info) as folder:
        for name, table in tables.items():
            table.write_parquet(folder / f"{name}.parquet")
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
    log.info("prepare: %s", ", ".join(f"{key} {value}" for key, value in info.items() if isinstance(value, int | str)))
    return target


def check_quarantine(raw: RawLog, limit: float) -> None:
    """Stop when the share of bad rows passes the limit; the first reason is named."""
    bad = len(raw.quarantine)
    if bad == 0:
        return
    first = raw.quarantine.row(0, named=True)
    log.warning("%d of %d rows were put aside, the first: %s line %s: %s", bad, raw.rows_read, *first.values())
    if bad > limit * max(raw.rows_read, 1):
        raise UserError(
            f"{first['source']} line {first['line']}: {first['reason']}; {bad} of {raw.rows_read} rows are bad, more than "
            f"data.max_quarantine_share={limit} allows"
        )


def clean_events(events: pl.DataFrame, config: Config) -> tuple[pl.DataFrame, dict[str, int]]:
    """Drop exact duplicates, then users and items below the minimum counts until none is left."""
    before = len(events)
    events = events.unique(["user_id", "item_id", "timestamp", "action", "query"], keep="first", maintain_order=True)
    counts = {"duplicates": before - len(events)}
    before = len(events)
    while True:
        kept = events.filter(
            (pl.len().over("user_id") >= config.data.min_user_events) & (pl.len().over("item_id") >= config.data.min_item_events)
        )
        if len(kept) == len(events):
            break
        events = kept
    counts["below_minimum"] = before - len(events)
    return events, counts


def build(events: pl.DataFrame, raw: RawLog, config: Config) -> tuple[dict[str, pl.DataFrame], dict[str, np.ndarray], dict]:
    """Tables, arrays and the manifest's info of the prepared dataset."""
    users = events.select("user_id").unique(maintain_order=True)
    if raw.users is not None:
        users = users.join(raw.users.unique("user_id", keep="first"), on="user_id", how="left", maintain_order="left")
    items = catalogue(events, raw.items, config.data.keep_unseen_items)
    actions = events["action"].fill_null("event").unique(maintain_order=True).to_list()
    dense = events.select(
        pl.col("user_id").replace_strict(users["user_id"], np.arange(len(users)), return_dtype=pl.Int64).alias("user"),
        pl.col("item_id").replace_strict(items["item_id"], np.arange(len(items)), return_dtype=pl.Int64).alias("item"),
        "timestamp",
        pl.col("action").fill_null("event").replace_strict(actions, np.arange(len(actions)), return_dtype=pl.Int64).alias("action"),
        pl.col("query").str.strip_chars().replace("", None),
    ).sort("user", "timestamp", maintain_order=True)
    user = dense["user"].to_numpy()
    times = dense["timestamp"].to_numpy()
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(users)))]).astype(np.int64)
    split = split_events(user, times, offsets, config)
    query_table, event_queries, heldout, synthetic = attach_queries(dense, users, items, split, config)
    arrays = {
        "offsets": offsets, "items": dense["item"].to_numpy().astype(np.int32), "timestamps": times,
        "actions": dense["action"].to_numpy().astype(np.int16), "queries": event_queries, "split": split,
    }  # fmt: skip
    assert set(arrays) == set(ARRAYS)
    info = {
        "users": len(users), "items": len(items), "events": len(dense), "actions": actions,
        "train_events": int((split == TRAIN).sum()), "valid_events": int((split == VALID).sum()), "test_events": int((split == TEST).sum()),
        "split": config.split.kind, "tie_rule": "time, then place in the log", "test_targets_tied_in_time": tied_targets(times, offsets, split),
        "synthetic_queries": synthetic, "search_events": int((event_queries >= 0).sum()),
        "split_fingerprint": split_fingerprint(users, items, arrays),
    }  # fmt: skip
    tables = {"users": users, "items": items, "queries": query_table, "heldout_queries": heldout, "quarantine": raw.quarantine}
    return tables, arrays, info


def catalogue(events: pl.DataFrame, items: pl.DataFrame, keep_unseen: bool) -> pl.DataFrame:
    """The item table in order of first appearance in the log; unseen items behind, when they are kept."""
    items = items.unique("item_id", keep="first", maintain_order=True)
    table = events.select("item_id").unique(maintain_order=True).join(items, on="item_id", how="left", maintain_order="left")
    if keep_unseen:
        table = pl.concat([table, items.join(table, on="item_id", how="anti", maintain_order="left")], how="diagonal_relaxed")
    return table


def split_events(user: np.ndarray, times: np.ndarray, offsets: np.ndarray, config: Config) -> np.ndarray:
    """TRAIN, VALID or TEST for each event: (n_events,) uint8. Within a user the three never interleave."""
    split = np.zeros(len(user), np.uint8)
    if config.split.kind == "leave-last-out":
        length = np.diff(offsets)
        from_end = offsets[user + 1] - 1 - np.arange(len(user))
        enough = length[user] >= 3
        split[enough & (from_end == 1)] = VALID
        split[enough & (from_end == 0)] = TEST
        return split
    cuts = np.quantile(times, [1 - config.split.valid_share - config.split.test_share, 1 - config.split.test_share], method="higher")
    split[times >= cuts[0]] = VALID
    split[times >= cuts[1]] = TEST
    return split


def tied_targets(times: np.ndarray, offsets: np.ndarray, split: np.ndarray) -> int:
    """How many test events carry the same time as the event before them: their order is the log's word, not the clock's."""
    test = np.flatnonzero(split == TEST)
    test = test[~np.isin(test, offsets[:-1])]
    return int((times[test] == times[test - 1]).sum())


def split_fingerprint(users: pl.DataFrame, items: pl.DataFrame, arrays: dict[str, np.ndarray]) -> str:
    """Changes with any user, item, order or split decision."""
    return fingerprint(
        *[int(query_rules.mix(query_rules.string_hash(table) + np.arange(len(table), dtype=np.uint64)).sum(dtype=np.uint64))
          for table in (users["user_id"], items["item_id"])],
        *[int(query_rules.mix(arrays[name].astype(np.uint64) * np.uint64(31) + np.arange(len(arrays[name]), dtype=np.uint64)).sum(dtype=np.uint64))
          for name in ("offsets", "items", "split")],
    )  # fmt: skip


def attach_queries(
    dense: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame, split: np.ndarray, config: Config
) -> tuple[pl.DataFrame, np.ndarray, pl.DataFrame, bool]:
    """The query table, each event's query (-1 = none), the held-out events' queries by kind, and whether they are synthetic.

    Logged queries win: synthetic ones are only made for a log that has none.
    """
    logged = dense["query"]
    kinds = config.queries.synthetic
    if logged.null_count() < len(logged) or not kinds:
        chosen, held = logged, {"logged": logged}
    else:
        user_hash = query_rules.string_hash(users["user_id"])[dense["user"].to_numpy()]
        item_hash = query_rules.string_hash(items["item_id"])[dense["item"].to_numpy()]
        event_hash = query_rules.mix(user_hash * np.uint64(0x9E3779B1) + item_hash)
        event_items = dense["item"].to_numpy()
        held = {}
        if "category" in kinds:
            held["category"] = query_rules.category_queries(items)[event_items]
        if "title" in kinds:
            held["title"] = query_rules.title_queries(items, event_items, event_hash)
        draw = query_rules.mix(event_hash + np.uint64(1))
        kind = pl.Series((query_rules.mix(event_hash + np.uint64(2)) % np.uint64(len(kinds))).astype(np.int64))
        wanted = pl.Series((draw % np.uint64(10_000)) < config.queries.share * 10_000)
        frame = pl.DataFrame({name: series.alias(name) for name, series in held.items()}).with_columns(kind=kind, wanted=wanted)
        pick = pl.coalesce([pl.when(pl.col("kind") == index).then(pl.col(name)) for index, name in enumerate(kinds)])
        chosen = frame.select(pl.when("wanted").then(pick).alias("query"))["query"]
    held_rows = np.flatnonzero(split != TRAIN)
    heldout = pl.concat(
        [pl.DataFrame({"event": held_rows, "kind": [kind] * len(held_rows), "query": series[held_rows]}) for kind, series in held.items()]
    ).filter(pl.col("query").is_not_null())
    table = pl.concat([chosen.drop_nulls().alias("query"), heldout["query"]]).unique(maintain_order=True)
    ids = np.arange(len(table))
    event_queries = chosen.replace_strict(table, ids, default=-1, return_dtype=pl.Int64).fill_null(-1).to_numpy().astype(np.int32)
    heldout = heldout.with_columns(pl.col("query").replace_strict(table, ids, return_dtype=pl.Int64))
    return table.to_frame(), event_queries, heldout, "logged" not in held
