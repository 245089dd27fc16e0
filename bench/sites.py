"""Two sites with a far link between them: what replication costs a writer, when a reader gets its first byte, whether
the link is filled, and in which order bodies arrive.

    python -m bench.sites [--rows async-put,sync-put,first-byte,link,arrival,near] [--objects N] [--round-trip-ms N]

The kernel has no netem: both directions of what the sites say to each other go through the TCP proxy of tests/kit, in a
process of its own, with half a round trip of delay each way and, for `link`, a rate. Both arms of a ratio run in turns
on the same processes.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import signal
import sqlite3
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from bench.options import bench_main
from bench.processes import cpu_seconds
from bench.result import Result
from metadata.catalog import schema
from metadata.services.sites.bodies import PARCEL_ITEMS, STREAMS
from metadata.services.sites.order import AGING_TURNS
from tests.kit.cluster import Cluster, wait_until
from tests.kit.ports import free_port_base
from tests.kit.proxy import FaultyLink
from tierstore.sdk.connect import connect
from tierstore.sdk.near import connect_near

ROWS: Final = ("async-put", "sync-put", "first-byte", "link", "arrival", "near")
PUTS_PER_SECOND: Final = 20
PUT_BYTES: Final = 16 * 1024
LINK_BYTES_PER_SECOND: Final = 25e6         # 200 Mbit/s
LINK_BODY_BYTES: Final = 64 << 20
WRITERS: Final = 32


class Links:
    """A far link per site, in a process of its own; `set` changes both."""

    def __init__(self, ports: dict[str, int]) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=_links, args=(ports, theirs), daemon=True)
        self._process.start()
        self.ports: dict[str, int] = self._pipe.recv()

    def set(self, **faults: Any) -> None:
        self._pipe.send(faults)
        self._pipe.recv()

    def close(self) -> None:
        self._process.terminate()
        self._process.join(10)


def _links(ports: dict[str, int], pipe: Connection) -> None:
    async def main() -> None:
        links = {name: FaultyLink(port) for name, port in ports.items()}
        for link in links.values():
            await link.__aenter__()
        pipe.send({name: link.port for name, link in links.items()})
        while True:
            faults = await asyncio.to_thread(pipe.recv)
            for link in links.values():
                link.set(**faults)
            pipe.send(True)

    asyncio.run(main())


class Site:
    """One site, as an administrator sees it."""

    def __init__(self, name: str, url: str, token: str, data: Path) -> None:
        self.name = name
        self.url = url
        self.token = token
        self.catalog = data
        self.http = httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=60)

    def ask(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        answer = self.http.request(method, path, **kwargs)
        answer.raise_for_status()
        return answer

    def bucket(self, name: str, target: Site | None = None, **rule: str) -> None:
        self.ask("PUT", f"/v1/buckets/{name}")
        if target is not None:
            rules = [{"prefix": "", "target": target.name, "mode": "async", "bodies": "all", **rule}]
            self.ask("PUT", f"/v1/buckets/{name}/replication", json={"rules": rules})

    def pause(self, target: Site) -> None:
        """Nothing goes there any more when it returns: the sender looks at its link with each hello."""
        self.ask("POST", f"/v1/admin/sites/{target.name}/pause")

        def state() -> str:
            targets = self.ask("GET", "/v1/admin/replication").json()["targets"]
            return str(targets[0]["state"]) if targets else "not begun"

        wait_until(lambda: state() == "paused", seconds=30, what="paused", every=0.2)

    def backlog(self) -> int:
        targets = self.ask("GET", "/v1/admin/replication").json()["targets"]
        return sum(int(target["backlog_objects"]) for target in targets)

    def drained(self, seconds: float = 120) -> None:
        wait_until(lambda: self.backlog() == 0, seconds=seconds, what=f"{self.name} has sent everything", every=0.2)


@contextmanager
def sites(directory: Path, round_trip: float) -> Iterator[tuple[Cluster, Site, Site, Links]]:
    cluster = Cluster(directory, ["--sites", "2", "--servers", "2"], {}, free_port_base())
    cluster.start()
    links = None
    try:
        token = cluster.ready["token"]
        a, b = (
            Site(s["name"], s["gateway"], token, _catalog(directory, s["name"])) for s in cluster.ready["sites"]
        )
        links = Links({s.name: urlsplit(s.url).port or 0 for s in (a, b)})
        for here, there in ((a, b), (b, a)):
            gateways = [f"http://127.0.0.1:{links.ports[there.name]}"]
            here.ask("PATCH", f"/v1/admin/sites/{there.name}", json={"gateways": gateways})
        links.set(delay_seconds=round_trip / 2)
        yield cluster, a, b, links
    finally:
        if links is not None:
            links.close()
        cluster.stop()


def _catalog(directory: Path, site: str) -> Path:
    """Files of the first site stand in the cluster's directory, those of others below."""
    data = directory / "cluster"
    return (data if site == "site1" else data / site) / "metadata" / "catalog.db"


