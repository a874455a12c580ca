"""The settings of a server. Every field is an option of ``genrec serve``."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

from genrec.errors import UserError
from genrec.serving.logs import log

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ROLES = ("read", "write", "admin")
_POSITIVE = (
    "max_batch",
    "queue",
    "time_budget_ms",
    "change_budget_ms",
    "max_body_bytes",
    "max_depth",
    "header_timeout_ms",
    "body_timeout_ms",
    "connections",
    "refresh_s",
    "exploration_temperature",
)
_NOT_NEGATIVE = ("batch_wait_ms", "drain_s", "threads")


@dataclass(frozen=True)
class ServeSettings:
    """Limits and paths of one server."""

    bundle: Path  # a bundle or a run; read again at every reload
    host: str = "127.0.0.1"
    port: int = 8000
    key_file: Path | None = None  # see Keys; None: no key is required
    events: str | None = None  # event store: a file or redis://...; None: BUNDLE.events.sqlite next to the bundle
    max_batch: int = 64  # requests answered in one pass; 1 switches batching off
    batch_wait_ms: float = 1.0  # a batch starts when no further request came for so long
    queue: int = 512  # requests that may wait; one more gets 429
    time_budget_ms: float = 2000.0  # an answer that takes longer is a 504
    change_budget_ms: float = 60_000.0  # the same for adding and removing items
    max_body_bytes: int = 4_194_304  # of item changes; the other routes have lower limits of their own
    max_depth: int = 16  # nesting of a JSON body
    header_timeout_ms: float = 10_000.0  # a connection that has not sent a whole request head by then is closed
    body_timeout_ms: float = 10_000.0  # a client that takes longer to send its body gets 408
    connections: int = 1000  # open connections; one more is refused
    drain_s: int = 20  # at a stop, requests that were taken have this long to finish
    threads: int = 0  # of torch; 0: one fewer than there are cores, at least 1
    hosts: tuple[
        str, ...
    ] = ()  # host names that requests may name; none: any, or the loopback names on a loopback host
    without_keys: bool = False  # allow an address that others reach although no key is required
    canary: Path | None = None  # a second bundle, which answers some of the users
    canary_weight: float = 0.1  # fraction of the users that the canary answers
    exploration: float = 0.0  # fraction of the slots of recommendations and searches that are drawn
    exploration_temperature: float = 1.0  # of the softmax over scores that they are drawn by
    traces: bool = False  # OpenTelemetry spans, sent where the environment says
    refresh_s: float = 2.0  # how often item changes of other servers on the same store are looked for

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')}: must be above 0, is {getattr(self, name)}")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')}: must not be below 0, is {getattr(self, name)}")
        if not 0 <= self.canary_weight <= 1:
            raise UserError(f"--canary-weight: must lie between 0 and 1, is {self.canary_weight}")
        if not 0 <= self.exploration <= 1:
            raise UserError(f"--exploration: must lie between 0 and 1, is {self.exploration}")
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port: must lie between 0 and 65535, is {self.port}")
        if self.host not in LOOPBACK and self.key_file is None and not self.without_keys:
            raise UserError(
                f"--host: {self.host} can be reached by others, and no key is required; give --api-key-file, "
                "or --without-keys if that is intended"
            )

    @property
    def allowed_hosts(self) -> tuple[str, ...]:
        """Host names that a request may name; empty for any."""
        return self.hosts or (LOOPBACK if self.host in LOOPBACK else ())

    @property
    def store_path(self) -> str:
        """Where events are kept."""
        return self.events or str(self.bundle.resolve().with_name(self.bundle.resolve().name + ".events.sqlite"))


class Keys:
    """API keys and their roles, read again when their file changes: keys are rotated without a restart.

    One key a line, ``KEY`` or ``ROLE KEY`` with a role of ``read``, ``write`` and ``admin``; each role includes those
    before it, and a key without one is ``admin``. Empty lines and lines that start with # are skipped. A file that
    becomes wrong leaves the old keys in force.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._roles = self._read()
        self._stamp = self._modified()
        self._checked = time.monotonic()

    def role(self, given: bytes) -> str | None:
        """The role of a key, None for an unknown one. The time taken says nothing about which key was near."""
        self._refresh()
        digest = sha256(given).digest()
        roles = [role for key, role in self._roles.items() if compare_digest(digest, key)]
        return roles[0] if roles else None

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._checked < 1.0:
            return
        with self._lock:
            self._checked, stamp = now, self._modified()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                self._roles = self._read()
            except UserError as error:
                log.warning("keys not read", extra={"fields": {"reason": str(error)}})

    def _modified(self) -> tuple[int, int] | None:
        try:
            stat = os.stat(self.path)
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size

    def _read(self) -> dict[bytes, str]:
        try:
            lines = [line.strip() for line in self.path.read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--api-key-file: {self.path} cannot be read ({error})") from error
        roles = {}
        for line in lines:
            if not line or line.startswith("#"):
                continue
            role, _, key = line.rpartition(" ")
            role = role.strip() or "admin"
            if role not in ROLES:
                raise UserError(f"--api-key-file: {self.path}: role '{role}' is not one of {', '.join(ROLES)}")
            if len(key) < 16:
                raise UserError(
                    f"--api-key-file: {self.path} holds a key of fewer than 16 characters; make longer ones"
                )
            roles[sha256(key.encode()).digest()] = role
        if not roles:
            raise UserError(f"--api-key-file: {self.path} holds no key; write one per line")
        return roles
