"""The vectors that tokenize quantizes, made in blocks of items and kept in files: memory does not grow with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from genrec.progress import Progress
from genrec.semantic_ids.space import BehaviourSpace, ItemSpace
from genrec.semantic_ids.text_space import TextSpace

BLOCK = 1 << 16  # items whose vectors are in memory at once
HALF_ITEMS = 1 << 17  # text vectors of more items are kept in half precision
TEXT, ENHANCED, JOINT = "text.npy", "enhanced.npy", "joint.npy"


@dataclass(frozen=True)
class ItemVectors:
    """Memory maps of a catalogue: ``text`` (n, d), ``enhanced`` (n, d) with keywords, ``joint`` (n, d + behaviour)."""

    text: np.ndarray
    enhanced: np.ndarray
    joint: np.ndarray
    space: ItemSpace

    @property
    def without_behaviour(self) -> TextOnly:
        """The joint vectors as new items would have them, read by rows."""
        return TextOnly(self.space, self.enhanced)


@dataclass(frozen=True)
class TextOnly:
    """Joint vectors of items from their ``enhanced`` text vectors alone, made when rows are read."""

    space: ItemSpace
    enhanced: np.ndarray

    def __len__(self) -> int:
        return len(self.enhanced)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.space.vectors(np.asarray(self.enhanced[rows], np.float32))


def item_vectors(
    items: pl.DataFrame, words: TextSpace, behaviour: BehaviourSpace, behaviour_weight: float, folder: Path
) -> ItemVectors:
    """Write the vectors of ``items`` into ``folder``, block by block, and open them.

    ``behaviour``: the items' co-consumption. ``behaviour_weight``: its weight in the joint vectors.
    """
    n, dim = len(items), words.encoder.dim
    text = _new(folder / TEXT, (n, dim), np.dtype(np.float16 if n > HALF_ITEMS else np.float32))
    enhanced = _new(folder / ENHANCED, (n, dim), np.dtype(np.float32))
    with Progress("text vectors, items", n, enabled=n > BLOCK) as progress:
        for rows in _blocks(n):
            text[rows], enhanced[rows] = words.item_vectors(items[rows])
            progress.advance(rows.stop - rows.start)
    enhanced = _reopened(enhanced)
    space = ItemSpace.fit_blocks(((enhanced[rows], behaviour.vectors(rows)) for rows in _blocks(n)), behaviour_weight)
    joint = _new(folder / JOINT, (n, dim + behaviour.dim), np.dtype(np.float32))
    for rows in _blocks(n):
        joint[rows] = space.vectors(np.asarray(enhanced[rows]), behaviour.vectors(rows))
    return ItemVectors(_reopened(text), enhanced, _reopened(joint), space)


def _blocks(n: int) -> Iterator[slice]:
    for begin in range(0, n, BLOCK):
        yield slice(begin, min(begin + BLOCK, n))


def _new(path: Path, shape: tuple[int, int], dtype: np.dtype) -> Any:
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def _reopened(array: Any) -> np.ndarray:
    """The same file, read only; the pages that were written leave this process's memory."""
    array.flush()
    return np.load(array.filename, mmap_mode="r", allow_pickle=False)
