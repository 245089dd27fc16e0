"""What the catalog says is on each device, compared with what is there: missing copies, orphans, strays.

Works on the directories of a cluster that is stopped, with the store's own recovery and the catalog's own packed form,
but with a plain read of every table: it shares no rule about what may be deleted with the product. Catalog chunks
(snapshot and journal) are left out: they are named by their ids, no row refers to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import defaultdict
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metadata.catalog.packed import BAD, LIVE, PackedChunk, unpack, unpack_replicas
from metadata.services.upkeep.snapshot_ids import is_reserved
from objectd.store.disk import DiskDevice
from objectd.work.verified import verified_pieces
from tests.kit.cluster import Cluster
from tierstore.clock import SystemClock
from tierstore.errors import TierstoreError
from tierstore.names import UPLOAD_ID_BYTES, ChunkId, UploadId, allocated_at_ms


@dataclass
class Comparison:
    """missing: the catalog counts on it, the device lacks it. orphans: on a device, in no row and no garbage.
    thin: a chunk with fewer live home copies on different servers than asked. rotten: copies whose bytes are not what
    the catalog says, if that was asked for."""

    chunks: int = 0
    copies: int = 0
    missing: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    garbage: int = 0
    thin: list[str] = field(default_factory=list)
    rotten: list[str] = field(default_factory=list)
    jobs_open: int = 0

    def __str__(self) -> str:
        return (
            f"{self.chunks} chunks in the catalog, {self.copies} copies on devices, {len(self.missing)} missing, "
            f"{len(self.orphans)} orphans, {self.garbage} waiting for collection, {len(self.thin)} with too few copies"
        )


def compare(cluster: Cluster, *, copies: int = 2, with_bytes: bool = False) -> Comparison:
    """The cluster must be stopped. Opens every device (which recovers it) and the catalog. with_bytes: reads every copy
    and compares its CRC32C with the catalog's."""
    found = Comparison()
    catalog = cluster.data / "cluster" / "metadata" / "catalog.db"
    with sqlite3.connect(catalog) as db:
        db.row_factory = sqlite3.Row
        devices = {bytes(row["uuid"]): row for row in db.execute("SELECT id, uuid, server_id FROM devices")}
        server_of = {int(row["id"]): int(row["server_id"]) for row in devices.values()}
        wanted: dict[int, set[bytes]] = defaultdict(set)
        bad: set[tuple[int, bytes]] = set()
        sums: dict[bytes, int] = {}
        for chunk in _referenced(db):
            found.chunks += 1
            sums[chunk.id] = chunk.crc32c
            servers = set()
            for replica in chunk.replicas:
                if replica.state == LIVE:
                    wanted[replica.device].add(chunk.id)
                    servers.add(server_of[replica.device])
                elif replica.state == BAD:
                    bad.add((replica.device, chunk.id))
            if len(servers) < copies:
                found.thin.append(f"{chunk.id.hex()} on {len(servers)} servers")
        waiting = {
            (replica.device, chunk.id)
            for row in db.execute("SELECT body FROM garbage")
            for chunk in unpack(bytes(row["body"]))
            for replica in chunk.replicas
        }
        unfinished = db.execute("SELECT count(*) FROM jobs WHERE state IN ('waiting', 'leased')")
        found.jobs_open = int(unfinished.fetchone()[0])
    db.close()
    found.garbage = len(waiting)
    for process in cluster.processes("objectd"):
        for device in process.devices:
            held, uuid, rotten = asyncio.run(_held(Path(device["path"]), device["tier"], sums if with_bytes else {}))
            found.rotten += [f"{process.name}/{device['tier']} {why}" for why in rotten]
            if uuid not in devices:
                continue
            number = int(devices[uuid]["id"])
            found.copies += len(held)
            name = f"{process.name}/{device['tier']}"
            found.missing += [f"{name} {chunk.hex()}" for chunk in sorted(wanted[number] - held)]
            found.orphans += [
                f"{name} {chunk.hex()}" for chunk in sorted(held - wanted[number])
                if (number, chunk) not in waiting and (number, chunk) not in bad and not is_reserved(chunk)
            ]  # fmt: skip
    return found


def counted_copies(cluster: Cluster) -> set[tuple[bytes, bytes]]:
    """(device uuid, chunk) of every live copy that some row names; read beside a running service."""
    return {(device, chunk) for chunk, _, device, _ in _live_copies(cluster)}


