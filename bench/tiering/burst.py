"""`python -m bench.tiering.burst`: the burst buffer. A checkpoint is written to a cluster with throttled home devices,
once home and once under a `land-fast` rule, by several writers at once.

Reported: bytes per second that the writers saw, the most bytes that were exposed and the age of the oldest of them,
seconds until all was home, and that every byte is right when it is.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.tiering.replay import Client
from tests.kit.cluster import Cluster, wait_until
from tests.kit.ports import free_port_base

MIB: Final = 1 << 20
WRITERS: Final = 4


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

    began = time.monotonic()
    threads = [threading.Thread(target=work) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    burst.seconds = time.monotonic() - began
    return burst


def check(c: Cluster, burst: Burst, prefix: str, objects: int, size: int) -> None:
    client = Client(c)
    for n in range(objects):
        status, body, _ = client("GET", f"/v1/objects/bench/{prefix}/{n}")
        burst.wrong += status != 200 or body != body_of(f"{prefix}{n}", size)


def drain(c: Cluster, burst: Burst, prefix: str, objects: int, size: int, seconds_max: float) -> None:
    """Watch what is exposed until all is home."""
    client, began = Client(c), time.monotonic()

    def is_home() -> bool:
        tiers: list[dict[str, Any]] = client.json("GET", "/v1/admin/tiering")["tiers"]
        burst.exposed_bytes = max(burst.exposed_bytes, sum(t["exposed_bytes"] for t in tiers))
        burst.exposed_seconds = max(burst.exposed_seconds, *(t["exposed_seconds"] for t in tiers))
        homes = [
            replica["tier"] for n in range(objects)
            for chunk in client.json("GET", f"/v1/explain/bench/{prefix}/{n}")["chunks"]
            for replica in chunk["replicas"] if replica["role"] == "home" and replica["state"] == "ok"
        ]  # fmt: skip
        return set(homes) == {"hdd"}

    wait_until(is_home, seconds=seconds_max, what="all is home", every=0.5)
    burst.home_seconds = time.monotonic() - began
    check(c, burst, prefix, objects, size)


def measure(objects: int, size: int, rate: str, *, seconds_max: float = 240.0) -> dict[str, Burst]:
    """Both bursts on one cluster; home devices take `rate`."""
    folder = Path(tempfile.mkdtemp(prefix="tiering-burst-"))
    flags = ["--device", f"ssd={max(2 * objects * size, 256 * MIB)}", "--device", f"hdd=4GiB,8ms,{rate}"]
    c = Cluster(folder, flags, {}, free_port_base())
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
        bursts = {"home": write(c, "home", objects, size), "land-fast": write(c, "fast", objects, size)}
        drain(c, bursts["land-fast"], "fast", objects, size, seconds_max)
        check(c, bursts["home"], "home", objects, size)
        return bursts
    finally:
        c.stop()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tiering.burst", description=__doc__)
    parser.add_argument("--objects", type=int, default=24)
    parser.add_argument("--mib", type=int, default=16, help="size of each")
    parser.add_argument("--rate", default="20MB/s", help="of the home devices")
    chosen = parser.parse_args()
    bursts = measure(chosen.objects, chosen.mib * MIB, chosen.rate)
    for name, burst in bursts.items():
        print(
            f"{name:10} {burst.mib_per_second:8.1f} MiB/s; landed on {burst.tiers}; exposed at most "
            f"{burst.exposed_bytes / MIB:.0f} MiB for {burst.exposed_seconds:.1f} s; home after "
            f"{burst.home_seconds:.1f} s; {burst.wrong} wrong"
        )
    faster = bursts["land-fast"].mib_per_second / bursts["home"].mib_per_second
    print(f"the writers were {faster:.1f} times as fast")
    return 0 if faster > 1 and not any(burst.wrong for burst in bursts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
