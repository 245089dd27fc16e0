"""Faults in the middle of tiering: servers and metadata killed while copies are made, fast devices full, erring, gone.

Fast copies are extra: whatever happens to them, no read fails, no object is lost, nothing is left behind.
"""

from __future__ import annotations

import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kit.admin import wait_settled
from tests.kit.cluster import Cluster, cluster, wait_until
from tests.kit.inventory import compare
from tests.kit.leftovers import compare_when_clean

slow = pytest.mark.slow
KIB = 1 << 10
OBJECTS = 60
SIZE = 100 * KIB


class Readers:
    """Read everything again and again, hot keys more often; every byte checked."""

    def __init__(self, c: Cluster, *, is_drifting: bool = False) -> None:
        """is_drifting: other keys are hot every two seconds, and each of them again half a minute later: much sooner or
        later than the half-life of a minute, and a promoter with too little room would have nothing left to do."""
        self._cluster = c
        self._is_drifting = is_drifting
        self._bodies = {n: random.Random(n).randbytes(SIZE) for n in range(OBJECTS)}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.failures: list[str] = []
        self.tiers: dict[str, int] = {}
        self.reads = 0

    def client(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self._cluster.token}"}
        return httpx.Client(base_url=self._cluster.gateway, headers=headers, timeout=180)

    def store(self) -> None:
        with self.client() as rest:
            assert rest.put("/v1/buckets/bkt").status_code in (201, 409)
            for n, body in self._bodies.items():
                answer = rest.put(f"/v1/objects/bkt/{n}", content=body)
                assert answer.status_code == 200, answer.text

    def _read(self, seed: int) -> None:
        rng = random.Random(seed)
        with self.client() as rest:
            while not self._stop.is_set():
                n = min(int(rng.paretovariate(0.8)) - 1, OBJECTS - 1)
                if self._is_drifting:
                    n = (n + int(time.monotonic() / 2) * 5) % OBJECTS
                try:
                    answer = rest.get(f"/v1/objects/bkt/{n}")
                except httpx.HTTPError as error:
                    self.failures.append(f"{n}: {type(error).__name__} {error}")
                    continue
                if answer.status_code != 200 or answer.content != self._bodies[n]:
                    self.failures.append(f"{n}: {answer.status_code} {answer.text[:200]}")
                    continue
                tier = answer.headers["x-tierstore-tier"]
                self.tiers[tier] = self.tiers.get(tier, 0) + 1
                self.reads += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        self._threads = [threading.Thread(target=self._read, args=(seed,)) for seed in range(2)]
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()

    def more(self, count: int) -> None:
        """Let so many further reads happen."""
        until = self.reads + count
        wait_until(
            lambda: self.reads >= until, seconds=600,
            what=lambda: f"{count} more reads ({self.reads} of {until}), failures: {self.failures[:3]}",
        )  # fmt: skip


def _status(rest: httpx.Client) -> dict[str, Any]:
    answer = rest.get("/v1/admin/tiering")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def _figure(rest: httpx.Client, name: str) -> int:
    """One of the promoter's figures; -1 while metadata is being started again."""
    answer = rest.get("/v1/admin/tiering")
    return int(answer.json()[name]) if answer.status_code == 200 else -1


