"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 30


class Progress:
    """``with Progress("encoding", total) as progress: progress.advance(n)``. ``shown=False`` keeps silent."""

    def __init__(self, what: str, total: int, shown: bool = True):
        self.what, self.total, self.shown = what, total, shown
        self.done, self._bar, self._last = 0, None, time.monotonic()

    def __enter__(self) -> Self:
        if self.shown and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total)
        elif self.shown:
            log.info("%s: %d", self.what, self.total)
        return self

    def advance(self, count: int) -> None:
        self.done += count
        if self._bar:
            self._bar.advance(self._task, count)
        elif self.shown and time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            log.info("%s: %d of %d (%d%%)", self.what, self.done, self.total, 100 * self.done // max(self.total, 1))

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()
