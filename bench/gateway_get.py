"""Gateway GET 4 KiB / 1 MiB / 64 MiB with a token, and metadata's lookup over HTTP, as ratios to nginx's GET.

`python -m bench.gateway_get [--rows 4k,lookup] [--rounds N] [--seconds S]`. Gateway, metadata and object servers share
one core, nginx (one worker) has the same core in its windows, the load client the other. The counts at the end come
from the metrics: every GET looked its object up, every block that was sent was verified. The bodies pass TCP, as
between machines: lending files (docs/adr/0400) is turned off here and counts in the rows of bench.e2e.
"""

from __future__ import annotations

import argparse
import os
import re
import urllib.request
from pathlib import Path

from bench import nginx, ratio
from bench.cluster import BUCKET, Running, running
from bench.options import bench_main
from bench.result import Result
from tierstore.wire import encode
from tierstore.wire.names import LookupBatch, LookupItem

#: row -> (bytes, objects, must, aim)
SIZES = {
    "4k": (4 << 10, 256, 0.06, 0.15),
    "1m": (1 << 20, 32, 0.25, 0.40),
    "64m": (64 << 20, 3, 0.22, 0.35),
}
LOOKUP, LOOKUP_MUST, LOOKUP_AIM = "lookup", 0.30, 0.45


def run(root: Path, options: argparse.Namespace) -> list[Result]:
    httpload = ratio.build_httpload(root)
    reference = nginx.Nginx(root / "nginx", cpu=ratio.SERVER_CPU)
    results = []
    with running(root / "cluster", cpu=ratio.SERVER_CPU, env={"TIERSTORE_CHUNKS__LEND_FILES": "false"}) as cluster:
        try:
            reference.start()
            sizes = [name for name in options.rows if name in SIZES]
            results += [_get(root, httpload, cluster, reference, name, options) for name in sizes]
            if sizes:
                results += _check(cluster, sizes)
            if LOOKUP in options.rows:
                results.append(_lookup(root, httpload, cluster, reference, options))
        finally:
            reference.stop()
    return results


def _get(
    root: Path, httpload: Path, cluster: Running, reference: nginx.Nginx, name: str, options: argparse.Namespace
) -> Result:
    size, count, must, aim = SIZES[name]
    _store(cluster, reference.data, name, size, count)
    names, targets = root / f"names-{name}", root / f"targets-{name}"
    names.write_text("\n".join(f"/{name}-{number}" for number in range(count)))
    targets.write_text("\n".join(f"/v1/objects/{BUCKET}/{name}-{number}" for number in range(count)))
    truncate = ["-t"] if size >= 1 << 20 else []
    assert reference.process is not None
    head = f"Authorization: {cluster.authorization}"
    ours = ratio.Side(
        "gateway", cluster.up, lambda: ["-p", str(cluster.gateway_port), *truncate, "-H", head, "-T", str(targets)]
    )
    theirs = ratio.Side(
        "nginx", reference.process.pid, lambda: ["-p", str(reference.port), *truncate, "-T", str(names)]
    )
    seconds = options.seconds * (3 if size >= 1 << 24 else 1)
    # 64 MiB with 16 connections is a second of queue per answer on one core; 4 as end to end
    connections = 4 if size >= 1 << 24 else 16
    found = ratio.compare(
        httpload, ours, theirs, rounds=options.rounds, seconds=seconds, connections=connections
    )
    return found.result(f"gateway GET {name}", must=must, aim=aim)


def _store(cluster: Running, files: Path, name: str, size: int, count: int) -> None:
    for number in range(count):
        data = os.urandom(min(size, 1 << 20)) * max(1, size >> 20)
        cluster.request("PUT", f"/v1/objects/{BUCKET}/{name}-{number}", data)
        (files / f"{name}-{number}").write_bytes(data)


def _lookup(
    root: Path, httpload: Path, cluster: Running, reference: nginx.Nginx, options: argparse.Namespace
) -> Result:
    """One object a message, as a lone GET asks for it; nginx answers 4 KiB."""
    count = 256
    if "4k" not in options.rows:
        _store(cluster, reference.data, "4k", *SIZES["4k"][:2])
    bodies = [encode(LookupBatch([LookupItem(BUCKET, f"4k-{number}")])) for number in range(100, count)]
    assert len({len(body) for body in bodies}) == 1, "the load client cuts the file into equal bodies"
    file, names = root / "lookups", root / "names-lookup"
    file.write_bytes(b"".join(bodies))
    names.write_text("\n".join(f"/4k-{number}" for number in range(100, count)))
    assert reference.process is not None
    ours = ratio.Side("metadata", cluster.up, lambda: [
        "-p", str(cluster.metadata_port), "-m", "POST", "-f", str(file), "-N", str(len(bodies)),
        "-H", f"Authorization: {cluster.authorization}", "/v1/internal/lookup",
    ])  # fmt: skip
    theirs = ratio.Side("nginx", reference.process.pid, lambda: ["-p", str(reference.port), "-T", str(names)])
    found = ratio.compare(httpload, ours, theirs, rounds=options.rounds, seconds=options.seconds)
    return found.result("metadata lookup HTTP", must=LOOKUP_MUST, aim=LOOKUP_AIM)


def _counts(cluster: Running) -> dict[str, float]:
    """The sums of the counters over all processes."""
    totals: dict[str, float] = {}
    for process in cluster.cluster.processes():
        request = urllib.request.Request(
            process.url + "/-/metrics", headers={"Authorization": cluster.authorization}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read().decode()
        for name, value in re.findall(r"^(tierstore_\w+_total)(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE):
            totals[name] = totals.get(name, 0.0) + float(value)
    return totals


def _check(cluster: Running, sizes: list[str]) -> list[Result]:
    """Whole GETs, none of them cut off as at the end of a window: each looks up once, each block sent is verified."""
    before, gets = _counts(cluster), 0
    for name in sizes:
        for number in range(SIZES[name][1]):
            cluster.request("GET", f"/v1/objects/{BUCKET}/{name}-{number}")
            gets += 1
    grown = {name: value - before.get(name, 0.0) for name, value in _counts(cluster).items()}
    lookups, hedges = grown["tierstore_lookups_total"], grown.get("tierstore_hedges_total", 0.0)
    sent, verified = grown["tierstore_chunk_read_blocks_total"], grown["tierstore_blocks_verified_total"]
    return [
        Result("gateway lookups / GETs", lookups / gets, must=1.0, aim=1.0,
               detail=f"{lookups:,.0f} lookups, {gets:,} GETs"),
        Result("gateway blocks verified/sent", verified / sent, must=1.0 if not hedges else 0.9, aim=1.0,
               detail=f"{verified:,.0f} verified, {sent:,.0f} sent, {hedges:.0f} hedges"),
    ]  # fmt: skip


if __name__ == "__main__":
    bench_main("gateway GET and metadata lookup against nginx", [*SIZES, LOOKUP], run, rounds=5, seconds=0.6)
