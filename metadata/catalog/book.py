"""Where one chunk lies: from the reverse table to the row that names it, and the change of its replicas.

A chunk is named by exactly one row: the packed body of an inline version, or its own row in `chunks`. The reverse table
says which (as of its mark); a row that moved since (renamed, copied, superseded) is found again by the same steps that
moved it: latest -> older version -> `chunks`. Implements services/jobs/work.ReplicaBook.

Invariant: `rewrite` changes only replicas, never which chunks a version has, and appends the change to the feed in the
same transaction, so that the reverse table follows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import sqlalchemy as sa

from metadata.catalog import buckets, feed, placements, schema
from metadata.catalog.packed import PackedChunk, Replica, give_replicas, pack_replicas, unpack, unpack_replicas
from metadata.catalog.statement import Statement
from tierstore.wire.storage_class import packed_class

_PLACEMENTS = schema.placements.c
_CHUNKS = schema.chunks
# Built once: building a statement costs more than running it, and the audit runs them for every copy there is.
_PLACE = Statement(
    sa.select(_PLACEMENTS.bucket_id, _PLACEMENTS.key, _PLACEMENTS.version).where(
        _PLACEMENTS.device_id == sa.bindparam("device"), _PLACEMENTS.chunk_id == sa.bindparam("chunk")
    )
)
_CHUNK = Statement(
    sa.select(_CHUNKS.c.chunk_bytes, _CHUNKS.c.crc32c, _CHUNKS.c.redundancy, _CHUNKS.c.replicas)
    .where(_CHUNKS.c.id == sa.bindparam("chunk")).with_for_update()
)  # fmt: skip
_SET_REPLICAS = Statement(
    sa.update(_CHUNKS).where(_CHUNKS.c.id == sa.bindparam("chunk")).values(replicas=sa.bindparam("packed"))
)


def _of_version(table: sa.Table) -> Any:
    t = table.c
    return sa.and_(
        t.bucket_id == sa.bindparam("of_bucket"), t.key == sa.bindparam("of_key"),
        t.version == sa.bindparam("of_version"),
    )  # fmt: skip


_BODY_OF = {
    table: Statement(
        sa.select(table.c.body, table.c.meta)
        .where(_of_version(table), table.c.kind == schema.KIND_INLINE)
        .with_for_update()
    )
    for table in (schema.objects, schema.versions)
}
_SET_BODY = {
    table: Statement(sa.update(table).where(_of_version(table)).values(body=sa.bindparam("packed")))
    for table in (schema.objects, schema.versions)
}


class _Place(NamedTuple):
    """A row of the reverse table: the version that has the chunk, or nothing."""

    bucket_id: int | None
    key: str | None
    version: int | None


class Located(NamedTuple):
    """owner: (bucket id, key, version) of an inline version, None for a chunk with a row of its own. bucket and size
    (bytes of that version) are what a policy judges by, and its storage class; "" and 0 without an owner."""

    owner: tuple[int, str, int] | None
    chunk: PackedChunk
    bucket: str = ""
    size: int = 0
    storage_class: str = ""


class CatalogBook:
    """ReplicaBook on the catalog's tables."""

    def __init__(self) -> None:
        #: Ids of buckets are never reused and names never change, so what was read once stays true.
        self._bucket_names: dict[int, str] = {}

    def _bucket(self, connection: sa.Connection, bucket_id: int) -> str:
        if bucket_id not in self._bucket_names:
            self._bucket_names = buckets.names(connection)
        return self._bucket_names.get(bucket_id, "")

    def mark(self, connection: sa.Connection) -> int:
        """The feed's sequence up to which the reverse table is complete."""
        return placements.mark(connection)

    def locate(self, connection: sa.Connection, device: int, chunk: bytes) -> Located | None:
        """The chunk that the reverse table has on the device, its row locked; None when nothing names it any more, or
        the reverse table does not have it there."""
        place = _PLACE.first(connection, device=device, chunk=chunk)
        return self._at(connection, _Place._make(place), chunk) if place is not None else None

    def _at(self, connection: sa.Connection, place: _Place, chunk: bytes) -> Located | None:
        """The chunk by what a row of the reverse table says of it."""
        if place.bucket_id is not None:
            for table in (schema.objects, schema.versions):
                owner = (place.bucket_id, str(place.key), int(place.version or 0))
                body, storage_class = self._body(connection, table, *owner)
                chunks = unpack(body) if body else []
                found = next((c for c in chunks if c.id == chunk), None)
                if found is not None:
                    bucket = self._bucket(connection, owner[0])
                    return Located(owner, found, bucket, sum(c.length for c in chunks), storage_class)
        return self._own_row(connection, chunk)

    def forget(self, connection: sa.Connection, device: int, chunk: bytes) -> bool:
        """Delete the reverse table's row of a copy that the chunk's own row does not name; whether it was there and
        wrong. Such a row stays behind when a copy moves and its version is renamed before the feed is read, and where
        one transaction read a body that another changed before the first one's end (PostgreSQL)."""
        found = _PLACE.first(connection, device=device, chunk=chunk)
        if found is None:
            return False
        place = _Place._make(found)
        located = self._at(connection, place, chunk)
        if located is not None and any(replica.device == device for replica in located.chunk.replicas):
            return False
        # Only while it has this owner: what was judged is this row, and it may have moved along with its chunk since.
        gone = connection.execute(
            sa.delete(schema.placements).where(
                _PLACEMENTS.device_id == device, _PLACEMENTS.chunk_id == chunk,
                _PLACEMENTS.bucket_id.is_not_distinct_from(place.bucket_id),
                _PLACEMENTS.key.is_not_distinct_from(place.key),
                _PLACEMENTS.version.is_not_distinct_from(place.version),
            )
        )  # fmt: skip
        return bool(gone.rowcount)

    def _body(
        self, connection: sa.Connection, table: sa.Table, bucket_id: int, key: str, version: int
    ) -> tuple[bytes, str]:  # fmt: skip
        """(packed chunks, storage class) of an inline version; nothing of one that is not there."""
        row = _BODY_OF[table].first(connection, of_bucket=bucket_id, of_key=key, of_version=version)
        return (b"", "") if row is None or row[0] is None else (bytes(row[0]), packed_class(row[1]))

    def _own_row(self, connection: sa.Connection, chunk: bytes) -> Located | None:
        row = _CHUNK.first(connection, chunk=chunk)
        if row is None:
            return None
        chunk_bytes, crc32c, redundancy, packed = row
        replicas = unpack_replicas(bytes(packed))
        return Located(None, PackedChunk(chunk, chunk_bytes, chunk_bytes, crc32c, redundancy, replicas))

    def rewrite(
        self, connection: sa.Connection, located: Located, replicas: Iterable[Replica], *, at_ms: int
    ) -> None:
        """Give a located chunk these replicas, in the transaction that located it."""
        feed.append(connection, [self.put_replicas(connection, located, replicas)], at_ms=at_ms)

    def put_replicas(
        self, connection: sa.Connection, located: Located, replicas: Iterable[Replica]
    ) -> feed.NewChange:
        """The same without the feed: the entry that the caller appends at the end of this transaction, with others."""
        chunk = located.chunk
        if located.owner is None:
            _SET_REPLICAS.run(connection, chunk=chunk.id, packed=pack_replicas(replicas))
            return feed.NewChange(schema.CHANGE_CHUNK, 0, chunk.id.hex(), 0)
        bucket_id, key, version = located.owner
        if not self._rewrite_inline(connection, located.owner, chunk.id, tuple(replicas)):
            # Cannot be: the row was locked when the chunk was found in it.
            raise AssertionError(f"chunk {chunk.id.hex()} left its row under a lock")
        return feed.NewChange(schema.CHANGE_REPLICAS, bucket_id, key, version)

    def _rewrite_inline(
        self, connection: sa.Connection, owner: tuple[int, str, int], chunk: bytes, replicas: tuple[Replica, ...]
    ) -> bool:
        bucket_id, key, version = owner
        for table in (schema.objects, schema.versions):
            body, _ = self._body(connection, table, bucket_id, key, version)
            changed = give_replicas(body, chunk, replicas)
            if changed:
                _SET_BODY[table].run(
                    connection, of_bucket=bucket_id, of_key=key, of_version=version, packed=changed
                )
                return True
        return False
