"""A client that costs next to nothing: keep-alive connections on asyncio streams, so that a bench on the server's own
cores shows the server."""

from __future__ import annotations

import asyncio
import json
import time

IDLE = 3.0  # seconds after which a connection is not used again: the server closes it after five


class Lines:
    """POSTs and GETs to one port of this machine over as many connections as are needed at once."""

    def __init__(self, port: int, timeout: float = 30.0):
        self.port, self.timeout = port, timeout
        self.free: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: dict | bytes, timeout: float | None = None) -> tuple[int, bytes]:
        """Status and body of the answer. Raises ``OSError`` where the connection breaks and ``TimeoutError``."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        return await self._send(head.encode() + data, timeout)

    async def get(self, path: str, timeout: float | None = None) -> tuple[int, bytes]:
        """As ``post``."""
        return await self._send(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode(), timeout)

    async def _send(self, data: bytes, timeout: float | None) -> tuple[int, bytes]:
        async with asyncio.timeout(timeout or self.timeout):
            reader, writer = await self._line()
            try:
                writer.write(data)
                status, answer = await _answer(reader)
            except BaseException as error:  # a line with half an answer on it is no use to anybody
                writer.close()
                if isinstance(error, asyncio.IncompleteReadError):
                    raise ConnectionResetError("the server closed the connection") from None
                raise
        self.free.append((time.monotonic(), reader, writer))
        return status, answer

    async def _line(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self.free:
            since, reader, writer = self.free.pop()
            if time.monotonic() - since < IDLE and not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self.port)

    def close(self) -> None:
        for _, _, writer in self.free:
            writer.close()
        self.free.clear()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    status, length = int(head[9:12]), 0
    for line in head.split(b"\r\n")[1:]:
        if line[:15].lower() == b"content-length:":
            length = int(line[15:])
    return status, await reader.readexactly(length)
