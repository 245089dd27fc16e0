"""The edge at full size: 5 GiB through a process with flat memory, thousands of idle and slow connections."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing

import pytest

from tests.contract.exchange_subjects import run
from tierstore.serving.run import listen
from tierstore.transport.pool import PooledTransport

pytestmark = pytest.mark.slow
GIB = 1 << 30
PIECE = 256 * 1024

SERVER = """
import os, sys, tempfile
from tierstore.serving.run import serve
from tierstore.serving.table import Route

class Sink:
    def __init__(self, exchange):
        self.exchange, self.size = exchange, 0
    def data(self, piece):
        self.size += len(piece)
    def complete(self):
        self.exchange.reply(200, b"%d" % self.size)
    def aborted(self, error):
        pass

async def stream(exchange):
    size = int(exchange.route_arg)
    piece = memoryview(bytearray(262144))
    exchange.begin(200, b"", size)
    for _ in range(size // len(piece)):
        await exchange.send(piece)
    exchange.end()

sparse = tempfile.TemporaryFile()
sparse.truncate(5 << 30)

def send_file(exchange):
    exchange.reply_file(200, b"", b"", sparse.fileno(), 0, int(exchange.route_arg), lambda error: None)

routes = [
    Route(b"GET", b"/small", lambda e: e.reply(200, b"x" * 4096)),
    Route(b"PUT", b"/put", lambda e: e.receive(Sink(e))),
    Route(b"GET", b"/stream/", lambda e: e.spawn(stream(e))),
    Route(b"GET", b"/file/", send_file),
]

async def app(scope, receive, send):
    raise RuntimeError("nothing cold here")

serve(app, routes, fd=int(sys.argv[1]))
"""


@asynccontextmanager
async def server() -> AsyncIterator[tuple[PooledTransport, str, int]]:
    """A serving process of its own: transport, url, pid."""
    with closing(listen("127.0.0.1", 0)) as sock:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVER, str(sock.fileno()), pass_fds=[sock.fileno()]
        )
        transport = PooledTransport()
        try:
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            assert (await transport.call(url, b"GET", b"/small", seconds=120)).status == 200
            yield transport, url, process.pid
        finally:
            await transport.close()
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 120) == 0


def rss_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


@pytest.mark.parametrize("way", ["put", "stream", "file"])
def test_five_gib_pass_with_flat_memory(way: str) -> None:
    """PERFORMANCE.md: RSS may grow by 64 MiB (aim 32) while a 5 GiB object streams through; peak values compared."""

    async def main() -> None:
        size = (2 if way == "file" else 5) * GIB      # the file's bytes never enter the process
        async with server() as (transport, url, pid):
            before, ours = rss_kib(pid), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            view = memoryview(bytearray(PIECE))
            begun = time.monotonic()
            if way == "put":
                upload = await transport.upload(url, b"PUT", b"/put", length=size, seconds=120)
                for _ in range(size // PIECE):
                    await upload.write(view)
                assert (await upload.finish()).body == b"%d" % size
            else:
                stream = await transport.open(url, b"GET", b"/%b/%d" % (way.encode(), size), seconds=120)
                for _ in range(size // PIECE):
                    await stream.read_into(view)
                stream.close()
            seconds = time.monotonic() - begun
            grown, ours_grown = rss_kib(pid) - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - ours
            print(f"{way}: {size / GIB / seconds:.2f} GiB/s, server +{grown} KiB, client +{ours_grown} KiB")
            assert grown < 32 * 1024 and ours_grown < 32 * 1024

    run(main(), 180)


def test_idle_and_slow_connections_leave_others_their_speed() -> None:
    """S3: 10,000 idle connections and 200 slow heads; p99 of others' GETs at most twice as high."""

    async def p99(transport: PooledTransport, url: str, seconds: float) -> float:
        samples: list[float] = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            begun = time.perf_counter()
            assert (await transport.call(url, b"GET", b"/small", seconds=120)).status == 200
            samples.append(time.perf_counter() - begun)
        assert len(samples) > 500
        return statistics.quantiles(samples, n=100)[98]

    async def main() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = min(hard, 12_000)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
        count = min(10_000, wanted - 500)
        try:
            async with server() as (transport, url, _):
                with ExitStack() as stack:
                    alone = min([await p99(transport, url, 1) for _ in range(5)])     # other load only ever adds
                    address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
                    for number in range(count + 200):
                        sock = stack.enter_context(closing(socket.create_connection(address)))
                        if number >= count:
                            sock.sendall(b"GET /small HTTP/1.1\r\nhost: ")
                        if number % 200 == 0:
                            assert (await transport.call(url, b"GET", b"/small", seconds=120)).status == 200
                    crowded = min([await p99(transport, url, 1) for _ in range(5)])
                print(f"{count} idle: p99 {alone * 1e3:.2f} ms alone, {crowded * 1e3:.2f} ms crowded")
                assert crowded <= max(2 * alone, alone + 0.001)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    run(main(), 120)
