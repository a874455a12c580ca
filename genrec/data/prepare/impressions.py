"""Impressions: dense ids, sorted by user, time and request, however many rows there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from genrec.data.prepare.parsed import ParsedLog
from genrec.data.schema import stack

PARTITION_ROWS = 1 << 20  # rows sorted at a time
MAX_PARTITIONS = 64
ORDER = ("user", "timestamp", "request_id")


def write_impressions(
    parsed: ParsedLog, user_index: np.ndarray, item_index: np.ndarray, offsets: np.ndarray, folder: Path, scratch: Path
) -> dict[str, int]:
    """Write ``impressions.parquet``.

    ``user``, ``item`` (dense ids) and the reader's columns; nothing for a log without impressions.

    Rows of one request keep their order in the log. A row whose item is not in the dataset has no id and goes to
    ``impressions_outside.parquet``, its ``item`` the number the parsed log gave it; one of an unknown user is left out.
    Returns the counts of rows kept and left out.
    """
    files, total = parsed.files("impressions"), parsed.total("impressions")
    if not files:
        return {}
    count = min(MAX_PARTITIONS, max(1, -(-total // PARTITION_ROWS)))
    # Users with many events have many impressions: partitions of about equal numbers of events.
    part_of = (offsets[:-1] * count // max(int(offsets[-1]), 1)).astype(np.int64)
    dealt: dict[str, dict[int, list[Path]]] = {"impressions": {}, "impressions_outside": {}}
    kept = 0
    for number, file in enumerate(files):
        table = pl.read_parquet(file)
        users, codes = user_index[table["user"].to_numpy()], table["item"].to_numpy()
        items = item_index[codes]
        kept += int(((users >= 0) & (items >= 0)).sum())
        for name, rows, ids in (
            ("impressions", (users >= 0) & (items >= 0), items),
            ("impressions_outside", (users >= 0) & (items < 0), codes),
        ):
            known = (
                table.drop("user", "item").with_columns(pl.Series("user", users), pl.Series("item", ids)).filter(rows)
            )
            owner = part_of[users[rows]]
            for part in np.unique(owner):
                path = scratch / f"{name}-{part:03d}-{number:06d}.parquet"
                known.filter(owner == part).write_parquet(path, compression="lz4")
                dealt[name].setdefault(int(part), []).append(path)
    for name, parts in dealt.items():
        _write_sorted(parts, name, folder, scratch)
    return {"kept": kept, "of_unknown_users_or_items": total - kept}


def _write_sorted(dealt: dict[int, list[Path]], name: str, folder: Path, scratch: Path) -> None:
    """One file of the partitions, each sorted by itself."""
    ready = []
    for part in sorted(dealt):
        table = stack([pl.read_parquet(path) for path in dealt[part]])
        table = table.select("user", "item", pl.exclude("user", "item")).sort(*ORDER, maintain_order=True)
        ready.append(scratch / f"{name}-{part:03d}.parquet")
        table.write_parquet(ready[-1], compression="lz4")
        for path in dealt[part]:
            path.unlink()
    write_together(ready, folder / f"{name}.parquet")


def write_together(files: list[Path], target: Path) -> None:
    """One Parquet file from many, in order, without holding them in memory."""
    if files:
        stack([pl.scan_parquet(file, glob=False) for file in files]).sink_parquet(target, maintain_order=True)
