"""What readers notice of a killed object server: p99 of GETs behind its death against p99 before (RELIABILITY.md, R5).

    python -m bench.readers_after_kill [--rows one,many] [--rounds 3] [--keys 1000] [--directory DIR]

Each round has a cluster of three object servers of its own, which stays without the killed one. All objects are read
through the gateway and compared, then one server is killed (SIGKILL) and all are read again from that moment on: by
one reader, or by 16 at once. The kill is timed with the reads: who was connected to the server notices its end then.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from bench.cluster import BUCKET, running
from bench.options import bench_main
from bench.result import Result
from tests.kit.cluster import Cluster
from tests.kit.http import Client
from tests.kit.load import body_of

MUST, AIM = 3.0, 2.0
OBJECT_BYTES = 4096
READERS = {"one": 1, "many": 16}
PASSES = 2      # over all objects before the kill: the first one warms


async def store(cluster: Cluster, keys: int) -> None:
    client = Client(cluster.gateway, token=cluster.token)
    for number in range(keys):
        answer = await client.request("PUT", f"/v1/objects/{BUCKET}/k{number}", body_of(number, OBJECT_BYTES))
        if answer.status != 200:
            raise RuntimeError(f"a write failed: {answer}")
    client.close()


async def read_all(cluster: Cluster, keys: int, readers: int) -> list[float]:
    """The sorted milliseconds of one read of every object; raises for a wrong or missing one."""
    numbers, took = iter(range(keys)), list[float]()
    await asyncio.gather(*(_read(Client(cluster.gateway, token=cluster.token), numbers, took) for _ in range(readers)))
    return sorted(took)


async def _read(client: Client, numbers: Iterator[int], took: list[float]) -> None:
    for number in numbers:
        began = time.monotonic()
        answer = await client.request("GET", f"/v1/objects/{BUCKET}/k{number}")
        took.append((time.monotonic() - began) * 1e3)
        if answer.status != 200 or answer.body != body_of(number, OBJECT_BYTES):
            raise RuntimeError(f"k{number} was not read: {answer.status}")
    client.close()


async def one_round(cluster: Cluster, keys: int, readers: int) -> tuple[list[float], list[float]]:
    await store(cluster, keys)
    for _ in range(PASSES):
        before = await read_all(cluster, keys, readers)
    cluster.kill(cluster.processes("objectd")[0].name)
    return before, await read_all(cluster, keys, readers)


def run(root: Path, options: argparse.Namespace) -> list[Result]:
    """Of each row the median of the rounds' ratios."""
    results = []
    for row in options.rows:
        found = []
        for number in range(options.rounds):
            with running(root / f"{row}{number}", flags=("--no-restart",)) as made:
                found.append(asyncio.run(one_round(made.cluster, options.keys, READERS[row])))
        at = options.keys * 99 // 100
        detail = "; ".join(
            f"p99 {before[at]:.2f} -> {after[at]:.2f} ms, slowest {before[-1]:.1f} -> {after[-1]:.1f}"
            for before, after in found
        )
        results.append(Result(
            f"p99 after a kill, {READERS[row]} reading", statistics.median(a[at] / b[at] for b, a in found),
            must=MUST, aim=AIM, is_less_better=True, detail=detail,
        ))  # fmt: skip
    return results


if __name__ == "__main__":
    bench_main(
        "reads behind the death of an object server", list(READERS), run, rounds=3, seconds=0,
        more=lambda parser: parser.add_argument("--keys", type=int, default=1000),
    )  # fmt: skip
