"""The store as a log: what people did at the server, in the columns of the data contract."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from genrec.artifacts.folders import atomic_folder, fingerprint
from genrec.data.impressions import IMPRESSION
from genrec.data.prepare.appended import SERVED_LOG
from genrec.data.schema import EVENT_SCHEMA, IMPRESSION_SCHEMA, PROPENSITY
from genrec.serving.stores import existing_store

_CHUNK = 100_000  # records held as Python objects at once


def write_events(store_path: str, output: Path, chain: Sequence[str]) -> dict[str, int]:
    """Write ``events.parquet`` and ``impressions.parquet``, which ``genrec update`` reads; returns their row counts.

    ``chain`` are the bundle's actions, shallow to deep. An event without one of them has the weakest, as the server
    read it. The action of an impression is the deepest of the user's events with the item that name its recommendation,
    ``impression`` without one. Raises ``UserError`` where there is no such store.
    """
    store = existing_store(store_path)
    tables = {
        "events": _table(store.all_events(), EVENT_SCHEMA),
        "impressions": _table(store.all_impressions(), IMPRESSION_SCHEMA | {PROPENSITY: pl.Float64()}),
    }
    store.close()
    action = pl.col("action")
    tables["events"] = tables["events"].with_columns(
        pl.when(action.is_in(chain)).then(action).otherwise(pl.lit(chain[0]))
    )
    tables["impressions"] = _with_outcomes(tables["impressions"], tables["events"], chain)
    counts = {name: len(table) for name, table in tables.items()}
    with atomic_folder(output, SERVED_LOG, fingerprint(counts), counts) as folder:
        for name, table in tables.items():
            table.write_parquet(folder / f"{name}.parquet")
    return counts


def _with_outcomes(impressions: pl.DataFrame, events: pl.DataFrame, chain: Sequence[str]) -> pl.DataFrame:
    """Impressions with what came of each as ``action``, in their order."""
    key = ["request_id", "user_id", "item_id"]
    deepest = (
        events.sort(pl.col("action").cast(pl.Enum(chain)).to_physical()).group_by(key).agg(pl.col("action").last())
    )
    joined = impressions.drop("action").join(deepest, on=key, how="left", maintain_order="left")
    return joined.with_columns(pl.col("action").fill_null(IMPRESSION)).select(impressions.columns)


def _table(records: Iterable[Any], schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """Records as a table of a contract's columns, chunk by chunk."""
    records, frames = iter(records), [pl.DataFrame(schema=schema)]
    while chunk := [asdict(record) for record in islice(records, _CHUNK)]:
        rows = [{name: record.get(name) for name in schema} for record in chunk]
        frames.append(pl.DataFrame(rows, schema=schema))
    return pl.concat(frames)