def measured_round_trip(b: Site, links: Links) -> float:
    """Seconds of the smallest request over the far link and back: its delay, and what the proxy's timers add."""
    took = []
    with httpx.Client(base_url=f"http://127.0.0.1:{links.ports[b.name]}", timeout=60) as far:
        for _ in range(30):
            began = time.perf_counter()
            far.get("/-/healthz").raise_for_status()
            took.append(time.perf_counter() - began)
    return statistics.median(took)


# -- latencies ----------------------------------------------------------------------------------------------------
def put_latencies(a: Site, buckets: list[str], seconds: float) -> dict[str, list[float]]:
    """PUTs at a fixed rate, the buckets in turns."""
    took: dict[str, list[float]] = {bucket: [] for bucket in buckets}
    body = os.urandom(PUT_BYTES)
    began = time.perf_counter()
    for number in range(int(seconds * PUTS_PER_SECOND) * len(buckets)):
        due = began + number / PUTS_PER_SECOND
        if (wait := due - time.perf_counter()) > 0:
            time.sleep(wait)
        bucket = buckets[number % len(buckets)]
        started = time.perf_counter()
        a.ask("PUT", f"/v1/objects/{bucket}/k{number}", content=body)
        took[bucket].append(time.perf_counter() - started)
    return took


def put_rows(a: Site, b: Site, links: Links, options: argparse.Namespace) -> list[Result]:
    a.bucket("plain")
    a.bucket("async", b)
    a.bucket("sync", b, mode="sync", on_failure="fail")
    put_latencies(a, ["plain", "async", "sync"], 2)
    took = put_latencies(a, ["plain", "async"], options.seconds)
    a.drained()
    plain, behind = (statistics.median(took[name]) for name in ("plain", "async"))
    results = [
        Result(
            "async-put", behind / plain, must=1.1, is_less_better=True,
            detail=f"p50 {behind * 1e3:.1f} ms, a single site's {plain * 1e3:.1f} ms, {PUTS_PER_SECOND} puts/s",
        )
    ]  # fmt: skip
    if "sync-put" in options.rows:
        took = put_latencies(a, ["plain", "sync"], options.seconds)
        plain, far = (statistics.median(took[name]) for name in ("plain", "sync"))
        # the other site's own commit, measured by the same bench, is no part of the round trips
        trip = measured_round_trip(b, links)
        trips = (far - 2 * plain) / trip
        results.append(
            Result(
                "sync-put", trips, must=1.0, is_less_better=True, unit="trips",
                detail=f"p50 {far * 1e3:.1f} ms = plain {plain * 1e3:.1f} + the same there + {trips:.2f} round trips "
                f"of {trip * 1e3:.1f} ms; {(far - plain) / trip:.2f} with the other site's own work",
            )
        )  # fmt: skip
    return [result for result in results if result.row in options.rows]


def first_byte(a: Site, b: Site, options: argparse.Namespace) -> Result:
    """A body that is not at the reader's site yet."""
    a.bucket("later", b, bodies="on-demand")
    count = 20
    for number in range(count):
        a.ask("PUT", f"/v1/objects/later/k{number}", content=os.urandom(1 << 20))
    wait_until(
        lambda: b.http.head(f"/v1/objects/later/k{count - 1}").status_code == 200, seconds=60, what="the names"
    )
    a.drained()
    took = []
    for number in range(count):
        started = time.perf_counter()
        with b.http.stream("GET", f"/v1/objects/later/k{number}") as answer:
            assert answer.status_code == 200 and answer.headers["x-tierstore-site"] == a.name
            pieces = answer.iter_raw()
            next(pieces)
            took.append(time.perf_counter() - started)
            for _ in pieces:
                pass
    trips = statistics.median(took) / (options.round_trip_ms / 1e3)
    return Result(
        "first-byte", trips, must=2.0, is_less_better=True, unit="trips",
        detail=f"p50 {statistics.median(took) * 1e3:.0f} ms, worst {max(took) * 1e3:.0f} ms of {count} reads",
    )  # fmt: skip


