"""The catalog's own copy on the object servers: a snapshot now and then, a journal piece every few seconds (rule 5).

Both are ordinary chunks with reserved ids (snapshot_ids), written through the ordinary chunk PUT on `copies` different
servers with tickets that metadata mints for itself; so the newest is found by listing devices when the catalog is
gone. A snapshot is dumped to a file first (one consistent transaction, flat memory) and cut into PART_BYTES; its last
part is the manifest, written last: a snapshot without it does not count. Journal pieces are continuous: each says
which sequence it begins behind.

Old ones are deleted only after a newer snapshot is whole on `copies` servers; the last two snapshots and every journal
piece behind the older of them are kept.

Cost: a journal piece is one scan of the changes and one small PUT per copy; nothing when nothing changed.
"""

from __future__ import annotations

import logging
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import aiofiles
import msgspec

from metadata.catalog import feed, jobs, leases, snapshots
from metadata.catalog.database import Database
from metadata.catalog.leases import Connection, require_epoch
from metadata.services.cluster.duties import PROMOTER
from metadata.services.cluster.membership import Cluster
from metadata.services.cluster.view import DeviceInfo
from metadata.services.jobs.queue import delete_batches
from metadata.services.upkeep.collect import DeletionGuard
from metadata.services.upkeep.retention import JOURNAL_SETTING
from metadata.services.upkeep.snapshot_ids import Kind, chunk_for, upload_for
from tierstore.checksum import BlockSummer
from tierstore.errors import TierstoreError, UnavailableError
from tierstore.names import DeviceId, ServerId
from tierstore.ticket import TICKET_SECONDS_MAX, WriteTicket, mint_write, open_receipt
from tierstore.transport.object_client import ObjectClient

log = logging.getLogger(__name__)

PART_BYTES: Final = 8 << 20
PUT_SECONDS: Final = 30.0
SNAPSHOTS_KEPT: Final = 2
CHANGES_PER_PIECE: Final = 2000
SCAN_SECONDS: Final = 600.0
NAME: Final = "-/catalog"


class Manifest(msgspec.Struct, array_like=True, frozen=True):
    """The last part of a snapshot or journal piece, self-contained. after: a journal begins behind this sequence."""

    kind: str
    sequence: int
    after: int
    at_ms: int
    parts: int
    total_bytes: int
    cluster_id: str
    epoch: int


class Piece(msgspec.Struct, array_like=True, frozen=True):
    """A whole snapshot or journal piece as the catalog remembers it. chunks: (id, devices that have it)."""

    kind: str
    sequence: int
    after: int
    at_ms: int
    chunks: list[tuple[bytes, list[int]]]


