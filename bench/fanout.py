"""Fan-out of one 64 MiB chunk to two servers by the SDK, as a ratio to a bare asyncio.Protocol that writes as much.

`python -m bench.fanout [--rounds N]`. Two sink processes read and answer; they do nothing with the bytes, so the figure
is the sender's. Ours computes block sums, sends them, and parses answers; the bare one sends and waits.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import uvloop

from bench.options import bench_main
from bench.result import Result
from tierstore.checksum import sums_of
from tierstore.clock import SystemClock
from tierstore.sdk.allocations import AllocationPool, PlacementClass
from tierstore.sdk.budget import BufferBudget
from tierstore.sdk.fanout import ChunkFanout
from tierstore.sdk.limits import StoreLimits
from tierstore.sdk.put import PutParts
from tierstore.sdk.servers import ServerBook
from tierstore.transport.metadata_client import MetadataClient
from tierstore.transport.object_client import ObjectClient
from tierstore.transport.pool import PooledTransport
from tierstore.wire.names import Allocation, Target

SIZE = 64 << 20
PIECE = 256 << 10
MUST, AIM = 0.75, 0.90
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nr"


class _Raw(asyncio.Protocol):
    """One connection that writes a body in pieces when the kernel takes them, and waits for any answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(PIECE)
        self.room: asyncio.Future[None] | None = None

    def pause_writing(self) -> None:
        self.room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self.room is not None:
            self.room.set_result(None)
            self.room = None

    def data_received(self, data: bytes) -> None:
        self.answer.set_result(data)

    async def put(self, body: memoryview) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.transport.write(b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), PIECE):
            self.transport.write(body[at : at + PIECE])
            if self.room is not None:
                await self.room
        await self.answer


class _Book:
    """Stands in for ServerBook: addresses only."""

    has_suspects = False
    write_failures_total = 0

    def __init__(self, urls: list[str]) -> None:
        self._urls = urls

    async def url(self, server: int) -> str:
        return self._urls[server]


def sink() -> None:
    """A process: read whole requests, answer 200. Prints its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        import threading

        while True:
            connection, _ = server.accept()
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()


def _serve(connection: socket.socket) -> None:
    buffer = bytearray(1 << 20)
    while True:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = connection.recv(65536)
            if not piece:
                return
            head += piece
        begin, _, body = head.partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in begin.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        left = length - len(body)
        while left:
            left -= connection.recv_into(buffer, min(left, len(buffer)))
        connection.sendall(_ANSWER)


async def _measure(ports: list[int], rounds: int) -> tuple[list[float], list[float]]:
    body = memoryview(bytearray(os.urandom(1 << 20) * (SIZE >> 20)))
    loop = asyncio.get_running_loop()
    raw = [(await loop.create_connection(_Raw, "127.0.0.1", port))[1] for port in ports]
    transport = PooledTransport()
    limits = StoreLimits()
    parts = PutParts(
        client=cast(MetadataClient, None), objects=ObjectClient(transport, SystemClock()),
        servers=cast(ServerBook, _Book([f"http://127.0.0.1:{port}" for port in ports])),
        allocations=cast(AllocationPool, None), budget=BufferBudget(SIZE), limits=limits,
        placement=PlacementClass((), len(ports), SIZE),
    )  # fmt: skip
    targets = [Target(server, 1, "hdd", b"ticket") for server in range(len(ports))]
    ours: list[float] = []
    bare: list[float] = []
    for number in range(2 * rounds + 2):
        began = time.perf_counter()
        if number % 2:
            await asyncio.gather(*(connection.put(body) for connection in raw))
        else:
            allocation = Allocation(bytes(12), number, targets, [], 0)
            stored = await ChunkFanout(parts, allocation, data=body, name="b/k").run()
            assert len(stored.receipts) == len(ports)
        if number >= 2:
            (bare if number % 2 else ours).append(time.perf_counter() - began)
    await transport.close()
    return ours, bare


def run(root: Path, options: argparse.Namespace) -> list[Result]:
    del root
    body = bytearray(SIZE)
    sums_of(body)
    began = time.perf_counter()
    sums_of(body)
    sums_ms = (time.perf_counter() - began) * 1e3
    sinks = [
        subprocess.Popen([sys.executable, "-m", "bench.fanout", "--sink"], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        ports = []
        for process in sinks:
            assert process.stdout is not None
            ports.append(int(process.stdout.readline()))
        ours, bare = uvloop.run(_measure(ports, options.rounds))
    finally:
        for process in sinks:
            process.kill()
            process.wait()
    found = statistics.median([b / a for a, b in zip(ours, bare, strict=True)])
    middle = statistics.median(ours)
    detail = (f"ours {2 * SIZE / middle / 1e9:.1f} GB/s in all, bare {2 * SIZE / statistics.median(bare) / 1e9:.1f}; "
              f"{sums_ms:.0f} ms of ours are the block sums")  # fmt: skip
    return [Result("fan-out 64 MiB to two", found, must=MUST, aim=AIM, detail=detail)]


if __name__ == "__main__":
    if "--sink" in sys.argv:
        sink()
    bench_main("fan-out to two servers", ["fan-out"], run, rounds=15, seconds=0)
