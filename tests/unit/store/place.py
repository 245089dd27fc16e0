"""A device directory for tests: open it, put into it, kill it, cut its power, damage it.

kill() leaves what the page cache had: a copy of the directory while the device is open. cut() also drops what was not
synced: appended bytes behind the last settled record are kept, torn or dropped by the dice.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from objectd.store.device import Location
from objectd.store.disk import DiskDevice
from objectd.store.settings import StoreSettings
from tierstore.checksum import sums_of
from tierstore.clock import Clock, ManualClock
from tierstore.names import ChunkId, chunk_id, upload_id

SETTINGS = StoreSettings(segment_chunk_bytes_max=64 * 1024, segment_bytes_max=256 * 1024, reserve_bytes=0,
                         ballast_bytes=0, index_flush_seconds=3600, segment_grace_seconds=0, index_map_bytes=1 << 28)


def chunk(number: int) -> ChunkId:
    return chunk_id(upload_id(1_800_000_000_000 + number, (number * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFF), number)


def body(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


class Place:
    """A directory and the device that is open on it, if one is."""

    def __init__(self, root: Path, *, settings: StoreSettings = SETTINGS, clock: Clock | None = None) -> None:
        self.root = root
        self.path = str(root / "life0")
        self.settings = settings
        self.clock = clock or ManualClock()
        self._life = 0

    @asynccontextmanager
    async def open(self, *, uuid: bytes | None = None) -> AsyncIterator[DiskDevice]:
        device = await DiskDevice.open(self.path, tier="ssd", capacity_bytes=1 << 30, clock=self.clock,
                                       settings=self.settings, expected_uuid=uuid)
        try:
            yield device
        finally:
            await device.close()

    def kill(self) -> None:
        """From now on this place is the directory as a kill -9 would leave it; the open device goes on elsewhere."""
        self._life += 1
        left = str(self.root / f"life{self._life}")
        shutil.copytree(self.path, left, ignore=shutil.ignore_patterns("lock.mdb"))
        self.path = left

    def cut(self, device: DiskDevice, rng: random.Random) -> None:
        """The same for a power cut: bytes that no finished sync covers are dropped, torn or kept."""
        known = {n: f.end for n, f in device.index.figures.segments.items()}
        self.kill()
        for number, path in self.segments().items():
            size, synced = os.path.getsize(path), known.get(number, 0)
            if size > synced:
                kept = rng.randint(synced, size)
                with open(path, "r+b") as file:
                    file.truncate(kept)
                    if kept > synced and rng.random() < 0.5:
                        torn = rng.randint(synced, kept - 1)
                        file.seek(torn)
                        file.write(rng.randbytes(min(512, kept - torn)))

    def segments(self) -> dict[int, str]:
        folder = os.path.join(self.path, "segments")
        return {int(n[:-4]): os.path.join(folder, n) for n in sorted(os.listdir(folder)) if n.endswith(".seg")}

    def file_of(self, name: ChunkId) -> str:
        return os.path.join(self.path, "files", f"{name[11]:02x}", name.hex())

    def lose_index(self) -> None:
        shutil.rmtree(os.path.join(self.path, "index"))

    def quarantined(self) -> list[str]:
        return sorted(n for n in os.listdir(os.path.join(self.path, "quarantine")) if n.endswith(".json"))

    def overwrite(self, path: str, offset: int, raw: bytes) -> None:
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(raw)


async def put(device: DiskDevice, name: ChunkId, data: bytes) -> Location:
    return await device.put_small(name, data, sums_of(data), name_hint="b/k")


async def put_large(device: DiskDevice, name: ChunkId, data: bytes) -> Location:
    writer = device.begin(name, len(data), name_hint="b/k")
    writer.write(data)
    return await writer.finish(sums_of(data))


async def content(device: DiskDevice, name: ChunkId) -> bytes:
    found = await device.find(name)
    try:
        data = await found.read(0, found.chunk_bytes)
        assert found.sums == sums_of(data), "block sums do not match"
        return data
    finally:
        found.close()
