"""`python -m bench.tiering.replay`: requests of twitter52 against a real cluster whose hdd devices are really slower.

Three runs of the same requests on the same objects: promoter off, promoter on, promoter and RAM cache on. Four
closed-loop clients over REST. The requests are those of a sample of the keys (by hash) over the whole trace, so that
they reuse what they read as the trace does; sizes are scaled up (the trace's are hundreds of bytes), trace time is
scaled to --seconds, tick and half-life alike (no tick below the smallest, 1 s). The trace's times are whole seconds;
the requests of one second are spread over it in their order. Every body is compared. Reported: mean and p99 after a
third of the requests, the share of reads by tier as the clients saw it and as the gateway counted it, the mean by tier,
bytes moved per byte served, processor time of the cluster for each request. --only with --folder makes the runs one by
one, on the same data.

    bars    mean with the promoter / off <= 0.5, with mem too <= 0.35
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.tiering.reader import Reader, header
from bench.tiering.workloads import load
from tests.kit.cluster import Cluster, wait_until
from tests.kit.ports import free_port_base
from tierstore.policy.trace import GET, Trace

MIB: Final = 1 << 20
CLIENTS: Final = 4
FOOTPRINT_BYTES: Final = 240 * MIB
SERVERS: Final = 3
#: What an object server keeps of a device for compaction and deletes: the fast tier is to have its tenth beside that.
RESERVE_SHARE: Final = 0.1


@dataclass
class Run:
    """What one replay showed. seconds: of each request, in order."""

    seconds: list[float] = field(default_factory=list)
    tiers: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    moved_per_served: float = 0.0
    counted: dict[str, int] = field(default_factory=dict)     # by the gateway; what it did not serve is left out
    promotions: int = 0
    failed: int = 0
    tier_of: list[str] = field(default_factory=list)          # of each request, in order
    predicted: float = 0.0                                    # share of the reads above hdd, by what-if
    load: float = 0.0                                         # of the machine, mean of 5 minutes, at the end
    cpu_ms: dict[str, float] = field(default_factory=dict)    # of the cluster's processes, for each request

    def after_warm_up(self) -> Any:
        return np.array(self.seconds[len(self.seconds) // 3 :])

    @property
    def mean_ms(self) -> float:
        return float(self.after_warm_up().mean()) * 1e3

    @property
    def p99_ms(self) -> float:
        return float(np.percentile(self.after_warm_up(), 99)) * 1e3


def spread(trace: Trace) -> Trace:
    """Requests that the trace's clock of whole seconds puts at one moment, at even distances over their second."""
    second = np.floor(trace.time)
    _, first, count = np.unique(second, return_index=True, return_counts=True)
    place = np.arange(len(trace)) - np.repeat(first, count)
    return replace(trace, time=second + place / np.repeat(count, count))


