"""Making a lost catalog again from what the object servers hold (`metadata rebuild`, rule 5).

An empty catalog is opened and served; the object servers, whose secrets it does not know, join it anew with the join
token, and it takes over the cluster id that stands on their devices. Their inventories show the reserved ids of
snapshot and journal pieces; the newest whole snapshot and the unbroken journal behind it are fetched, checked and
loaded in one transaction. Nothing is deleted anywhere meanwhile.

What was written after the last journal piece (seconds, at most) is in no catalog any more: those chunks are reported
and protected. No inventory calls them orphans until an operator agrees (DeletionGuard.spare_rebuilt), so no byte of
them is lost; they are not made into objects again here.

Refuses a catalog that already has buckets or objects.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from metadata.catalog import jobs, leases, servers, snapshots
from metadata.catalog.database import Database
from metadata.catalog.jobs import NewJob
from metadata.catalog.leases import Connection
from metadata.services.cluster import Cluster
from metadata.services.collect import DeletionGuard
from metadata.services.jobs_work import CLASS_INVENTORY, InventoryWork
from metadata.services.snapshot import Manifest, Piece, Snapshots
from metadata.services.snapshot_ids import CatalogChunk, Kind, chunk_for, parse
from tierstore.checksum import BLOCK_BYTES, SUM_BYTES, block_count, unpack_sums, verify_block
from tierstore.clock import Clock
from tierstore.errors import ConflictError, IntegrityError, TierstoreError, UnavailableError
from tierstore.names import UPLOAD_ID_BYTES, ChunkId, DeviceId, ServerId, UploadId, allocated_at_ms
from tierstore.ticket import NO_HEAT, TICKET_SECONDS_MAX, ReadTicket, mint_read
from tierstore.transport.peer import PeerTransport
from tierstore.wire.cluster import Inventory, InventoryAnswer

log = logging.getLogger(__name__)

READ_SECONDS: Final = 30.0
LOAD_SECONDS: Final = 3600.0
#: Without a new server or page for so long, everybody who comes has come.
QUIET_SECONDS: Final = 10.0
WAIT_SECONDS_MAX: Final = 600.0
POLL_SECONDS: Final = 0.2
#: Uploads that began so long before the last journal piece may have been committed behind it.
BEFORE_MS: Final = 20 * 60_000
#: A gap in the feed's sequence that marks the rebuild; nothing that was ever shown to a device reaches into it.
SEQUENCE_GAP: Final = 1000


@dataclass(slots=True)
class Found:
    """A snapshot or journal piece as the inventories show it: part -> device -> bytes."""

    kind: Kind
    sequence: int
    epoch: int
    parts: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    manifest: Manifest | None = None

    def pieces(self) -> list[tuple[bytes, list[int]]]:
        return [
            (bytes(chunk_for(self.kind, self.sequence, self.epoch, part)), sorted(devices))
            for part, devices in sorted(self.parts.items())
        ]  # fmt: skip


class Rebuild:
    """One rebuild; `run` does it all while the process serves registrations, heartbeats and inventories."""

    def __init__(
        self, database: Database, cluster: Cluster, guard: DeletionGuard, transport: PeerTransport, clock: Clock
    ) -> None:
        self._database = database
        self._cluster = cluster
        self._guard = guard
        self._transport = transport
        self._clock = clock
        self._found: dict[tuple[str, int, int], Found] = {}
        self._listed: set[int] = set()
        self._asked: set[int] = set()
        self._others: dict[bytes, int] = {}      # ordinary chunks by id -> bytes; bounded by RAM of this one command
        self._changed_at = clock.monotonic()

    # -- inventories ------------------------------------------------------------------------------------------
    async def page(self, message: Inventory) -> InventoryAnswer:
        """Note what a device holds; nothing is an orphan."""
        if message.server not in self._cluster.view.servers:
            raise ConflictError("register first", code="stale-incarnation")
        for number, size in enumerate(message.sizes):
            chunk = message.ids[16 * number : 16 * number + 16]
            entry = parse(chunk)
            if entry is not None:
                self._note(entry, message.device, size)
            else:
                self._others[chunk] = size
        if message.is_last:
            self._listed.add(message.device)
        self._changed_at = self._clock.monotonic()
        return InventoryAnswer(later=len(message.sizes))

    def _note(self, entry: CatalogChunk, device: int, size: int) -> None:
        key = (entry.kind, entry.sequence, entry.epoch)
        found = self._found.setdefault(key, Found(entry.kind, entry.sequence, entry.epoch))
        found.parts[entry.part][device] = size

    # -- the walk ---------------------------------------------------------------------------------------------
    async def run(self, judge: Callable[[], Awaitable[None]]) -> list[str]:
        """The report, line by line. judge: keeps the view current meanwhile. Raises ConflictError, UnavailableError
        (no server came, no whole snapshot is left)."""
        if not await self._database.read(snapshots.is_empty):
            raise ConflictError(
                "this catalog has buckets or objects; a rebuild starts with an empty one", code="catalog-not-empty"
            )
        self._cluster.adopts_cluster_id = True
        await self._gather(judge)
        await self._read_manifests()
        base, chain = self._choose()
        dump = await self._fetch(base)
        journals = [await self._fetch(piece) for piece in chain]
        return await self._load(base, chain, dump, journals)

    async def _gather(self, judge: Callable[[], Awaitable[None]]) -> None:
        """Until every device that came was listed and nobody new comes."""
        until = self._clock.monotonic() + WAIT_SECONDS_MAX
        while True:
            await judge()
            await self._ask()
            is_quiet = self._clock.monotonic() - self._changed_at >= QUIET_SECONDS
            if is_quiet and self._asked and self._asked <= self._listed:
                return
            if self._clock.monotonic() >= until:
                raise UnavailableError(
                    f"{len(self._asked)} devices came and {len(self._listed)} were listed within "
                    f"{WAIT_SECONDS_MAX:.0f} s; are the object servers running, with this cluster's join token?",
                    code="not-enough-servers",
                )
            await self._clock.sleep(POLL_SECONDS)

    async def _ask(self) -> None:
        view, now_ms = self._cluster.view, self._cluster.now_ms()
        wanted = [d for d in view.devices.values() if d.id not in self._asked and d.health != "failed"]
        made = [
            NewJob(
                "inventory", "rebuild", CLASS_INVENTORY, d.server, d.id,
                payload=msgspec.msgpack.encode(InventoryWork(view.servers[d.server].incarnation)),
            )
            for d in wanted
        ]  # fmt: skip
        if made:
            await self._database.write(lambda c: jobs.add(c, made, now_ms=now_ms))
            self._asked.update(d.id for d in wanted)
            self._changed_at = self._clock.monotonic()

    async def _read_manifests(self) -> None:
        for found in self._found.values():
            last = max(found.parts)
            try:
                manifest = msgspec.msgpack.decode(await self._read_part(found, last), type=Manifest)
            except (msgspec.MsgspecError, TierstoreError) as error:
                log.warning("%s %d has no manifest: %s", found.kind, found.sequence, error)
                continue
            if manifest.parts == last and set(found.parts) == set(range(last + 1)):
                found.manifest = manifest

    def _choose(self) -> tuple[Found, list[Found]]:
        """The newest whole snapshot and the unbroken journal behind it."""
        whole = [f for f in self._found.values() if f.manifest is not None]
        bases = [f for f in whole if f.kind == "snapshot"]
        if not bases:
            raise UnavailableError(
                f"no whole snapshot of the catalog is on the {len(self._listed)} devices that came",
                code="no-snapshot",
            )
        base = max(bases, key=lambda f: (f.sequence, f.manifest.at_ms if f.manifest else 0))
        chain: list[Found] = []
        at = base.sequence
        while True:
            following = [
                f for f in whole
                if f.kind == "journal" and f.manifest is not None and f.manifest.after <= at < f.sequence
            ]  # fmt: skip
            if not following:
                return base, chain
            chain.append(max(following, key=lambda f: f.sequence))
            at = chain[-1].sequence

    async def _fetch(self, found: Found) -> bytes:
        assert found.manifest is not None
        data = b"".join([await self._read_part(found, part) for part in range(found.manifest.parts)])
        if len(data) != found.manifest.total_bytes:
            raise IntegrityError(
                f"{found.kind} {found.sequence} has another size than its manifest says", code="bad-snapshot"
            )
        for _ in snapshots.frames_of(data):
            pass    # every frame's checksum
        return data

    async def _read_part(self, found: Found, part: int) -> bytes:
        """One part from any device that has it whole. Raises the last source's error."""
        failure: TierstoreError = UnavailableError("no device has it", code="no-replica")
        chunk = chunk_for(found.kind, found.sequence, found.epoch, part)
        for device, size in sorted(found.parts[part].items()):
            try:
                return await self._read(device, chunk, size)
            except TierstoreError as error:
                failure = error
        raise failure

    async def _read(self, device: int, chunk: ChunkId, size: int) -> bytes:
        """The bytes, each block checked against its sum; that they are the right ones the frames' checksums say."""
        view = self._cluster.view
        server = view.servers[view.devices[device].server]
        key = view.signing_key(server.id)
        if key is None:
            raise UnavailableError("the server shares no ticket key yet", code="not-registered")
        ticket = ReadTicket(
            ServerId(server.id), DeviceId(device), chunk, 0, 0, size,
            self._cluster.now_ms() // 1000 + TICKET_SECONDS_MAX, NO_HEAT,
        )  # fmt: skip
        target = b"/v1/chunks/" + mint_read(ticket, key_id=key[0], key=key[1])
        stream = await self._transport.open(server.url, b"GET", target, seconds=READ_SECONDS)
        try:
            if stream.status != 200:
                raise UnavailableError(f"{server.url} answered {stream.status}", code="unexpected-answer")
            sums_bytes = block_count(size) * SUM_BYTES
            body = bytearray(sums_bytes + size)
            await stream.read_into(memoryview(body))
        finally:
            stream.close()
        data = memoryview(body)[sums_bytes:]
        for block, expected in enumerate(unpack_sums(bytes(body[:sums_bytes]))):
            verify_block(data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES], expected, chunk=chunk, block=block)
        return bytes(data)

    # -- taking over ------------------------------------------------------------------------------------------
    async def _load(self, base: Found, chain: list[Found], dump: bytes, journals: list[bytes]) -> list[str]:
        seen = max((d.seen_sequence for d in self._cluster.view.devices.values()), default=0)
        uuids = {d.id: d.uuid for d in self._cluster.view.devices.values()}
        last = chain[-1] if chain else base
        assert base.manifest is not None and last.manifest is not None
        ended_at_ms, now_ms = last.manifest.at_ms, self._cluster.now_ms()
        window = f"{ended_at_ms - BEFORE_MS},{now_ms}"
        pieces = [base, *chain]

        def work(c: Connection) -> tuple[dict[str, int], int]:
            rows = dict(snapshots.load(c, dump).rows)
            for journal in journals:
                for table, count in snapshots.apply(c, journal).rows.items():
                    rows[table] = rows.get(table, 0) + count
            snapshots.settle(c, sequence=max(seen, last.sequence) + SEQUENCE_GAP, version=0)
            ids = {d.uuid: d.id for d in servers.all_devices(c)}
            kept = [
                Piece(
                    f.kind, f.sequence, f.manifest.after if f.manifest else 0, f.manifest.at_ms if f.manifest else 0,
                    [(chunk, [ids[uuids[d]] for d in devices if uuids[d] in ids]) for chunk, devices in f.pieces()],
                )
                for f in pieces
            ]  # fmt: skip
            leases.set_setting(c, Snapshots.SETTING, msgspec.json.encode(kept).decode())
            leases.set_setting(c, DeletionGuard.SETTING, "")
            leases.set_setting(c, DeletionGuard.REBUILT_WINDOW, window)
            return rows, snapshots.count_objects(c)

        rows, objects = await self._database.write(work, seconds=LOAD_SECONDS)
        self._guard.barred = ""
        unknown = await self._unknown(ended_at_ms)
        report = [
            f"cluster {last.manifest.cluster_id}: {objects} objects in {rows.get('buckets', 0)} buckets",
            f"snapshot at sequence {base.sequence}, {len(chain)} journal pieces up to {last.sequence}",
        ]
        if seen > last.sequence:
            lost = seen - last.sequence
            report.append(f"devices have seen sequence {seen}: up to {lost} changes are not in the journal")
        count, size = unknown
        report.append(
            f"{count} chunks ({size} bytes) are younger than the journal and named by nothing: kept, not made into "
            "objects; `tierstore admin` can agree to their collection"
            if count
            else "no chunk is younger than the journal"
        )
        return report

    async def _unknown(self, ended_at_ms: int) -> tuple[int, int]:
        """(number, bytes) of listed chunks that nothing names and whose upload began late enough to be unknown."""
        young = [
            chunk for chunk in self._others
            if allocated_at_ms(UploadId(chunk[:UPLOAD_ID_BYTES])) >= ended_at_ms - BEFORE_MS
        ]  # fmt: skip
        named = await self._database.scan(lambda c: snapshots.named_chunks(c, young), seconds=LOAD_SECONDS)
        left = [chunk for chunk in young if chunk not in named]
        return len(left), sum(self._others[chunk] for chunk in left)
