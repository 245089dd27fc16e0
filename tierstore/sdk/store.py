"""The store as a program sees it: put, get, list and the rest, async. The gateway is a user of it.

Owns the parts of the walks (metadata client, object client, server book, allocations, memory budget) and their life.
`Store(...)` takes them built; `connect` builds them for a client that has an endpoint and a token. Reads and writes
go straight to the object servers; names go to metadata in batches.

All methods raise the errors of tierstore.errors. Puts are durable on N+1 servers when they return. A call may be
cancelled: nothing becomes visible by a cancelled put (unless its commit was already on the way).
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import replace
from types import TracebackType

from tierstore.checksum import crc_of, encode_crc
from tierstore.clock import Clock
from tierstore.errors import (
    AccessDenied,
    ChecksumMismatch,
    ConfigError,
    ConflictError,
    RangeNotSatisfiable,
    UnavailableError,
)
from tierstore.names import check_bucket_name, check_key
from tierstore.sdk.allocations import AllocationPool, PlacementClass
from tierstore.sdk.buckets import Buckets
from tierstore.sdk.budget import BufferBudget
from tierstore.sdk.early import EarlyRead, EarlyReads
from tierstore.sdk.fanout import ChunkFanout
from tierstore.sdk.get import GetParts, GetWalk
from tierstore.sdk.limits import OBJECT_BYTES_MAX, SMALL_BYTES, StoreLimits
from tierstore.sdk.names import NameCalls
from tierstore.sdk.objects import ObjectInfo, ObjectReader, PutInfo, check_condition, info_of, make_meta
from tierstore.sdk.placement import Placer
from tierstore.sdk.put import STALE_RECEIPT_CODES, Buffer, PutParts, PutWalk, StaleReceipts
from tierstore.sdk.remote import BodyWalk
from tierstore.sdk.servers import ServerBook
from tierstore.transport.metadata_client import MetadataClient
from tierstore.transport.object_client import ObjectClient
from tierstore.transport.peer import PeerTransport
from tierstore.wire.hints import WriteHint, hint_of, name_of, native_etag
from tierstore.wire.names import (
    AllocateItem,
    CommitChunk,
    CommitResult,
    Condition,
    Fill,
    LookupItem,
    LookupResult,
    ObjectMeta,
    Put,
)
from tierstore.wire.s3 import is_sealed
from tierstore.wire.storage_class import class_of


class Store(NameCalls):
    """Objects of one cluster. One per process and credential; safe for any number of tasks of one event loop."""

    def __init__(
        self, client: MetadataClient, objects: ObjectClient, *, clock: Clock, limits: StoreLimits | None = None,
        buckets: Buckets | None = None, owned: PeerTransport | None = None,
    ) -> None:  # fmt: skip
        """buckets: for clients that make and remove them here; owned: a transport that is closed with this Store."""
        self._buckets = buckets
        self._owned = owned
        self.limits = limits or StoreLimits()
        self.client = client
        self._objects = objects
        self._clock = clock
        self.servers = ServerBook(client, clock, self.limits)
        self._allocations = AllocationPool(client, self.limits)
        self._placer = Placer(client, clock)
        self.budget = BufferBudget(self.limits.buffer_bytes_max, is_shared=objects.hands_over)
        self._get_parts = GetParts(client, objects, self.servers, self.limits, clock)
        self.early = EarlyReads(objects, self.servers, clock, self.limits)
        self._put_parts: dict[PlacementClass, PutParts] = {}
        self.remote = None

    async def open(self) -> Store:
        """Fetch the cluster map. Raises UnavailableError when metadata cannot be reached."""
        await self.client.cluster_map()
        return self

    async def close(self) -> None:
        await self._allocations.close()
        await self.early.close()
        await self._objects.close()
        await self.client.close()
        if self._owned is not None:
            await self._owned.close()

    @property
    def buckets(self) -> Buckets:
        """Calls about buckets. Raises ConfigError for a Store without them (a gateway's: it forwards them)."""
        if self._buckets is None:
            raise ConfigError("this store was built without an endpoint for bucket calls")
        return self._buckets

    async def __aenter__(self) -> Store:
        return await self.open()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:  # fmt: skip
        await self.close()

    # -- put ------------------------------------------------------------------------------------------------
    async def put(
        self, bucket: str, key: str, body: Buffer | AsyncIterable[Buffer], *, size: int | None = None,
        content_type: str = "", user_meta: dict[str, str] | None = None, condition: Condition | None = None,
        crc32c: int | None = None, access: str = "",
    ) -> PutInfo:  # fmt: skip
        """Store an object. Durable on N+1 servers and in the catalog when it returns; atomic: all or nothing.

        size: of an iterable body, when it is known. crc32c: what the body must have. condition: if_match and
        if_none_match as in HTTP. Raises PreconditionFailed, ChecksumMismatch, NotFound(no-such-bucket), ..."""
        check_bucket_name(bucket)
        check_key(key)
        meta = make_meta(content_type, user_meta)
        if not isinstance(body, AsyncIterable):
            if len(body) <= self.small_bytes(bucket, key):
                return await self.put_small(
                    bucket, key, body, meta=meta, condition=condition, crc32c=crc32c, access=access
                )
            return await self._put_whole(
                bucket, key, memoryview(body).cast("B"), meta=meta, condition=condition, crc32c=crc32c, access=access
            )
        write = self.write_hint(meta=meta, condition=condition, crc32c=crc32c)
        walk = self.put_walk(bucket, key, size=size, access=access, write=write)
        try:
            async for piece in body:
                if not walk.push(piece):
                    await walk.has_room()
            result = await walk.finish(meta=meta, condition=condition, crc32c=crc32c)
            return _made(walk, result)
        finally:
            await walk.abort()

    async def _put_whole(
        self, bucket: str, key: str, body: memoryview, *, meta: ObjectMeta | None, condition: Condition | None,
        crc32c: int | None, access: str,
    ) -> PutInfo:  # fmt: skip
        """A body of several chunks that is in memory: it can be stored anew when a server left before the commit."""
        step = self._put_parts_of(bucket, key, len(body)).placement.chunk_bytes
        write = self.write_hint(meta=meta, condition=condition, crc32c=crc32c)
        for attempt in range(1, self.limits.commit_attempts_max + 1):
            walk = self.put_walk(bucket, key, size=len(body), access=access, write=write)
            try:
                for at in range(0, len(body), step):
                    if not walk.push(body[at : at + step]):
                        await walk.has_room()
                result = await walk.finish(meta=meta, condition=condition, crc32c=crc32c)
                return _made(walk, result)
            except StaleReceipts:
                if attempt == self.limits.commit_attempts_max:
                    raise
                self.client.refresh_map()
            finally:
                await walk.abort()
        raise AssertionError("the loop returns or raises")

    def small_bytes(self, bucket: str, key: str) -> int:
        """Bodies of up to so many bytes may go by put_small()."""
        return min(SMALL_BYTES, self._placer.class_of(bucket, key, SMALL_BYTES).chunk_bytes)

    async def put_small(
        self, bucket: str, key: str, body: Buffer, *, meta: ObjectMeta | None = None,
        condition: Condition | None = None, crc32c: int | None = None, etag: str = "", access: str = "",
    ) -> PutInfo:  # fmt: skip
        """A body of one chunk, in memory: as few steps as possible. The names are checked by the caller."""
        whole = crc_of(body)
        if crc32c is not None and crc32c != whole:
            raise ChecksumMismatch(
                f"the body's CRC32C is {encode_crc(whole)}, the request says {encode_crc(crc32c)}; nothing was stored"
            )
        parts = self._put_parts_of(bucket, key, len(body), class_of(meta))
        begun = self.client.new_operation()
        name = hint_of(bucket, key, WriteHint(
            begun, size=len(body), crc32c=-1 if crc32c is None else crc32c, etag=etag, meta=meta, condition=condition
        ))  # fmt: skip
        for attempt in range(self.limits.commit_attempts_max):
            chunks: list[CommitChunk] = []
            tier = ""
            if len(body):
                allocation = self._allocations.take_ready(parts.placement, len(body))
                if allocation is None:
                    allocation = await self._allocations.take(parts.placement, len(body))
                fanout = ChunkFanout(parts, allocation, data=memoryview(body), name=name)
                chunks.append(await fanout.run())
                tier = fanout.tier
            put = Put(bucket, key, len(body), etag or native_etag(whole, len(body), begun), chunks, meta, condition)
            operation = self.client.operation_for(chunks)
            try:
                result = await self.client.commit(
                    put, access=access, operation=operation, seconds=self.limits.request_seconds
                )
            except ConflictError as error:
                if error.code not in STALE_RECEIPT_CODES:
                    raise
                # What is held ahead was placed by the same map: ask metadata, which knows better.
                self._allocations.drop(parts.placement)
                if attempt + 1 == self.limits.commit_attempts_max:
                    raise StaleReceipts(error.detail) from error
                self.client.refresh_map()
                continue
            return PutInfo(result.version, result.etag or put.etag, len(body), whole, tier, result.created_at_ms)
        raise AssertionError("the loop returns or raises")

    def put_walk(
        self, bucket: str, key: str, *, size: int | None, access: str = "", size_max: int = OBJECT_BYTES_MAX,
        write: WriteHint | None = None, storage_class: str = "",
    ) -> PutWalk:  # fmt: skip
        """An upload into which bytes are pushed (see PutWalk); always finish() or abort() it. write: from write_hint(),
        for a whole object; None for a part of one, which no rebuild may take for an object. storage_class: of S3, which
        rules may match; finish() must be given the same in its meta."""
        return PutWalk(
            self._put_parts_of(bucket, key, size, storage_class), bucket, key, size=size, access=access,
            size_max=size_max, write=write,
        )  # fmt: skip

    def write_hint(
        self, *, meta: ObjectMeta | None = None, condition: Condition | None = None, crc32c: int | None = None,
        etag: str = "",
    ) -> WriteHint:  # fmt: skip
        """What the chunks of one write of an object say of it to `metadata rebuild`."""
        return WriteHint(
            self.client.new_operation(), crc32c=-1 if crc32c is None else crc32c, etag=etag, meta=meta,
            condition=condition,
        )  # fmt: skip

    # -- for files ------------------------------------------------------------------------------------------
    async def store_chunk(self, bucket: str, key: str, data: memoryview) -> CommitChunk:
        """Store one chunk of a file that is committed later. Durable on `copies` servers when it returns; `data` must
        not change until then. Raises UnavailableError, CapacityError."""
        parts = self._put_parts_of(bucket, key, len(data))
        allocation = await self._allocations.take(parts.placement, len(data))
        return await ChunkFanout(parts, allocation, data=data, name=name_of(bucket, key)).run()

    def chunk_bytes(self, bucket: str, key: str) -> int:
        """Where bodies under this name are cut."""
        return self._placer.class_of(bucket, key, None).chunk_bytes

    def file_walk(
        self, bucket: str, key: str, found: LookupResult, *, first: int, length: int,
        lookup: Callable[[int], Awaitable[LookupResult]],
    ) -> GetWalk:  # fmt: skip
        """Read a range of chunks that are found otherwise than by name and version."""
        return GetWalk(self._get_parts, bucket, key, found, first=first, length=length, lookup=lookup)

    def remote_walk(self, bucket: str, key: str, found: LookupResult, *, first: int, length: int) -> BodyWalk:
        """The same for a version whose bytes are (partly) at another site: they come through a gateway, which keeps
        them. Raises UnavailableError(code="body-unreachable")."""
        if self.remote is None:
            raise UnavailableError("its bytes are at another site, and no gateway is known", code="body-unreachable")
        return self.remote.walk(bucket, key, found, first=first, length=length, access="")

    async def fill(
        self, bucket: str, key: str, version: int, start: int, data: memoryview, *, access: str = "",
        named: Awaitable[object] | None = None, is_cached: bool = False,
    ) -> None:  # fmt: skip
        """Store bytes of a version whose name came from another site; durable on N+1 servers when it returns. named:
        the name's own way into the catalog, which the bytes need not wait for. is_cached: the site may let go of them
        again. No data: what is kept so becomes the site's own.

        Raises ConflictError(code="already-here") when some of them are."""
        parts = self._put_parts_of(bucket, key, len(data))
        for attempt in range(self.limits.commit_attempts_max):
            chunks: list[CommitChunk] = []
            for at in range(0, len(data), parts.placement.chunk_bytes):
                piece = data[at : at + parts.placement.chunk_bytes]
                allocation = await self._allocations.take(parts.placement, len(piece))
                chunks.append(await ChunkFanout(parts, allocation, data=piece, name=name_of(bucket, key)).run())
            if named is not None:
                await named
                named = None
            try:
                filled = Fill(bucket, key, version, start, chunks, is_cached)
                await self.client.commit(filled, access=access, seconds=self.limits.request_seconds)
            except ConflictError as error:
                if error.code not in STALE_RECEIPT_CODES or attempt + 1 == self.limits.commit_attempts_max:
                    raise
                self.client.refresh_map()
                continue
            return
        raise AssertionError("the loop returns or raises")

    def _put_parts_of(self, bucket: str, key: str, size: int | None, storage_class: str = "") -> PutParts:
        placement = self._placer.class_of(bucket, key, size, storage_class)
        parts = self._put_parts.get(placement)
        if parts is None:
            parts = self._put_parts[placement] = PutParts(
                self.client, self._objects, self.servers, self._allocations, self.budget, self.limits, placement
            )
        return parts

    # -- get ------------------------------------------------------------------------------------------------
    async def find(
        self, bucket: str, key: str, *, version: int = 0, first: int = 0, length: int = -1, access: str = "",
        want_chunks: bool = True, is_own: bool = False,
    ) -> LookupResult:  # fmt: skip
        """Look a name up, with the chunks of a range; is_own: reading them makes no heat. Raises NotFound,
        AccessDenied."""
        item = LookupItem(bucket, key, access, version, first, length, want_chunks, is_own)
        return await self.client.lookup(item, seconds=self.limits.request_seconds)

    def read_walk(
        self, bucket: str, key: str, found: LookupResult, *, first: int, length: int, access: str = "",
        early: EarlyRead | None = None,
    ) -> BodyWalk:  # fmt: skip
        """Read a range of what find() found (see GetWalk); always close() it. early: from `early.begin()`, before the
        find() of a whole object."""
        if found.is_remote and self.remote is not None:
            return self.remote.walk(bucket, key, found, first=first, length=length, access=access)
        return GetWalk(
            self._get_parts, bucket, key, found, first=first, length=length, access=access,
            early=early if (first, length) == (0, found.size) else None,
        )  # fmt: skip

    def local_walk(
        self, bucket: str, key: str, found: LookupResult, *, first: int, length: int, access: str = ""
    ) -> GetWalk:
        """Read bytes that are at this site."""
        return GetWalk(self._get_parts, bucket, key, found, first=first, length=length, access=access)

    async def get(
        self, bucket: str, key: str, *, first: int = 0, length: int = -1, version: int = 0,
        condition: Condition | None = None, access: str = "",
    ) -> ObjectReader:  # fmt: skip
        """Open an object for reading `length` bytes (-1: all) from `first`. Every byte is verified; reads move to
        another copy by themselves. Raises NotFound, PreconditionFailed, RangeNotSatisfiable, UnavailableError."""
        check_key(key)
        found = await self.find(bucket, key, version=version, first=first, length=length, access=access)
        check_condition(found, condition)
        if is_sealed(found.etag):
            raise AccessDenied("the object is encrypted; read it through a gateway", code="encrypted-object")
        if first < 0 or first > found.size:
            raise RangeNotSatisfiable(f"byte {first} of an object of {found.size} bytes", size=found.size)
        count = found.size - first if length < 0 else min(length, found.size - first)
        walk = self.read_walk(bucket, key, found, first=first, length=count, access=access)
        try:
            await walk.start()
        except BaseException:
            await walk.close()
            raise
        return ObjectReader(replace(info_of(bucket, key, found), tier=walk.tier), walk, first, count)

    async def head(self, bucket: str, key: str, *, version: int = 0, access: str = "") -> ObjectInfo:
        """An object's facts. Raises NotFound."""
        check_key(key)
        found = await self.find(bucket, key, version=version, access=access, first=0, length=1)
        return info_of(bucket, key, found)

    async def reserve(self) -> None:
        """Fetch allocations of the default class, so that the first write does not wait for them."""
        placement = self._placer.class_of("", "", None)
        if self._allocations.take_ready(placement, placement.chunk_bytes) is None:
            await self.client.allocate(AllocateItem(list(placement.tiers), placement.copies))


def _made(walk: PutWalk, result: CommitResult) -> PutInfo:
    return PutInfo(result.version, result.etag, walk.size, walk.crc32c(), walk.tier, result.created_at_ms)
