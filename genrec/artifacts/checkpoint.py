"""The finished parts of a long stage, kept beside its target, so that a stopped process loses one part at most."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from genrec.artifacts.folders import atomic_folder, fingerprint, is_current

log = logging.getLogger(__name__)
KIND = "checkpoint"
Arrays = dict[str, np.ndarray]


class StageCheckpoint:
    """Parts by name: arrays that a stage made on its way to ``target``, for the inputs that ``key`` stands for.

    Parts of other inputs are removed when a part is made. The stage calls ``clear`` when its target is whole.
    """

    def __init__(self, target: Path, key: str):
        self.folder, self.key = target.with_name(f".{target.name}.parts"), key

    def part(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """The arrays that ``make`` returns, read where an earlier process had made them."""
        arrays = self.read(name)
        if arrays is None:
            arrays = make()
            self.write(name, arrays)
        return arrays

    def read(self, name: str) -> Arrays | None:
        """The arrays of a part that is finished, else None."""
        folder = self.folder / name
        if not is_current(folder, KIND, fingerprint(self.key, name)):
            return None
        log.info("%s: read from %s, made before the stage was stopped", name, self.folder)
        return {path.name.removesuffix(".npy"): np.load(path, allow_pickle=False) for path in folder.glob("*.npy")}

    def write(self, name: str, arrays: Arrays) -> None:
        """Keep the arrays of a part."""
        keyed = self.folder / "key"
        if not keyed.is_file() or keyed.read_text() != self.key:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            keyed.write_text(self.key)
        with atomic_folder(self.folder / name, KIND, fingerprint(self.key, name)) as part:
            for array_name, array in arrays.items():
                np.save(part / f"{array_name}.npy", array, allow_pickle=False)

    def clear(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)
