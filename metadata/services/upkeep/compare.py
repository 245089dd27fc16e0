"""Comparing what object servers hold with what the catalog says, for people: nothing is changed or deleted on its word.

Each device that answers is asked for the headers of all its chunks (an inventory job, as a rebuild asks); each page is
compared with the rows that name chunks on that device:
- missing: a row counts on a live copy here, the device lacks it
- unknown: on the device, in no row, though its upload is over and it is not being collected
- size, checksum: the header names other bytes than the row
- pending: not judged; its upload may be under way, or it waits for its collection
What differs is told as of the moment of its page: a copy that a job makes or takes away in that moment may be named,
and is not by the next comparison.

Invariant: the state of a device is one row of the settings, changed under its lock, so that any metadata process may
take any page. Bounds: FINDINGS_MAX differences per device are told one by one, the others counted.
Cost: a page of 1,024 headers is one scan of about 50 ms beside the hot path, and one write.
"""

from __future__ import annotations

from typing import Final

import msgspec

from metadata.catalog import garbage, jobs, leases, workload
from metadata.catalog.database import Database
from metadata.catalog.jobs import NewJob
from metadata.catalog.leases import Connection
from metadata.catalog.packed import BAD, LIVE
from metadata.services.cluster.membership import Cluster
from metadata.services.jobs.work import CLASS_SCRUB, BatchWork, InventoryWork, ReplicaBook, is_alive
from metadata.services.upkeep.snapshot_ids import is_reserved
from tierstore.names import CHUNK_ID_BYTES, UPLOAD_ID_BYTES, UploadId, allocated_at_ms
from tierstore.wire.cluster import ChunkHeader, Inventory, InventoryAnswer

WHY: Final = "compare"
SETTING: Final = "comparison-"
FINDINGS_MAX: Final = 200
#: All headers, however old; the smallest value that asks for headers at all.
SINCE_MS: Final = 1
ROWS_MAX: Final = 65_536
GARBAGE_ROWS_LOOKED_AT: Final = 20_000
BATCHES_LOOKED_AT: Final = 1_000


class Finding(msgspec.Struct, frozen=True):
    """what: missing | unknown | size | checksum."""

    chunk: str
    what: str
    detail: str = ""


class DeviceComparison(msgspec.Struct):
    """What was found on one device. expected: rows of the reverse table when it began; finished_at_ms 0: under way, or
    the device has not answered yet."""

    device: int
    started_at_ms: int
    finished_at_ms: int = 0
    expected: int = 0
    after: bytes = b""
    chunks: int = 0
    total_bytes: int = 0
    missing: int = 0
    unknown: int = 0
    size_differs: int = 0
    checksum_differs: int = 0
    pending: int = 0
    findings: list[Finding] = []

    @property
    def differences(self) -> int:
        return self.missing + self.unknown + self.size_differs + self.checksum_differs

    def note(self, finding: Finding) -> None:
        """Count a difference, and keep it while there is room."""
        if finding.what == "missing":
            self.missing += 1
        elif finding.what == "unknown":
            self.unknown += 1
        elif finding.what == "size":
            self.size_differs += 1
        else:
            self.checksum_differs += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)


