"""p99 of warm 4 KiB GETs while cold 64 MiB chunks are read from a slow device of the same server, against p99 without.

`python -m bench.objectd_slow [--rounds N] [--seconds S]`. The slow device is simulated: 8 ms a seek, 130 MB/s, one arm,
nothing hidden by the page cache. Bars: at most 5 times (must), 2 times (aim).
"""

from __future__ import annotations

import argparse
import http.client
import os
import statistics
import threading
from pathlib import Path

from bench import ratio
from bench.objectd_server import StandaloneObjectd
from bench.options import bench_main
from bench.result import Result
from tierstore.checksum import sums_of

MUST, AIM = 5.0, 2.0
SMALL_BYTES, SMALL_COUNT, LARGE_BYTES = 4096, 256, 64 << 20
CONNECTIONS = 4     # below saturation: at saturation p99 measures the queue, not the disturbance


def run(root: Path, options: argparse.Namespace) -> list[Result]:
    """The median ratio over alternating windows."""
    rounds, seconds = options.rounds, options.seconds
    httpload = ratio.build_httpload(root)
    server = StandaloneObjectd(
        root / "objectd", cpu=ratio.SERVER_CPU,
        settings={"device.hdd": {"simulate_seek": "8ms", "simulate_rate": "130MB/s"}},
    )  # fmt: skip
    server.prepare()
    server.start()
    try:
        assert server.process is not None
        small = [_put(server, os.urandom(SMALL_BYTES), 1) for _ in range(SMALL_COUNT)]
        large = _put(server, os.urandom(1 << 20) * (LARGE_BYTES >> 20), 2)
        targets = root / "targets"
        targets.write_bytes(b"\n".join(small))
        side = ratio.Side("objectd", server.process.pid, lambda: ["-p", str(server.port), "-T", str(targets)])
        quiet, beside, reads = [], [], 0
        for _ in range(rounds):
            quiet.append(ratio.measure(httpload, side, seconds=seconds, connections=CONNECTIONS).p99_ms)
            reader = _Reader(server.port, large)
            reader.start()
            beside.append(ratio.measure(httpload, side, seconds=seconds, connections=CONNECTIONS).p99_ms)
            reads += reader.end()
    finally:
        server.stop()
    if reads < 16 << 20:
        raise RuntimeError(f"only {reads} bytes were read from the slow device: nothing was measured")
    found = statistics.median([b / q for b, q in zip(beside, quiet, strict=True)])
    return [Result(
        "warm p99 beside slow disk", found, must=MUST, aim=AIM, is_less_better=True,
        detail=f"alone {statistics.median(quiet):.2f} ms, beside {statistics.median(beside):.2f} ms, {reads >> 20} MiB "
        "read from the slow device",
    )]  # fmt: skip


class _Reader(threading.Thread):
    """Reads the large chunk again and again until told to end."""

    def __init__(self, port: int, target: bytes) -> None:
        super().__init__()
        self._port = port
        self._target = target.decode()
        self._ending = threading.Event()
        self._bytes = 0

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._ending.is_set():
            connection.request("GET", self._target)
            answer = connection.getresponse()
            while piece := answer.read(1 << 20):
                self._bytes += len(piece)
                if self._ending.is_set():
                    connection.close()
                    return

    def end(self) -> int:
        """Stop; bytes read."""
        self._ending.set()
        self.join(60)
        return self._bytes


def _put(server: StandaloneObjectd, data: bytes, device: int) -> bytes:
    """Store a chunk; the target to read it."""
    ticket = server.write_ticket(server.new_upload(), device=device).decode()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("PUT", f"/v1/chunks/{ticket}?index=0", body=data + sums_of(data))
    answer = connection.getresponse()
    receipt = answer.read()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"PUT answered {answer.status} {receipt[:200]!r}")
    return b"/v1/chunks/" + server.ticket_of(receipt)


if __name__ == "__main__":
    bench_main("warm p99 beside a slow disk", ["p99"], run, rounds=5, seconds=1.0)
