"""Columns of numbers on disk, appended block by block: the scratch space of sorting what does not fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

Columns = dict[str, np.ndarray]


class BlockFile:
    """One file of equally long numpy columns; every append is a block, column after column."""

    def __init__(self, path: Path, dtypes: Mapping[str, DTypeLike]):
        self.path, self.dtypes = path, {name: np.dtype(dtype) for name, dtype in dtypes.items()}
        self.blocks: list[tuple[int, int]] = []  # (byte of the first value, rows)
        self._end = 0

    def __len__(self) -> int:
        return sum(rows for _, rows in self.blocks)

    def append(self, columns: Columns) -> None:
        """Write the columns, all of one length, behind what is there."""
        rows = len(next(iter(columns.values())))
        if not rows:
            return
        with self.path.open("ab") as file:
            for name, dtype in self.dtypes.items():
                np.ascontiguousarray(columns[name], dtype).tofile(file)
        self.blocks.append((self._end, rows))
        self._end += rows * sum(dtype.itemsize for dtype in self.dtypes.values())

    def read(self, names: Iterable[str] | None = None) -> Columns:
        """The columns ``names`` (all when None) in memory, in the order they were appended."""
        chosen = list(self.dtypes if names is None else names)
        columns = {name: np.empty(len(self), self.dtypes[name]) for name in chosen}
        if not self.blocks:
            return columns
        with self.path.open("rb") as file:
            done = 0
            for start, rows in self.blocks:
                for name, dtype in self.dtypes.items():
                    if name in columns:
                        file.seek(start)
                        file.readinto(columns[name][done : done + rows].view(np.uint8).data)
                    start += rows * dtype.itemsize
                done += rows
        return columns

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)
        self.blocks, self._end = [], 0


class ArrayFile:
    """A one-dimensional ``.npy`` file that is read and written in chunks.

    File access is plain: mapped pages would count as memory.
    """

    def __init__(self, path: Path, dtype: DTypeLike, length: int):
        """Create the file; values not written are 0."""
        self.path, self.dtype, self.length = path, np.dtype(dtype), length
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (length,)}
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            self._begin = file.tell()
            file.truncate(self._begin + length * self.dtype.itemsize)

    def __len__(self) -> int:
        return self.length

    def read(self, start: int, stop: int) -> np.ndarray:
        """Values ``start`` to ``stop`` - 1, a copy in memory."""
        return np.fromfile(self.path, self.dtype, count=stop - start, offset=self._begin + start * self.dtype.itemsize)

    def write(self, start: int, values: np.ndarray) -> None:
        """Put ``values`` (n,) at ``start`` to ``start + n`` - 1."""
        with self.path.open("r+b") as file:
            file.seek(self._begin + start * self.dtype.itemsize)
            np.ascontiguousarray(values, self.dtype).tofile(file)

    def scatter(self, positions: np.ndarray, values: np.ndarray) -> None:
        """Put ``values`` (n,) at ``positions`` (n,)."""
        array = np.load(self.path, mmap_mode="r+", allow_pickle=False)
        array[positions] = values
