"""Making a lost catalog again from what the object servers hold (`metadata rebuild`, rule 5).

An empty catalog is opened and served; the object servers, whose secrets it does not know, join it anew with the join
token, and it takes over the cluster id that stands on their devices. Their inventories show the reserved ids of
snapshot and journal pieces; the newest whole snapshot and the unbroken journal behind it are fetched, checked and
loaded in one transaction. Nothing is deleted anywhere meanwhile.

What was written after the last journal piece (seconds, at most) is in no catalog any more: the headers of all chunks
stored since shortly before it are asked for as well, and services.adopt makes objects of them when the catalog was
opened anew. What stays without an owner is protected: no inventory calls it an orphan until an operator agrees
(DeletionGuard.spare_rebuilt).

A catalog that was restored from a backup, and has taken no write since, counts as one more base: it is replaced when
the object servers have a newer one, else their journal is applied to it. Any other catalog with buckets or objects is
refused. A rebuild that was interrupted between loading and adopting may be started again.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from metadata.catalog import buckets, feed, jobs, leases, servers, snapshot_frames, snapshot_load
from metadata.catalog.database import Database
from metadata.catalog.jobs import NewJob
from metadata.catalog.leases import Connection
from metadata.services.cluster.join import Registrar
from metadata.services.cluster.membership import Cluster
from metadata.services.jobs.work import CLASS_INVENTORY, InventoryWork
from metadata.services.upkeep.adopt import Findings
from metadata.services.upkeep.collect import DeletionGuard
from metadata.services.upkeep.snapshot import Manifest, Piece, Snapshots
from metadata.services.upkeep.snapshot_ids import CatalogChunk, Kind, chunk_for, parse
from tierstore.checksum import BLOCK_BYTES, SUM_BYTES, block_count, unpack_sums, verify_block
from tierstore.clock import Clock
from tierstore.errors import ConflictError, IntegrityError, TierstoreError, UnavailableError
from tierstore.names import ChunkId, DeviceId, ServerId
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
#: Chunks stored so long before it may belong to an upload that was committed behind it; by the object servers' clocks.
HEADERS_BEFORE_MS: Final = 60 * 60_000
HEADERS_MAX: Final = 5_000_000
#: Setting: loaded, not yet adopted.
UNFINISHED: Final = "rebuild-unfinished"
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
    """One rebuild; `begin` looks at the catalog that is here, `run` does the rest while the process serves
    registrations, heartbeats and inventories."""

    def __init__(
        self, database: Database, cluster: Cluster, guard: DeletionGuard, *, registrar: Registrar,
        transport: PeerTransport, clock: Clock,
    ) -> None:  # fmt: skip
        self._database = database
        self._cluster = cluster
        self._registrar = registrar
        self._guard = guard
        self._transport = transport
        self._clock = clock
        self._found: dict[tuple[str, int, int], Found] = {}
        self._listed: set[int] = set()
        self._asked: set[int] = set()
        self._headed: set[int] = set()          # devices that told their headers
        self._since_ms = 0
        #: What services.adopt goes on with.
        self.findings = Findings()
        self._changed_at = clock.monotonic()
        self._own = Own(is_empty=False, is_refused=True)    # what `begin` found

    # -- inventories ------------------------------------------------------------------------------------------
    async def page(self, message: Inventory) -> InventoryAnswer:
        """Note what a device holds; nothing is an orphan."""
        if message.server not in self._cluster.view.servers:
            raise ConflictError("register first", code="stale-incarnation")
        self._changed_at = self._clock.monotonic()
        if message.since_ms > 0:
            return self._note_headers(message)
        for number, size in enumerate(message.sizes):
            chunk = message.ids[16 * number : 16 * number + 16]
            entry = parse(chunk)
            if entry is not None:
                self._note(entry, message.device, size)
        if message.is_last:
            self._listed.add(message.device)
        return InventoryAnswer(later=len(message.sizes))

    def _note_headers(self, message: Inventory) -> InventoryAnswer:
        uuid, headers = self._cluster.view.devices[message.device].uuid, self.findings.headers
        if len(headers) + len(message.headers) > HEADERS_MAX:
            raise UnavailableError(f"more than {HEADERS_MAX} chunks are behind the journal", code="too-many-items")
        if message.since_ms == self._since_ms and message.device not in self._headed:
            headers += [(uuid, header) for header in message.headers if parse(header.chunk) is None]
            if message.is_last:
                self._headed.add(message.device)
        return InventoryAnswer()

    def _note(self, entry: CatalogChunk, device: int, size: int) -> None:
        key = (entry.kind, entry.sequence, entry.epoch)
        found = self._found.setdefault(key, Found(entry.kind, entry.sequence, entry.epoch))
        found.parts[entry.part][device] = size

    # -- the walk ---------------------------------------------------------------------------------------------
    async def begin(self) -> None:
        """Before anybody is served: whoever joined a catalog that does not yet take over the cluster's id would be
        refused, and come again a minute later. Raises ConflictError when the catalog may not be replaced."""
        own = await self._database.read(own_state)
        if own.is_refused:
            raise ConflictError(
                "this catalog has buckets or objects; a rebuild starts with an empty one, or with a backup that was "
                "just restored and has taken no write since",
                code="catalog-not-empty",
            )
        if own.is_empty:
            self._registrar.replaceable_cluster_id = self._cluster.view.cluster_id
        self._own = own

    async def run(self, judge: Callable[[], Awaitable[None]]) -> list[str]:
        """The report, line by line. judge: keeps the view current meanwhile. Raises UnavailableError (no server came,
        no whole snapshot is left)."""
        own = self._own
        await self._gather(judge)
        await self._read_manifests()
        base, chain = self._choose(own)
        dump = b"" if base is None else await self._fetch(base)
        journals = [await self._fetch(piece) for piece in chain]
        ended_at_ms = max([own.at_ms, *(f.manifest.at_ms for f in [base, *chain] if f is not None and f.manifest)])
        self._since_ms = max(1, ended_at_ms - HEADERS_BEFORE_MS)
        await self._gather_headers(judge)
        return await self._load(base, chain, dump, journals, own=own, ended_at_ms=ended_at_ms)

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
        # A restored catalog names servers that may be gone: only who came is asked.
        wanted = [
            d for d in view.devices.values()
            if d.id not in self._asked and d.health != "failed"
            and view.servers[d.server].seen_at_ms >= self._cluster.watching_since_ms
        ]  # fmt: skip
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

    async def _gather_headers(self, judge: Callable[[], Awaitable[None]]) -> None:
        """The second question to each device that was listed. One that does not answer ends the rebuild: what only it
        knows would stay lost."""
        view, now_ms = self._cluster.view, self._cluster.now_ms()
        made = [
            NewJob(
                "inventory", "rebuild", CLASS_INVENTORY, view.devices[d].server, d,
                payload=msgspec.msgpack.encode(
                    InventoryWork(view.servers[view.devices[d].server].incarnation, self._since_ms)
                ),
            )
            for d in sorted(self._listed)
        ]  # fmt: skip
        await self._database.write(lambda c: jobs.add(c, made, now_ms=now_ms))
        self._changed_at = self._clock.monotonic()
        while not self._listed <= self._headed:
            if self._clock.monotonic() - self._changed_at >= WAIT_SECONDS_MAX:
                missing = ", ".join(str(d) for d in sorted(self._listed - self._headed))
                raise UnavailableError(f"devices {missing} did not tell their chunks' headers", code="device-slow")
            await judge()
            await self._clock.sleep(POLL_SECONDS)

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

    def _choose(self, own: Own) -> tuple[Found | None, list[Found]]:
        """The newest whole snapshot and the unbroken journal behind it; no snapshot: what this catalog has is newer, or
        there is none. Raises UnavailableError when there are pieces, but none that anything can begin with."""
        whole = [f for f in self._found.values() if f.manifest is not None]
        bases = [f for f in whole if f.kind == "snapshot" and f.sequence >= own.sequence]
        if not bases and own.is_empty and self._found:
            raise UnavailableError(
                f"no whole snapshot of the catalog is on the {len(self._listed)} devices that came, only parts: give "
                "the rebuild more servers",
                code="no-snapshot",
            )
        base = max(bases, key=lambda f: (f.sequence, f.manifest.at_ms if f.manifest else 0)) if bases else None
        chain: list[Found] = []
        at = own.sequence if base is None else base.sequence
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
        for _ in snapshot_frames.frames_of(data):
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
    async def _load(
        self, base: Found | None, chain: list[Found], dump: bytes, journals: list[bytes], *, own: Own, ended_at_ms: int
    ) -> list[str]:
        seen = max((d.seen_sequence for d in self._cluster.view.devices.values()), default=0)
        uuids = {d.id: d.uuid for d in self._cluster.view.devices.values()}
        pieces = chain if base is None else [base, *chain]
        last = pieces[-1].sequence if pieces else own.sequence
        window = f"{max(0, ended_at_ms - BEFORE_MS)},{self._cluster.now_ms()}"
        findings = self.findings

        def work(c: Connection) -> tuple[int, int]:
            loads = [snapshot_load.load(c, dump)] if dump else []
            loads += [snapshot_load.apply(c, journal) for journal in journals]
            for loaded in loads:
                findings.tombstones.update(loaded.tombstones)
                findings.bucket_changes.update(loaded.bucket_changes)
            snapshot_load.settle(c, sequence=max(seen, last) + SEQUENCE_GAP, version=0)
            ids = {d.uuid: d.id for d in servers.all_devices(c)}
            # A time of 0: the next snapshot is due at once, so that what is adopted is soon in a copy again.
            kept = [
                Piece(
                    f.kind, f.sequence, f.manifest.after if f.manifest else 0, 0,
                    [(chunk, [ids[uuids[d]] for d in devices if uuids[d] in ids]) for chunk, devices in f.pieces()],
                )
                for f in pieces
            ]  # fmt: skip
            leases.set_setting(c, Snapshots.SETTING, msgspec.json.encode(kept).decode())
            leases.set_setting(c, DeletionGuard.SETTING, "")
            leases.set_setting(c, DeletionGuard.REBUILT_WINDOW, window)
            leases.set_setting(c, UNFINISHED, "1")
            return snapshot_load.count_objects(c), len(buckets.everything(c))

        objects, bucket_count = await self._database.write(work, seconds=LOAD_SECONDS)
        self._guard.barred = ""
        began = "the catalog that is here" if base is None else f"a snapshot at sequence {base.sequence}"
        report = [
            f"cluster {self._cluster.view.cluster_id}: {objects} objects in {bucket_count} buckets",
            f"from {began} and {len(chain)} journal pieces, up to sequence {last}",
        ]
        if seen > last:
            report.append(f"devices have seen sequence {seen}: up to {seen - last} changes are not in the journal")
        return report


@dataclass(frozen=True, slots=True)
class Own:
    """What the catalog holds before the rebuild. sequence, at_ms: how far it goes, 0 when it is empty or is to be
    replaced in any case."""

    is_empty: bool
    is_refused: bool = False
    sequence: int = 0
    at_ms: int = 0


def own_state(c: Connection) -> Own:
    """Whether a rebuild may take this catalog."""
    if snapshot_load.is_empty(c):
        return Own(is_empty=True)
    if leases.setting(c, UNFINISHED):
        return Own(is_empty=False)      # loaded by a rebuild that was interrupted: begin again
    sequence, _ = feed.head(c)
    restored = leases.setting(c, snapshot_load.RESTORED).split(",")
    if len(restored) != 2 or int(restored[0]) != sequence:
        return Own(is_empty=False, is_refused=True)
    return Own(is_empty=False, sequence=sequence, at_ms=int(restored[1]))


def finish(c: Connection) -> None:
    """The rebuild is whole: what could be adopted was."""
    leases.set_setting(c, UNFINISHED, "")
    leases.set_setting(c, snapshot_load.RESTORED, "")
