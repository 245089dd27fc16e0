"""`python -m bench.tiering.burst`: the burst buffer. A checkpoint is written to a cluster with throttled home devices,
once home and once under a `land-fast` rule, by several writers at once; then the same with many small objects.

Reported: bytes per second that the writers saw, the most bytes that were exposed and the age of the oldest of them,
seconds until all was home, and that every byte is right when it is; what the writers and the cluster spent of the
processor for each MiB (the home devices are throttled, the fast ones are not: how many times faster they are is decided
by the processor alone); of small objects, how many records shared a sync of the home devices, and syncs per MiB.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.tiering.replay import Client, cpu_ms
from tests.kit.cluster import Cluster, wait_until
from tests.kit.ports import free_port_base

MIB: Final = 1 << 20
WRITERS: Final = 4
SMALL_BYTES: Final = 16 << 10
#: Of many objects, about so many are asked for until they are home.
SAMPLE: Final = 24


@dataclass(frozen=True)
class Log:
    """Small records made durable by the logs of a tier's devices."""

    syncs: int = 0
    records: int = 0
    bytes: int = 0

    def since(self, before: Log) -> Log:
        return Log(self.syncs - before.syncs, self.records - before.records, self.bytes - before.bytes)


def log_of(c: Cluster, tier: str) -> Log:
    """What the object servers count, since they started."""
    found = {"syncs": 0, "records": 0, "bytes": 0}
    for process in c.processes("objectd"):
        connection = http.client.HTTPConnection(process.url.removeprefix("http://"), timeout=60)
        connection.request("GET", "/-/metrics")
        for line in connection.getresponse().read().decode().splitlines():
            name, _, labels = line.partition("{")
            kind = name.removeprefix("tierstore_device_log_").removesuffix("_total")
            if kind in found and f'tier="{tier}"' in labels:
                found[kind] += int(float(line.rsplit(" ", 1)[1]))
        connection.close()
    return Log(**found)


@dataclass
class Burst:
    """One burst. exposed_bytes, exposed_seconds: the most that was seen. home_seconds: from the last write on."""

    seconds: float = 0.0
    bytes: int = 0
    exposed_bytes: int = 0
    exposed_seconds: float = 0.0
    home_seconds: float = 0.0
    wrong: int = 0
    tiers: dict[str, int] = field(default_factory=dict)
    cpu_seconds: float = 0.0      # of the writers and the cluster
    home_log: Log = field(default_factory=lambda: Log())    # of the home devices: while it was written and drained

    @property
    def mib_per_second(self) -> float:
        return self.bytes / MIB / self.seconds


