"""A proxy in front of one HTTP server that sends requests again: at once, late, and in another order.

Whole requests with a Content-Length pass through, answers go back as they are; each request whose path matches is kept
and sent again on connections of its own, whose answers are thrown away. The caller's own request always comes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter

BODY_BYTES_MAX = 64 << 20


class ReplayProxy:
    """Listens on `port` of loopback. Use as an async context manager. `sent` counts what was sent again."""

    def __init__(self, target_port: int, *, port: int, path: bytes, rng: random.Random, late_seconds: float) -> None:
        self._target_port, self._port, self._path = target_port, port, path
        self._rng, self._late = rng, late_seconds
        self._server: asyncio.Server | None = None
        self._again: set[asyncio.Task[None]] = set()
        self._kept: list[bytes] = []
        self.sent: Counter[str] = Counter()
        self.answers: Counter[int] = Counter()

    @property
    def waiting(self) -> int:
        """Requests that will still be sent again."""
        return len(self._again)

    async def __aenter__(self) -> ReplayProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, limit=1 << 20)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._again:
            task.cancel()
        await asyncio.gather(*self._again, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other: asyncio.StreamWriter | None = None
        with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError):
            back, other = await asyncio.open_connection("127.0.0.1", self._target_port, limit=1 << 20)
            while True:
                request = await _message(reader)
                other.write(request)
                writer.write(await _message(back))
                await writer.drain()
                if self._path in request.split(b"\r\n", 1)[0]:
                    self._send_again(request)
        for each in (writer, other):
            if each is not None:
                each.transport.abort()

    def _send_again(self, request: bytes) -> None:
        self._kept.append(request)
        choice = self._rng.random()
        if choice < 0.3:
            self._start(request, 0.0, "at once")
        elif choice < 0.6:
            self._start(request, self._rng.uniform(0, self._late), "late")
        if len(self._kept) >= 20:       # a burst of old ones, in another order
            some, self._kept = self._kept, []
            self._rng.shuffle(some)
            for old in some[:10]:
                self._start(old, 0.0, "out of order")

    def _start(self, request: bytes, seconds: float, how: str) -> None:
        async def run() -> None:
            await asyncio.sleep(seconds)
            with contextlib.suppress(OSError, EOFError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._target_port, limit=1 << 20)
                try:
                    writer.write(request)
                    answer = await asyncio.wait_for(_message(reader), 120)
                    self.sent[how] += 1
                    self.answers[int(answer.split(b" ", 2)[1])] += 1
                finally:
                    writer.transport.abort()

        task = asyncio.ensure_future(run())
        self._again.add(task)
        task.add_done_callback(self._again.discard)


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One whole request or answer with a Content-Length (none: no body)."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            size = int(value)
    assert size <= BODY_BYTES_MAX
    return head + (await reader.readexactly(size) if size else b"")
