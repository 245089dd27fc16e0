"""What a worker reads of its queue: rows with what the catalog still has of them."""

from __future__ import annotations

from collections.abc import Iterable

from metadata.catalog import bodies, schema, sites
from metadata.catalog.buckets import HOME, Bucket
from metadata.catalog.objects import ObjectRow
from metadata.catalog.packed import unpack
from metadata.catalog.queries import Connection
from metadata.catalog.sites import QueueRow
from tierstore.wire import decode
from tierstore.wire.names import ObjectMeta
from tierstore.wire.sites import NAME_GONE, NAME_MARKER, NAME_META, NAME_PUT, NameBatch, NameRecord


def load_names(
    c: Connection, target: str, limit: int
) -> tuple[list[QueueRow], dict[tuple[int, str, int], ObjectRow], dict[int, Bucket]]:
    rows = sites.waiting_names(c, target, limit)
    found = sites.versions_of(c, {(r.bucket_id, r.key, r.version) for r in rows if r.kind != schema.CHANGE_DELETE})
    return rows, found, sites.buckets_of(c, {row.bucket_id for row in rows})


def load_bodies(c: Connection, target: str, after: int, limit: int) -> list[tuple[QueueRow, list[bytes] | None]]:
    """Rows with the chunks whose heat counts; None for what is not there any more."""
    rows = sites.waiting_bodies(c, target, after, limit)
    found = sites.versions_of(c, {(r.bucket_id, r.key, r.version) for r in rows})
    firsts = bodies.first_chunks(c, [int(r.ref) for r in found.values() if r.kind == schema.KIND_ROWS and r.ref])
    out: list[tuple[QueueRow, list[bytes] | None]] = []
    for row in rows:
        held = found.get((row.bucket_id, row.key, row.version))
        if held is None:
            out.append((row, None))
        elif held.kind == schema.KIND_ROWS and held.ref in firsts:
            out.append((row, [firsts[held.ref].id]))
        else:
            out.append((row, chunk_ids(held)))
    return out


def chunk_ids(held: ObjectRow) -> list[bytes]:
    return [chunk.id for chunk in unpack(held.body)] if held.body else []


def record_of(bucket: Bucket, row: QueueRow, held: ObjectRow | None) -> NameRecord | None:
    """What the target must hear of a queue row; None: nothing, a newer row says it."""
    if row.kind == schema.CHANGE_DELETE:
        return NameRecord(bucket.name, row.key, NAME_GONE, row.version)
    if held is None:
        return None
    kind = NAME_META if row.kind == schema.CHANGE_META else NAME_PUT
    if held.kind == schema.KIND_MARKER:
        kind = NAME_MARKER
    meta = decode(held.meta, ObjectMeta) if held.meta is not None else None
    return NameRecord(
        bucket.name, row.key, kind, held.version, held.size, held.etag, held.created_at_ms, bool(held.is_null), meta
    )


def name_batch(me: str, records: list[NameRecord], named: Iterable[Bucket]) -> NameBatch:
    """A message of names, with what the target must know of their buckets."""
    named = list(named)
    homes = {b.name: b.config[HOME] for b in named if HOME in b.config}
    return NameBatch(me, records, {b.name: b.versioning for b in named}, homes)