def body_of(key: int, size: int) -> bytes:
    seed = hashlib.blake2b(key.to_bytes(8, "little")).digest()
    return (seed * (size // len(seed) + 1))[:size]


class Client:
    """One connection to the gateway; closed at the end of its `with`."""

    def __init__(self, c: Cluster) -> None:
        self._connection = http.client.HTTPConnection(c.gateway.removeprefix("http://"), timeout=60)
        self._headers = {"authorization": f"Bearer {c.token}", "content-type": "application/json"}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def __call__(self, method: str, target: str, body: bytes | None = None) -> tuple[int, bytes, str]:
        self._connection.request(method, target, body, self._headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read(), answer.getheader("x-tierstore-tier") or ""

    def json(self, method: str, target: str, tree: Any = None) -> Any:
        status, body, _ = self(method, target, None if tree is None else json.dumps(tree).encode())
        assert status < 300, (target, status, body[:300])
        return json.loads(body) if body else None


@dataclass
class Workload:
    """Requests in order: key, size, due time (s)."""

    keys: list[int]
    sizes: dict[int, int]
    due: list[float]
    tick_seconds: float
    half_life_seconds: float


def workload(requests: int, seconds: float) -> Workload:
    """The GETs of about so many requests of twitter52: all of a sample of its keys, from its beginning to its end,
    with sizes scaled to the footprint and time scaled to `seconds`."""
    trace = spread(load("twitter52"))
    trace = trace.sampled(requests / len(trace))
    chosen = np.flatnonzero(trace.op == GET)
    keys: list[int] = trace.key[chosen].tolist()
    sizes: dict[int, int] = {}
    for key, size in zip(keys, trace.size[chosen].tolist(), strict=True):
        sizes[key] = max(size, sizes.get(key, 1))
    scale = FOOTPRINT_BYTES / sum(sizes.values())
    sizes = {key: max(1, min(int(size * scale), 256 << 10)) for key, size in sizes.items()}
    times = trace.time[chosen] - trace.time[chosen[0]]
    faster = max(float(times[-1]), 1.0) / seconds
    return Workload(
        keys, sizes, (times / faster).tolist(), max(1.0, 10.0 / faster), max(60.0, 3600.0 / faster)
    )


def replay(c: Cluster, load_: Workload) -> Run:
    count = len(load_.keys)
    run, lock, at = Run(seconds=[0.0] * count, tier_of=[""] * count), threading.Lock(), [0]
    before, cpu = _counted(c), cpu_ms(c)
    began = time.monotonic()

    def work() -> None:
        with Reader(c.gateway, c.token) as reader:
            while True:
                with lock:
                    n, at[0] = at[0], at[0] + 1
                if n >= count:
                    return
                wait = began + load_.due[n] - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                key = load_.keys[n]
                started = time.perf_counter()
                head, body = reader.get(f"/v1/objects/bench/{key}")
                run.seconds[n] = time.perf_counter() - started
                run.tier_of[n] = tier = header(head, b"x-tierstore-tier").decode()
                is_right = head.startswith(b"HTTP/1.1 200 ") and body == body_of(key, load_.sizes[key])
                with lock:
                    run.tiers[tier] += 1
                    run.wrong += not is_right

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Client(c) as client:
        status = client.json("GET", "/v1/admin/tiering")
    run.moved_per_served = status["bytes_moved_per_byte_served"]
    run.promotions, run.failed = status["promotions"], status["failed"]
    run.load = os.getloadavg()[1]
    run.cpu_ms = {role: (spent - cpu[role]) / count for role, spent in cpu_ms(c).items()}
    run.predicted = _predicted(c, time.monotonic() - began)
    after = _counted(c)
    run.counted = {tier: n - before.get(tier, 0) for tier, n in after.items() if n > before.get(tier, 0)}
    return run


def cpu_ms(c: Cluster) -> dict[str, float]:
    """Processor time of the cluster's processes so far, by role."""
    ticks, found = os.sysconf("SC_CLK_TCK"), dict[str, float]()
    for process in c.processes():
        fields = Path(f"/proc/{c.pid(process.name)}/stat").read_text().rsplit(")", 1)[1].split()
        found[process.role] = found.get(process.role, 0.0) + (int(fields[11]) + int(fields[12])) / ticks * 1e3
    return found


def _predicted(c: Cluster, seconds: float) -> float:
    """What the store itself says of the requests it recorded just now, under the policy that it has."""
    with Client(c) as client:
        policy_ = client.json("GET", "/v1/admin/policy")
        question = {"policy": policy_, "hours": seconds / 3600, "curve": False}
        current = client.json("POST", "/v1/admin/policy/simulate", question)["current"]
    return float(sum(share for tier, share in current["hit_ratio"].items() if tier != "hdd"))


def _counted(c: Cluster) -> dict[str, int]:
    """The gateway's own count of reads by tier; its metrics want the cluster's metrics token where that is closed."""
    with Client(c) as client:
        status, body, _ = client("GET", "/-/metrics")
    found = {}
    for line in body.decode().splitlines() if status == 200 else []:
        if line.startswith("tierstore_object_reads_total{"):
            found[line.split('"')[1]] = int(float(line.rsplit(" ", 1)[1]))
    return found


def store(c: Cluster, load_: Workload) -> None:
    with Client(c) as client:
        client("PUT", "/v1/buckets/bench")
    keys, lock = list(load_.sizes), threading.Lock()

    def work() -> None:
        with Client(c) as client:
            while True:
                with lock:
                    if not keys:
                        return
                    key = keys.pop()
                status, body, _ = client("PUT", f"/v1/objects/bench/{key}", body_of(key, load_.sizes[key]))
                assert status == 200, body[:300]

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def policy(c: Cluster, load_: Workload, *, is_on: bool) -> None:
    rules = [] if is_on else [{"name": "off", "mode": "never"}]
    promoter = {"tick": f"{load_.tick_seconds:g}s", "half_life": f"{load_.half_life_seconds:g}s"}
    with Client(c) as client:
        client.json("PUT", "/v1/admin/policy", {"version": 1, "rules": rules, "promoter": promoter})


NAMES: Final = ("off", "promoter", "mem")


def measure(requests: int, seconds: float, folder: Path, *, names: Sequence[str] = NAMES) -> dict[str, Run]:
    """Make the runs named, on a cluster in `folder` (left there); the figures by name."""
    load_ = workload(requests, seconds)
    footprint = sum(load_.sizes.values())
    ssd = max(int(footprint / 10 / SERVERS / (1 - RESERVE_SHARE)), 4 * MIB)
    mem = footprint // 100 // SERVERS
    flags = ["--servers", str(SERVERS), "--device", f"ssd={ssd}", "--device", "hdd=2GiB,8ms,160MB/s"]
    # What was just read is kept for the promoter's copies in no more RAM than a `mem` tier of 1 %.
    environment = {"TIERSTORE_TELEMETRY__METRICS_PUBLIC": "true", "TIERSTORE_CHUNKS__FRESH_BYTES": str(mem)}
    runs: dict[str, Run] = {}
    for name in names:
        is_new = not (folder / "cluster").exists()
        (folder / "cluster" / "metadata" / "heat.bin").unlink(missing_ok=True)      # nobody knows what was hot
        c = Cluster(folder, [*flags, "--mem", str(mem if name == "mem" else 0)], environment, free_port_base())
        try:
            c.start()
            policy(c, load_, is_on=False)
            if is_new:
                store(c, load_)
            wait_until(lambda c=c: _is_cold(c), seconds=60, what="the fast tier is empty")  # type: ignore[misc]
            policy(c, load_, is_on=name != "off")
            runs[name] = replay(c, load_)
        finally:
            c.stop()
    return runs


def _is_cold(c: Cluster) -> bool:
    with Client(c) as client:
        status = client.json("GET", "/v1/admin/tiering")
    return status["ticks"] > 1 and all(tier["resident_chunks"] == 0 for tier in status["tiers"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tiering.replay", description=__doc__)
    parser.add_argument("--requests", type=int, default=30_000, help="about so many")
    parser.add_argument("--seconds", type=float, default=600.0, help="trace time is scaled to this")
    parser.add_argument("--only", choices=NAMES, action="append", help="make this run only; may be repeated")
    parser.add_argument("--folder", type=Path, help="where the cluster and the figures of earlier runs stay")
    chosen = parser.parse_args()
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="tiering-replay-"))
    figures = folder / "figures.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        runs = {name: Run(**tree) for name, tree in json.loads(figures.read_text()).items()} if figures.exists() else {}
        runs |= measure(chosen.requests, chosen.seconds, folder, names=chosen.only or NAMES)
        figures.write_text(json.dumps({name: asdict(run) | {"tiers": dict(run.tiers)} for name, run in runs.items()}))
    finally:
        if chosen.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    return _print(runs)


def _print(runs: dict[str, Run]) -> int:
    """The table; 1 when a bar is missed."""
    failed = 0
    print(f"{'':10} {'mean ms':>9} {'p99 ms':>9} {'mean/off':>9} {'must':>6}  served by")
    for name, run in runs.items():
        must = {"promoter": 0.5, "mem": 0.35}.get(name)
        ratio = run.mean_ms / runs["off"].mean_ms if "off" in runs else float("nan")
        is_counted = not run.counted or run.counted == dict(run.tiers)
        is_right = run.wrong == 0 and is_counted and (must is None or ratio <= must)
        failed += not is_right
        seconds, tiers = run.after_warm_up(), np.array(run.tier_of[len(run.tier_of) // 3 :])
        shares = ", ".join(
            f"{tier} {n / len(run.seconds):.3f} ({seconds[tiers == tier].mean() * 1e3:.1f} ms)"
            for tier, n in sorted(run.tiers.items())
        )
        cpu = ", ".join(f"{role} {ms:.1f}" for role, ms in run.cpu_ms.items())
        print(
            f"{name:10} {run.mean_ms:9.2f} {run.p99_ms:9.2f} {ratio:9.3f} {must or '':>6}  {shares}; "
            f"{run.wrong} wrong; moved/served {run.moved_per_served:.3f}; {run.promotions} copies made, "
            f"{run.failed} not; what-if said {1 - run.predicted:.3f} from hdd; "
            f"CPU a request: {cpu} ms; counted {'alike' if is_counted else 'otherwise'}; load {run.load:.1f}"
            f"{'' if is_right else '  MISSED'}"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
