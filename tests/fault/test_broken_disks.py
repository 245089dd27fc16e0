"""Disks that fail or fill up under a running cluster (R8, R9): reads go on, writes go elsewhere or are refused as full,
deletes make room, and a restart is clean."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.kit import admin
from tests.kit.cluster import Cluster, cluster, wait_until
from tests.kit.http import Answer, Client
from tests.kit.load import body_of

#: Deletion without its waits, so that room comes back within the test.
AT_ONCE = {
    "TIERSTORE_DUTIES__COLLECT_AFTER": "1s",
    "TIERSTORE_DUTIES__TRASH": "1s",
    "TIERSTORE_UPKEEP__TRASH": "1s", "TIERSTORE_UPKEEP__TRASH_MIN": "1s", "TIERSTORE_UPKEEP__INTERVAL": "1s",
}  # fmt: skip

@contextmanager
def _small_disk(path: Path, options: str) -> Iterator[None]:
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


class Filled:
    """Puts until it is refused, remembering what was acknowledged."""

    def __init__(self, c: Cluster, size: int, headers: dict[str, str] | None = None) -> None:
        self.c, self.size, self.headers = c, size, headers or {}
        self.kept: dict[str, int] = {}
        self.next = 0

    async def fill(self, count_max: int) -> Answer | None:
        """The refusal, or None after count_max objects."""
        client = Client(self.c.gateway, token=self.c.token, seconds=300)
        await client.request("PUT", "/v1/buckets/full")
        try:
            for _ in range(count_max):
                self.next += 1
                name = f"k{self.next}"
                answer = await client.request(
                    "PUT", f"/v1/objects/full/{name}", body_of(self.next, self.size), self.headers
                )
                if answer.status != 200:
                    return answer
                self.kept[name] = self.next
            return None
        finally:
            client.close()

    async def read_all(self) -> None:
        client = Client(self.c.gateway, token=self.c.token)
        for name, number in self.kept.items():
            answer = await client.request("GET", f"/v1/objects/full/{name}")
            assert answer.status == 200 and answer.body == body_of(number, self.size), (name, answer.status)
        client.close()

    async def delete(self, count: int) -> None:
        client = Client(self.c.gateway, token=self.c.token)
        for name in list(self.kept)[:count]:
            answer = await client.request("DELETE", f"/v1/objects/full/{name}")
            assert answer.status == 204, answer
            del self.kept[name]
        client.close()


def _wait_for_room(filled: Filled) -> None:
    """One more object is taken, by and by; else the last refusal and the devices' room tell why not."""
    refusals: list[Answer] = []

    def is_taken() -> bool:
        refused = asyncio.run(filled.fill(1))
        refusals[:] = [] if refused is None else [refused]
        return refused is None

    try:
        wait_until(is_taken, seconds=60, what="room after deletes", every=1)
    except AssertionError as error:
        devices = [
            (d["path"].rpartition("/cluster/")[2], d["state"], d["free_bytes"], d["chunks"])
            for server in admin.ask(filled.c, "/v1/admin/servers")["servers"] for d in server["devices"]
        ]  # fmt: skip
        raise AssertionError(f"{error}: {[(r.status, r.body) for r in refusals]}, {devices}") from None


def _is_full(answer: Answer | None) -> bool:
    return answer is not None and answer.status in (503, 507) and bool(json.loads(answer.body)["code"])


