"""Kills at named places of the code (R2): store, receipt, commit, state files, jobs; nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import pytest

from tests.kit.cluster import Cluster, cluster, wait_until
from tests.kit.http import Broken, Client
from tests.kit.load import Load, judge

#: Where a write, a delete or a start passes by itself, and which daemon has the place.
OBJECTD = (
    "store.segment.before_write", "store.segment.after_write", "store.segment.before_sync", "store.segment.after_sync",
    "store.file.before_create", "store.file.before_write", "store.file.before_sync", "store.file.after_sync",
    "store.directory.before_sync", "store.directory.after_sync", "store.index.before_write",
    "store.index.before_commit", "store.index.after_commit", "store.file.before_rename", "store.file.after_rename",
    "store.layout.before_sync", "store.layout.before_rename", "store.read.before", "objectd.upload.before_receipt",
    "agent.job.before", "agent.job.after", "statefile.before_sync", "statefile.before_rename",
    "statefile.after_rename", "store.file.before_unlink", "store.segment.before_unlink", "store.segment.after_unlink",
)  # fmt: skip
METADATA = ("catalog.before_commit", "catalog.after_commit")
#: Small segments that are emptied and let go at once: their unlink is passed by compaction alone.
GARBAGE = {
    "TIERSTORE_CHUNKS__SEGMENT_BYTES": "320KiB", "TIERSTORE_UPKEEP__GARBAGE_RATIO": "0.05",
    "TIERSTORE_UPKEEP__INTERVAL": "1s", "TIERSTORE_UPKEEP__SEGMENT_GRACE": "1s", "TIERSTORE_DUTIES__TRASH": "1s",
}  # fmt: skip
QUICK = (
    "store.segment.before_sync", "store.file.before_sync", "objectd.upload.before_receipt", "catalog.after_commit",
)  # fmt: skip
#: A place that a process does not come to again (only a start passes it so often) is waited for no longer than this;
#: those of the quick form are on every write's way.
REACH_SECONDS, QUICK_REACH_SECONDS = 6.0, 300.0
START_SECONDS = 600.0


async def _answers(url: str) -> bool:
    client = Client(url, seconds=5)
    try:
        return (await client.request("GET", "/-/readyz")).status == 200
    except Broken:
        return False
    finally:
        client.close()


async def _die_at(c: Cluster, armed: Path, role: str, place: str, at_pass: int, which: int, reach: float) -> bool:
    """Restart one process with the place armed and wait until it has killed itself there; False if it did not."""
    names = [p.name for p in c.processes(role)]
    name = names[which % len(names)]
    armed.write_text(f"{place}=kill@{at_pass}")
    try:
        await asyncio.to_thread(c.kill, name)
        # the supervisor waits longer before each start of one that dies often
        pid = await asyncio.to_thread(wait_until, lambda: c.pid(name), seconds=30, what=f"{name} back", every=0.01)
        # on a busy machine a start takes longer than the place has to be reached in
        url, is_up = next(p.url for p in c.processes(role) if p.name == name), False
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if c.pid(name) != pid:
                return True
            if not is_up and await _answers(url):
                is_up, deadline = True, time.monotonic() + reach
            await asyncio.sleep(0.01)
        return False
    finally:
        armed.unlink()


@pytest.mark.parametrize(
    ("places", "passes"),
    [(QUICK, (5,)), pytest.param((*OBJECTD, *METADATA), (1, 5, 40), marks=pytest.mark.slow)],
    ids=["quick", "all"],
)
def test_a_kill_at_any_place_of_a_write_loses_nothing_acknowledged(
    tmp_path: Path, places: tuple[str, ...], passes: tuple[int, ...]
) -> None:
    """Between a write and its sync, between the sync and the receipt, around the commit: each order that is wrong
    shows as a lost, torn or resurrected object."""
    armed = tmp_path / "armed"

    async def main(c: Cluster) -> tuple[list[str], list[str]]:
        load = Load(c.gateway, c.token, seed=17)
        await load.prepare()
        load.start()
        reached, missed = [], []
        reach = QUICK_REACH_SECONDS if places is QUICK else REACH_SECONDS
        for number, (place, at_pass) in enumerate(itertools.product(places, passes)):
            role = "metadata" if place in METADATA else "objectd"
            died = await _die_at(c, armed, role, place, at_pass, number, reach)
            (reached if died else missed).append(f"{place}@{at_pass}")
            before, deadline = load.outcome.written_once, time.monotonic() + 600
            while load.outcome.written_once < before + 5:
                assert time.monotonic() < deadline, f"no writes after {place}: {load.outcome.counts}"
                await asyncio.sleep(0.02)
        outcome = await load.stop()
        found = await judge(c.gateway, c.token, outcome)
        print(f"{len(reached)} deaths at {reached}; not reached: {missed}; {dict(outcome.counts)}")
        assert not found, found[:20]
        assert outcome.written_once >= 5 * len(reached)
        return reached, missed

    environment = {
        "TIERSTORE_FAILPOINTS": f"file:{armed}", "TIERSTORE_DUTIES__COLLECT_AFTER": "2s",
        "TIERSTORE_CATALOG__JOURNAL_INTERVAL": "1s", **GARBAGE,
    }  # fmt: skip
    with cluster(tmp_path, "--servers", "4", env=environment) as c:
        reached, _ = asyncio.run(main(c))
    assert len(reached) >= 0.6 * len(places) * len(passes)
    never = [place for place in places if not any(death.startswith(f"{place}@") for death in reached)]
    assert not never, f"no run passed {never}"