def body_of(name: str, size: int) -> bytes:
    seed = hashlib.blake2b(name.encode()).digest()
    return (seed * (size // len(seed) + 1))[:size]


def write(c: Cluster, prefix: str, objects: int, size: int) -> Burst:
    """All writers at once."""
    burst, lock, left = Burst(bytes=objects * size), threading.Lock(), list(range(objects))

    def work() -> None:
        client = Client(c)
        while True:
            with lock:
                if not left:
                    return
                n = left.pop()
            status, body, tier = client("PUT", f"/v1/objects/bench/{prefix}/{n}", body_of(f"{prefix}{n}", size))
            assert status == 200, body[:300]
            with lock:
                burst.tiers[tier] = burst.tiers.get(tier, 0) + 1

    began, cpu = time.monotonic(), _cpu_seconds(c)
    threads = [threading.Thread(target=work) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    burst.seconds, burst.cpu_seconds = time.monotonic() - began, _cpu_seconds(c) - cpu
    return burst


def _cpu_seconds(c: Cluster) -> float:
    return time.process_time() + sum(cpu_ms(c).values()) / 1e3


def check(c: Cluster, burst: Burst, prefix: str, objects: int, size: int) -> None:
    client = Client(c)
    for n in range(objects):
        status, body, _ = client("GET", f"/v1/objects/bench/{prefix}/{n}")
        burst.wrong += status != 200 or body != body_of(f"{prefix}{n}", size)


def drain(c: Cluster, burst: Burst, prefix: str, objects: int, size: int, seconds_max: float) -> None:
    """Watch what is exposed until all is home: of many objects, until a sample of them is, then all are looked at."""
    client, began = Client(c), time.monotonic()
    sample = range(0, objects, max(1, objects // SAMPLE))

    def are_home(some: range) -> bool:
        tiers: list[dict[str, Any]] = client.json("GET", "/v1/admin/tiering")["tiers"]
        burst.exposed_bytes = max(burst.exposed_bytes, sum(t["exposed_bytes"] for t in tiers))
        burst.exposed_seconds = max(burst.exposed_seconds, *(t["exposed_seconds"] for t in tiers))
        homes = [
            replica["tier"] for n in some
            for chunk in client.json("GET", f"/v1/explain/bench/{prefix}/{n}")["chunks"]
            for replica in chunk["replicas"] if replica["role"] == "home" and replica["state"] == "ok"
        ]  # fmt: skip
        return set(homes) == {"hdd"}

    wait_until(lambda: are_home(sample), seconds=seconds_max, what="a sample is home", every=0.5)
    wait_until(lambda: are_home(range(objects)), seconds=seconds_max, what="all is home", every=0.5)
    burst.home_seconds = time.monotonic() - began
    check(c, burst, prefix, objects, size)


def measure(objects: int, size: int, rate: str, *, seconds_max: float = 240.0) -> dict[str, Burst]:
    """Both bursts on one cluster; home devices take `rate`."""
    folder = Path(tempfile.mkdtemp(prefix="tiering-burst-"))
    flags = ["--device", f"ssd={max(2 * objects * size, 256 * MIB)}", "--device", f"hdd=4GiB,8ms,{rate}"]
    c = Cluster(folder, flags, {"TIERSTORE_TELEMETRY__METRICS_PUBLIC": "true"}, free_port_base())
    try:
        c.start()
        client = Client(c)
        client("PUT", "/v1/buckets/bench")
        client.json("PUT", "/v1/admin/policy", {"version": 1, "rules": [
            {"name": "checkpoints", "match": {"bucket": "bench", "prefix": "fast/"}, "mode": "land-fast"},
        ]})  # fmt: skip

        def lands() -> bool:
            return client("PUT", "/v1/objects/bench/fast/probe", b"x")[2] == "ssd"

        wait_until(lands, seconds=20, what="the gateway follows the policy")
        marks, bursts = [log_of(c, "hdd")], {}
        for name, prefix in (("home", "home"), ("land-fast", "fast")):
            bursts[name] = write(c, prefix, objects, size)
            if name == "land-fast":
                drain(c, bursts[name], prefix, objects, size, seconds_max)
            marks.append(log_of(c, "hdd"))
            bursts[name].home_log = marks[-1].since(marks[-2])
        check(c, bursts["home"], "home", objects, size)
        return bursts
    finally:
        c.stop()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tiering.burst", description=__doc__)
    parser.add_argument("--objects", type=int, default=24)
    parser.add_argument("--mib", type=int, default=16, help="size of each")
    parser.add_argument("--small", type=int, default=600, help="small objects of a second burst; 0: none")
    parser.add_argument("--rate", default="20MB/s", help="of the home devices")
    chosen = parser.parse_args()
    is_right = _print(f"{chosen.objects} x {chosen.mib} MiB", measure(chosen.objects, chosen.mib * MIB, chosen.rate))
    if chosen.small:
        small = measure(chosen.small, SMALL_BYTES, chosen.rate)
        is_right = _print(f"{chosen.small} x {SMALL_BYTES >> 10} KiB", small, must_be_faster=False) and is_right
    return 0 if is_right else 1


def _print(title: str, bursts: dict[str, Burst], *, must_be_faster: bool = True) -> bool:
    """Small objects cost the same processor time wherever they go: they need not land faster."""
    print(f"{title}, load {os.getloadavg()[0]:.1f}")
    for name, burst in bursts.items():
        log, mib = burst.home_log, burst.bytes / MIB
        syncs = f"{log.records / log.syncs:.1f} records a sync at home, {log.syncs / mib:.1f} syncs for each MiB; "
        print(
            f"  {name:10} {burst.mib_per_second:8.1f} MiB/s at {burst.cpu_seconds / mib * 1e3:.1f} ms of processor for "
            f"each MiB; landed on {burst.tiers}; exposed at most {burst.exposed_bytes / MIB:.0f} MiB for "
            f"{burst.exposed_seconds:.1f} s; home after {burst.home_seconds:.1f} s; {syncs if log.syncs else ''}"
            f"{burst.wrong} wrong"
        )
    faster = bursts["land-fast"].mib_per_second / bursts["home"].mib_per_second
    print(f"  the writers were {faster:.1f} times as fast", flush=True)
    return (faster > 1 or not must_be_faster) and not any(burst.wrong for burst in bursts.values())


if __name__ == "__main__":
    sys.exit(main())