def _churn(rest: httpx.Client, **settings: float) -> None:
    """A promoter that is always busy: much budget, quick ticks, forgets soon."""
    promoter = {"tick": "1s", "half_life": "60s", "budget": 10, "chunk_max": 0.2, "hysteresis": 0.05, **settings}
    answer = rest.put("/v1/admin/policy", json={"version": 1, "promoter": promoter})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("victims", [
    ("objectd1", "metadata1"), pytest.param(("objectd1", "metadata1", "objectd2", "metadata1", "objectd3"), marks=slow),
])  # fmt: skip
def test_kills_in_the_middle_of_promotions_fail_no_read_and_leave_nothing(
    tmp_path: Path, victims: tuple[str, ...]
) -> None:
    """An object server dies while it copies, metadata dies while it ticks: the next one goes on from the catalog. The
    fast devices have room for half of the objects, and which are hot changes: every kill falls into moves."""
    flags = ("--device", "ssd=4MiB", "--device", "hdd=256MiB,4ms,160MB/s", "--mem", "0")
    with cluster(tmp_path, *flags) as c:
        readers = Readers(c, is_drifting=True)
        readers.store()
        with readers.client() as rest:
            _churn(rest, fill=0.25)
            with readers.running():
                wait_until(lambda: _figure(rest, "promotions") > 3, seconds=60, what="promotions under load")
                for victim in victims:
                    wait_until(
                        lambda: _figure(rest, "under_way") > 0, seconds=180,
                        what=lambda v=victim: f"copies under way before {v} dies: {rest.get('/v1/admin/tiering').text}",
                    )  # fmt: skip
                    c.send_signal(victim, signal.SIGKILL)
                    readers.more(200)
                made = wait_until(lambda: _figure(rest, "promotions") + 1, seconds=120, what="metadata answers")
                wait_until(
                    lambda: _figure(rest, "promotions") >= made, seconds=180,
                    what=lambda: f"promotions after the last kill: {rest.get('/v1/admin/tiering').text}",
                )  # fmt: skip
                wait_until(lambda: readers.tiers.get("ssd"), seconds=120, what=lambda: f"fast reads: {readers.tiers}")
            assert not readers.failures, readers.failures[:5]
            assert readers.tiers.get("ssd", 0) > 0, readers.tiers
            paused = {"version": 1, "promoter": {"paused": True}}
            assert rest.put("/v1/admin/policy", json=paused).status_code == 200
        wait_settled(c, seconds=600)
        assert c.stop() == 0
        found = compare(c)
        assert not found.missing, found.missing[:5]
        assert not found.thin, found.thin[:5]
        if found.orphans:       # copies of the killed: collected when they are old enough, which is at once from now on
            found = compare_when_clean(c)
        assert not found.orphans and not found.missing, (found.orphans[:5], found.missing[:5])


@slow
def test_a_fast_device_that_is_wiped_or_full_fails_no_read_and_no_write(tmp_path: Path) -> None:
    """Somebody pulls the fast disk: its copies are found missing, read elsewhere, and forgotten."""
    flags = ("--device", "ssd=4MiB", "--device", "hdd=256MiB,4ms,160MB/s", "--mem", "0")
    with cluster(tmp_path, *flags) as c:
        readers = Readers(c)
        readers.store()
        with readers.client() as rest:
            _churn(rest)
            with readers.running():
                wait_until(lambda: _status(rest)["promotions"] > 10, seconds=30, what="promotions under load")
                wiped = next(
                    Path(d["path"]) for p in c.processes("objectd") if p.name == "objectd1"
                    for d in p.devices if d["tier"] == "ssd"
                )  # fmt: skip
                for part in list(wiped.iterdir()):
                    shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
                readers.more(300)
                c.kill("objectd1")      # comes back without its fast device's files
                readers.more(600)
                for n in range(20):     # writes go on all the time
                    assert rest.put(f"/v1/objects/bkt/new{n}", content=b"n" * SIZE).status_code == 200
            assert not readers.failures, readers.failures[:5]
            for n in range(20):
                assert rest.get(f"/v1/objects/bkt/new{n}").content == b"n" * SIZE


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[tuple[Cluster, Path]]:
    """A cluster whose devices are read past the page cache, and the file that says how they fail."""
    armed = tmp_path / "armed"
    flags = ("--device", "ssd=8MiB,0.1ms,2GB/s", "--device", "hdd=256MiB,4ms,160MB/s", "--mem", "0")
    with cluster(tmp_path, *flags, env={"TIERSTORE_FAILPOINTS": f"watch:{armed}"}) as c:
        yield c, armed