class CatalogComparison:
    """Starts comparisons, takes their pages, says what was found. One per process."""

    def __init__(self, database: Database, cluster: Cluster, book: ReplicaBook, *, over_ms: int) -> None:
        """over_ms: an upload of that age that no row names is over."""
        self._database = database
        self._cluster = cluster
        self._book = book
        self._over_ms = over_ms

    async def start(self) -> list[DeviceComparison]:
        """Compare every device that answers now, anew. Durable when it returns; safe to repeat."""
        view, now_ms = self._cluster.view, self._cluster.now_ms()
        chosen = sorted(d.id for d in view.devices.values() if is_alive(view, d.id))

        def work(c: Connection) -> None:
            for name in leases.settings_like(c, SETTING):
                leases.set_setting(c, name, "")
            for device in chosen:
                server = view.servers[view.devices[device].server]
                expected, _ = garbage.count_on_device(c, device)
                self._save(c, DeviceComparison(device, now_ms, expected=expected))
                jobs.remove_waiting_on(c, device, WHY)
                payload = msgspec.msgpack.encode(InventoryWork(server.incarnation, SINCE_MS))
                jobs.add(
                    c, [NewJob("inventory", WHY, CLASS_SCRUB, server.id, device, payload=payload)], now_ms=now_ms
                )

        await self._database.write(work)
        return await self.status()

    async def status(self) -> list[DeviceComparison]:
        """What was found so far, by device; empty before the first comparison."""
        found = await self._database.read(lambda c: leases.settings_like(c, SETTING))
        kept = [msgspec.json.decode(text, type=DeviceComparison) for text in found.values() if text]
        return sorted(kept, key=lambda d: d.device)

    async def page(self, message: Inventory) -> InventoryAnswer:
        """Compare one page of headers. Nothing is an orphan on its answer."""
        now_ms = self._cluster.now_ms()
        last = None if message.is_last else (message.headers[-1].chunk if message.headers else message.after)
        found = await self._database.scan(lambda c: self._compare(c, message, last, now_ms))

        def work(c: Connection) -> None:
            text = leases.lock_setting(c, f"{SETTING}{message.device}")
            state = msgspec.json.decode(text, type=DeviceComparison) if text else None
            if state is None or state.finished_at_ms or (message.after and state.after != message.after):
                return      # nobody asks for it any more, or the page is a repeat
            if not message.after:
                state = DeviceComparison(message.device, state.started_at_ms, expected=state.expected)
            state.chunks += len(message.headers)
            state.total_bytes += sum(header.chunk_bytes for header in message.headers)
            state.pending += found.pending
            for finding in found.findings:
                state.note(finding)
            state.after = last if last is not None else state.after
            state.finished_at_ms = now_ms if message.is_last else 0
            self._save(c, state)

        await self._database.write(work)
        return InventoryAnswer()

    @staticmethod
    def _save(c: Connection, state: DeviceComparison) -> None:
        leases.set_setting(c, f"{SETTING}{state.device}", msgspec.json.encode(state).decode())

    def _compare(self, c: Connection, message: Inventory, last: bytes | None, now_ms: int) -> _PageFindings:
        device = message.device
        headers = {header.chunk: header for header in message.headers if not is_reserved(header.chunk)}
        named = {
            chunk for chunk, _ in garbage.placed_between(c, device, after=message.after, last=last, limit=ROWS_MAX)
        }
        found = _PageFindings()
        unnamed: list[bytes] = []
        for chunk in sorted(headers.keys() | named):
            header = headers.get(chunk)
            located = self._book.locate(c, device, chunk)
            mine = next((r for r in located.chunk.replicas if r.device == device), None) if located else None
            if located is None or mine is None:
                if header is not None:
                    unnamed.append(chunk)
            elif mine.state == LIVE and header is None:
                found.judge(Finding(chunk.hex(), "missing"), self._is_young(chunk, now_ms))
            elif mine.state != BAD and header is not None:
                difference = _difference(header, located.chunk.chunk_bytes, located.chunk.crc32c)
                if difference is not None:
                    found.findings.append(difference)
        spoken_for = self._spoken_for(c, device, unnamed) if unnamed else set()
        for chunk in unnamed:
            is_pending = spoken_for is None or chunk in spoken_for or self._is_young(chunk, now_ms)
            found.judge(Finding(chunk.hex(), "unknown"), is_pending)
        return found

    @staticmethod
    def _spoken_for(c: Connection, device: int, chunks: list[bytes]) -> set[bytes] | None:
        """Those that wait for their collection or a job; None when too much waits to be looked through."""
        collecting = garbage.in_garbage(c, chunks, since_ms=0, rows_max=GARBAGE_ROWS_LOOKED_AT)
        batches = workload.batches_on(c, device, limit=BATCHES_LOOKED_AT)
        if collecting is None or len(batches) == BATCHES_LOOKED_AT:
            return None
        going = collecting | set(workload.open_kinds_of(c, chunks))
        for payload in batches:
            ids = msgspec.msgpack.decode(payload, type=BatchWork).ids
            going.update(ids[at : at + CHUNK_ID_BYTES] for at in range(0, len(ids), CHUNK_ID_BYTES))
        return going

    def _is_young(self, chunk: bytes, now_ms: int) -> bool:
        assert len(chunk) == CHUNK_ID_BYTES
        return now_ms - allocated_at_ms(UploadId(chunk[:UPLOAD_ID_BYTES])) <= self._over_ms


class _PageFindings:
    """What one page came to."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.pending = 0

    def judge(self, finding: Finding, is_pending: bool) -> None:
        if is_pending:
            self.pending += 1
        else:
            self.findings.append(finding)


def _difference(header: ChunkHeader, chunk_bytes: int, crc32c: int) -> Finding | None:
    if header.chunk_bytes != chunk_bytes:
        detail = f"{header.chunk_bytes} bytes here, {chunk_bytes} in the catalog"
        return Finding(header.chunk.hex(), "size", detail)
    if header.crc32c != crc32c:
        detail = f"CRC32C {header.crc32c:08x} here, {crc32c:08x} in the catalog"
        return Finding(header.chunk.hex(), "checksum", detail)
    return None
