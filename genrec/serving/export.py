"""The store as a log: what people did at the server, in the columns of the data contract."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from genrec.artifacts.folders import atomic_folder, fingerprint
from genrec.data.schema import EVENT_SCHEMA, IMPRESSION_SCHEMA
from genrec.serving.stores import existing_store

KIND = "exported_events"
_CHUNK = 100_000  # records held as Python objects at once


def write_events(store_path: str, output: Path) -> dict[str, int]:
    """Write ``events.parquet`` and ``impressions.parquet``, which the ``table`` reader reads; returns their row counts.

    Raises ``UserError`` where there is no such store.
    """
    store = existing_store(store_path)
    tables = {
        "events": _table(store.all_events(), EVENT_SCHEMA),
        "impressions": _table(store.all_impressions(), IMPRESSION_SCHEMA),
    }
    store.close()
    counts = {name: len(table) for name, table in tables.items()}
    with atomic_folder(output, KIND, fingerprint(counts), counts) as folder:
        for name, table in tables.items():
            table.write_parquet(folder / f"{name}.parquet")
    return counts


def _table(records: Iterable[Any], schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """Records as a table of a contract's columns, chunk by chunk."""
    records, frames = iter(records), [pl.DataFrame(schema=schema)]
    while chunk := [asdict(record) for record in islice(records, _CHUNK)]:
        rows = [{name: record.get(name) for name in schema} for record in chunk]
        frames.append(pl.DataFrame(rows, schema=schema))
    return pl.concat(frames)
