"""Power cuts under a whole cluster, of a real ext4 (R3) and of a file system that keeps only what was synced (R4)."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.kit.cluster import cluster
from tests.kit.load import Load, Outcome, judge
from tests.kit.power import Volume
from tests.kit.strictfs import StrictDisk

#: Before each cut; which operations a load chooses is chance.
WRITTEN_ONCE_MIN = 8


async def _load_until_the_cut(url: str, token: str, volume: Volume | StrictDisk, *, seed: int, writes: int) -> Outcome:
    load = Load(url, token, seed=seed, seconds=5, bucket=f"cut{seed}", registers=20)
    await load.prepare()
    load.start()
    deadline = time.monotonic() + 600
    while load.outcome.counts["put 200"] < writes or load.outcome.written_once < WRITTEN_ONCE_MIN:
        assert time.monotonic() < deadline, load.outcome.counts
        await asyncio.sleep(0.005)
    load.cut()
    volume.cut()
    return await load.stop()


@pytest.mark.parametrize("cycles", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_a_power_cut_loses_nothing_acknowledged(tmp_path: Path, cycles: int) -> None:
    """All volumes at once: catalog, segments, files. A missing fsync anywhere shows as a lost or torn object."""
    outcomes: list[Outcome] = []
    with Volume(tmp_path / "disk", size_mib=2000) as volume:
        for cycle in range(cycles):
            with cluster(volume.path, "--servers", "3", "--no-restart") as c:
                for earlier, outcome in enumerate(outcomes[-3:], max(0, len(outcomes) - 3)):
                    found = asyncio.run(judge(c.gateway, c.token, outcome, bucket=f"cut{earlier}"))
                    assert not found, (cycle, earlier, found[:20])
                outcomes.append(
                    asyncio.run(
                        _load_until_the_cut(c.gateway, c.token, volume, seed=cycle, writes=20 + cycle * 37 % 100)
                    )
                )
                c.kill_everything()
            volume.unmount()
            volume.mount()
        with cluster(volume.path, "--servers", "3") as c:
            found = asyncio.run(judge(c.gateway, c.token, outcomes[-1], bucket=f"cut{cycles - 1}"))
            assert not found, found[:20]
    acknowledged = sum(outcome.written_once for outcome in outcomes)
    print(f"{cycles} power cuts, {acknowledged} acknowledged objects compared")
    assert acknowledged >= WRITTEN_ONCE_MIN * cycles


@pytest.mark.parametrize("cycles", [1, pytest.param(100, marks=pytest.mark.slow)])
def test_a_cut_that_keeps_only_what_was_synced_loses_nothing_acknowledged(tmp_path: Path, cycles: int) -> None:
    """R4: names without a synced directory are gone, unsynced sectors survive at random, nothing half is readable."""
    outcomes: list[Outcome] = []
    with StrictDisk(tmp_path / "strict", seed=cycles) as disk:
        for cycle in range(cycles + 1):
            with cluster(disk.path, "--servers", "3", "--no-restart") as c:
                for earlier, outcome in enumerate(outcomes[-2:], max(0, len(outcomes) - 2)):
                    found = asyncio.run(judge(c.gateway, c.token, outcome, bucket=f"cut{earlier}"))
                    assert not found, (cycle, earlier, found[:20])
                if cycle == cycles:
                    break
                outcomes.append(
                    asyncio.run(
                        _load_until_the_cut(c.gateway, c.token, disk, seed=cycle, writes=15 + cycle * 37 % 100)
                    )
                )
                c.kill_everything()
            disk.mount()
    acknowledged = sum(outcome.written_once for outcome in outcomes)
    print(f"{cycles} strict power cuts, {acknowledged} acknowledged objects compared; {disk.said[-3:]}")
    assert acknowledged >= WRITTEN_ONCE_MIN * cycles