def _arm(path: Path, text: str) -> None:
    """Replace the file in one step: the servers must not see half a line."""
    unfinished = path.with_suffix(".new")
    unfinished.write_text(text)
    unfinished.replace(path)


def _grey(rest: httpx.Client) -> int:
    """Fast devices that are known to be slow."""
    return len(_status(rest)["tiers"][0]["grey_devices"])


def _share_of(readers: Readers, tier: str, count: int) -> float:
    """Share of the next reads that a tier serves."""
    before, reads = readers.tiers.get(tier, 0), readers.reads
    readers.more(count)
    return (readers.tiers.get(tier, 0) - before) / (readers.reads - reads)


def test_fast_devices_that_become_slow_are_noticed_and_no_longer_preferred(failing: tuple[Cluster, Path]) -> None:
    """Grey failure: an SSD that answers, but later than a disk, makes the hottest objects the slowest."""
    c, armed = failing
    readers = Readers(c)
    readers.store()
    with readers.client() as rest:
        _churn(rest)
        with readers.running():
            wait_until(lambda: _status(rest)["promotions"] > 10, seconds=120, what="promotions under load")
            wait_until(lambda: _share_of(readers, "ssd", 50) > 0.3, seconds=120, what="the fast tier serves")
            # a busy machine may make a device look slow for a moment
            wait_until(lambda: _grey(rest) == 0, seconds=120, what="none is grey")
            # far slower than any disk looks on a machine that does ten other things
            _arm(armed, "store.read.ssd=sleep:0.5")
            wait_until(lambda: _grey(rest) == 3, seconds=120, what="all are grey")
            wait_until(lambda: _share_of(readers, "ssd", 50) < 0.2, seconds=120, what="readers go elsewhere")

            def nothing_is_copied_while_all_are_grey() -> bool:
                if _grey(rest) < 3:     # the disks of a machine that stands still are as slow for a moment
                    return False
                ticks = _status(rest)["ticks"]
                wait_until(lambda: _status(rest)["ticks"] > ticks + 1, seconds=120, what="a tick that knows it")
                now = _status(rest)     # one answer: a copy that ends between two would be counted in neither
                made = now["promotions"] + now["under_way"]
                readers.more(300)
                return int(_status(rest)["promotions"]) <= made

            wait_until(nothing_is_copied_while_all_are_grey, seconds=240, what="nothing more is copied to them")
    assert not readers.failures, readers.failures[:5]


@pytest.mark.parametrize("errors", [
    "store.read.ssd=error:EIO", pytest.param("store.write.ssd=error:ENOSPC", marks=slow),
    pytest.param("store.write.ssd=error:EIO", marks=slow),
    pytest.param("store.read.ssd=error:EIO;store.write.ssd=error:EIO", marks=slow),
], ids=["read errors", "full", "write errors", "both"])  # fmt: skip
def test_fast_devices_that_err_fail_no_read_and_no_write_and_come_back(
    failing: tuple[Cluster, Path], errors: str
) -> None:
    """Fast copies are extra: whatever their devices answer, home copies serve, and later promotion goes on."""
    c, armed = failing
    readers = Readers(c)
    readers.store()
    with readers.client() as rest:
        _churn(rest)
        with readers.running():
            wait_until(lambda: _status(rest)["promotions"] > 10, seconds=30, what="promotions under load")
            _arm(armed, errors)
            readers.more(300)
            for n in range(10):
                assert rest.put(f"/v1/objects/bkt/new{n}", content=b"n" * SIZE).status_code == 200
            readers.more(100)
            _arm(armed, "")
            made = _status(rest)["promotions"]
            wait_until(lambda: _status(rest)["promotions"] > made + 5, seconds=60, what="promotions go on")
            wait_until(lambda: _share_of(readers, "ssd", 50) > 0.2, seconds=60, what="the fast tier serves again")
        assert not readers.failures, readers.failures[:5]
        for n in range(10):
            assert rest.get(f"/v1/objects/bkt/new{n}").content == b"n" * SIZE
