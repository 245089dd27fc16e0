"""Puts and fills: new bytes become a version, or the missing part of one. The hot half of services/names/mutations.

Cost of a put of one chunk: about 4 us beside its receipts and its rows.
"""

from __future__ import annotations

from typing import Final

from metadata.catalog import bodies, schema
from metadata.catalog.feed import NewChange
from metadata.catalog.objects import ObjectRow
from metadata.catalog.packed import INLINE_CHUNKS_MAX, unpack
from metadata.catalog.session import Session
from metadata.services.names import claims, quotas
from metadata.services.names.facts import Facts, check_uploads
from metadata.services.names.fill import fill
from metadata.services.names.receipts import Opened, pack_bodies
from metadata.services.names.rights import authorize_in
from metadata.services.names.steps import Steps, check_condition, missing, new_meta
from metadata.services.names.writes import WriteSet
from tierstore.auth.access import Principal
from tierstore.errors import RequestError, TierstoreError
from tierstore.names import CHUNK_ID_BYTES, UPLOAD_ID_BYTES, check_key
from tierstore.wire.names import CommitResult, Fill, Put
from tierstore.wire.storage_class import class_of, packed_class

#: Chunks of one object (5 TiB in chunks of 8 MiB, and some).
CHUNKS_MAX: Final = 1_000_000


class Puts(Steps):
    """Decides about new bytes."""

    def _put(
        self, session: Session, facts: Facts, writes: WriteSet, m: Put, who: Principal, *,
        opened: list[Opened] | TierstoreError,
    ) -> CommitResult:  # fmt: skip
        bucket = facts.writable(who, m.bucket, m.key)
        check_key(m.key)
        if isinstance(opened, TierstoreError):
            raise opened
        uploads = _check_chunks(m)
        check_uploads(facts, uploads)
        claims.check_new(who, m.etag, m.meta)
        meta = new_meta(bucket, m.meta, facts) if m.meta is not None or bucket.config else None
        copies = self._copies_for(m.bucket, m.key, m.size, class_of(m.meta))
        packed = pack_bodies(m.chunks, opened, facts.members, copies)
        old = facts.latest.get((bucket.id, m.key))
        if m.condition is not None:
            check_condition(m.condition, old)
        if bucket.config:
            quotas.check(session, writes, bucket, m.size, old)

        version = self._new_version(writes, old)
        kind, ref = schema.KIND_INLINE, None
        body = packed[0] if len(packed) == 1 else b"".join(packed)
        if len(packed) > INLINE_CHUNKS_MAX:
            kind, ref = schema.KIND_ROWS, self._body_id()
            extents, rows = bodies.make_rows(ref, unpack(body))
            writes.extents += extents
            writes.chunks += rows
        row = ObjectRow(
            bucket.id, m.key, version, kind, int(bucket.versioning != "enabled"), m.size,
            m.etag or f"ts-{version:016x}", facts.now_ms, body if ref is None else None, meta, ref,
        )  # fmt: skip
        if old is not None:
            self._displace(session, writes, bucket, old)
        writes.put(row, old)
        if writes.usage:
            writes.count(bucket.id, 1, row.size)
        writes.uploads += uploads
        if facts.leases:
            writes.ended_leases += [(upload,) for upload in uploads if upload in facts.leases]
        self._note(writes, schema.CHANGE_PUT, bucket, row, old)
        return CommitResult(version=version, etag=row.etag, created_at_ms=row.created_at_ms, size=row.size)

    def _fill(
        self, session: Session, facts: Facts, writes: WriteSet, m: Fill, who: Principal, *,
        opened: list[Opened] | TierstoreError,
    ) -> CommitResult:  # fmt: skip
        """Bytes of a remote version. A gateway brings them for whoever may read the object."""
        bucket = facts.bucket(m.bucket)
        authorize_in(who, "read", bucket, m.key)
        claims.check_fill(who, m)
        if isinstance(opened, TierstoreError):
            raise opened
        latest = facts.latest.get((bucket.id, m.key))
        row = self._find(session, bucket, m.key, m.version, latest)
        if row is None or not m.version:
            raise missing(m.bucket, m.key, m.version)
        uploads = sorted({chunk.id[:12] for chunk in m.chunks})
        check_uploads(facts, uploads)
        copies = self._copies_for(m.bucket, m.key, row.size, packed_class(row.meta))
        packed = pack_bodies(m.chunks, opened, facts.members, copies)
        new = fill(
            session, writes, row, is_latest=row is latest, start=m.start, packed=packed, body_id=self._body_id(),
            is_cached=m.is_cached,
        )  # fmt: skip
        writes.uploads += uploads
        writes.changes.append(NewChange(schema.CHANGE_PUT, bucket.id, m.key, new.version))
        return CommitResult(version=new.version, etag=new.etag, created_at_ms=new.created_at_ms, size=new.size)


def _check_chunks(m: Put) -> list[bytes]:
    """The uploads of the chunks, each once. Raises RequestError when chunks and size do not fit."""
    if len(m.chunks) > CHUNKS_MAX:
        raise RequestError(f"an object has at most {CHUNKS_MAX} chunks", code="too-many-chunks")
    if len(m.chunks) == 1 and m.chunks[0].chunk_bytes == m.size > 0 and len(m.chunks[0].id) == CHUNK_ID_BYTES:
        return [m.chunks[0].id[:UPLOAD_ID_BYTES]]
    total = 0
    ids = set()
    for chunk in m.chunks:
        if len(chunk.id) != CHUNK_ID_BYTES or chunk.chunk_bytes <= 0:
            raise RequestError("a chunk has an id of 16 bytes and at least one byte", code="bad-chunk")
        total += chunk.chunk_bytes
        ids.add(chunk.id)
    if total != m.size:
        raise RequestError(f"the chunks have {total} bytes, the object {m.size}", code="size-mismatch")
    if len(ids) != len(m.chunks):
        raise RequestError("a chunk is named twice", code="bad-chunk")
    return sorted({chunk[:UPLOAD_ID_BYTES] for chunk in ids})
