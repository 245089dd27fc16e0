"""Whole servers lost with their disks, added, drained (R5, R20): redundancy comes back, nobody notices."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit import admin
from tests.kit.cluster import Cluster, cluster, wait_until
from tests.kit.http import Client
from tests.kit.inventory import compare, counted_copies, thin_now
from tests.kit.load import Load, body_of, judge
from tierstore.config import toml

#: As `up` sets them, but shorter: the quick forms have no 40 s to wait for a server to be given up.
SHORT = {
    "TIERSTORE_TIMERS__SUSPECT": "1s", "TIERSTORE_TIMERS__NO_PLACEMENT": "3s", "TIERSTORE_TIMERS__DEAD": "8s",
    "TIERSTORE_TIMERS__REPAIR_GRACE": "1s",
}  # fmt: skip
CLIENTS = 4


async def _store(c: Cluster, count: int, size: int) -> None:
    numbers = iter(range(count))

    async def work() -> None:
        client = Client(c.gateway, token=c.token)
        for i in numbers:
            answer = await client.request("PUT", f"/v1/objects/full/k{i}", body_of(i, size))
            assert answer.status == 200, answer
        client.close()

    opening = Client(c.gateway, token=c.token)
    assert (await opening.request("PUT", "/v1/buckets/full")).status == 201
    opening.close()
    await asyncio.gather(*(work() for _ in range(CLIENTS)))


async def _read_all(c: Cluster, count: int, size: int) -> None:
    client = Client(c.gateway, token=c.token)
    for i in range(count):
        answer = await client.request("GET", f"/v1/objects/full/k{i}")
        assert answer.status == 200 and answer.body == body_of(i, size), (i, answer.status, answer.body[:200])
    client.close()


def _uuid_of(device: Path) -> bytes:
    return bytes.fromhex(json.loads((device / "device.json").read_bytes())["uuid"])


def _repairs(c: Cluster) -> dict[str, int]:
    work = {w["why"]: w for w in (admin.ask(c, "/v1/admin/jobs?limit=1") or {"work": []})["work"]}
    return work.get("repair", {"done": 0, "waiting": 1, "running": 0, "left_bytes": 0})


def _lacking(c: Cluster, lost: set[bytes]) -> list[str]:
    """Why it is not whole again: what the catalog counts on the lost devices or too few servers for. Not asked of the
    counts of jobs: how many a loss makes depends on where chance put the copies."""
    counted = counted_copies(c)
    held = [f"{chunk.hex()} counts on a lost device" for device, chunk in counted if device in lost]
    return held + thin_now(c, {chunk for _, chunk in counted})


def _is_whole(c: Cluster, lost: set[bytes]) -> bool:
    repair = _repairs(c)
    return not _lacking(c, lost) and not repair["waiting"] + repair["running"] + repair["left_bytes"]


@pytest.mark.parametrize(
    "returns", [pytest.param(False, marks=pytest.mark.slow), True], ids=["stays away", "returns empty"]
)
@pytest.mark.parametrize(
    ("objects", "size", "environment", "seconds"),
    [(60, 300_000, SHORT, 30.0), pytest.param(1000, 1_000_000, {}, 60.0, marks=pytest.mark.slow)],
    ids=["quick", "1 GB"],
)
def test_a_server_lost_with_its_disks_is_made_up_for(
    tmp_path: Path, objects: int, size: int, environment: dict[str, str], seconds: float, returns: bool
) -> None:
    """R5, second half: every object has its copies again in time, without being asked; the loss of a second server
    then loses nothing."""
    flags = ("--servers", "4", *([] if returns else ["--no-restart"]))
    with cluster(tmp_path, *flags, env=environment) as c:
        asyncio.run(_store(c, objects, size))
        victim, second, *_ = c.processes("objectd")
        lost = {_uuid_of(Path(device["path"])) for device in victim.devices}
        held = sum(device in lost for device, _ in counted_copies(c))
        assert held >= objects // 8, held       # a quarter of all copies, on average
        if returns:     # so quick that no heartbeat is missed: new disks in an old server
            for device in victim.devices:
                os.rename(device["path"], f"{device['path']}.gone")
            c.kill(victim.name)
        else:
            c.kill(victim.name)
            for device in victim.devices:
                shutil.rmtree(device["path"])
        began = time.monotonic()
        wait_until(
            lambda: _is_whole(c, lost), seconds=seconds, every=0.2,
            what=lambda: f"full redundancy: {_lacking(c, lost)[:5]}, {admin.told(c)}",
        )  # fmt: skip
        took = time.monotonic() - began
        wait_until(     # a machine that stands still for seconds looks like servers that are gone
            lambda: (s := admin.ask(c, "/v1/admin/status")) and not s["stuck_chunks"] and not s["repair_halted"],
            seconds=120, what=lambda: f"nothing stuck or halted: {admin.told(c)}",
        )  # fmt: skip
        pid = c.send_signal(second.name, signal.SIGSTOP)
        try:
            asyncio.run(_read_all(c, objects, size))
        finally:
            os.kill(pid, signal.SIGCONT)
        print(f"{objects} objects of {size} bytes, {objects * size / 1e6:.0f} MB: redundant again after {took:.1f} s")
        c.kill_everything()
        found = compare(c)
        assert not found.thin and found.chunks >= objects, found.thin[:5]


@pytest.mark.parametrize("objects", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_fast_device_wiped_loses_nothing(tmp_path: Path, objects: int) -> None:
    """R18: copies on fast devices are extra. All of them get new disks at once; every object is there."""
    with cluster(tmp_path, "--servers", "3") as c:
        asyncio.run(_store(c, objects, 100_000))
        for _ in range(3):      # read often, so that the promoter has a reason
            asyncio.run(_read_all(c, objects, 100_000))
        c.kill_everything()
        wiped = [d["path"] for p in c.processes("objectd") for d in p.devices if d["tier"] == "ssd"]
        for path in wiped:
            shutil.rmtree(path)
        c.start()
        asyncio.run(_read_all(c, objects, 100_000))
        print(f"{len(wiped)} fast devices wiped, {objects} objects read")
        assert len(wiped) == 3


@contextmanager
def _another_server(c: Cluster, number: int) -> Iterator[str]:
    """An object server more, against the running cluster, as an operator adds one: a settings file, one process."""
    like = c.data / "cluster" / "config" / "objectd1.toml"
    settings = tomllib.loads(like.read_text())
    name, port = f"objectd{number}", c.port_base + 10 + number
    home = c.data / "cluster" / name
    settings["listen"] |= {"port": port, "advertise": f"http://127.0.0.1:{port}"}
    settings["membership"] |= {"name": name, "data": str(home / "state")}
    for device in settings["devices"]:
        device["path"] = str(home / device["tier"])
    config = c.data / f"{name}.toml"
    config.write_text(toml.dumps(settings))
    with open(c.data / f"{name}.log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "objectd", "--config", str(config)], stdout=log, stderr=log)
    try:
        yield name
    finally:
        process.terminate()
        process.wait(180)


@pytest.mark.slow
@pytest.mark.parametrize("writes", [60, 3000])
def test_servers_are_added_and_drained_under_load_with_a_kill_in_the_middle(tmp_path: Path, writes: int) -> None:
    """R20: no read fails, nothing is lost, the drained server is empty and may go."""

    async def main(c: Cluster) -> None:
        load = Load(c.gateway, c.token, seed=writes)
        await load.prepare()
        load.start()

        async def until(condition: object, seconds: float, what: str) -> None:
            await asyncio.to_thread(wait_until, condition, seconds=seconds, what=what)

        await until(lambda: load.outcome.counts["put 200"] >= writes, 120, "writes before")
        with _another_server(c, 4) as added:
            await until(lambda: admin.server(c, added)["state"] == "up", 20, "the new server up")
            before = load.outcome.counts["put 200"]
            await until(lambda: load.outcome.counts["put 200"] >= before + writes, 120, "writes with it")
            # gateways hold allocations ahead: the first writes still go where those say
            await until(lambda: sum(d["chunks"] for d in admin.server(c, added)["devices"]) > 0, 60, "chunks on it")
            drained = c.processes("objectd")[0].name
            admin.call(c, "POST", f"/v1/admin/servers/{drained}/drain")
            await asyncio.to_thread(c.kill, c.processes("objectd")[1].name)
            try:
                await until(lambda: admin.server(c, drained)["state"] == "drained", 120, "drained")
            except AssertionError:
                print(admin.server(c, drained), admin.ask(c, "/v1/admin/jobs?limit=30"))
                raise
            pid = c.send_signal(drained, signal.SIGSTOP)    # it is gone for good
            try:
                outcome = await load.stop()
                found = await judge(c.gateway, c.token, outcome)
            finally:
                os.kill(pid, signal.SIGCONT)
            print(f"{dict(outcome.counts)}; {drained} drained, {added} added")
            assert not found, found[:20]
            failed = {what: n for what, n in outcome.counts.items() if what in ("get broken", "get 500", "get 503")}
            assert not failed, failed
            assert len(outcome.acknowledged) >= writes // 2

    with cluster(tmp_path, "--servers", "3") as c:
        asyncio.run(main(c))
