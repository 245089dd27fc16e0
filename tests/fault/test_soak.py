"""A long run at full load (R19): memory, descriptors and threads stay where they are, nothing half is left on disk."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.cluster import Cluster, cluster
from tests.kit.load import Load, judge

#: Of a bucket each, so that histories stay short enough for the checker.
ROUND_SECONDS = 60.0
RSS_SLOPE_MAX = 0.01        # of the memory after warming up, in 10 minutes
SMALL_CHANGE = 40           # descriptors or threads that come and go with connections


@dataclass(frozen=True)
class Sample:
    at: float
    rss_bytes: int
    descriptors: int
    threads: int


def sample(pid: int) -> Sample:
    with open(f"/proc/{pid}/statm") as file:
        pages = int(file.read().split()[1])
    return Sample(
        time.monotonic(), pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd")),
        len(os.listdir(f"/proc/{pid}/task")),
    )  # fmt: skip


def slope_per_10_minutes(samples: list[Sample]) -> float:
    """Least squares of the memory over time, as a share of its mean."""
    times, sizes = [s.at for s in samples], [float(s.rss_bytes) for s in samples]
    mean_time, mean_size = sum(times) / len(times), sum(sizes) / len(sizes)
    spread = sum((t - mean_time) ** 2 for t in times)
    rise = sum((t - mean_time) * (size - mean_size) for t, size in zip(times, sizes, strict=True)) / spread
    return rise * 600 / mean_size


def test_the_slope_of_a_leak_is_seen() -> None:
    """The judge of the soak itself: 2 % more memory every 10 minutes is found, noise around a level is not."""
    level = [Sample(float(t), 100_000_000 + (t * 7919) % 100_000, 50, 9) for t in range(0, 1800, 10)]
    leak = [Sample(s.at, s.rss_bytes + int(2_000_000 * s.at / 600), 50, 9) for s in level]
    assert slope_per_10_minutes(level) < RSS_SLOPE_MAX < slope_per_10_minutes(leak)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1800])
def test_nothing_grows_in_half_an_hour_of_full_load(tmp_path: Path, seconds: int) -> None:
    """R19. The first third warms caches up and does not count."""

    async def main(c: Cluster) -> None:
        pids = {p.name: c.pid(p.name) for p in c.processes()}
        samples: dict[str, list[Sample]] = {name: [] for name in pids}
        began, rounds, writes = time.monotonic(), 0, 0
        while time.monotonic() - began < seconds:
            load = Load(c.gateway, c.token, seed=rounds, bucket=f"soak{rounds}", clients=8)
            await load.prepare()
            load.start()
            until = time.monotonic() + ROUND_SECONDS
            while time.monotonic() < until:
                await asyncio.sleep(5)      # the interval of the samples
                if time.monotonic() - began > seconds / 3:
                    for name, pid in pids.items():
                        samples[name].append(sample(pid))
            outcome = await load.stop()
            found = await judge(c.gateway, c.token, outcome, bucket=f"soak{rounds}")
            assert not found, found[:20]
            rounds, writes = rounds + 1, writes + outcome.counts["put 200"]
        for name, taken in samples.items():
            slope = slope_per_10_minutes(taken)
            print(f"{name}: {taken[-1].rss_bytes / 1e6:.0f} MB, {slope:+.2%} per 10 min, {taken[-1].descriptors} fds")
            assert slope < RSS_SLOPE_MAX, (name, slope)
            assert taken[-1].descriptors - taken[0].descriptors < SMALL_CHANGE, name
            assert taken[-1].threads - taken[0].threads < SMALL_CHANGE, name
        print(f"{writes} writes in {rounds} rounds")
        assert writes >= 20 * seconds
        assert pids == {name: c.pid(name) for name in pids}, "a process was restarted"

    with cluster(tmp_path, "--servers", "3") as c:
        asyncio.run(main(c))
        assert c.stop() == 0
        left = [path for path in (tmp_path / "cluster").rglob("*.new") if path.is_file()]
        assert not left, left