def link(a: Site, b: Site, links: Links, options: argparse.Namespace) -> Result:
    """Large bodies over 200 Mbit/s."""
    links.set(bytes_per_second=LINK_BYTES_PER_SECOND)
    a.bucket("large", b)
    a.pause(b)
    count = 6
    for number in range(count):
        a.ask("PUT", f"/v1/objects/large/k{number}", content=os.urandom(LINK_BODY_BYTES))
    began = time.perf_counter()
    a.ask("POST", f"/v1/admin/sites/{b.name}/resume")
    a.drained(300)
    took = time.perf_counter() - began
    links.set(bytes_per_second=0.0)
    share = count * LINK_BODY_BYTES / took / LINK_BYTES_PER_SECOND
    return Result(
        "link", share, must=0.8, detail=f"{count} bodies of 64 MiB in {took:.1f} s over 200 Mbit/s, resume to empty"
    )  # fmt: skip


# -- the order of arrival -------------------------------------------------------------------------------------------
def arrival(cluster: Cluster, a: Site, b: Site, options: argparse.Namespace) -> list[Result]:
    """Half of the objects are read (Zipf) before they travel. The others are not: theirs is first-in-first-out, one
    half of it before and one after, so that a machine that becomes slower or quicker meanwhile speaks for neither."""
    count = options.objects // 2
    rng = random.Random(1)
    a.pause(b)
    took: dict[str, dict[str, float]] = {}
    used: dict[str, float] = {}
    sender = cluster.site_pid(a.name, "metadata")
    reads: dict[str, int] = {}
    for arm, size in (("fifo1", count // 2), ("heat", count), ("fifo2", count // 2)):
        a.bucket(arm, b)
        asyncio.run(_write(a, arm, size))
        if arm == "heat":
            reads = _zipf(rng, size, size * 2)
            asyncio.run(_read(a, arm, reads))
        began, used_before = time.monotonic(), cpu_seconds(sender)
        a.ask("POST", f"/v1/admin/sites/{b.name}/resume")
        took[arm] = _arrivals(b, arm, size, began)
        used[arm] = (cpu_seconds(sender) - used_before) * 1e3
        a.drained()
        a.pause(b)
    a.ask("POST", f"/v1/admin/sites/{b.name}/resume")
    heat = took["heat"]
    ranked = sorted(heat, key=lambda key: -reads.get(key, 0))
    hot, cold = (_p99([heat[key] for key in some]) for some in (ranked[: count // 100], ranked[count // 2 :]))
    totals = {arm: max(values.values()) for arm, values in took.items()}
    fifo = totals["fifo1"] + totals["fifo2"]
    oldest = _places(b, "heat")
    cold_ones = sorted((key for key in heat if key not in reads), key=lambda key: oldest[key])
    times = sorted(heat.values())
    before = {key: bisect_left(times, heat[key]) for key in cold_ones}
    first = cold_ones[0]
    return [
        Result(
            "arrival-order", hot / cold, must=0.1, is_less_better=True,
            detail=f"p99 lag of the hottest 1 % {hot:.1f} s, of the coldest half {cold:.1f} s; {count} objects",
        ),
        Result(
            "arrival-total", totals["heat"] / fifo, must=1.1, is_less_better=True,
            detail=f"{totals['heat']:.1f} s ({count / totals['heat']:.0f} objects/s), first-in-first-out {fifo:.1f} s; "
            f"the sender's metadata: {used['heat'] / count:.2f} ms of CPU for each object, first-in-first-out "
            f"{(used['fifo1'] + used['fifo2']) / count:.2f} ms",
        ),
        Result(
            "arrival-aging", max(before[key] / _turns_max(oldest[key]) for key in cold_ones), must=1.0,
            is_less_better=True,
            detail=f"turns of the worst unread object by its bound; the oldest unread one came after "
            f"{before[first]} others in {heat[first]:.1f} s, the bound is {_turns_max(oldest[first])}",
        ),
    ]  # fmt: skip


def _places(b: Site, bucket: str) -> dict[str, int]:
    """How many older ones each object has, by the order of their versions."""
    with sqlite3.connect(f"file:{b.catalog}?mode=ro", uri=True, timeout=10) as catalog:
        rows = catalog.execute(
            "select o.key from objects o join buckets k on k.id = o.bucket_id where k.name = ? order by o.version",
            (bucket,),
        )
        return {key: place for place, (key,) in enumerate(rows)}


def _turns_max(older: int) -> int:
    """The aging bound: every AGING_TURNS-th turn goes to the oldest; parcels that are on their way may overtake."""
    return AGING_TURNS * (older + 1) + STREAMS * PARCEL_ITEMS


def _p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


def _zipf(rng: random.Random, count: int, reads: int) -> dict[str, int]:
    """How often each key is read, exponent 1; which key has which rank is chance."""
    keys = [f"k{number:05}" for number in range(count)]
    rng.shuffle(keys)
    found: dict[str, int] = {}
    for key in rng.choices(keys, weights=[1 / (rank + 1) for rank in range(count)], k=reads):
        found[key] = found.get(key, 0) + 1
    return found


async def _write(a: Site, bucket: str, count: int) -> None:
    async with await connect(a.url, a.token) as store:
        body = os.urandom(4096)
        numbers = iter(range(count))

        async def writer() -> None:
            for number in numbers:
                await store.put(bucket, f"k{number:05}", body)

        await asyncio.gather(*(writer() for _ in range(WRITERS)))


async def _read(a: Site, bucket: str, reads: dict[str, int]) -> None:
    async with await connect(a.url, a.token) as store:
        keys = [key for key, times in reads.items() for _ in range(times)]
        random.Random(2).shuffle(keys)
        left = iter(keys)

        async def reader() -> None:
            for key in left:
                async with await store.get(bucket, key) as body:
                    await body.read()

        await asyncio.gather(*(reader() for _ in range(WRITERS)))
    await asyncio.sleep(3)      # object servers report heat with their heartbeats, once a second


def _arrivals(b: Site, bucket: str, count: int, began: float) -> dict[str, float]:
    """Seconds until each body was at the site, from its catalog."""
    found: dict[str, float] = {}
    with sqlite3.connect(f"file:{b.catalog}?mode=ro", uri=True, timeout=10) as catalog:
        def look() -> bool:
            rows = catalog.execute(
                "select o.key from objects o join buckets k on k.id = o.bucket_id where k.name = ? and o.kind <> ?",
                (bucket, schema.KIND_REMOTE),
            ).fetchall()
            now = time.monotonic() - began
            for (key,) in rows:
                found.setdefault(key, now)
            return len(found) >= count

        wait_until(look, seconds=300, what="all bodies", every=0.1)
    return found


# -- the near site --------------------------------------------------------------------------------------------------
def near(cluster: Cluster, a: Site, b: Site, options: argparse.Namespace) -> Result:
    """How long a client of b's network reads nothing when b dies."""
    a.bucket("near", b)
    a.ask("PUT", "/v1/objects/near/k", content=b"everywhere")
    a.drained()
    a.ask("PATCH", f"/v1/admin/sites/{b.name}", json={"networks": ["127.0.0.0/8"], "gateways": [b.url]})
    wait_until(lambda: a.ask("GET", "/v1/route").json()["site"] == b.name, seconds=30, what="b is near")
    pids = [cluster.site_pid(b.name, role) for role in ("gateway", "metadata")]

    async def client() -> float:
        async with await connect_near([a.url, b.url], a.token) as store:
            async with await store.get("near", "k") as body:
                assert await body.read() == b"everywhere" and store.site == b.name
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)        # hung: connections are taken, nothing answers
            try:
                began = time.monotonic()
                async with await store.get("near", "k") as body:
                    assert await body.read() == b"everywhere" and store.site == a.name
                return time.monotonic() - began
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)

    took = asyncio.run(client())
    return Result(
        "near", took, must=2.0, is_less_better=True, unit="s", detail="b hangs, until its body came from a"
    )


def run(directory: Path, options: argparse.Namespace) -> list[Result]:
    results: list[Result] = []
    wanted: Callable[[str], bool] = options.rows.__contains__
    with sites(directory, options.round_trip_ms / 1e3) as (cluster, a, b, links):
        if wanted("async-put") or wanted("sync-put"):
            results += put_rows(a, b, links, options)
        if wanted("first-byte"):
            results.append(first_byte(a, b, options))
        if wanted("link"):
            results.append(link(a, b, links, options))
        if wanted("arrival"):
            results += arrival(cluster, a, b, options)
        if wanted("near"):
            results.append(near(cluster, a, b, options))
    return results


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--objects", type=int, default=6000, help="of the row arrival, both arms together")
    parser.add_argument("--round-trip-ms", type=float, default=80.0)


if __name__ == "__main__":
    bench_main(__doc__ or "", ROWS, run, rounds=1, seconds=8.0, more=_more)
