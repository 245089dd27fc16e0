"""RSS growth of gateway and object servers while one large object is written and read back, and how soon `up` is ready.

`python -m bench.memory [--gib 5]`. RSS is sampled every 50 ms; growth is the highest sample less the one before the
object. A small object goes both ways first, so that what a process needs once is there.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import threading
import time
from pathlib import Path

from bench.cluster import BUCKET, Running, running
from bench.options import bench_main
from bench.processes import resident_bytes, role, tree
from bench.result import Result

RSS_MUST, RSS_AIM = 64, 32
READY_MUST_SECONDS = 5.0
PIECE = 1 << 20


class _Sampler(threading.Thread):
    """Highest RSS of each process since it began."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(daemon=True)
        self.highest = {pid: resident_bytes(pid) for pid in pids}
        self.before = dict(self.highest)
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.05):
            for pid in self.highest:
                self.highest[pid] = max(self.highest[pid], resident_bytes(pid))

    def end(self) -> dict[int, int]:
        """Growth of each process."""
        self._ended.set()
        self.join()
        return {pid: high - self.before[pid] for pid, high in self.highest.items()}


def run(root: Path, options: argparse.Namespace) -> list[Result]:
    ready, results = [], []
    with running(root / "cluster") as cluster:
        ready.append(cluster.ready_seconds)
        if "rss" in options.rows:
            results += _stream(cluster, int(options.gib * (1 << 30)))
    if "ready" in options.rows:
        for number in range(options.rounds - 1):
            with running(root / f"ready-{number}") as cluster:
                ready.append(cluster.ready_seconds)
        detail = "starts of 5 processes in an empty directory: " + ", ".join(f"{seconds:.1f}" for seconds in ready)
        results.append(Result(
            "up ready", statistics.median(ready), must=READY_MUST_SECONDS, aim=READY_MUST_SECONDS, unit="s",
            is_less_better=True, detail=detail,
        ))  # fmt: skip
    return results


def _stream(cluster: Running, size: int) -> list[Result]:
    _put(cluster, 64 << 20)
    _get(cluster, 64 << 20)
    time.sleep(1.0)
    pids = {pid: role(pid) for pid in tree(cluster.up)}
    results = []
    for verb, way in (("PUT", _put), ("GET", _get)):
        sampler = _Sampler([pid for pid, name in pids.items() if name in ("gateway", "objectd")])
        sampler.start()
        began = time.monotonic()
        try:
            way(cluster, size)
        finally:
            grown = sampler.end()
        took = time.monotonic() - began
        for name in ("gateway", "objectd"):
            most = max(growth for pid, growth in grown.items() if pids[pid] == name) / (1 << 20)
            results.append(Result(
                f"RSS growth {name} {verb}", most, must=RSS_MUST, aim=RSS_AIM, unit="MiB", is_less_better=True,
                detail=f"{size / (1 << 30):g} GiB in {took:.1f} s, {size / took / (1 << 20):,.0f} MiB/s",
            ))  # fmt: skip
    return results


def _connect(cluster: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", cluster.gateway_port), 60)


def _head(cluster: Running, method: str, length: str = "") -> bytes:
    return (f"{method} /v1/objects/{BUCKET}/large HTTP/1.1\r\nhost: 127.0.0.1:{cluster.gateway_port}\r\n"
            f"authorization: {cluster.authorization}\r\n{length}\r\n").encode()  # fmt: skip


def _put(cluster: Running, size: int) -> None:
    piece = bytes(range(256)) * (PIECE // 256)
    with _connect(cluster) as sock:
        sock.sendall(_head(cluster, "PUT", f"content-length: {size}\r\n"))
        for _ in range(size // PIECE):
            sock.sendall(piece)
        status = sock.recv(65536).split(b"\r\n", 1)[0]
    if b" 200 " not in status:
        raise RuntimeError(f"the PUT answered {status!r}")


def _get(cluster: Running, size: int) -> None:
    with _connect(cluster) as sock:
        sock.sendall(_head(cluster, "GET"))
        begin = b""
        while b"\r\n\r\n" not in begin:
            begin += sock.recv(65536)
        head, _, body = begin.partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n", 1)[0] + b" ":
            raise RuntimeError(f"the GET answered {head[:80]!r}")
        left, buffer = size - len(body), bytearray(PIECE)
        while left:
            count = sock.recv_into(buffer, 0, socket.MSG_TRUNC)
            if not count:
                raise RuntimeError(f"the answer ended {left} bytes early")
            left -= count


if __name__ == "__main__":
    bench_main(
        "memory of a long stream, time to be ready", ["rss", "ready"], run, rounds=3, seconds=0,
        more=lambda parser: parser.add_argument("--gib", type=float, default=5.0),
    )  # fmt: skip