@pytest.mark.parametrize(
    "options", ["size=40m", pytest.param("size=400m,nr_inodes=700", marks=pytest.mark.slow)], ids=["bytes", "inodes"]
)
def test_full_object_servers_refuse_writes_serve_reads_and_free_room_by_deletes(tmp_path: Path, options: str) -> None:
    """R9, data: 507 or 503, never a lost or torn object; the delete that must make room needs none."""
    with ExitStack() as stack:
        for number in (1, 2, 3):
            stack.enter_context(_small_disk(tmp_path / "cluster" / f"objectd{number}", options))
        # devices that believe to have more room than the file system gives them
        shape = {"servers": 3, "copies": 2, "device_bytes": {"ssd": 64 << 20, "hdd": 64 << 20}}
        (tmp_path / "cluster" / "cluster.json").write_text(json.dumps(shape))
        with cluster(tmp_path, "--servers", "3", env=AT_ONCE) as c:
            filled = Filled(c, 400_000)
            refused = asyncio.run(filled.fill(600))
            assert _is_full(refused), refused
            stored = len(filled.kept)
            print(f"{options}: {stored} objects of {filled.size} bytes, then {refused and refused.status} "
                  f"{refused and json.loads(refused.body)['code']}")  # fmt: skip
            assert stored >= 20
            asyncio.run(filled.read_all())
            asyncio.run(filled.delete(stored // 2))
            _wait_for_room(filled)
            assert c.stop() == 0
            c.start()
            asyncio.run(filled.read_all())


@pytest.mark.slow
def test_a_full_catalog_refuses_writes_serves_reads_and_takes_deletes(tmp_path: Path) -> None:
    """R9, catalog: its ballast lets deletes through; everything acknowledged is there after a restart."""
    with _small_disk(tmp_path / "cluster" / "metadata", "size=28m"), cluster(tmp_path, env=AT_ONCE) as c:
        filled = Filled(c, 500, {"x-tierstore-meta-m": "v" * 1900})
        refused = asyncio.run(filled.fill(8000))
        assert _is_full(refused), refused
        stored = len(filled.kept)
        print(f"{stored} objects, then {refused and refused.status} {refused and json.loads(refused.body)['code']}")
        assert stored >= 200
        asyncio.run(filled.read_all())
        asyncio.run(filled.delete(stored // 2))
        assert c.stop() == 0
        c.start()
        asyncio.run(filled.read_all())


@pytest.mark.parametrize(
    "places",
    [
        "store.segment.before_sync=error:EIO;store.file.before_sync=error:EIO",
        pytest.param("store.segment.before_write=error:EIO;store.file.before_write=error:EIO", marks=pytest.mark.slow),
        pytest.param("store.read.before=error:EIO", marks=pytest.mark.slow),
    ],
    ids=["sync", "write", "read"],
)
def test_a_device_with_errors_is_avoided_and_taken_back_when_it_is_well(tmp_path: Path, places: str) -> None:
    """R8: no client sees it; a failed sync is never tried again, the device is out until it was checked."""
    armed = tmp_path / "armed"
    with cluster(tmp_path, "--servers", "4", env={"TIERSTORE_FAILPOINTS": f"file:{armed}"}) as c:
        small, large = Filled(c, 5000), Filled(c, 400_000)
        large.next = 100_000
        assert asyncio.run(small.fill(30)) is None and asyncio.run(large.fill(10)) is None
        sick = c.processes("objectd")[0].name
        armed.write_text(places)
        admin.kill_and_wait(c, sick)
        assert asyncio.run(small.fill(60)) is None and asyncio.run(large.fill(20)) is None
        asyncio.run(small.read_all())
        asyncio.run(large.read_all())
        if "sync" in places or "write" in places:

            def has_failed() -> bool:
                """Which servers a write goes to is chance: more of them, until it met this one and was told."""
                assert asyncio.run(small.fill(5)) is None
                return any(d["state"] == "failed" for d in admin.server(c, sick)["devices"])

            wait_until(has_failed, seconds=120, what=lambda: f"a failed device: {admin.told(c)}")
        armed.unlink()
        admin.kill_and_wait(c, sick)
        wait_until(
            lambda: all(d["state"] == "ok" for d in admin.server(c, sick)["devices"]), seconds=120,
            what=lambda: f"the device is taken back: {admin.told(c)}",
        )  # fmt: skip
        asyncio.run(small.read_all())
        asyncio.run(large.read_all())
