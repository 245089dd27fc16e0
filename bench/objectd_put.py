"""objectd PUT, as ratios: on tmpfs to nginx's DAV PUT, durable on the real disk to nginx without sync, and 64 MiB to
one process that writes and syncs.

`python -m bench.objectd_put [--rounds N] [--seconds S] [--rows tmpfs-4k,durable-4k,durable-64m]`. Every chunk is new;
its sums are sent, checked, and answered with a signed receipt. durable-4k uses 64 connections, the rest 16 (64 MiB: 1).
"""

from __future__ import annotations

import argparse
import http.client
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from bench import nginx, ratio
from bench.objectd_server import StandaloneObjectd
from bench.options import bench_main
from bench.result import Result
from tierstore.checksum import sums_of

#: row -> (bytes, connections, on tmpfs, must, aim)
ROWS = {
    "tmpfs-4k": (4 << 10, 16, True, 0.80, 1.2),
    "tmpfs-64k": (64 << 10, 16, True, 0.70, 1.0),
    "tmpfs-1m": (1 << 20, 16, True, 0.60, 0.9),
    "durable-4k": (4 << 10, 64, False, 0.40, 0.70),
}
LARGE = "durable-64m"
LARGE_BYTES, LARGE_MUST, LARGE_AIM = 64 << 20, 0.70, 0.90
#: Names that nginx's side uses in turn, so that its directory stays at a size.
NAMES = 100_000


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--memory", default="/dev/shm", help="directory on tmpfs")


def run(root: Path, options: argparse.Namespace) -> list[Result]:
    """Each row in a directory of its own: on tmpfs or on the disk."""
    results = []
    for name in options.rows:
        if name == LARGE:
            results.append(large(root, rounds=options.rounds))
        elif ROWS[name][2]:
            memory = Path(tempfile.mkdtemp(prefix="objectd-put-", dir=options.memory))
            try:
                results.append(against_nginx(memory, name, rounds=options.rounds, seconds=options.seconds))
            finally:
                shutil.rmtree(memory)
        else:
            results.append(against_nginx(root, name, rounds=options.rounds, seconds=options.seconds))
    return results


def against_nginx(root: Path, name: str, *, rounds: int, seconds: float) -> Result:
    """One row against nginx's DAV module."""
    size, connections, _, must, aim = ROWS[name]
    httpload = ratio.build_httpload(root)
    server = StandaloneObjectd(
        root / f"objectd-{name}", devices=(("ssd", "ssd"),), cpu=ratio.SERVER_CPU, capacity=24 << 30,
    )  # fmt: skip
    server.prepare()
    reference = nginx.Nginx(root / f"nginx-{name}", cpu=ratio.SERVER_CPU)
    server.start()
    try:
        reference.start()
        assert server.process is not None and reference.process is not None
        data = os.urandom(size)
        plain, summed = root / "plain", root / "summed"
        plain.write_bytes(data)
        summed.write_bytes(data + sums_of(data))

        def ours() -> list[str]:
            # a new upload per window, so that no chunk is ever written twice
            ticket = server.write_ticket(server.new_upload()).decode()
            return ["-p", str(server.port), "-m", "PUT", "-f", str(summed), f"/v1/chunks/{ticket}?index=%ld&name=b/k"]

        def theirs() -> list[str]:
            return ["-p", str(reference.port), "-m", "PUT", "-f", str(plain), "-k", str(NAMES), "/put-%ld"]

        found = ratio.compare(
            httpload, ratio.Side("objectd", server.process.pid, ours),
            ratio.Side("nginx", reference.process.pid, theirs), rounds=rounds, seconds=seconds, connections=connections,
        )  # fmt: skip
    finally:
        reference.stop()
        server.stop()
    return found.result(f"objectd PUT {name}", must=must, aim=aim)


def large(root: Path, *, rounds: int) -> Result:
    """64 MiB durable: seconds of one PUT against a buffered write and fdatasync of as many bytes."""
    server = StandaloneObjectd(root / "objectd", devices=(("ssd", "ssd"),), capacity=24 << 30)
    server.prepare()
    server.start()
    body = os.urandom(1 << 20) * (LARGE_BYTES >> 20)
    body_with_sums = body + sums_of(body)
    ratios, ours_seconds, plain_seconds = [], [], []
    try:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        connection.connect()
        for number in range(rounds):
            pair = {}
            for side in ("ours", "plain") if number % 2 else ("plain", "ours"):
                began = time.perf_counter()
                if side == "ours":
                    ticket = server.write_ticket(server.new_upload()).decode()
                    connection.request("PUT", f"/v1/chunks/{ticket}?index=0", body=body_with_sums)
                    answer = connection.getresponse()
                    answer.read()
                    if answer.status != 200:
                        raise RuntimeError(f"PUT answered {answer.status}")
                else:
                    _write_synced(root / f"plain-{number}", body)
                pair[side] = time.perf_counter() - began
            ratios.append(pair["plain"] / pair["ours"])
            ours_seconds.append(pair["ours"])
            plain_seconds.append(pair["plain"])
    finally:
        server.stop()
    ours_ms, plain_ms = (statistics.median(seconds) * 1e3 for seconds in (ours_seconds, plain_seconds))
    return Result(
        f"objectd PUT {LARGE}", statistics.median(ratios), must=LARGE_MUST, aim=LARGE_AIM,
        detail=f"ours {ours_ms:.0f} ms, plain {plain_ms:.0f} ms",
    )


def _write_synced(path: Path, body: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        view = memoryview(body)
        while view:
            view = view[os.write(fd, view[: 1 << 20]) :]
        os.fdatasync(fd)
    finally:
        os.close(fd)


if __name__ == "__main__":
    bench_main("objectd PUT", [*ROWS, LARGE], run, rounds=5, seconds=0.4, more=_more)
