"""Content checksums of a log's files, computed once and remembered in an index beside the dataset.

The identity of a log is the content of its files: a copy on another machine is the same log, an edit never is. The
index only saves reading: no command and no process reads a file again whose size, times and inode are unchanged.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from genrec.artifacts.folders import read_json, write_json
from genrec.errors import UserError

_SETTLED = 2.0  # seconds since the last change of a file after which a further change must show in its times


class ChecksumIndex:
    """Checksums of files by path and state; ``save`` writes what is new. Without a path the index is in memory only."""

    def __init__(self, path: Path | None = None):
        """``path``: the index file; a missing or broken one is an empty index."""
        self.path = path
        self._known: dict[str, list] = {}
        self._changed = False
        if path is not None and path.is_file():
            try:
                self._known = dict(read_json(path))
            except (UserError, TypeError, ValueError):
                self._changed = True

    def fingerprint(self, path: Path) -> list:
        """Name, size and content checksum of every file of a file or folder."""
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        return [[str(p.relative_to(path.parent)), p.stat().st_size, self.checksum(p)] for p in files]

    def checksum(self, file: Path) -> str:
        """SHA-256 of a file's content; the file is only read when its state is new."""
        name, state = str(file.resolve()), _state(file)
        known = self._known.get(name)
        if known is not None and known[0] == state:
            return known[1]
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        # A file that was just written may change again without a trace in its times: it is read again next time.
        if time.time() - max(state[1:3]) / 1e9 > _SETTLED and _state(file) == state:
            self._known[name], self._changed = [state, content], True
        return content

    def save(self) -> None:
        """Write the index if anything is new."""
        if self._changed and self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self._known)
            self._changed = False


def _state(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
