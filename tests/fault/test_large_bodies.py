"""Bodies of gigabytes through a whole cluster: memory stays flat in every process that they pass, and a read that has
begun ends with the right bytes though its object was replaced meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.kit.cluster import Cluster, cluster
from tests.kit.http import Client

MIB = 1 << 20
GIB = 1 << 30
#: PERFORMANCE.md: what 5 GiB may add to a process.
GROWTH_BYTES_MAX = 64 * MIB
#: So much has passed before it is measured: pools, buffers and code are there.
WARM_BYTES = 128 * MIB
#: Of a transfer; a machine that does ten other things passes 10 MB/s.
SECONDS_MAX = 1200.0
FILLING = hashlib.sha256(b"large").digest() * (MIB // 32)


def pieces(size: int) -> Iterator[bytes]:
    """A body of MiBs that tell their place."""
    for number in range(size // MIB):
        yield struct.pack("<Q", number) + FILLING[8:]


def peak_bytes(pid: int) -> int:
    """The most memory that the process ever had resident."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


def peaks(c: Cluster) -> dict[str, int]:
    return {p.name: peak_bytes(c.pid(p.name)) for p in c.processes()}


async def connect(
    c: Cluster, method: str, target: str, length: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    at = urlsplit(c.gateway)
    reader, writer = await asyncio.open_connection(at.hostname, at.port, limit=2 * MIB)
    writer.write(
        f"{method} {target} HTTP/1.1\r\nhost: {at.netloc}\r\nauthorization: Bearer {c.token}\r\n"
        f"content-length: {length}\r\n\r\n".encode()
    )
    return reader, writer


async def put(c: Cluster, key: str, size: int) -> None:
    reader, writer = await connect(c, "PUT", f"/v1/objects/large/{key}", size)
    for piece in pieces(size):
        writer.write(piece)
        await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), (head, await reader.read(1000))
    writer.close()


async def get(c: Cluster, key: str, size: int, *, replace_at: int = -1) -> None:
    """Read and compare every byte; the object is replaced when the MiB `replace_at` was read."""
    reader, writer = await connect(c, "GET", f"/v1/objects/large/{key}", 0)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    for number, piece in enumerate(pieces(size)):
        assert await reader.readexactly(MIB) == piece, f"MiB {number} is wrong"
        if number == replace_at:
            client = Client(c.gateway, token=c.token)
            assert (await client.request("PUT", f"/v1/objects/large/{key}", b"another")).status == 200
            client.close()
    writer.close()


@pytest.mark.slow
@pytest.mark.parametrize("size", [5 * GIB])
def test_five_gibibytes_pass_through_a_cluster_with_flat_memory(tmp_path: Path, size: int) -> None:
    """A gateway or object server that keeps what passes dies of the first large body; a reader who is slower than the
    next writer must not lose the rest of his."""

    async def main(c: Cluster) -> None:
        async with asyncio.timeout(SECONDS_MAX):
            client = Client(c.gateway, token=c.token)
            assert (await client.request("PUT", "/v1/buckets/large")).status == 201
            client.close()
            await put(c, "warm", WARM_BYTES)
            await get(c, "warm", WARM_BYTES)
            before, began = peaks(c), time.monotonic()
            await put(c, "k", size)
            middle, stored = peaks(c), time.monotonic()
            await get(c, "k", size, replace_at=8)
            after, ended = peaks(c), time.monotonic()
        for what, first, last in (("put", before, middle), ("get", middle, after)):
            grown = {name: (last[name] - first[name]) / MIB for name in first}
            print(what, ", ".join(f"{name} {mib:+.1f} MiB" for name, mib in grown.items()))
            assert max(grown.values()) * MIB < GROWTH_BYTES_MAX, (what, grown)
        print(f"{size / GIB:.0f} GiB stored in {stored - began:.0f} s, read in {ended - stored:.0f} s")

    with cluster(tmp_path, "--servers", "3") as c:
        asyncio.run(main(c))
