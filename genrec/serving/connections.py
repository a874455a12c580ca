"""Connections of a server: how many may be open, how long a request's head may take, and what a busy server refuses."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

from genrec.serving.ids import REQUEST_ID
from genrec.serving.logs import Metrics, log
from genrec.serving.settings import ServeSettings

_HOLD = 1.0  # seconds for which a connection that asks again too early is not read, at most
_SPARE = 64  # file descriptors that are left to the store, the bundle and the log
_REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
)
_BODY = b'{"error":"busy","message":"too many connections are open"}'
_BUSY = (
    b"HTTP/1.1 429 Too Many Requests\r\nretry-after: %d\r\ncontent-type: application/json\r\n"
    b"x-content-type-options: nosniff\r\n%scontent-length: %d\r\n\r\n%s"
)
_BUSY_BODY = b'{"error":"busy","message":"too many requests are waiting"}'


class ConnectionLimit:
    """Counts the open connections of a server. Refusals are logged at most once in ten seconds.

    Where too many are open, the one that has waited longest for the head of a request makes room for the new one: idle
    and half-open connections never keep out clients that send requests.
    """

    def __init__(
        self,
        settings: ServeSettings,
        metrics: Metrics,
        busy: Callable[[str], int] = lambda path: 0,
        still_busy: Callable[[str], int] = lambda path: 0,
    ):
        """``busy``: as ``Server.refuse``, called with the path of each POST once its head is read.

        ``still_busy``: as ``Server.refuses``, for a client that asks again before its ``Retry-After`` is over.
        """
        self.busy, self.still_busy = busy, still_busy
        self.most = min(settings.connections, max(1, _descriptors() - _SPARE))
        self.timeout = settings.header_timeout_ms / 1000
        self.metrics, self.open = metrics, 0
        self.waiting: dict[Any, None] = {}  # connections that wait for a head, the longest first
        self._logged, self._silent = -1e9, 0

    def refused(self, reason: str) -> None:
        """Count a connection that is closed, and log it now and then."""
        self.metrics.connections_refused.labels(reason).inc()
        self._silent += 1
        if time.monotonic() - self._logged >= 10:
            log.warning(
                "connections closed", extra={"fields": {"reason": reason, "count": self._silent, "open": self.open}}
            )
            self._logged, self._silent = time.monotonic(), 0


class _LimitedConnection:
    """What a connection adds to uvicorn's HTTP protocol.

    It counts, times the head of each request, and refuses what a busy server would refuse at the head: an application
    call for each request of a flood would take the time that answers need, and hold up every other request. A client
    that asks again at once, as if it had not been refused, is read again once its ``Retry-After`` or ``_HOLD`` is over:
    refusals of a closed loop would else come as fast as they are sent.
    """

    limit: ConnectionLimit
    counted = False
    refusing = False  # the rest of a request that was refused at its head is being read
    timer: asyncio.TimerHandle | None = None
    read_again = 0.0  # of ``time.monotonic``: until then, a request that the server would refuse is not read
    held: bytes = b""  # what came too early
    holding: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        limit = self.limit
        super().connection_made(transport)  # type: ignore[misc]  # uvicorn's, which comes after this class
        if limit.open >= limit.most and limit.waiting:
            next(iter(limit.waiting)).make_room()
        if limit.open >= limit.most:
            transport.write(_REFUSED % (len(_BODY), _BODY))
            transport.close()
            limit.refused("limit")
            return
        limit.open += 1
        self.counted = True
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self.read_again and self._holds(data):
            return
        super().data_received(data)  # type: ignore[misc]
        self._wait_for_head()

    def _holds(self, data: bytes) -> bool:
        """Put data of a request that comes too early aside, and stop reading for a while; whether it did."""
        left = self.read_again - time.monotonic()
        if left <= 0:
            self.read_again = 0.0
            return False
        method, _, rest = data[:64].partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if self.refusing or method != b"POST" or not self._idle() or not self.limit.still_busy(path.decode("latin-1")):
            return False
        self.held += data
        if self.holding is None:
            self.flow.pause_reading()  # type: ignore[attr-defined]
            self.holding = asyncio.get_running_loop().call_later(left, self._read_held)
        return True

    def _read_held(self) -> None:
        data, self.held, self.holding, self.read_again = self.held, b"", None, 0.0
        self.flow.resume_reading()  # type: ignore[attr-defined]
        self.data_received(data)

    def _idle(self) -> bool:
        """Whether no request of this connection is being answered."""
        cycle = self.cycle  # type: ignore[attr-defined]
        return cycle is None or cycle.response_complete

    def on_headers_complete(self) -> None:
        if seconds := self._refuses():
            self._refuse(seconds)
        else:
            super().on_headers_complete()  # type: ignore[misc]

    def on_body(self, body: bytes) -> None:
        if not self.refusing:
            super().on_body(body)  # type: ignore[misc]

    def on_message_complete(self) -> None:
        if self.refusing:
            self.refusing = False
        else:
            super().on_message_complete()  # type: ignore[misc]

    def on_response_complete(self) -> None:
        super().on_response_complete()  # type: ignore[misc]
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        if self.holding is not None:
            self.holding.cancel()
        super().connection_lost(exc)  # type: ignore[misc]

    def _refuses(self) -> int:
        """Seconds after which the request whose head was read should come back, 0 for one to be answered."""
        if self.parser.get_method() != b"POST" or not self._idle():  # type: ignore[attr-defined]
            return 0
        if self.flow.write_paused:  # type: ignore[attr-defined]  # a client that reads no answers
            return 0
        return self.limit.busy(self.url.split(b"?", 1)[0].decode("latin-1"))  # type: ignore[attr-defined]

    def _refuse(self, seconds: int) -> None:
        self._stop()
        self.refusing = True
        # Not all at once: a flood that was refused in one moment must not come back in one.
        self.read_again = time.monotonic() + min(seconds, _HOLD) * random.uniform(0.5, 1.0)
        closes = not self.parser.should_keep_alive()  # type: ignore[attr-defined]
        names = [value for name, value in self.headers if name == b"x-request-id"]  # type: ignore[attr-defined]
        more = b"connection: close\r\n" if closes else b""
        if names and REQUEST_ID.fullmatch(names[0]):
            more += b"x-request-id: " + names[0] + b"\r\n"
        transport = self.transport  # type: ignore[attr-defined]
        transport.write(_BUSY % (seconds, more, len(_BUSY_BODY), _BUSY_BODY))
        if closes:
            transport.close()

    def make_room(self) -> None:
        """Close this connection for another one."""
        self.limit.refused("evicted")
        self._forget()
        self.transport.abort()  # type: ignore[attr-defined]

    def _forget(self) -> None:
        if self.counted:
            self.limit.open -= 1
            self.counted = False
        self._stop()

    def _wait_for_head(self) -> None:
        """Time the next request head, unless a request is being answered."""
        if not self._idle():
            self._stop()
        elif self.timer is None and self.counted:
            self.limit.waiting[self] = None
            self.timer = asyncio.get_running_loop().call_later(self.limit.timeout, self._too_slow)

    def _stop(self) -> None:
        self.limit.waiting.pop(self, None)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _too_slow(self) -> None:
        self._stop()
        if not self.transport.is_closing():  # type: ignore[attr-defined]
            self.limit.refused("timeout")
            self.transport.abort()  # type: ignore[attr-defined]


def limited_protocol(limit: ConnectionLimit) -> type[asyncio.Protocol]:
    """The HTTP protocol of uvicorn with a limit on connections and a time limit on request heads."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol  # chosen by uvicorn when it is imported

    return type("LimitedProtocol", (_LimitedConnection, AutoHTTPProtocol), {"limit": limit})


def _descriptors() -> int:
    """How many files this process may have open."""
    try:
        import resource
    except ImportError:  # not a Unix system
        return 1 << 16
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (1 << 16) if soft == resource.RLIM_INFINITY else soft
