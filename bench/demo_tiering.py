"""The second part of `make demo`: heat, promotion and explain on real files, with hdd devices that are really slower.

Starts a cluster of its own whose hdd devices seek for 8 ms and read 160 MB/s, stores files of the Python installation,
reads all once, then some again and again. Shows the latency before and after, what the store calls hot, and why the
hottest file is where it is. Exit 1 if a byte was wrong or nothing was promoted.
"""

from __future__ import annotations

import random
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import httpx

from tests.kit.cluster import cluster, wait_until
from tierstore.units import KIB, format_size

FILES: Final = 80
HOT: Final = 6
BUCKET: Final = "python"
PROMOTED_SECONDS_MAX: Final = 60


def say(text: str) -> None:
    print(text, flush=True)


def some_files() -> dict[str, bytes]:
    """Modules of the standard library between 16 and 200 KiB."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [p for p in sorted(root.glob("*.py")) if 16 * KIB <= p.stat().st_size <= 200 * KIB]
    return {path.name: path.read_bytes() for path in paths[:FILES]}


def read(rest: httpx.Client, key: str, body: bytes) -> tuple[float, str]:
    """Read and compare; (milliseconds, tier that served it)."""
    began = time.perf_counter()
    answer = rest.get(f"/v1/objects/{BUCKET}/{key}")
    took = (time.perf_counter() - began) * 1e3
    if answer.status_code != 200 or answer.content != body:
        raise SystemExit(f"{key}: {answer.status_code}, {len(answer.content)} bytes instead of {len(body)}")
    return took, answer.headers["x-tierstore-tier"]


def show(rest: httpx.Client) -> None:
    files = some_files()
    rest.put(f"/v1/buckets/{BUCKET}").raise_for_status()
    promoter = {"version": 1, "promoter": {"tick": "2s", "budget": 2.0}}
    rest.put("/v1/admin/policy", json=promoter).raise_for_status()
    for key, body in files.items():
        rest.put(f"/v1/objects/{BUCKET}/{key}", content=body).raise_for_status()
    say(f"stored    {len(files)} files, {format_size(sum(map(len, files.values())))}, home on the slow devices")
    order = random.Random(1).sample(sorted(files), len(files))    # as they were stored, they would be read in one sweep
    cold = [read(rest, key, files[key]) for key in order]
    if {tier for _, tier in cold[:10]} != {"hdd"}:
        raise SystemExit(f"cold files were served from {cold[:10]}")
    say(f"cold      every file once: median {statistics.median(ms for ms, _ in cold):.1f} ms, from hdd")
    hot = {key: files[key] for key in sorted(files, key=lambda key: -len(files[key]))[:HOT]}
    began = time.perf_counter()

    def all_fast() -> bool:
        return {read(rest, key, body)[1] for key, body in hot.items()} == {"ssd"}

    wait_until(all_fast, seconds=PROMOTED_SECONDS_MAX, what="the hot files are on the fast tier", every=0.0)
    say(f"promoted  {len(hot)} files that were read again and again, after {time.perf_counter() - began:.1f} s")
    fast = [read(rest, key, body)[0] for _ in range(20) for key, body in hot.items()]
    say(f"hot       the same files now: median {statistics.median(fast):.1f} ms, from ssd")
    say("heat      reads per hour, hottest first:")
    for item in rest.get("/v1/admin/heat", params={"limit": 4}).json()["items"]:
        say(f"            {item['name']:<34} {item['heat_per_hour']:>9,.0f}  {item['tier']}")
    key = next(iter(hot))
    explain(rest.get(f"/v1/explain/{BUCKET}/{key}").json())


def explain(answer: dict[str, Any]) -> None:
    chunk = answer["chunks"][0]
    copies = ", ".join(f"{r['role']} on {r['server']} {r['tier']}" for r in chunk["replicas"])
    say(f"explain   {answer['key']}: rule {answer['rule']}; {copies}")
    say(f"            rank {chunk['rank']:.2f}, lowest resident {chunk['lowest_resident_rank']:.2f}; "
        f"next: {chunk['next']['action']}, {chunk['next']['why']}")  # fmt: skip


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="tierstore-demo-"))
    say("")
    say("tiering   a cluster whose hdd devices are really slow (8 ms, 160 MB/s)")
    try:
        flags = ("--device", "ssd=64MiB", "--device", "hdd=1GiB,8ms,160MB/s", "--mem", "0")
        with cluster(folder, *flags) as c:
            headers = {"authorization": f"Bearer {c.token}"}
            with httpx.Client(base_url=c.gateway, headers=headers, timeout=30, trust_env=False) as rest:
                show(rest)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
