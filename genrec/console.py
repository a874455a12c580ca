"""What the command line shows: tables of answers, results, codes and verdicts, and where log lines go."""

from __future__ import annotations

import logging
import sys

from rich.console import Console
from rich.logging import RichHandler

from genrec.progress import messages

console = Console()


def log_handler() -> logging.Handler:
    """Log lines to stderr: coloured on a terminal, plain with a time elsewhere."""
    if sys.stderr.isatty():
        return RichHandler(console=messages, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler
