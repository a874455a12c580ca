"""Cold items: a share of the catalogue is held out of training entirely, to measure what a model does with an item
nobody has had yet.

Which items, a hash of their id and the seed decides. All their training events are taken out, from histories too; what
stays are the held-out events that ask for them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from genrec.data.dataset import TRAIN
from genrec.data.prepare.assemble import Arrays
from genrec.data.prepare.blocks import ArrayFile
from genrec.data.prepare.splits import Splitter, pieces
from genrec.data.queries import mix, string_hash
from genrec.errors import UserError


def cold_items(names: pl.Series, share: float, seed: int) -> np.ndarray:
    """Whether each item, by its id (n_items,), is cold: (n_items,) bool."""
    salt = mix(np.array([seed], np.uint64))
    return (mix(string_hash(names) ^ salt) >> np.uint64(11)) / 2.0**53 < share


def without_cold(
    arrays: Arrays, splitter: Splitter, cold: np.ndarray, folder: Path, scratch: Path
) -> tuple[Arrays, ArrayFile]:
    """The arrays without training events of ``cold`` items, written to ``folder`` in place of the old ones, and the split
    of what is left.

    Raises ``UserError`` where a user would be left without an event.
    """
    offsets, decided = arrays.offsets, ArrayFile(scratch / "decided.npy", np.uint8, len(arrays.items))
    keep, counts = ArrayFile(scratch / "keep.npy", np.bool_, len(arrays.items)), []
    for piece in pieces(offsets):
        extra = arrays.extra.read(piece.start, piece.stop) if arrays.extra else None
        split = splitter(piece, arrays.timestamps.read(piece.start, piece.stop), extra)
        kept = ~cold[arrays.items.read(piece.start, piece.stop)] | (split != TRAIN)
        decided.write(piece.start, split)
        keep.write(piece.start, kept)
        counts.append(np.add.reduceat(kept.astype(np.int64), piece.offsets[:-1]))
    counts = np.concatenate(counts)
    if not counts.all():
        raise UserError(
            f"split.cold_share: {int((counts == 0).sum())} users would be left without an event; take a smaller share or a higher data.min_user_events"
        )
    after = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    np.save(folder / "offsets.npy", after, allow_pickle=False)
    names = ("items", "timestamps", "actions", "queries", *(["extra"] if arrays.extra else []))
    made = {name: _kept(getattr(arrays, name), keep, offsets, after) for name in names}
    return replace(arrays, offsets=after, **made), _kept(decided, keep, offsets, after)


def _kept(array: ArrayFile, keep: ArrayFile, offsets: np.ndarray, after: np.ndarray) -> ArrayFile:
    """The values of an array that stay, under its name."""
    old = array.path.with_suffix(".old")
    array.path.rename(old)
    array.path, path = old, array.path
    made = ArrayFile(path, array.dtype, int(after[-1]))
    for piece in pieces(offsets):
        made.write(int(after[piece.first]), array.read(piece.start, piece.stop)[keep.read(piece.start, piece.stop)])
    old.unlink()
    return made
