"""Whole clusters in virtual time: any sequence of faults that N+1 promises to survive, from a seed.

A failing seed is printed with what it broke; `TIERSTORE_SEED=7 PYTHONHASHSEED=0 python -m tests.simulation.run` tells
its whole story. The runs are processes of their own because the order of sets depends on the hash seed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.kit import virtual_time
from tests.kit.simulation import SimCluster
from tests.kit.virtual_time import VirtualLoop
from tests.simulation.invariants import DeletionWatch, unrest
from tests.simulation.workload import BUCKET, Facts, SimClient, Violation
from tierstore.names import ChunkId

ROOT = Path(__file__).parents[2]
PAST = [int(line.split()[0]) for line in (Path(__file__).parent / "past_seeds.txt").read_text().splitlines()
        if line and not line.startswith("#")]  # fmt: skip
#: Short ones, 5 s of an idle core each: the whole suite has ten minutes. The slow form is the figure.
QUICK = [*PAST[:5], 3000, 3002]
SLOW = [*PAST, *range(1000, 2000)]
#: Of one run, also on a machine that does ten other things.
SEED_SECONDS_MAX = 300


def begin(seeds: Sequence[int], *options: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TIERSTORE_SEED"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.simulation.run", *options, *map(str, seeds)], cwd=ROOT, text=True,
        env={**environment, "PYTHONHASHSEED": "0"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(seeds: Sequence[int], *options: str) -> str:
    """Two processes, for the two cores; what they say."""
    halves = [half for half in (seeds[::2], seeds[1::2]) if half]
    processes = [begin(half, *options) for half in halves]
    said = ""
    try:
        for process in processes:
            said += process.communicate(timeout=SEED_SECONDS_MAX * len(seeds))[0]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), said
    return said


def digests(said: str) -> dict[str, str]:
    return dict(re.findall(r"^seed (\d+): .* trace ([0-9a-f]+): held$", said, re.MULTILINE))


def test_promises_hold_under_faults_from_seeds() -> None:
    """Durability, consistency per key, N+1 of our own deletes, redundancy and cleanliness after the faults."""
    own = os.environ.get("TIERSTORE_SEED")
    said = run([int(own)]) if own else run(QUICK, "--short")
    seeds = [int(own)] if own else QUICK
    print(said)
    assert sorted(digests(said)) == sorted(map(str, seeds)), said


def test_the_same_seed_gives_the_same_run() -> None:
    """A failure found by night must be there again in the morning."""
    first, second = begin([42], "--short"), begin([42], "--short")
    said = [process.communicate(timeout=SEED_SECONDS_MAX)[0] for process in (first, second)]
    assert digests(said[0]) and digests(said[0]) == digests(said[1]), said


@pytest.mark.slow
def test_promises_hold_for_a_thousand_seeds() -> None:
    """The figure of the reliability table: 1,000 seeds of ten virtual minutes each, 0 violations."""
    for at in range(0, len(SLOW), 50):
        seeds = SLOW[at : at + 50]
        said = run(seeds)
        assert len(digests(said)) == len(seeds), said


async def _small_world(loop: VirtualLoop) -> tuple[SimCluster, SimClient]:
    cluster = SimCluster(loop, 5)
    await cluster.start()
    store = await cluster.client("client-1")
    client = SimClient(cluster, store, "client-1", Facts(), cluster.fork())
    await store.buckets.create(BUCKET)
    for _ in range(5):
        await client._put_once()
    return cluster, client


def test_the_judge_sees_what_it_is_to_find() -> None:
    """A simulation whose judge is blind proves nothing: a lost copy, an orphan, a wrong delete, a lost name and a
    lost chunk are planted here."""

    async def main(loop: VirtualLoop) -> list[str]:
        cluster, client = await _small_world(loop)
        watch = DeletionWatch(cluster)
        found = [unrest(cluster)]
        device = next(device for device in cluster.devices() if device.kept)
        chunk = min(device.kept)
        kept = device.kept.pop(chunk)
        found.append(unrest(cluster))
        device.kept[chunk] = device.kept[bytes(16)] = kept
        found.append(unrest(cluster))
        del device.kept[bytes(16)]
        await device.trash(ChunkId(chunk))
        found += watch.violations
        await client.store.delete(BUCKET, client.mine[0])
        with pytest.raises(Violation, match="acknowledged was"):
            await client.read_once(client.mine[0])
        for other in cluster.devices():
            other.kept.clear()
        with pytest.raises(Violation, match="no good copy"):
            unrest(cluster)
        await client.store.close()
        await cluster.stop()
        return found

    clean, lost, orphan, deleted = virtual_time.run(5, main, simulation=True)
    assert clean == ""
    assert "is not good on devices" in lost
    assert "is an orphan" in orphan
    assert "while the catalog has it live there" in deleted