class Snapshots:
    """Writes snapshots and journal pieces. Runs in the holder of the promoter's lease."""

    SETTING: Final = "snapshots"

    def __init__(
        self, database: Database, cluster: Cluster, client: ObjectClient, guard: DeletionGuard, *,
        rng: random.Random, directory: Callable[[], Path | None], snapshot_seconds: float,
    ) -> None:  # fmt: skip
        self._database = database
        self._cluster = cluster
        self._client = client
        self._guard = guard
        self._rng = rng
        self._directory = directory
        self._snapshot_ms = int(snapshot_seconds * 1000)
        self._digest = -1
        self.pieces: list[Piece] = []

    async def load(self) -> None:
        text = await self._database.read(lambda c: leases.setting(c, self.SETTING))
        self.pieces = msgspec.json.decode(text, type=list[Piece]) if text else []

    @property
    def journalled(self) -> int:
        """The sequence up to which snapshot and journal go."""
        return max((p.sequence for p in self.pieces), default=0)

    async def step(self, epoch: int) -> tuple[int, bool]:
        """Write what is due; (bytes written, more at once). Raises UnavailableError when no server can take it."""
        # Each time: another process may have had the lease meanwhile, and a piece that the catalog did not take is
        # none. A journal that began where this process last wrote would lack what the feed has forgotten since.
        before = self.pieces
        await self.load()
        if self.pieces != before:
            self._digest = -1
        newest = max((p.at_ms for p in self.pieces if p.kind == "snapshot"), default=0)
        head = await self._database.read(lambda c: feed.head(c)[0])
        if head == 0:
            return 0, False    # nothing was ever stored
        is_due = self._cluster.now_ms() - newest >= self._snapshot_ms
        snapshot_at = max((p.sequence for p in self.pieces if p.kind == "snapshot"), default=0)
        if newest == 0 or (is_due and head > snapshot_at):
            return await self.snapshot(epoch), True
        return await self.journal(epoch, head)

    # -- writing ----------------------------------------------------------------------------------------------
    async def snapshot(self, epoch: int) -> int:
        """Dump the catalog and store it; bytes."""
        at_ms = self._cluster.now_ms()
        with tempfile.TemporaryDirectory(prefix="snapshot-", dir=self._directory()) as name:
            path = Path(name) / "dump"

            def dump(c: Connection) -> int:
                with open(path, "wb") as file:
                    for frame in snapshots.dump(c, at_ms=at_ms):
                        file.write(frame)
                return feed.head(c)[0]

            sequence = await self._database.scan(dump, seconds=SCAN_SECONDS)
            await self._database.synced()       # no sequence is used twice
            size = os.path.getsize(path)
            chunks = []
            count = -(-size // PART_BYTES)
            async with aiofiles.open(path, "rb") as file:
                for part in range(count):
                    chunks.append(await self._put("snapshot", sequence, epoch, part, await file.read(PART_BYTES)))
        await self._finish("snapshot", sequence, 0, at_ms, epoch, chunks, size)
        self._digest = await self._database.read(snapshots.small_digest)
        return size

    async def journal(self, epoch: int, head: int) -> tuple[int, bool]:
        """Store what changed since the last piece; (bytes, more)."""
        after, at_ms = self.journalled, self._cluster.now_ms()
        digest = await self._database.read(snapshots.small_digest)
        if head <= after:
            return 0, False

        def read(c: Connection) -> tuple[int, bool, bytes]:
            reached, more, frames = snapshots.journal(
                c, after=after, limit=CHANGES_PER_PIECE, at_ms=at_ms, with_small=digest != self._digest
            )
            return reached, more, b"".join(frames)

        reached, more, data = await self._database.scan(read, seconds=SCAN_SECONDS)
        await self._database.synced()       # no sequence is used twice
        chunks = [
            await self._put("journal", reached, epoch, part, data[at : at + PART_BYTES])
            for part, at in enumerate(range(0, len(data), PART_BYTES))
        ]
        await self._finish("journal", reached, after, at_ms, epoch, chunks, len(data))
        self._digest = digest
        return len(data), more

    async def _finish(  # noqa: PLR0917
        self, kind: Kind, sequence: int, after: int, at_ms: int, epoch: int, chunks: list[tuple[bytes, list[int]]],
        total: int,
    ) -> None:  # fmt: skip
        """The manifest makes the piece whole; then the catalog remembers it and lets older ones go."""
        manifest = Manifest(
            kind, sequence, after, at_ms, len(chunks), total, self._cluster.view.cluster_id, epoch & 0xFF
        )
        chunks.append(await self._put(kind, sequence, epoch, len(chunks), msgspec.msgpack.encode(manifest)))
        self.pieces = [p for p in self.pieces if (p.kind, p.sequence) != (kind, sequence)]
        self.pieces.append(Piece(kind, sequence, after, at_ms, chunks))
        kept, dropped = self._sort_out()
        text = msgspec.json.encode(kept).decode()
        now_ms = self._cluster.now_ms()

        def note(c: Connection) -> None:
            require_epoch(c, PROMOTER, epoch)
            leases.set_setting(c, self.SETTING, text)
            leases.set_setting(c, JOURNAL_SETTING, str(max(p.sequence for p in kept)))
            by_device: dict[int, list[bytes]] = {}
            for piece in dropped:
                for chunk, devices in piece.chunks:
                    for device in devices:
                        by_device.setdefault(device, []).append(chunk)
            for device, ids in by_device.items():
                info = self._cluster.view.devices.get(device)
                if info is not None:
                    jobs.add(c, delete_batches(info.server, device, ids, per_job=1024, why="collect"), now_ms=now_ms)

        await self._database.write(note)
        self.pieces = kept

    def _sort_out(self) -> tuple[list[Piece], list[Piece]]:
        """(kept, to be deleted): the newest snapshots, and the journal behind the oldest of them."""
        if self._guard.why_not():
            return list(self.pieces), []
        whole = sorted((p for p in self.pieces if p.kind == "snapshot"), key=lambda p: p.sequence)[-SNAPSHOTS_KEPT:]
        floor = whole[0].sequence if whole else 0
        kept = [p for p in self.pieces if p in whole or (p.kind == "journal" and p.sequence > floor)]
        return kept, [p for p in self.pieces if p not in kept]

    async def _put(
        self, kind: Kind, sequence: int, epoch: int, part: int, data: bytes
    ) -> tuple[bytes, list[int]]:
        """One part on `copies` servers; (chunk id, devices). Raises UnavailableError when fewer took it."""
        chunk = chunk_for(kind, sequence, epoch, part)
        summer = BlockSummer()
        summer.update(data)
        sums = summer.sums()
        copies = self._cluster.settings.copies
        done: list[int] = []
        used: set[int] = set()
        while len(done) < copies:
            device = self._choose(len(data), used)
            if device is None:
                raise UnavailableError(
                    f"{len(done)} of {copies} object servers took a part of the catalog's {kind}",
                    code="not-enough-servers",
                )
            used.add(device.server)
            try:
                await self._put_on(device, kind, sequence, epoch, part, data, sums)
            except TierstoreError as error:
                log.warning("device %d did not take a part of the catalog's %s: %s", device.id, kind, error)
                continue
            done.append(device.id)
        return bytes(chunk), done

    async def _put_on(  # noqa: PLR0917
        self, device: DeviceInfo, kind: Kind, sequence: int, epoch: int, part: int, data: bytes, sums: bytes
    ) -> None:
        view = self._cluster.view
        key = view.signing_key(device.server)
        if key is None:
            raise UnavailableError("the server shares no ticket key yet", code="not-registered")
        ticket = WriteTicket(
            ServerId(device.server), DeviceId(device.id), upload_for(kind, sequence, epoch), part, 1, max(1, len(data)),
            self._cluster.now_ms() // 1000 + TICKET_SECONDS_MAX,
        )  # fmt: skip
        text = await self._client.put_chunk(
            view.servers[device.server].url, mint_write(ticket, key_id=key[0], key=key[1]), index=part, name=NAME,
            data=data, sums=sums, seconds=PUT_SECONDS,
        )  # fmt: skip
        receipt = open_receipt(text, view.ticket_keys.get(device.server, {}))
        if receipt.chunk != chunk_for(kind, sequence, epoch, part) or receipt.device != device.id:
            raise UnavailableError("the receipt is of another chunk", code="wrong-receipt")

    def _choose(self, size: int, used: set[int]) -> DeviceInfo | None:
        view = self._cluster.view
        fit = [
            d for d in view.devices.values()
            if view.can_place(d) and d.server not in used and d.free_bytes > 2 * size + (8 << 20)
        ]  # fmt: skip
        return self._rng.choices(fit, [d.free_bytes for d in fit])[0] if fit else None
