"""A small HTTP/1.1 client of the tests' own, so that the product's client is not its own judge.

Keep-alive connections, one request at a time each; raw access for malformed requests.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import urlsplit


class Broken(Exception):
    """No whole answer came: the outcome of the request is not known. `sent` tells whether a byte had left."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """Requests to one server. Not shared between tasks that run at the same time: use one each."""

    def __init__(self, url: str, *, token: str = "", seconds: float = 300.0) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._token = token
        self._seconds = seconds
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """The whole answer. Raises Broken when there is none within the deadline. Never repeats a request, but one
        that a kept connection refused before a byte was answered is sent once more on a new one if it is a read."""
        was_kept = self._streams is not None
        try:
            return await asyncio.wait_for(self._once(method, target, body, headers or {}), self._seconds)
        except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError) as error:
            self.close()
            if was_kept and method in ("GET", "HEAD") and not isinstance(error, TimeoutError):
                return await self.request(method, target, body, headers)
            was_sent = not isinstance(error, ConnectionRefusedError)
            raise Broken(f"{type(error).__name__}: {error}", sent=was_sent) from error

    async def _once(self, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        reader, writer = self._streams
        lines = [f"{method} {target} HTTP/1.1", f"host: {self._host}:{self._port}"]
        if self._token and "authorization" not in headers:
            lines.append(f"authorization: Bearer {self._token}")
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + (body or b""))
        await writer.drain()
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            status = int(head[0].split(" ")[1])
            if status != 100:
                break
        found = {n.strip().lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:] if line)}
        content = b""
        if method != "HEAD" and status not in (204, 304):
            if found.get("transfer-encoding", "") == "chunked":
                content = await self._chunked(reader)
            elif "content-length" in found:
                content = await reader.readexactly(int(found["content-length"]))
            else:
                content = await reader.read()
                self.close()
        if found.get("connection", "").lower() == "close":
            self.close()
        return Answer(status, found, content)

    @staticmethod
    async def _chunked(reader: asyncio.StreamReader) -> bytes:
        pieces = []
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            pieces.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
        return b"".join(pieces)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def raw(url: str, data: bytes, *, seconds: float = 15.0) -> bytes:
    """Send bytes as they are on a connection of their own and return all that comes back until it is closed (or
    until a whole answer with Content-Length has come)."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(data)
    got = b""
    try:
        async with asyncio.timeout(seconds):
            while piece := await reader.read(65_536):
                got += piece
    except (TimeoutError, ConnectionError):
        pass  # what has come until then is the answer
    finally:
        writer.transport.abort()
    return got
