"""Progress of long work: a bar with the time left on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

log = logging.getLogger(__name__)
messages = Console(stderr=True)  # one for log lines and bars: lines then appear above a running bar
SECONDS_BETWEEN_LINES = 30
SECONDS_BETWEEN_UPDATES = 0.5  # of a notebook's bar
WIDTH = 20


def in_notebook() -> bool:
    """Whether the process is a notebook's kernel."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module else None
    return shell is not None and hasattr(shell, "kernel")


class NotebookBar:
    """One line of a cell's output, written anew as the work goes on; it needs no widgets."""

    def __init__(self, what: str, total: int, patience: float):
        self.what, self.total, self.patience = what, total, patience
        self._started, self._last = time.monotonic(), 0.0
        self._line: Any = None

    def _text(self, done: int) -> str:
        share = min(done / max(self.total, 1), 1.0)
        full = round(WIDTH * share)
        spent = time.monotonic() - self._started
        rest = f", {duration(spent * (1 - share) / share)} left" if 0 < share < 1 else ""
        return f"{self.what} {'█' * full}{'░' * (WIDTH - full)} {share:.0%}{rest}"

    def update(self, done: int, last: bool = False) -> None:
        """Say how much is done, at most every half second; ``last`` leaves the final state with the time it took."""
        from IPython.display import display

        now = time.monotonic()
        if now - self._started < self.patience or not (last or now - self._last >= SECONDS_BETWEEN_UPDATES):
            return
        self._last = now
        text = {"text/plain": f"{self.what}: {duration(now - self._started)}" if last else self._text(done)}
        if self._line is None:
            self._line = display(text, raw=True, display_id=True)
        else:
            self._line.update(text, raw=True)


class Progress:
    """``with Progress("encoding", total) as progress: progress.advance(n)``. Silent with ``enabled=False``.

    In a notebook, work that ends within ``patience`` seconds leaves no line.
    """

    def __init__(self, what: str, total: int, enabled: bool = True, patience: float = 2.0):
        self.what, self.total, self.enabled, self.patience = what, total, enabled, patience
        self.done = 0
        self._started = self._last = time.monotonic()
        self._bar: Bar | None = None
        self._notebook: NotebookBar | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if self.enabled and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=messages)
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total)
        elif self.enabled and in_notebook():
            self._notebook = NotebookBar(self.what, self.total, self.patience)
        elif self.enabled:
            log.info("%s: %d", self.what, self.total)
        return self

    def advance(self, count: int) -> None:
        """Count finished units of work."""
        self.done += count
        now = time.monotonic()
        if self._bar:
            self._bar.advance(self._task, count)
        elif self._notebook:
            self._notebook.update(self.done)
        elif self.enabled and now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            share = self.done / max(self.total, 1)
            left = duration((now - self._started) * (1 - share) / share) if share else "unknown"
            log.info("%s: %d of %d (%d%%), %s left", self.what, self.done, self.total, 100 * share, left)

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        if self._notebook:
            self._notebook.update(self.done, last=True)


def duration(seconds: float) -> str:
    """A time span as a person writes it: 40 s, 3 min, 1 h 20 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
