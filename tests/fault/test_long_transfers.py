"""Transfers so long that servers restart in their middle: streamed uploads commit with receipts made anew."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

from tests.kit import admin
from tests.kit.cluster import Cluster, cluster, wait_until
from tests.kit.http import Client
from tests.kit.load import body_of

MIB = 1 << 20


def _stored_bytes(c: Cluster) -> int:
    """Of chunk files on all devices."""
    roots = [Path(d["path"]) for p in c.processes("objectd") for d in p.devices]
    return sum(f.stat().st_size for root in roots for f in root.rglob("*") if f.is_file() and f.stat().st_size > MIB)


def _restart_all(c: Cluster) -> None:
    """kill -9 of every object server, one after another, each time until the cluster has it back in a new life."""
    for process in c.processes("objectd"):
        admin.kill_and_wait(c, process.name)


def test_a_streamed_upload_outlives_a_restart_of_every_server_that_holds_a_part_of_it(tmp_path: Path) -> None:
    """A client that streams 20 MiB cannot send the first chunk again: its receipts are of lives that are over, the
    bytes are where they were."""
    body = body_of(1, 20 * MIB)

    async def main(c: Cluster) -> None:
        client = Client(c.gateway, token=c.token)
        assert (await client.request("PUT", "/v1/buckets/long")).status == 201
        at = urlsplit(c.gateway)
        reader, writer = await asyncio.open_connection(at.hostname, at.port)
        writer.write(
            f"PUT /v1/objects/long/k HTTP/1.1\r\nhost: {at.netloc}\r\nauthorization: Bearer {c.token}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
        )
        half = 16 * MIB + 1000
        writer.write(body[:half])
        await writer.drain()
        await asyncio.to_thread(wait_until, lambda: _stored_bytes(c) >= 32 * MIB, seconds=60, what="two chunks stored")
        await asyncio.to_thread(_restart_all, c)
        writer.write(body[half:])
        await writer.drain()
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 600)
        assert head.startswith(b"HTTP/1.1 200 "), (head, await reader.read(1000))
        writer.close()
        answer = await client.request("GET", "/v1/objects/long/k")
        assert answer.status == 200 and answer.body == body
        client.close()

    # the client says nothing while three servers restart, which is as long as the machine makes it
    with cluster(tmp_path, "--servers", "3", env={"TIERSTORE_TIMERS__BODY_STALL": "10min"}) as c:
        asyncio.run(main(c))
