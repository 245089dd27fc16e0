"""Lookups: from a name to its version, chunks and read tickets.

The quick way reads one row in-line (SQLite) or in a statement shared with whoever waits (PostgreSQL, never one that
began before: rule 9). Old versions and bodies of many chunks take one snapshot transaction each: a window of 64
chunks costs two index seeks, whatever the size of the object.

Cost of the quick way on SQLite: bucket from memory, row 5 us, unpack 2 us, 4 us per replica's ticket; no wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from metadata.catalog import bodies, objects, schema
from metadata.catalog.buckets import Bucket
from metadata.catalog.database import Database
from metadata.catalog.objects import LATEST, ObjectRow
from metadata.catalog.packed import iter_packed
from metadata.catalog.queries import Connection
from metadata.services.names.bucket_names import BucketNames
from metadata.services.names.replicas import ReplicaOrder
from metadata.services.names.rights import authorize_in, authorize_more
from metadata.services.names.steps import NULL_VERSION
from tierstore.auth.access import OF_VERSIONS, Principal
from tierstore.clock import Clock
from tierstore.errors import IntegrityError, NotFound, TierstoreError
from tierstore.names import check_key
from tierstore.telemetry.metrics import Watch
from tierstore.ticket import NO_HEAT
from tierstore.wire import decode
from tierstore.wire.names import LOOKUP_CHUNKS_MAX, ChunkView, LookupItem, LookupResult, ObjectMeta
from tierstore.wire.storage_class import packed_class

#: Items of one message.
ITEMS_MAX: Final = 1024
#: Views of whole small objects are used again for so long (tickets live 5 min, load moves every second), in so many
#: orders of their replicas, for so many objects at once.
RECENT_MS: Final = 1000
RECENT_VARIANTS: Final = 4
RECENT_MAX: Final = 20_000


#: Kinds whose chunks stand in rows of their own.
_LONG: Final = frozenset({schema.KIND_ROWS, schema.KIND_REMOTE})


@dataclass(slots=True)
class _Recent:
    revision: int
    until_ms: int
    variants: list[list[ChunkView]] = field(default_factory=list)
    turn: int = 0


class LookupService:
    """One per process. Event loop only."""

    def __init__(self, database: Database, names: BucketNames, order: ReplicaOrder, clock: Clock) -> None:
        self._database = database
        self._names = names
        self._order = order
        self._clock = clock
        #: Views of this second and of the one before: older ones serve nobody, and 20,000 of them are 20 MB.
        self._recent: dict[bytes, _Recent] = {}
        self._before: dict[bytes, _Recent] = {}
        self._turns_at_ms = 0
        #: Told of each body that is about to be read: bucket, key, size of the object, share of it that is asked for.
        #: Must not raise or block.
        self.on_read: Callable[[str, str, int, float], None] = lambda bucket, key, size, share: None
        #: Told which chunks with rows of their own are of which object.
        self.on_window: Callable[[str, str, int, list[bytes], str], None] = lambda *_: None
        self.lookups = 0
        _WATCH.show(self)

    def lookup_now(self, item: LookupItem, who: Principal) -> LookupResult | None:
        """The result without waiting, or None when it takes the long way."""
        try:
            bucket = self._names.now(item.bucket)
            if bucket is None:
                return None
            authorize_in(who, "read", bucket, item.key)
            check_key(item.key)
            if item.version:
                return None
            rows = self._database.select_now(LATEST, [(bucket.id, item.key)])
            if rows is None:
                return None
            row = ObjectRow._make(rows[0]) if rows else None
            if row is not None and row.kind in _LONG and item.want_chunks:
                return None
            self.lookups += not item.is_own
            return self._result(item, row, is_latest=True)
        except TierstoreError as error:
            return LookupResult(code=error.code, detail=error.detail)

    async def lookup(self, item: LookupItem, who: Principal) -> LookupResult:
        """One item's result; errors that concern only the item are in it."""
        self.lookups += not item.is_own
        try:
            bucket = await self._names.get(item.bucket)
            authorize_in(who, "read", bucket, item.key)
            check_key(item.key)
            if not item.version:
                rows = await self._database.select(LATEST, [(bucket.id, item.key)])
                row = ObjectRow._make(rows[0]) if rows else None
                if row is None or row.kind not in _LONG or not item.want_chunks:
                    return self._result(item, row, is_latest=True)
            return await self._database.read(lambda connection: self._slowly(connection, bucket, item, who))
        except TierstoreError as error:
            return LookupResult(code=error.code, detail=error.detail)

    def _slowly(self, connection: Connection, bucket: Bucket, item: LookupItem, who: Principal) -> LookupResult:
        """Everything in one snapshot: the row cannot lose its body between two statements. Raises AccessDenied for an
        old version; whoever names the latest one may be reading on in it."""
        latest = objects.latest(connection, bucket.id, item.key)
        row = latest
        if item.version == NULL_VERSION:
            if latest is None or not latest.is_null:
                row = objects.null_version(connection, bucket.id, item.key, lock=False)
        elif item.version and (latest is None or latest.version != item.version):
            row = objects.version(connection, bucket.id, item.key, item.version)
        if row is not latest:
            authorize_more(who, OF_VERSIONS["read"], bucket, item.key)
        chunks: list[ChunkView] | None = None
        more = False
        if row is not None and row.kind in _LONG and row.ref is not None and item.want_chunks:
            chunks, more = self._window(connection, row, item)
        return self._result(item, row, is_latest=row is latest, chunks=chunks, more=more)

    def _window(self, connection: Connection, row: ObjectRow, item: LookupItem) -> tuple[list[ChunkView], bool]:
        assert row.ref is not None, "rows without a body are answered before"
        stop = _stop(row.size, item)
        if item.first >= stop:
            return [], False
        found = bodies.extents_from(connection, row.ref, item.first, LOOKUP_CHUNKS_MAX + 1)
        wanted = [e for e in found if e.start < stop and e.start + e.length > item.first]
        window = wanted[:LOOKUP_CHUNKS_MAX]
        rows = bodies.chunks_of(connection, (e.chunk_id for e in window))
        self.on_window(item.bucket, item.key, row.size, [e.chunk_id for e in window], packed_class(row.meta))
        now_ms = self._clock.now_ms()
        views = []
        for e in window:
            chunk = rows.get(e.chunk_id)
            if chunk is None:
                raise IntegrityError(
                    f"chunk {e.chunk_id.hex()} of {row.key!r} has no row", code="catalog-corrupt", key=row.key
                )
            views.append(
                self._order.chunk_view(
                    chunk, start=e.start, chunk_offset=e.chunk_offset, length=e.length, now_ms=now_ms,
                    flags=_flags(item),
                )
            )
        return views, len(wanted) > len(window)

    def _result(
        self, item: LookupItem, row: ObjectRow | None, *, is_latest: bool, chunks: list[ChunkView] | None = None,
        more: bool = False,
    ) -> LookupResult:  # fmt: skip
        if row is None or row.kind == schema.KIND_MARKER:
            return _missing(item, row, is_latest=is_latest)
        if chunks is None:
            chunks = self._inline(row, item) if item.want_chunks and row.body else []
        # One byte is what a HEAD asks for; a version is named by whoever reads on in a body that it began.
        if item.want_chunks and item.length != 1 and not item.version:
            self.on_read(item.bucket, item.key, row.size, _asked_share(item, row.size))
        meta = decode(row.meta, ObjectMeta) if row.meta is not None else None
        return LookupResult(
            "", "", row.version, row.size, row.etag, row.created_at_ms, meta, chunks, more, is_latest,
            row.kind == schema.KIND_REMOTE and row.size > 0, bool(row.is_null),
        )  # fmt: skip

    def _inline(self, row: ObjectRow, item: LookupItem) -> list[ChunkView]:
        """Views of the wanted chunks. Hot objects take views made a moment ago: the row was read in this request, so
        the same body under the same map gives the same answer, in one of a few orders of its replicas."""
        assert row.body is not None, "called for inline rows only"
        if item.first or item.length >= 0 or item.is_own:
            return self._inline_views(row.body, row.size, item)
        now_ms, revision = self._clock.now_ms(), self._order.revision
        known = self._recent.get(row.body) or self._before.get(row.body)
        if known is None or known.revision != revision or now_ms >= known.until_ms:
            if now_ms >= self._turns_at_ms or len(self._recent) >= RECENT_MAX:
                self._turns_at_ms = now_ms + RECENT_MS
                self._before, self._recent = self._recent, {}
            known = self._recent[row.body] = _Recent(revision, now_ms + RECENT_MS)
        if len(known.variants) < RECENT_VARIANTS:
            known.variants.append(self._inline_views(row.body, row.size, item))
            return known.variants[-1]
        known.turn += 1
        return known.variants[known.turn % RECENT_VARIANTS]

    def own_views(self, body: bytes, size: int, *, first: int, length: int) -> list[ChunkView]:
        """The chunks of a range of a packed body of `size` bytes; reading them makes no heat."""
        return self._inline_views(body, size, LookupItem("", "", "", 0, first, length, is_own=True))

    def _inline_views(self, body: bytes, size: int, item: LookupItem) -> list[ChunkView]:
        stop, start, now_ms = _stop(size, item), 0, self._clock.now_ms()
        views = []
        for chunk in iter_packed(body):
            if start < stop and start + chunk.length > item.first:
                views.append(
                    self._order.chunk_view(
                        chunk, start=start, chunk_offset=0, length=chunk.length, now_ms=now_ms, flags=_flags(item)
                    )
                )
            start += chunk.length
        return views


