"""What a worker reads of its queue: rows with what the catalog still has of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from metadata.catalog import bodies, schema, sites
from metadata.catalog.buckets import HOME, Bucket
from metadata.catalog.objects import ObjectRow
from metadata.catalog.packed import PackedChunk, unpack
from metadata.catalog.queries import Connection
from metadata.catalog.sites import QueueRow
from metadata.services.sites.apply import rules_of
from tierstore.ticket import ROLE_HOME
from tierstore.wire import decode
from tierstore.wire.names import ObjectMeta
from tierstore.wire.sites import (
    NAME_GONE,
    NAME_MARKER,
    NAME_META,
    NAME_PUT,
    PUSH_BYTES_MAX,
    NameBatch,
    NameRecord,
)


def load_names(
    c: Connection, target: str, limit: int, after: int
) -> tuple[list[QueueRow], dict[tuple[int, str, int], ObjectRow], dict[int, Bucket]]:
    rows = sites.waiting_names(c, target, limit, after=after)
    found = sites.versions_of(c, {(r.bucket_id, r.key, r.version) for r in rows if r.kind != schema.CHANGE_DELETE})
    return rows, found, sites.buckets_of(c, {row.bucket_id for row in rows})


class Loaded(NamedTuple):
    """A row of a body. held None: that version is not here any more. chunks: those whose heat counts. homes: devices of
    their copies, but for those that may be dropped. is_pushed: see is_pushed()."""

    row: QueueRow
    held: ObjectRow | None
    chunks: list[bytes]
    homes: tuple[int, ...] = ()
    is_pushed: bool = False

    @property
    def is_here(self) -> bool:
        """Whether this site has the bytes itself: else it passes on what another one wrote."""
        return self.held is not None and self.held.kind != schema.KIND_REMOTE


def load_bodies(c: Connection, target: str, after: int, limit: int, *, now_ms: int) -> list[Loaded]:
    """Rows behind a sequence, in order."""
    rows = sites.waiting_bodies(c, target, after, limit)
    named = sites.buckets_of(c, {row.bucket_id for row in rows})
    pushed = {
        row.sequence for row in rows
        if row.bucket_id in named and is_pushed(named[row.bucket_id], row, target, now_ms)
    }
    return [loaded._replace(is_pushed=loaded.row.sequence in pushed) for loaded in look_at(c, rows)]


def look_at(c: Connection, rows: Sequence[QueueRow]) -> list[Loaded]:
    """The same rows with what the catalog has of them now."""
    found = sites.versions_of(c, {(r.bucket_id, r.key, r.version) for r in rows})
    firsts = bodies.first_chunks(c, [int(r.ref) for r in found.values() if r.kind == schema.KIND_ROWS and r.ref])
    out = []
    for row in rows:
        held = found.get((row.bucket_id, row.key, row.version))
        if held is not None and held.kind == schema.KIND_ROWS and held.ref in firsts:
            chunks = [firsts[held.ref]]
        else:
            chunks = unpack(held.body) if held is not None and held.body else []
        out.append(Loaded(row, held, [chunk.id for chunk in chunks], _homes(chunks)))
    return out


def _homes(chunks: Sequence[PackedChunk]) -> tuple[int, ...]:
    return tuple({copy.device for chunk in chunks for copy in chunk.replicas if copy.role == ROLE_HOME})


def chunk_ids(held: ObjectRow) -> list[bytes]:
    return [chunk.id for chunk in unpack(held.body)] if held.body else []


#: So long a row under a sync rule is left to the push that its writer waits for; then the queue sees to it.
PUSH_GRACE_MS: Final = 2_000


def is_pushed(bucket: Bucket, row: QueueRow, target: str, now_ms: int) -> bool:
    """Whether name and body are on their way by a push (services/sites/sync), as far as can be known here."""
    if row.kind != schema.CHANGE_PUT or not 0 < row.size <= PUSH_BYTES_MAX or now_ms - row.at_ms >= PUSH_GRACE_MS:
        return False
    rule = next((r for r in rules_of(bucket) if r["target"] == target and row.key.startswith(r["prefix"])), None)
    return rule is not None and rule["mode"] == "sync"


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
    told = {b.name: list(b.replication) for b in named if b.replication}
    return NameBatch(me, records, {b.name: b.versioning for b in named}, homes, told)
