"""What was shown, beside the events: dense ids, sorted by user, time and request, however many rows there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from genrec.data.parsed import ParsedLog
from genrec.data.schema import stack

PARTITION_ROWS = 1 << 20  # rows sorted at a time
MAX_PARTITIONS = 64
ORDER = ("user", "timestamp", "request_id")


def write_impressions(
    parsed: ParsedLog, user_index: np.ndarray, item_index: np.ndarray, offsets: np.ndarray, folder: Path, scratch: Path
) -> dict[str, int]:
    """Write ``impressions.parquet``: ``user``, ``item`` (dense ids) and the reader's columns; nothing for a log without impressions.

    Rows of one request keep their order in the log. A row whose user or item is not in the dataset has no id and is left out. Returns the
    counts of rows kept and left out.
    """
    files, total = parsed.files("impressions"), parsed.total("impressions")
    if not files:
        return {}
    count = min(MAX_PARTITIONS, max(1, -(-total // PARTITION_ROWS)))
    # Users with many events were shown much: partitions of about equal numbers of events.
    part_of = (offsets[:-1] * count // max(int(offsets[-1]), 1)).astype(np.int64)
    dealt: dict[int, list[Path]] = {}
    kept = 0
    for number, file in enumerate(files):
        table = pl.read_parquet(file)
        users, items = user_index[table["user"].to_numpy()], item_index[table["item"].to_numpy()]
        table = table.drop("user", "item").with_columns(pl.Series("user", users), pl.Series("item", items))
        known = (users >= 0) & (items >= 0)
        table, owner = table.filter(known), part_of[users[known]]
        kept += table.height
        for part in np.unique(owner):
            place = scratch / f"shown-{part:03d}-{number:06d}.parquet"
            table.filter(owner == part).write_parquet(place, compression="lz4")
            dealt.setdefault(int(part), []).append(place)
    target = folder / "impressions.parquet"
    ready = []
    for part in sorted(dealt):
        table = stack([pl.read_parquet(place) for place in dealt[part]])
        table = table.select("user", "item", pl.exclude("user", "item")).sort(*ORDER, maintain_order=True)
        ready.append(scratch / f"shown-{part:03d}.parquet")
        table.write_parquet(ready[-1], compression="lz4")
        for place in dealt[part]:
            place.unlink()
    write_together(ready, target)
    return {"kept": kept, "of_unknown_users_or_items": total - kept}


def write_together(files: list[Path], target: Path) -> None:
    """One Parquet file from many, in order, without holding them in memory."""
    if files:
        stack([pl.scan_parquet(file, glob=False) for file in files]).sink_parquet(target, maintain_order=True)
