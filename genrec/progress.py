"""Progress of long work: a bar with the time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 30


class Progress:
    """``with Progress("encoding", total) as progress: progress.advance(n)``. Silent with ``enabled=False``."""

    def __init__(self, what: str, total: int, enabled: bool = True):
        self.what, self.total, self.enabled = what, total, enabled
        self.done = 0
        self._started = self._last = time.monotonic()
        self._bar: Bar | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if self.enabled and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total)
        elif self.enabled:
            log.info("%s: %d", self.what, self.total)
        return self

    def advance(self, count: int) -> None:
        """Count finished units of work."""
        self.done += count
        now = time.monotonic()
        if self._bar:
            self._bar.advance(self._task, count)
        elif self.enabled and now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            share = self.done / max(self.total, 1)
            left = duration((now - self._started) * (1 - share) / share) if share else "unknown"
            log.info("%s: %d of %d (%d%%), %s left", self.what, self.done, self.total, 100 * share, left)

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()


def duration(seconds: float) -> str:
    """A time span as a person writes it: 40 s, 3 min, 1 h 20 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
