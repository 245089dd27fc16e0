"""`tierstore bench`: a quick load test of a running cluster through the SDK. For figures against bars: `make bench`."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tierstore.cli.cluster import Endpoint, Json, Profile, Token, bucket_path, find, open_http, open_store
from tierstore.cli.output import print_json, print_table
from tierstore.errors import ConflictError, RequestError
from tierstore.units import MIB, format_size, parse_size

if TYPE_CHECKING:
    from tierstore.sdk import Store

SECONDS_MAX: Final = 600.0
OBJECTS_MAX: Final = 100_000


def bench(
    size: Annotated[str, typer.Option(help="Size of an object, with unit.")] = "4KiB",
    connections: Annotated[int, typer.Option(min=1, max=1024, help="Requests at a time.")] = 16,
    seconds: Annotated[float, typer.Option(min=0.1, max=SECONDS_MAX, help="Length of each phase.")] = 3.0,
    bucket: Annotated[str, typer.Option(help="Made if it does not exist; the objects are deleted again.")] = "bench",
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Put, get, stat and delete objects, and say how fast it went."""
    bytes_each = parse_size(size)
    address = find(endpoint, token, profile)
    with open_http(address) as http:
        try:
            http.call("PUT", bucket_path(bucket))
        except ConflictError:
            pass        # it is there: from the last run

    async def work() -> list[dict[str, Any]]:
        async with open_store(address) as store:
            return await _phases(store, bucket, bytes_each, connections, seconds)

    rows = asyncio.run(work())
    if as_json:
        print_json({"size_bytes": bytes_each, "connections": connections, "phases": rows})
        return
    print_table(
        ["phase", "requests", "per second", "rate", "p50 ms", "p99 ms"],
        [
            [row["phase"], row["requests"], row["requests_per_second"], f"{format_size(row['bytes_per_second'])}/s",
             row["p50_ms"], row["p99_ms"]]
            for row in rows
        ],
        right=["requests", "per second", "rate", "p50 ms", "p99 ms"],
    )  # fmt: skip


async def _phases(store: Store, bucket: str, size: int, connections: int, seconds: float) -> list[dict[str, Any]]:
    chance = random.Random(time.time_ns())
    prefix = f"bench-{chance.getrandbits(48):012x}/"
    body = chance.randbytes(min(size, MIB)) * -(-size // MIB if size > MIB else 1)
    body = body[:size]
    written: list[str] = []

    async def put(number: int) -> int:
        key = f"{prefix}{number:08d}"
        await store.put(bucket, key, body)
        written.append(key)
        return size

    rows = [await _phase("put", put, connections, seconds, OBJECTS_MAX)]
    if not written:
        raise RequestError("nothing was stored in the time given; raise --seconds")

    async def get(number: int) -> int:
        async with await store.get(bucket, written[chance.randrange(len(written))]) as reader:
            total = 0
            while piece := await reader.next_piece():
                total += len(piece)
            return total

    async def stat(number: int) -> int:
        await store.head(bucket, written[chance.randrange(len(written))])
        return 0

    async def delete(number: int) -> int:
        await store.delete(bucket, written[number])
        return 0

    rows.append(await _phase("get", get, connections, seconds, None))
    rows.append(await _phase("stat", stat, connections, seconds, None))
    rows.append(await _phase("delete", delete, connections, SECONDS_MAX, len(written)))
    return rows


async def _phase(
    name: str, one: Callable[[int], Awaitable[int]], connections: int, seconds: float, count_max: int | None
) -> dict[str, Any]:
    """Run `one(number)` over and over, `connections` at a time; what was reached."""
    times: list[float] = []
    moved = 0
    following = 0
    began = time.perf_counter()

    async def worker() -> None:
        nonlocal moved, following
        while time.perf_counter() - began < seconds and (count_max is None or following < count_max):
            number, following = following, following + 1
            start = time.perf_counter()
            moved += await one(number)
            times.append(time.perf_counter() - start)

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(worker())
    took = time.perf_counter() - began
    times.sort()
    return {
        "phase": name,
        "requests": len(times),
        "requests_per_second": round(len(times) / took, 1),
        "bytes_per_second": int(moved / took),
        "p50_ms": round(times[len(times) // 2] * 1e3, 2) if times else 0.0,
        "p99_ms": round(times[int(len(times) * 0.99)] * 1e3, 2) if times else 0.0,
    }
