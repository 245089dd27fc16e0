"""A TCP proxy with faults, one listener per link, on loopback: for kernels without netem.

Faults may be changed at any time on the running proxy. `drop` is a blackhole: bytes are read and kept until it is
lifted, as TCP's retransmission would deliver them, and nothing is answered meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Faults:
    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    bytes_per_second: float = 0.0  # of all connections together, each way; 0: no limit
    drop: Literal["", "both", "up", "down"] = ""
    refuse: bool = False
    cut_after_bytes: int = 0  # then RST; 0: never
    flip_probability: float = 0.0  # of one bit per piece


class FaultyLink:
    """`async with FaultyLink(target_port) as link:` listens on link.port and passes on to the target."""

    def __init__(self, target_port: int, *, seed: int = 0) -> None:
        self.target_port = target_port
        self.faults = Faults()
        self.bytes_passed = 0
        self._random = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._free_at = {"up": 0.0, "down": 0.0}
        self._server: asyncio.Server | None = None
        self.port = 0

    def set(self, **changes: Any) -> None:
        self.faults = replace(self.faults, **changes)
        self._changed.set()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> FaultyLink:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.faults.refuse:
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            _reset(writer)
            return
        task = asyncio.ensure_future(self._join(reader, writer, far_reader, far_writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        try:
            await asyncio.gather(
                self._pump("up", reader, far_writer, writer), self._pump("down", far_reader, writer, far_writer)
            )
        finally:
            writer.close()
            far_writer.close()

    async def _pump(
        self, way: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter, other: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)

        async def read() -> None:
            while True:
                piece = await source.read(65_536)
                await queue.put((loop.time(), piece))
                if not piece:
                    return

        reading = asyncio.ensure_future(read())
        passed = 0
        try:
            while True:
                came_at, piece = await queue.get()
                while self.faults.drop in ("both", way):
                    await self._changed.wait()
                faults = self.faults
                due = came_at + faults.delay_seconds + self._random.random() * faults.jitter_seconds
                if faults.bytes_per_second:
                    sent_at = max(self._free_at[way], came_at) + len(piece) / faults.bytes_per_second
                    self._free_at[way] = sent_at
                    due = max(due, sent_at + faults.delay_seconds)
                if due > loop.time():
                    await asyncio.sleep(due - loop.time())
                if not piece:
                    sink.write_eof()
                    return
                passed += len(piece)
                self.bytes_passed += len(piece)
                if faults.cut_after_bytes and passed > faults.cut_after_bytes:
                    _reset(sink)
                    _reset(other)
                    return
                if self._random.random() < faults.flip_probability:
                    at = self._random.randrange(len(piece))
                    piece = piece[:at] + bytes([piece[at] ^ 1 << self._random.randrange(8)]) + piece[at + 1 :]
                sink.write(piece)
                await sink.drain()
        except (OSError, asyncio.CancelledError):
            _reset(other)
            _reset(sink)
        finally:
            reading.cancel()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, so that the other side cannot take it for an orderly end."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
