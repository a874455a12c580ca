"""Vectors by content: a folder that keeps an encoder's vectors of texts.

A second run encodes only new texts.

A text's key is 128 bits of BLAKE2b over the text as the model sees it (prefix included). Vectors lie in shards of two
files, ``vectors-ID.npy`` and then ``keys-ID.npy``; each is written under a temporary name and renamed, so a stop in
between costs at most the shard being made. Several processes may share the folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genrec.errors import UserError


def text_keys(texts: Sequence[str]) -> np.ndarray:
    """(n, 2) uint64: 128 bits of each text's content."""
    joined = b"".join(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts)
    return np.frombuffer(joined, dtype="<u8").reshape(-1, 2)


class VectorCache:
    """Vectors of one encoder: ``folder`` must belong to exactly one model and its settings."""

    def __init__(self, folder: Path, dim: int):
        self.folder, self.dim = folder, dim
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"text vectors: {folder} cannot be made ({error.strerror}); choose an `output` that can be written"
            ) from error
        self._shards: list[np.ndarray] = []
        self._index = np.zeros((0, 4), np.uint64)  # first key, second key, shard, row; sorted by first key
        self._seen: set[str] = set()
        self._read_new_shards()

    def __len__(self) -> int:
        return len(self._index)

    def get(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (n, dim) float32 of keys (n, 2) and which of them are known (n,) bool; unknown rows are zero."""
        vectors, known = np.zeros((len(keys), self.dim), np.float32), np.zeros(len(keys), bool)
        if not len(self._index) or not len(keys):
            return vectors, known
        position = np.minimum(np.searchsorted(self._index[:, 0], keys[:, 0]), len(self._index) - 1)
        entries = self._index[position]
        known = (entries[:, 0] == keys[:, 0]) & (entries[:, 1] == keys[:, 1])
        for shard in np.unique(entries[known, 2]):
            rows = np.flatnonzero(known & (entries[:, 2] == shard))
            vectors[rows] = self._shards[int(shard)][entries[rows, 3].astype(np.int64)]
        return vectors, known

    def put(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        """Keep vectors (n, dim) of keys (n, 2) as one new shard."""
        if not len(keys):
            return
        name = hashlib.blake2b(np.ascontiguousarray(keys).tobytes(), digest_size=8).hexdigest()
        try:
            _write(self.folder / f"vectors-{name}.npy", np.asarray(vectors, np.float32))
            _write(self.folder / f"keys-{name}.npy", keys)
        except OSError as error:
            raise UserError(
                f"text vectors: {self.folder} cannot be written ({error.strerror}); set another `output` or make room"
            ) from error
        self._read_new_shards()

    def _read_new_shards(self) -> None:
        parts = [self._index]
        for path in sorted(self.folder.glob("keys-*.npy")):
            if path.name in self._seen:
                continue
            self._seen.add(path.name)
            try:
                keys = np.load(path, allow_pickle=False)
                vectors = np.load(
                    path.with_name(path.name.replace("keys", "vectors", 1)), mmap_mode="r", allow_pickle=False
                )
            except (OSError, ValueError):  # a shard cut short by a full disk: its texts are encoded again
                continue
            if keys.shape != (len(vectors), 2) or vectors.shape[1:] != (self.dim,):
                continue
            location = np.column_stack(
                [np.full(len(keys), len(self._shards), np.uint64), np.arange(len(keys), dtype=np.uint64)]
            )
            parts.append(np.column_stack([keys, location]))
            self._shards.append(vectors)
        if len(parts) > 1:
            index = np.concatenate(parts)
            self._index = index[np.argsort(index[:, 0], kind="stable")]


def _write(path: Path, array: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as stream:
        np.save(stream, array)
    temporary.replace(path)