def _flags(item: LookupItem) -> int:
    """Of the tickets."""
    return NO_HEAT if item.is_own else 0


def _stop(size: int, item: LookupItem) -> int:
    """The first byte that is not asked for."""
    return size if item.length < 0 else min(size, item.first + item.length)


def _asked_share(item: LookupItem, size: int) -> float:
    """Which part of a body of `size` bytes a lookup asks for, 0 to 1."""
    if item.first <= 0 and not 0 <= item.length < size:
        return 1.0
    left = max(size - item.first, 0)
    return (left if item.length < 0 else min(item.length, left)) / max(size, 1)


def _missing(item: LookupItem, row: ObjectRow | None, *, is_latest: bool) -> LookupResult:
    """A delete marker says its version (S3 shows it); nothing else of it is there."""
    code = "no-such-version" if item.version and row is None else NotFound.code
    detail = f"there is no {item.key!r} in bucket {item.bucket!r}"
    if row is None:
        return LookupResult(code=code, detail=detail)
    return LookupResult(
        code=code, detail=detail + " (a delete marker stands there)", version=row.version,
        created_at_ms=row.created_at_ms, is_latest=is_latest,
    )  # fmt: skip


_WATCH: Final = Watch[LookupService]()
_WATCH.counter("tierstore_lookups_total", "objects looked up", lambda service: service.lookups)
