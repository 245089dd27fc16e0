"""A long run at full load (R19): memory, descriptors and threads stay where they are, nothing half is left on disk."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import astuple, dataclass
from pathlib import Path

import pytest

from tests.kit.cluster import Cluster, cluster
from tests.kit.load import Load, delete_all, judge

#: Of a bucket each, so that histories stay short enough for the checker.
ROUND_SECONDS = 60.0
SAMPLE_SECONDS = 5.0
SIZES = (0, 1, 100, 4096, 70_000, 300_000)
#: Garbage, trash and feed last a minute instead of days, and no operator is asked: the level of the data, and with it
#: of what is remembered of it, is reached in minutes.
COLLECTED_SOON = {
    "TIERSTORE_DUTIES__COLLECT_AFTER": "60s", "TIERSTORE_DUTIES__TRASH": "60s",
    "TIERSTORE_DUTIES__DELETED_SHARE_MAX": "1", "TIERSTORE_CATALOG__FEED_RETENTION": "60s",
}  # fmt: skip
RSS_SLOPE_MAX = 0.01        # of the memory after warming up, in 10 minutes
SMALL_CHANGE = 40           # descriptors or threads that come and go with connections


@dataclass(frozen=True)
class Sample:
    """rss_bytes: all that is resident. mapped_bytes: the part of it that belongs to files (the chunk index of an object
    server, code), which the kernel takes back when it wants to."""

    at: float
    rss_bytes: int
    mapped_bytes: int
    descriptors: int
    threads: int


def sample(pid: int) -> Sample:
    with open(f"/proc/{pid}/statm") as file:
        resident, shared = (int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in file.read().split()[1:3])
    return Sample(
        time.monotonic(), resident, shared, len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))
    )


def slope_per_10_minutes(samples: list[Sample]) -> float:
    """Least squares of the memory over time, as a share of its mean."""
    times, sizes = [s.at for s in samples], [float(s.rss_bytes) for s in samples]
    mean_time, mean_size = sum(times) / len(times), sum(sizes) / len(sizes)
    spread = sum((t - mean_time) ** 2 for t in times)
    rise = sum((t - mean_time) * (size - mean_size) for t, size in zip(times, sizes, strict=True)) / spread
    return rise * 600 / mean_size


def test_the_slope_of_a_leak_is_seen() -> None:
    """The judge of the soak itself: 2 % more memory every 10 minutes is found, noise around a level is not."""
    level = [Sample(float(t), 100_000_000 + (t * 7919) % 100_000, 0, 50, 9) for t in range(0, 1800, 10)]
    leak = [Sample(s.at, s.rss_bytes + int(2_000_000 * s.at / 600), 0, 50, 9) for s in level]
    assert slope_per_10_minutes(level) < RSS_SLOPE_MAX < slope_per_10_minutes(leak)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1800])
def test_nothing_grows_in_half_an_hour_of_full_load(tmp_path: Path, seconds: int) -> None:
    """R19. The first third warms caches up and does not count. What a round wrote is deleted after its judgement and
    collected beside the next rounds, so that the amount of data is level, too: what grows then is a leak."""

    async def main(c: Cluster) -> None:
        pids = {p.name: c.pid(p.name) for p in c.processes()}
        samples: dict[str, list[Sample]] = {name: [] for name in pids}
        began, rounds, writes, deleted = time.monotonic(), 0, 0, 0

        async def watch() -> None:
            while True:
                for name, pid in pids.items():
                    samples[name].append(sample(pid))
                (tmp_path / "samples.json").write_text(
                    json.dumps({name: [astuple(s) for s in taken] for name, taken in samples.items()})
                )
                await asyncio.sleep(SAMPLE_SECONDS)     # the interval of the samples

        watching = asyncio.create_task(watch())
        try:
            while time.monotonic() - began < seconds:
                bucket = f"soak{rounds}"
                load = Load(c.gateway, c.token, seed=rounds, bucket=bucket, clients=8, sizes=SIZES)
                await load.prepare()
                load.start()
                await asyncio.sleep(ROUND_SECONDS)      # the length of a round
                outcome = await load.stop()
                found = await judge(c.gateway, c.token, outcome, bucket=bucket)
                assert not found, found[:20]
                deleted += await delete_all(c.gateway, c.token, bucket=bucket)
                rounds, writes = rounds + 1, writes + outcome.counts["put 200"]
                at = time.monotonic() - began
                print(f"{at:.0f} s: {writes} writes in {rounds} rounds, {deleted} deleted", flush=True)
        finally:
            watching.cancel()
        assert pids == {name: c.pid(name) for name in pids}, "a process was restarted"
        assert writes >= 20 * seconds and deleted >= 2 * seconds
        found = []
        for name, all_taken in samples.items():
            taken = [s for s in all_taken if s.at - began > seconds / 3]
            slope, first, last = slope_per_10_minutes(taken), taken[0], taken[-1]
            megabytes = f"{last.rss_bytes / 1e6:.0f} MB ({last.mapped_bytes / 1e6:.0f} of files)"
            print(f"{name}: {megabytes}, {slope:+.2%} per 10 min, {last.descriptors} fds, {last.threads} threads")
            if slope >= RSS_SLOPE_MAX:
                found.append(f"{name}: {slope:+.2%} memory per 10 min")
            if last.descriptors - first.descriptors >= SMALL_CHANGE or last.threads - first.threads >= SMALL_CHANGE:
                found.append(f"{name}: from {first} to {last}")
        assert not found, found

    with cluster(tmp_path, "--servers", "3", env=COLLECTED_SOON) as c:
        asyncio.run(main(c))
        assert c.stop() == 0
        left = [path for path in (tmp_path / "cluster").rglob("*.new") if path.is_file()]
        assert not left, left
