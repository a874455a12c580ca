"""What a server may be told. Every field is an option of ``genrec serve``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genrec.errors import UserError


@dataclass(frozen=True)
class ServeSettings:
    """Limits and places of one server."""

    bundle: Path  # a bundle or a run; read again at every reload
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()  # none: no key is asked for
    events: str | None = None  # event store: a file or redis://...; None: BUNDLE.events.sqlite beside the bundle
    max_batch: int = 64  # requests answered in one pass; 1 switches batching off
    batch_wait_ms: float = 4.0  # how long the first request of a batch waits for company
    queue: int = 512  # requests that may wait; one more gets 429
    time_budget_ms: float = 2000.0  # an answer that takes longer is a 504
    change_budget_ms: float = 60_000.0  # the same for adding and removing items
    max_body_bytes: int = 4_194_304
    max_depth: int = 16  # nesting of a JSON body
    body_timeout_ms: float = 10_000.0  # a client that takes longer to send its body gets 408
    drain_s: int = 20  # at a stop, requests that were taken have this long to finish
    threads: int = 0  # of torch; 0: one fewer than there are cores, at least 1

    def __post_init__(self) -> None:
        for name in (
            "max_batch",
            "queue",
            "time_budget_ms",
            "change_budget_ms",
            "max_body_bytes",
            "max_depth",
            "body_timeout_ms",
        ):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')}: must be above 0, is {getattr(self, name)}")
        for name in ("batch_wait_ms", "drain_s", "threads"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')}: must not be below 0, is {getattr(self, name)}")
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port: must lie between 0 and 65535, is {self.port}")

    @property
    def store_place(self) -> str:
        """Where events are kept."""
        return self.events or str(self.bundle.resolve().with_name(self.bundle.resolve().name + ".events.sqlite"))


def read_keys(path: Path) -> tuple[str, ...]:
    """API keys, one per line; empty lines and lines that start with # are skipped. ``UserError`` when there is none."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api-key-file: {path} cannot be read ({error})") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise UserError(f"--api-key-file: {path} holds no key; write one per line")
    if any(len(key) < 16 for key in keys):
        raise UserError(f"--api-key-file: {path} holds a key of fewer than 16 characters; make longer ones")
    return keys
