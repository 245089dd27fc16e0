"""objectd GET with ticket, 4 KiB / 64 KiB / 1 MiB / 64 MiB, as a ratio to nginx with sendfile (one worker).

`python -m bench.objectd_get [--rounds N] [--seconds S] [--rows 4k,64k]`. Each request carries another of many tickets,
signed as the metadata service does; sums travel with the data. Warm page cache, 16 connections.
"""

from __future__ import annotations

import argparse
import http.client
import os
from functools import partial
from pathlib import Path

from bench import nginx, ratio
from bench.objectd_server import StandaloneObjectd
from bench.options import bench_main
from bench.result import Result
from tierstore.checksum import sums_of

#: name -> (bytes, distinct chunks, must, aim)
SIZES = {
    "4k": (4 << 10, 256, 0.50, 0.65),
    "64k": (64 << 10, 128, 0.60, 0.80),
    "1m": (1 << 20, 32, 0.80, 0.95),
    "64m": (64 << 20, 4, 0.70, 0.85),
}


def run(root: Path, options: argparse.Namespace) -> list[Result]:
    """Measure the rows."""
    httpload = ratio.build_httpload(root)
    server = StandaloneObjectd(root / "objectd", devices=(("ssd", "ssd"),), cpu=ratio.SERVER_CPU)
    server.prepare()
    reference = nginx.Nginx(root / "nginx", cpu=ratio.SERVER_CPU)
    server.start()
    results = []
    try:
        reference.start()
        assert server.process is not None and reference.process is not None
        for name in options.rows:
            size, count, must, aim = SIZES[name]
            targets = root / f"targets-{name}"
            targets.write_bytes(b"\n".join(_store(server, reference.data, name, size, count)))
            names = root / f"names-{name}"
            names.write_text("\n".join(f"/{name}-{number}" for number in range(count)))
            truncate = ["-t"] if size >= 1 << 20 else []
            ours = ratio.Side(
                "objectd", server.process.pid,
                partial(list, ["-p", str(server.port), *truncate, "-T", str(targets)]),
            )  # fmt: skip
            theirs = ratio.Side(
                "nginx", reference.process.pid,
                partial(list, ["-p", str(reference.port), *truncate, "-T", str(names)]),
            )  # fmt: skip
            span = options.seconds * (3 if size >= 1 << 24 else 1)
            connections = 4 if size >= 1 << 24 else 16      # 16 answers of 64 MiB do not end within a window
            found = ratio.compare(
                httpload, ours, theirs, rounds=options.rounds, seconds=span, connections=connections
            )
            results.append(found.result(f"objectd GET {name}", must=must, aim=aim))
    finally:
        reference.stop()
        server.stop()
    return results


def _store(server: StandaloneObjectd, files: Path, name: str, size: int, count: int) -> list[bytes]:
    """Store `count` chunks and the same bytes as nginx's files; the targets to read them."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    upload = server.new_upload()
    ticket = server.write_ticket(upload).decode()
    targets = []
    for number in range(count):
        data = os.urandom(min(size, 1 << 20)) * max(1, size >> 20)
        connection.request("PUT", f"/v1/chunks/{ticket}?index={number}", body=data + sums_of(data))
        answer = connection.getresponse()
        receipt = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"PUT answered {answer.status} {receipt[:200]!r}")
        targets.append(b"/v1/chunks/" + server.ticket_of(receipt))
        (files / f"{name}-{number}").write_bytes(data)
    connection.close()
    return targets


if __name__ == "__main__":
    bench_main("objectd GET against nginx", list(SIZES), run, rounds=5, seconds=0.4)
