"""What the promoter asks the catalog, in batches: where touched chunks lie, what lies on a device, what is gone.

Statements only; what follows from the answers is services.tiering's. All of it reads, without locks: whoever changes a
chunk on the strength of an answer locates it again under its lock (catalog.book).

Cost: one index seek per (device, chunk) asked, one row per object: about 8 us a chunk on SQLite.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import sqlalchemy as sa

from metadata.catalog import bodies, objects, schema
from metadata.catalog.among import among
from metadata.catalog.book import Located
from metadata.catalog.packed import PackedChunk, unpack
from metadata.catalog.session import BulkRead
from metadata.catalog.sqlite_session import fetch_each
from tierstore.wire.storage_class import packed_class

_PLACEMENTS: Final = schema.placements.c
_GARBAGE: Final = schema.garbage.c
_OBJECTS: Final = schema.objects.c
#: What makes a Named.
_NAMED: Final = (
    _OBJECTS.key, _OBJECTS.size, _OBJECTS.version, _OBJECTS.kind, _OBJECTS.body, _OBJECTS.ref, _OBJECTS.meta,
)  # fmt: skip
_PLACED: Final = BulkRead(
    schema.placements, ("chunk_id", "bucket_id", "key", "version"), by=("device_id", "chunk_id")
)
_BODY: Final = ("bucket_id", "key", "version", "kind", "body", "meta")
_OF_LATEST: Final = BulkRead(schema.objects, _BODY, by=("bucket_id", "key"))
_OF_VERSION: Final = BulkRead(schema.versions, _BODY, by=("bucket_id", "key", "version"))
#: Values of one IN list.
_IN_MAX: Final = 500

_Owner = tuple[int, str, int]
_T = TypeVar("_T")


class Named(NamedTuple):
    """An object of a page: what a rule judges it by, and its chunks. is_remote: of another site; the chunks are of what
    is here."""

    key: str
    size: int
    version: int
    chunks: list[PackedChunk]
    storage_class: str = ""
    is_remote: bool = False


def find(
    connection: sa.Connection, wanted: Mapping[bytes, Collection[int]], buckets: Mapping[int, str]
) -> dict[bytes, Located]:
    """Where chunks lie. wanted: chunk -> devices on which the reverse table may have it. Unknown ones are left out."""
    pairs = [(device, chunk) for chunk, devices in wanted.items() for device in devices]
    owners: dict[bytes, _Owner | None] = {}
    for chunk_id, bucket_id, key, version in _fetch(connection, _PLACED, pairs):
        owners[bytes(chunk_id)] = None if bucket_id is None else (int(bucket_id), str(key), int(version))
    found = _in_bodies(connection, {c: o for c, o in owners.items() if o is not None}, buckets)
    left = [chunk for chunk in owners if chunk not in found]
    for chunk_id, packed in bodies.chunks_of(connection, left).items():
        found[chunk_id] = Located(None, packed)
    return found


def _in_bodies(
    connection: sa.Connection, owners: Mapping[bytes, _Owner], buckets: Mapping[int, str]
) -> dict[bytes, Located]:
    """The chunks of inline bodies: latest versions first, then older ones."""
    found: dict[bytes, Located] = {}
    for read in (_OF_LATEST, _OF_VERSION):
        keys = sorted({owner[: len(read.by)] for chunk, owner in owners.items() if chunk not in found})
        for bucket_id, key, version, kind, body, user_meta in _fetch(connection, read, keys):
            if kind != schema.KIND_INLINE or not body:
                continue
            chunks = unpack(bytes(body))
            owner = (int(bucket_id), str(key), int(version))
            size, storage_class = sum(c.length for c in chunks), packed_class(user_meta)
            for packed in chunks:
                if packed.id in owners and packed.id not in found:
                    found[packed.id] = Located(owner, packed, buckets.get(owner[0], ""), size, storage_class)
    return found


def _fetch(connection: sa.Connection, read: BulkRead, keys: Sequence[tuple[Any, ...]]) -> Iterable[Sequence[Any]]:
    """The rows of these distinct keys. On SQLite without SQLAlchemy, whose rows and lists of values cost more than the
    search: each tick asks for every chunk that was read."""
    if connection.dialect.name == "sqlite":
        raw: Any = connection.connection.driver_connection
        return fetch_each(raw, read, keys)
    c = read.table.c
    query, by = sa.select(*(c[name] for name in read.columns)), sa.tuple_(*(c[name] for name in read.by))
    return (row for some in _slices(keys) for row in connection.execute(query.where(among(by, some))))


def garbage_after(connection: sa.Connection, seen: int, limit: int) -> tuple[list[PackedChunk], int]:
    """Chunks that became garbage since row `seen`, and the last row looked at."""
    rows = connection.execute(
        sa.select(_GARBAGE.id, _GARBAGE.body).where(_GARBAGE.id > seen).order_by(_GARBAGE.id).limit(limit)
    ).all()
    return [chunk for row in rows for chunk in unpack(bytes(row.body))], int(rows[-1].id) if rows else seen


def newest_garbage(connection: sa.Connection) -> int:
    """The last garbage row there is: whoever starts now need not look at older ones."""
    return int(connection.execute(sa.select(sa.func.max(_GARBAGE.id))).scalar() or 0)


def objects_after(
    connection: sa.Connection, bucket_id: int, *, prefix_low: str, high: str | None, after: str, limit: int
) -> list[Named]:
    """The next latest versions of a bucket with prefix_low <= key < high and key > after, with their chunks."""
    query = (
        sa.select(*_NAMED)
        .where(_OBJECTS.bucket_id == bucket_id, _OBJECTS.key >= prefix_low, _OBJECTS.key > after)
        .where(_OBJECTS.kind != schema.KIND_MARKER)
        .order_by(_OBJECTS.key)
        .limit(limit)
    )
    if high is not None:
        query = query.where(_OBJECTS.key < high)
    page = []
    for row in connection.execute(query).all():
        page.append(_named(connection, row))
    return page


class Explained(NamedTuple):
    """One object for explain. chunks_total, bytes_here: of the whole body, of which `named` may hold only the
    beginning."""

    named: Named
    chunks_total: int
    bytes_here: int


def object_named(connection: sa.Connection, bucket_id: int, key: str, version: int = 0) -> Explained | None:
    """One version of an object (0: the latest) with its chunks that are at this site (of a very large one the first
    OBJECT_CHUNKS_MAX); None when there is none."""
    row = objects.latest(connection, bucket_id, key)
    if version and (row is None or row.version != version):
        row = objects.version(connection, bucket_id, key, version)
    if row is None or row.kind == schema.KIND_MARKER:
        return None
    named = _named(connection, row)
    if row.kind == schema.KIND_INLINE or row.ref is None:
        return Explained(named, len(named.chunks), sum(chunk.length for chunk in named.chunks))
    return Explained(named, *bodies.held(connection, int(row.ref)))


def _named(connection: sa.Connection, row: Any) -> Named:
    return Named(
        str(row.key), int(row.size), int(row.version), _chunks(connection, row), packed_class(row.meta),
        is_remote=row.kind == schema.KIND_REMOTE,
    )


#: Chunks of one large object that are looked at: enough for explain; a pin reaches further ones when they are read.
OBJECT_CHUNKS_MAX: Final = 4096


def _chunks(connection: sa.Connection, row: Any) -> list[PackedChunk]:
    if row.kind == schema.KIND_INLINE:
        return unpack(bytes(row.body)) if row.body else []
    if row.kind not in (schema.KIND_ROWS, schema.KIND_REMOTE) or row.ref is None:
        return []
    ids: list[bytes] = []
    for page in bodies.all_extents(connection, int(row.ref)):
        ids += [extent.chunk_id for extent in page]
        if len(ids) >= OBJECT_CHUNKS_MAX:
            break
    rows = bodies.chunks_of(connection, ids[:OBJECT_CHUNKS_MAX])
    return [rows[i] for i in dict.fromkeys(ids[:OBJECT_CHUNKS_MAX]) if i in rows]


def _slices(values: Sequence[_T]) -> Iterable[Sequence[_T]]:
    for at in range(0, len(values), _IN_MAX):
        yield values[at : at + _IN_MAX]


class OpenWork(NamedTuple):
    """Jobs of tiering that have not ended, as (chunk, device)."""

    promoting: set[tuple[bytes, int]]
    demoting: set[tuple[bytes, int]]
    settling: int


def open_work(connection: sa.Connection) -> OpenWork:
    """What is queued or under way. Bounded by what the promoter lets be open at once."""
    j = schema.jobs.c
    query = sa.select(j.chunk_id, j.device_id, j.why).where(
        j.why.in_(("promote", "demote", "settle")), j.state.in_(("waiting", "leased"))
    )
    promoting: set[tuple[bytes, int]] = set()
    demoting: set[tuple[bytes, int]] = set()
    settling = 0
    for row in connection.execute(query):
        if row.why == "settle":
            settling += 1
        else:
            (promoting if row.why == "promote" else demoting).add((bytes(row.chunk_id), int(row.device_id)))
    return OpenWork(promoting, demoting, settling)


def drop_stale(connection: sa.Connection, *, before_ms: int) -> int:
    """Forget promotions that nobody took up since then: what was hot may be no more."""
    j = schema.jobs
    change = sa.delete(j).where(j.c.why == "promote", j.c.state == "waiting", j.c.created_at_ms < before_ms)
    return int(connection.execute(change).rowcount)