def thin_now(cluster: Cluster, chunks: Container[bytes], *, copies: int = 2) -> list[str]:
    """Of these chunks, those that the catalog counts on too few servers for; read beside a running service."""
    servers: dict[bytes, set[int]] = defaultdict(set)
    for chunk, server, _, _ in _live_copies(cluster):
        servers[chunk].add(server)
    thin = ((chunk, on) for chunk, on in servers.items() if chunk in chunks and len(on) < copies)
    return [f"{chunk.hex()} on {len(on)} servers" for chunk, on in thin]


def copies_told(cluster: Cluster, chunk: bytes) -> str:
    """What the catalog says of one chunk's live copies, for the message of a test that failed."""
    found = [f"device {device.hex()} role {role}" for c, _, device, role in _live_copies(cluster) if c == chunk]
    return f"{chunk.hex()}: {'; '.join(found) or 'no live copy'}"


def _live_copies(cluster: Cluster) -> Iterator[tuple[bytes, int, bytes, object]]:
    """(chunk, server, device uuid, role)."""
    catalog = cluster.data / "cluster" / "metadata" / "catalog.db"
    with contextlib.closing(sqlite3.connect(f"file:{catalog}?mode=ro", uri=True, timeout=120)) as db:
        db.row_factory = sqlite3.Row
        db.execute("BEGIN")     # one moment: a chunk that moves between tables is in one of them
        rows = db.execute("SELECT id, server_id, uuid FROM devices")
        devices = {int(row["id"]): (int(row["server_id"]), bytes(row["uuid"])) for row in rows}
        for chunk in _referenced(db):
            for replica in chunk.replicas:
                if replica.state == LIVE:
                    yield chunk.id, *devices[replica.device], replica.role


def standing_of(cluster: Cluster, orphans: list[str]) -> list[str]:
    """What the catalog of a stopped cluster still has about orphans (as compare() names them): why nobody took them for
    some. A row of placements names the chunk, so no inventory asks further; a lease, a pin or a job puts it off."""
    told = []
    with sqlite3.connect(cluster.data / "cluster" / "metadata" / "catalog.db") as db:
        now_ms = SystemClock().now_ms()
        for orphan in orphans:
            chunk = bytes.fromhex(orphan.split()[-1])
            upload = UploadId(chunk[:UPLOAD_ID_BYTES])
            about = {
                "placements": db.execute(
                    "SELECT device_id, bucket_id, key, version FROM placements WHERE chunk_id = ?", (chunk,)
                ),
                "condemned": db.execute("SELECT at_ms FROM condemned_uploads WHERE upload_id = ?", (upload,)),
                "leased until": db.execute("SELECT until_ms FROM upload_leases WHERE upload_id = ?", (upload,)),
                "pinned until": db.execute("SELECT until_ms FROM pins WHERE chunk_id = ?", (chunk,)),
                "jobs": db.execute("SELECT kind, why, state, device_id, code FROM jobs WHERE chunk_id = ?", (chunk,)),
            }
            found = {name: rows for name, cursor in about.items() if (rows := cursor.fetchall())}
            told.append(f"{orphan}, {(now_ms - allocated_at_ms(upload)) // 1000} s old: {found or 'nothing'}")
    db.close()
    return told


def _referenced(db: sqlite3.Connection) -> Iterator[PackedChunk]:
    """Every chunk that some row refers to, with its replicas."""
    for table in ("objects", "versions"):
        for row in db.execute(f"SELECT body FROM {table} WHERE kind = 0 AND body IS NOT NULL"):
            yield from unpack(bytes(row["body"]))
    for row in db.execute("SELECT body FROM multipart_parts"):
        yield from unpack(bytes(row["body"]))
    for row in db.execute("SELECT * FROM chunks WHERE refcount > 0"):
        yield _of_row(row)


def _of_row(row: Any) -> PackedChunk:
    size = int(row["chunk_bytes"])
    return PackedChunk(bytes(row["id"]), size, size, int(row["crc32c"]), 0, unpack_replicas(bytes(row["replicas"])))


async def _held(path: Path, tier: Any, sums: dict[bytes, int]) -> tuple[set[bytes], bytes, list[str]]:
    device = await DiskDevice.open(str(path), tier=tier, capacity_bytes=0, clock=SystemClock())
    try:
        held, rotten = {bytes(chunk) for chunk, _, _ in device.chunks()}, []
        for chunk in sorted(held & sums.keys()):
            try:
                opened = await device.find(ChunkId(chunk))
                try:
                    async for _ in verified_pieces(opened, ChunkId(chunk), crc32c=sums[chunk]):
                        pass
                finally:
                    opened.close()
            except TierstoreError as error:
                rotten.append(f"{chunk.hex()}: {error}")
        return held, device.uuid, rotten
    finally:
        await device.close()
