"""Copy jobs: bring a chunk from a peer, or from another device of this server, to one of our devices.

Owns nothing that outlives the job. Invariants: every block is checked on its way in, and the whole against the CRC32C
of the job, before the copy becomes durable; the receipt is signed after that; a source that fails or lies is given up
for the next one and reported; cancelled or failed, the copy leaves nothing behind.

Cost: one pass over the bytes (CRC twice: 0.1 ms/MiB), one write, one sync; at most one piece of 256 KiB to 1 MiB and
the writer's window in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from objectd.config import STREAM_WINDOW_BYTES
from objectd.finishing import finish
from objectd.fresh import Fresh
from objectd.slots import Slot, Slots
from objectd.standing import Standing
from objectd.store.device import ChunkWriter, Location
from objectd.work.runner import Lease, Outcome
from objectd.work.verified import verified_pieces
from objectd.work.verify import VerifyWork
from tierstore.checksum import BlockSummer, combine_sums, sums_of
from tierstore.errors import (
    ConflictError,
    IntegrityError,
    NotFound,
    TicketRefused,
    TierstoreError,
    UnavailableError,
)
from tierstore.names import ChunkId, DeviceId
from tierstore.telemetry.log import get_logger
from tierstore.transport.object_client import ObjectClient
from tierstore.wire.cluster import CopySource, Job

log = get_logger("objectd.work.copy")

SOURCES_MAX: Final = 8
SOURCE_SECONDS: Final = 15.0      # for the first byte and for each further piece of a source
WRITE_SECONDS: Final = 60.0       # for the device to catch up or to sync


class CopyWork:
    """What a copy job does. `client` reads from peers."""

    def __init__(
        self, *, standing: Standing, slots: Slots, client: ObjectClient, verify: VerifyWork, fresh: Fresh,
        segment_chunk_bytes_max: int, promotions_max: int,
    ) -> None:  # fmt: skip
        """promotions_max: read their sources at once, whatever parts of slots they take: each may be a seek of a slow
        device before those of clients."""
        self._standing = standing
        self._slots = slots
        self._client = client
        self._verify = verify
        self._fresh = fresh
        self._small_bytes_max = segment_chunk_bytes_max
        self._promotions = asyncio.Semaphore(promotions_max)

    async def __call__(self, job: Job, lease: Lease) -> Outcome:
        """The receipt of the new copy. Raises what the last source failed with."""
        slot = self._slots.slot(job.device)
        if job.why == "promote":    # an extra copy may wait until there is room; no source is read in vain
            slot.want_room(job.chunk_bytes)
        if job.sources:
            await self._clear_rot(slot, job)
        failure: TierstoreError = UnavailableError(f"job {job.id} names no source", code="no-replica")
        for source in job.sources[:SOURCES_MAX]:
            lease.check()
            try:
                at = await self._from(source, job, slot, lease)
            except (IntegrityError, NotFound, TicketRefused, UnavailableError) as error:
                if error.code == "device-failed":
                    raise       # ours, not the source's
                failure = error
                await self._report(source, job, error)
                continue
            return Outcome(receipt=self._sign(slot, job, at))
        raise failure

    async def _report(self, source: CopySource, job: Job, error: TierstoreError) -> None:
        """A peer's bad copy is told to metadata, which has the peer check it; a bad one of our own is checked here: it
        must be in quarantine before it is told."""
        log.info("a source failed", job=job.id, server=source.server, code=error.code)
        if isinstance(error, IntegrityError) and self._is_own(source):
            with contextlib.suppress(TierstoreError, OSError, TimeoutError):     # what it finds it tells by itself
                await self._verify.check(
                    self._slots.slot(source.device), ChunkId(job.chunk), crc32c=job.crc32c, on_piece=_no_pace
                )
        elif isinstance(error, IntegrityError):
            self._slots.note_bad(ChunkId(job.chunk), DeviceId(source.device), "bad-block")
        elif error.code == "no-such-chunk":
            self._slots.note_bad(ChunkId(job.chunk), DeviceId(source.device), "missing")

    async def _clear_rot(self, slot: Slot, job: Job) -> None:
        """A copy that is here already is read before the new one may count as a repeat of it: a bad one is put aside
        now. One in the trash too, which the repeat would take back unread. Raises what the device raises."""
        chunk = ChunkId(job.chunk)
        for is_restored in (False, True):
            try:
                return await self._read_here(slot, job)
            except NotFound:
                if is_restored:
                    return None
            except IntegrityError as error:
                log.warning("a bad copy was here already", job=job.id, chunk=chunk.hex(), detail=error.detail)
                async with asyncio.timeout(WRITE_SECONDS):
                    await slot.device.quarantine(chunk, error.detail)
                return None
            try:
                async with asyncio.timeout(WRITE_SECONDS):
                    await slot.device.restore(chunk)
            except NotFound:
                return None     # as nearly always
        return None

    @staticmethod
    async def _read_here(slot: Slot, job: Job) -> None:
        chunk = ChunkId(job.chunk)
        async with asyncio.timeout(SOURCE_SECONDS):
            slot.device.forget_open(chunk)
            opened = await slot.device.find(chunk)
        try:
            async with aclosing(verified_pieces(opened, chunk, crc32c=job.crc32c)) as pieces:
                async for _ in pieces:
                    pass
        finally:
            opened.close()

    def _is_own(self, source: CopySource) -> bool:
        return source.server == self._standing.server and source.device in self._slots.by_id

    async def _from(self, source: CopySource, job: Job, slot: Slot, lease: Lease) -> Location:
        pieces = self._own(source, job) if self._is_own(source) else self._peer(source, job)
        reading = self._promotions if job.why == "promote" else contextlib.nullcontext()
        async with aclosing(pieces):
            if job.chunk_bytes > self._small_bytes_max:
                async with reading:
                    return await self._store_large(job, slot, lease, pieces)
            async with reading:     # waited for no longer than the lease runs
                data = await self._read_small(job, lease, pieces)
            return await self._store_small(job, slot, lease, data)

    async def _own(self, source: CopySource, job: Job) -> AsyncGenerator[bytes | memoryview, None]:
        chunk = ChunkId(job.chunk)
        answer = self._fresh.take(chunk, job.chunk_bytes)
        if answer is not None:      # compared with the catalog's checksum when it is whole, as every source
            yield memoryview(answer)[len(answer) - job.chunk_bytes :]
            return
        async with asyncio.timeout(SOURCE_SECONDS):
            opened = await self._slots.slot(source.device).device.find(chunk)
        try:
            if opened.chunk_bytes != job.chunk_bytes:
                raise IntegrityError(f"chunk {chunk.hex()} has {opened.chunk_bytes} bytes here", code="bad-footer")
            async with aclosing(verified_pieces(opened, chunk, crc32c=job.crc32c)) as pieces:
                async for piece in pieces:
                    yield piece
        except (OSError, TimeoutError) as error:
            raise IntegrityError(f"device {source.device} cannot read: {error}", code="read-error") from error
        finally:
            opened.close()

    async def _peer(self, source: CopySource, job: Job) -> AsyncGenerator[bytes | memoryview, None]:
        stream = await self._client.open_chunk(
            source.url, source.ticket, chunk=ChunkId(job.chunk), chunk_bytes=job.chunk_bytes, crc32c=job.crc32c,
            first=0, length=job.chunk_bytes, seconds=SOURCE_SECONDS,
        )  # fmt: skip
        try:
            left = job.chunk_bytes
            while left > 0:
                piece = await stream.next_piece()
                left -= len(piece)
                yield piece
        finally:
            stream.close()

    @staticmethod
    async def _read_small(
        job: Job, lease: Lease, pieces: AsyncGenerator[bytes | memoryview, None]
    ) -> bytearray:  # fmt: skip
        data = bytearray()
        async for piece in pieces:
            data += piece
            await lease.moved(len(piece), of=job.chunk_bytes)
        return data

    async def _store_small(self, job: Job, slot: Slot, lease: Lease, data: bytearray) -> Location:
        sums = sums_of(data)
        _check(job, sums, len(data))
        lease.check()
        async with asyncio.timeout(WRITE_SECONDS):
            return await slot.device.put_small(ChunkId(job.chunk), data, sums)

    async def _store_large(
        self, job: Job, slot: Slot, lease: Lease, pieces: AsyncGenerator[bytes | memoryview, None]
    ) -> Location:
        chunk = ChunkId(job.chunk)
        try:
            writer = slot.device.begin(chunk, job.chunk_bytes, keep_warm=job.why == "promote")
        except ConflictError:
            return await self._here_already(job, slot)
        try:
            summer = BlockSummer()
            async for piece in pieces:
                summer.update(piece)
                writer.write(piece)
                await lease.moved(len(piece), of=job.chunk_bytes)
                await _let_catch_up(writer)
            sums = summer.sums()
            _check(job, sums, summer.size)
            lease.check()
            return await finish(writer, sums, seconds=WRITE_SECONDS)
        finally:
            writer.abort()      # no effect after finish

    async def _here_already(self, job: Job, slot: Slot) -> Location:
        """An earlier attempt stored it and its report was lost. Raises ConflictError when it is another chunk."""
        async with asyncio.timeout(SOURCE_SECONDS):
            opened = await slot.device.find(ChunkId(job.chunk))
        try:
            _check(job, opened.sums, opened.chunk_bytes)
        except IntegrityError:
            raise ConflictError(f"chunk {job.chunk.hex()} is here with other bytes", code="chunk-exists") from None
        finally:
            opened.close()
        return Location(0, 0)

    def _sign(self, slot: Slot, job: Job, at: Location) -> bytes:
        return self._standing.sign(
            device=slot.id, chunk=ChunkId(job.chunk), segment=at.segment, offset=at.offset,
            chunk_bytes=job.chunk_bytes, crc32c=job.crc32c,
        )  # fmt: skip


async def _no_pace(_count: int) -> None:
    """A copy that just failed a check is read again at once."""


def _check(job: Job, sums: bytes, size: int) -> None:
    """The pair of the reader's own check: what is about to be kept is the chunk the catalog means."""
    if size != job.chunk_bytes or combine_sums(sums, size) != job.crc32c:
        raise IntegrityError(f"the copy of chunk {job.chunk.hex()} is not what the catalog says", code="bad-block")


async def _let_catch_up(writer: ChunkWriter) -> None:
    if writer.pending_bytes >= STREAM_WINDOW_BYTES:
        async with asyncio.timeout(WRITE_SECONDS):
            await writer.drained()
