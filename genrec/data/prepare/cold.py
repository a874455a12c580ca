"""Cold items: part of the catalogue has no training event, to measure what a model does with a new item.

A hash of the id and the seed decides which. All their training events are removed, from histories too; what stays are
the held-out events that ask for them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from genrec.data.dataset import TRAIN
from genrec.data.prepare.assemble import Arrays
from genrec.data.prepare.blocks import ArrayFile
from genrec.data.prepare.splits import Splitter, user_chunks
from genrec.data.queries import mix, string_hash
from genrec.errors import UserError


def cold_items(names: pl.Series, share: float, seed: int) -> np.ndarray:
    """Whether each item, by its id (n_items,), is cold: (n_items,) bool."""
    salt = mix(np.array([seed], np.uint64))
    return (mix(string_hash(names) ^ salt) >> np.uint64(11)) / 2.0**53 < share


def without_cold(
    arrays: Arrays, splitter: Splitter, cold: np.ndarray, folder: Path, scratch: Path
) -> tuple[Arrays, ArrayFile]:
    """The arrays without training events of ``cold`` items, in place of the old ones in ``folder``, and their split.

    Raises ``UserError`` where a user would be left without an event.
    """
    offsets, decided = arrays.offsets, ArrayFile(scratch / "decided.npy", np.uint8, len(arrays.items))
    keep, parts = ArrayFile(scratch / "keep.npy", np.bool_, len(arrays.items)), list[np.ndarray]()
    for chunk in user_chunks(offsets):
        given = arrays.given.read(chunk.start, chunk.stop) if arrays.given else None
        split = splitter(chunk, arrays.timestamps.read(chunk.start, chunk.stop), given)
        kept = ~cold[arrays.items.read(chunk.start, chunk.stop)] | (split != TRAIN)
        decided.write(chunk.start, split)
        keep.write(chunk.start, kept)
        parts.append(np.add.reduceat(kept.astype(np.int64), chunk.offsets[:-1]))
    counts = np.concatenate(parts)
    if not counts.all():
        raise UserError(
            f"split.cold_share: {int((counts == 0).sum())} users would be left without an event; take a smaller "
            "share or a higher data.min_user_events"
        )
    after = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    np.save(folder / "offsets.npy", after, allow_pickle=False)

    def remaining(array: ArrayFile) -> ArrayFile:
        return _kept(array, keep, offsets, after)

    changed = replace(
        arrays,
        offsets=after,
        items=remaining(arrays.items),
        timestamps=remaining(arrays.timestamps),
        actions=remaining(arrays.actions),
        queries=remaining(arrays.queries),
        given=remaining(arrays.given) if arrays.given else None,
        surfaces=remaining(arrays.surfaces) if arrays.surfaces else None,
    )
    return changed, remaining(decided)


def _kept(array: ArrayFile, keep: ArrayFile, offsets: np.ndarray, after: np.ndarray) -> ArrayFile:
    """The values of an array that stay, under its name."""
    old = array.path.with_suffix(".old")
    array.path.rename(old)
    array.path, path = old, array.path
    made = ArrayFile(path, array.dtype, int(after[-1]))
    for chunk in user_chunks(offsets):
        made.write(int(after[chunk.first]), array.read(chunk.start, chunk.stop)[keep.read(chunk.start, chunk.stop)])
    old.unlink()
    return made
