"""What each mutation does to a key: put, delete, copy and rename, set meta; conditions, versions, repeats, lateness.

Rules only: it reads the Facts that the batch loaded (and, for the rare cases, single rows through the catalog),
checks everything, then adds rows to the WriteSet. A refusal is an exception raised before anything was written.

S3's "null" version: a row written while versioning is not on has is_null = 1; there is at most one per key.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from metadata.catalog import bodies, objects, operations, placements, schema
from metadata.catalog.buckets import Bucket
from metadata.catalog.feed import NewChange
from metadata.catalog.objects import ObjectRow
from metadata.catalog.packed import INLINE_CHUNKS_MAX, unpack
from metadata.catalog.session import Session
from metadata.services import object_lock
from metadata.services.compose import compose
from metadata.services.files_meta import of_copy
from metadata.services.fill import fill
from metadata.services.receipts import Members, pack_bodies
from metadata.services.writes import Committed, WriteSet
from tierstore.auth.access import Principal, authorize
from tierstore.clock import HybridClock
from tierstore.errors import ConflictError, NotFound, PreconditionFailed, RequestError, TierstoreError
from tierstore.names import CHUNK_ID_BYTES, OPERATION_ID_BYTES, check_key, check_user_meta
from tierstore.ticket import Receipt
from tierstore.wire import encode, names
from tierstore.wire.names import CommitItem, CommitResult, Condition, Copy, Delete, Fill, ObjectMeta, Put, SetMeta

#: `version` of a Delete, SetMeta or lookup that means S3's "null" version.
NULL_VERSION: Final = -1
#: Chunks of one object (5 TiB in chunks of 8 MiB, and some).
CHUNKS_MAX: Final = 1_000_000
#: Bytes of the MessagePack of an object's metadata.
META_BYTES_MAX: Final = 64 << 10

_DEFAULT_META: Final = ObjectMeta()


@dataclass(slots=True)
class Facts:
    """What one batch's decisions rest on, read in its transaction. now_ms: catalog time."""

    now_ms: int
    buckets: dict[str, Bucket] = field(default_factory=dict)
    latest: dict[tuple[int, str], ObjectRow] = field(default_factory=dict)
    members: Members = field(default_factory=Members)
    receipts: dict[bytes, list[list[tuple[Receipt, int]]] | TierstoreError] = field(default_factory=dict)
    condemned: set[bytes] = field(default_factory=set)
    committed: set[bytes] = field(default_factory=set)
    leases: dict[bytes, int] = field(default_factory=dict)
    results: dict[bytes, bytes] = field(default_factory=dict)

    def bucket(self, name: str) -> Bucket:
        found = self.buckets.get(name)
        if found is None:
            raise NotFound(f"there is no bucket {name!r}", code="no-such-bucket", bucket=name)
        return found


class Mutator:
    """Decides. Holds no state of a batch."""

    def __init__(
        self, versions: HybridClock, *, rng: random.Random, copies_for: Callable[[str, str, int], int]
    ) -> None:
        self._versions = versions
        self._rng = rng
        self._copies_for = copies_for

    def apply(
        self, session: Session, facts: Facts, writes: WriteSet, item: CommitItem, who: Principal
    ) -> CommitResult:
        """Raises TierstoreError for a refusal; then nothing was written."""
        check_operation(item.operation, item.deadline_ms, facts.now_ms)
        m = item.mutation
        if isinstance(m, Put):
            return self._put(session, facts, writes, m, who, opened=facts.receipts[item.operation])
        if isinstance(m, Delete):
            return self._delete(session, facts, writes, m, who)
        if isinstance(m, Copy):
            return self._copy(session, facts, writes, m, who)
        if isinstance(m, names.Compose):
            return self._compose(session, facts, writes, m, who)
        if isinstance(m, Fill):
            return self._fill(session, facts, writes, m, who, opened=facts.receipts[item.operation])
        return self._set_meta(session, facts, writes, m, who)

    # -- put ------------------------------------------------------------------------------------------------
    def _put(
        self, session: Session, facts: Facts, writes: WriteSet, m: Put, who: Principal, *,
        opened: list[list[tuple[Receipt, int]]] | TierstoreError,
    ) -> CommitResult:  # fmt: skip
        bucket = facts.bucket(m.bucket)
        authorize(who, "write", m.bucket)
        check_key(m.key)
        if isinstance(opened, TierstoreError):
            raise opened
        uploads = _check_chunks(m)
        check_uploads(facts, uploads)
        meta = _new_meta(bucket, m.meta, facts)
        packed = pack_bodies(m.chunks, opened, facts.members, self._copies_for(m.bucket, m.key, m.size))
        old = facts.latest.get((bucket.id, m.key))
        _check_condition(m.condition, old)

        version = self._new_version(writes, old)
        kind, body, ref = schema.KIND_INLINE, b"".join(packed), None
        if len(packed) > INLINE_CHUNKS_MAX:
            kind, ref = schema.KIND_ROWS, self._body_id()
            extents, rows = bodies.make_rows(ref, unpack(body))
            writes.extents += extents
            writes.chunks += rows
        row = ObjectRow(
            bucket.id, m.key, version, kind, int(bucket.versioning != "enabled"), m.size,
            m.etag or f"ts-{version:016x}", facts.now_ms, body if ref is None else None, meta, ref,
        )  # fmt: skip
        self._displace(session, writes, bucket, old)
        writes.put(row, old)
        writes.uploads += [(upload,) for upload in uploads]
        if facts.leases:
            writes.ended_leases += [(upload,) for upload in uploads if upload in facts.leases]
        self._note(writes, schema.CHANGE_PUT, bucket, row, old)
        return CommitResult(version=version, etag=row.etag, created_at_ms=row.created_at_ms, size=row.size)

    def _fill(
        self, session: Session, facts: Facts, writes: WriteSet, m: Fill, who: Principal, *,
        opened: list[list[tuple[Receipt, int]]] | TierstoreError,
    ) -> CommitResult:  # fmt: skip
        """Bytes of a remote version. A gateway brings them for whoever may read the object."""
        bucket = facts.bucket(m.bucket)
        authorize(who, "read", m.bucket)
        if isinstance(opened, TierstoreError):
            raise opened
        latest = facts.latest.get((bucket.id, m.key))
        row = self._find(session, bucket, m.key, m.version, latest)
        if row is None or not m.version:
            raise _missing(m.bucket, m.key, m.version)
        uploads = sorted({chunk.id[:12] for chunk in m.chunks})
        check_uploads(facts, uploads)
        packed = pack_bodies(m.chunks, opened, facts.members, self._copies_for(m.bucket, m.key, row.size))
        new = fill(
            session, writes, row, is_latest=row is latest, start=m.start, packed=packed, body_id=self._body_id()
        )
        writes.uploads += [(upload,) for upload in uploads]
        writes.changes.append(NewChange(schema.CHANGE_PUT, bucket.id, m.key, new.version))
        return CommitResult(version=new.version, etag=new.etag, created_at_ms=new.created_at_ms, size=new.size)

    def _compose(
        self, session: Session, facts: Facts, writes: WriteSet, m: names.Compose, who: Principal
    ) -> CommitResult:
        bucket = facts.bucket(m.bucket)
        authorize(who, "write", m.bucket)
        check_key(m.key)
        meta = _new_meta(bucket, m.meta, facts)
        old = facts.latest.get((bucket.id, m.key))
        _check_condition(m.condition, old)
        made = compose(session, writes, bucket, m, body_id=self._body_id())
        row = ObjectRow(
            bucket.id, m.key, self._new_version(writes, old), made.kind, int(bucket.versioning != "enabled"), made.size,
            m.etag, facts.now_ms, made.body, meta, made.ref,
        )  # fmt: skip
        self._displace(session, writes, bucket, old)
        writes.put(row, old)
        self._note(writes, schema.CHANGE_PUT, bucket, row, old)
        return CommitResult(version=row.version, etag=row.etag, created_at_ms=row.created_at_ms, size=row.size)

    # -- delete ---------------------------------------------------------------------------------------------
    def _delete(self, session: Session, facts: Facts, writes: WriteSet, m: Delete, who: Principal) -> CommitResult:
        bucket = facts.bucket(m.bucket)
        authorize(who, "delete", m.bucket)
        check_key(m.key)
        old = facts.latest.get((bucket.id, m.key))
        if m.version:
            return self._delete_version(session, facts, writes, bucket, m, old)
        _check_condition(m.condition, old)
        existed = old is not None and old.kind != schema.KIND_MARKER
        if not bucket.versioning and (not bucket.is_replicated or not existed):
            if old is None or not existed:
                return CommitResult()
            writes.deleted.append((bucket.id, m.key))
            writes.discard(session, old)
            self._note(writes, schema.CHANGE_DELETE, bucket, old, old)
            return CommitResult(version=old.version, existed=existed)
        version = self._new_version(writes, old)
        marker = ObjectRow(
            bucket.id, m.key, version, schema.KIND_MARKER, int(bucket.versioning != "enabled"), 0, "", facts.now_ms,
            None, None, None,
        )  # fmt: skip
        self._displace(session, writes, bucket, old)
        writes.put(marker, old)
        self._note(writes, schema.CHANGE_MARKER, bucket, marker, old)
        return CommitResult(version=version, created_at_ms=facts.now_ms, is_delete_marker=True, existed=existed)

    def _delete_version(  # noqa: PLR0917 - the batch's three, and what is deleted
        self, session: Session, facts: Facts, writes: WriteSet, bucket: Bucket, m: Delete, old: ObjectRow | None
    ) -> CommitResult:
        """One version for good; when it was the latest, the next older one becomes it."""
        row = self._find(session, bucket, m.key, m.version, old)
        _check_condition(m.condition, row)
        if row is None:
            return CommitResult()
        object_lock.check_destroy(row, facts.now_ms, bypass=m.bypass_governance)
        if row is old:
            newest = objects.newest_version(session.connection, bucket.id, m.key)
            if newest is None:
                writes.deleted.append((bucket.id, m.key))
            else:
                session.write(objects.DELETE_VERSION, [(bucket.id, m.key, newest.version)])
                writes.put(newest, old)
        else:
            session.write(objects.DELETE_VERSION, [(bucket.id, m.key, row.version)])
        writes.discard(session, row)
        self._note(writes, schema.CHANGE_DELETE, bucket, row, row)
        return CommitResult(version=row.version, existed=True, is_delete_marker=row.kind == schema.KIND_MARKER)

    # -- copy and rename ------------------------------------------------------------------------------------
    def _copy(self, session: Session, facts: Facts, writes: WriteSet, m: Copy, who: Principal) -> CommitResult:
        source_bucket, bucket = facts.bucket(m.from_bucket), facts.bucket(m.bucket)
        authorize(who, "read", m.from_bucket)
        authorize(who, "write", m.bucket)
        check_key(m.key)
        check_key(m.from_key)
        is_same = (source_bucket.id, m.from_key) == (bucket.id, m.key)
        if m.rename:
            authorize(who, "delete", m.from_bucket)
            if is_same or m.from_version:
                raise RequestError("rename the latest version to another key", code="bad-rename")
        source_latest = facts.latest.get((source_bucket.id, m.from_key))
        source = self._find(session, source_bucket, m.from_key, m.from_version, source_latest)
        if source is None or source.kind == schema.KIND_MARKER:
            raise _missing(m.from_bucket, m.from_key, m.from_version)
        if source.kind == schema.KIND_INODE:
            raise ConflictError("a file with hard links cannot be copied by name", code="is-inode")
        if source.kind == schema.KIND_REMOTE:
            raise ConflictError("its bytes have not all come from another site yet", code="body-not-here")
        _check_condition(m.source_condition, source)
        old = facts.latest.get((bucket.id, m.key))
        _check_condition(m.condition, old)
        if m.meta is None:
            meta = object_lock.for_copy(bucket, of_copy(source.meta, is_rename=m.rename), facts.now_ms)
        else:
            meta = _new_meta(bucket, m.meta, facts)
        newest = max(source.version, old.version if old is not None else 0)
        version = self._new_version(writes, newest)

        if m.rename and not source_bucket.versioning and not source_bucket.is_replicated:
            kind, body, ref = source.kind, source.body, source.ref
            writes.deleted.append((source.bucket_id, source.key))
            if body:
                placements.move(session, unpack(body), (bucket.id, m.key, version))
            self._note(writes, schema.CHANGE_DELETE, source_bucket, source, None)
        else:
            shared, ref = self._share(session, writes, source_bucket, source, is_latest=source is source_latest)
            kind, body = shared.kind, shared.body
            if source is old:
                old = shared
            if m.rename:
                self._leave_marker(session, facts, writes, source_bucket, shared)
        row = ObjectRow(
            bucket.id, m.key, version, kind, int(bucket.versioning != "enabled"), source.size, source.etag,
            source.created_at_ms if m.rename else facts.now_ms, body, meta, ref,
        )  # fmt: skip
        self._displace(session, writes, bucket, old)
        writes.put(row, old)
        self._note(writes, schema.CHANGE_PUT, bucket, row, old)
        return CommitResult(version=version, etag=row.etag, created_at_ms=row.created_at_ms, size=row.size)

    def _share(
        self, session: Session, writes: WriteSet, bucket: Bucket, source: ObjectRow, *, is_latest: bool
    ) -> tuple[ObjectRow, int | None]:
        """The source's row as it is once its chunks can have two owners, and the body id of the second one. Written
        at once, because counts must be right before they are read again."""
        if source.size == 0 and not source.ref:
            return source, None
        if source.kind == schema.KIND_INLINE:
            assert source.body is not None, "an inline row has a body"
            extents, rows = bodies.make_rows(body_id := self._body_id(), unpack(source.body))
            session.write(bodies.INSERT_CHUNKS, rows)
            session.write(bodies.INSERT_EXTENTS, extents)
            source = source._replace(kind=schema.KIND_ROWS, body=None, ref=body_id)
            session.write(objects.REPLACE_LATEST if is_latest else objects.REPLACE_VERSION, [source])
            self._note(writes, schema.CHANGE_SHARED, bucket, source, None)
        assert source.ref is not None, "a row of this kind names its body"
        copy_id = self._body_id()
        bodies.share(session, source.ref, copy_id)
        return source, copy_id

    def _leave_marker(
        self, session: Session, facts: Facts, writes: WriteSet, bucket: Bucket, source: ObjectRow
    ) -> None:
        """Where versions are kept, a renamed object leaves a delete marker behind."""
        marker = ObjectRow(
            bucket.id, source.key, self._new_version(writes, source), schema.KIND_MARKER,
            int(bucket.versioning != "enabled"), 0, "", facts.now_ms, None, None, None,
        )  # fmt: skip
        self._displace(session, writes, bucket, source)
        writes.put(marker, source)
        self._note(writes, schema.CHANGE_MARKER, bucket, marker, source)

    # -- metadata -------------------------------------------------------------------------------------------
    def _set_meta(self, session: Session, facts: Facts, writes: WriteSet, m: SetMeta, who: Principal) -> CommitResult:
        bucket = facts.bucket(m.bucket)
        authorize(who, "write", m.bucket)
        check_key(m.key)
        latest = facts.latest.get((bucket.id, m.key))
        row = self._find(session, bucket, m.key, m.version, latest)
        _check_condition(m.condition, row)
        if row is None or row.kind == schema.KIND_MARKER:
            raise _missing(m.bucket, m.key, m.version)
        new = row._replace(meta=_pack_meta(object_lock.for_change(bucket, row, m, facts.now_ms)))
        session.write(objects.REPLACE_LATEST if row is latest else objects.REPLACE_VERSION, [new])
        self._note(writes, schema.CHANGE_META, bucket, new, None)
        return CommitResult(version=row.version, etag=row.etag, created_at_ms=row.created_at_ms, size=row.size)

    # -- shared steps ---------------------------------------------------------------------------------------
    def _find(
        self, session: Session, bucket: Bucket, key: str, version: int, latest: ObjectRow | None
    ) -> ObjectRow | None:
        """The row of a version (0: the latest, NULL_VERSION: the "null" one), locked. The latest's is `latest`."""
        if not version or (latest is not None and latest.version == version):
            return latest
        if version == NULL_VERSION:
            if latest is not None and latest.is_null:
                return latest
            return objects.null_version(session.connection, bucket.id, key)
        rows = session.fetch(objects.VERSION_LOCKED, [(bucket.id, key, version)])
        return ObjectRow._make(rows[0]) if rows else None

    def _displace(self, session: Session, writes: WriteSet, bucket: Bucket, old: ObjectRow | None) -> None:
        """The latest is about to be replaced: keep it as a version, or let go of it, as the bucket's state says."""
        if old is None:
            return
        if bucket.versioning == "enabled" or (bucket.versioning and not old.is_null):
            writes.versions.append(old)
            if bucket.versioning != "enabled":
                # The new row is the null version: an older one goes.
                null = objects.null_version(session.connection, bucket.id, old.key)
                if null is not None:
                    session.write(objects.DELETE_VERSION, [(bucket.id, old.key, null.version)])
                    writes.discard(session, null)
                    self._note(writes, schema.CHANGE_DELETE, bucket, null, null)
        else:
            writes.discard(session, old)

    def _new_version(self, writes: WriteSet, old: ObjectRow | int | None) -> int:
        after = old if isinstance(old, int) else (old.version if old is not None else 0)
        version = self._versions.next(after)
        writes.version_max = max(writes.version_max, version)
        return version

    def _body_id(self) -> int:
        return self._rng.getrandbits(62) + 1

    def _note(self, writes: WriteSet, kind: int, bucket: Bucket, row: ObjectRow, old: ObjectRow | None) -> None:
        targets = bucket.targets(row.key) if bucket.config else ()
        if targets:
            writes.has_targets = True
        writes.changes.append(NewChange(kind, bucket.id, row.key, row.version, row.size, targets))
        if writes.wants_events:
            old_body = old.body if old is not None else None
            writes.events.append(Committed(kind, bucket.name, row.key, row.version, row.size, old_body, row.body))


def check_operation(operation: bytes, deadline_ms: int, now_ms: int) -> None:
    """Raises RequestError for an operation that comes too late, or whose result could not be kept long enough."""
    if len(operation) != OPERATION_ID_BYTES:
        raise RequestError(f"an operation id has {OPERATION_ID_BYTES} bytes", code="bad-operation")
    if deadline_ms < now_ms:
        raise RequestError("the deadline of this operation has passed; nothing was done", code="too-late")
    if deadline_ms > int.from_bytes(operation[:6], "big") + operations.OPERATION_LIFE_MS:
        raise RequestError(
            "the deadline lies more than an hour behind the time in the operation's id", code="bad-deadline"
        )


def _missing(bucket: str, key: str, version: int) -> NotFound:
    code = "no-such-version" if version else "no-such-key"
    return NotFound(f"there is no {key!r} in bucket {bucket!r}", code=code, bucket=bucket, key=key)


def _check_chunks(m: Put) -> list[bytes]:
    """The uploads of the chunks, each once. Raises RequestError when chunks and size do not fit."""
    if len(m.chunks) > CHUNKS_MAX:
        raise RequestError(f"an object has at most {CHUNKS_MAX} chunks", code="too-many-chunks")
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
    return sorted({chunk[:12] for chunk in ids})


def check_uploads(facts: Facts, uploads: list[bytes]) -> None:
    """Raises ConflictError for uploads that are condemned, lapsed or committed already (rule 3)."""
    for upload in uploads:
        if upload in facts.condemned:
            raise ConflictError("the upload was given up for dead; upload again", code="upload-condemned")
        if upload in facts.committed:
            raise ConflictError("these chunks belong to an object already", code="upload-committed")
        age_ms = facts.now_ms - int.from_bytes(upload[:6], "big")
        if age_ms > operations.UPLOAD_LIFE_MS and facts.leases.get(upload, 0) < facts.now_ms:
            raise ConflictError(
                f"the upload began {age_ms // 1000} s ago and was not renewed; upload again", code="upload-lapsed"
            )


def _check_condition(condition: Condition | None, row: ObjectRow | None) -> None:
    """Raises PreconditionFailed. A delete marker is no object."""
    if condition is None:
        return
    here = row if row is not None and row.kind != schema.KIND_MARKER else None
    if condition.version and (here is None or here.version != condition.version):
        raise PreconditionFailed("the object has another version now")
    if condition.if_match and (here is None or not ("*" in condition.if_match or here.etag in condition.if_match)):
        raise PreconditionFailed("no ETag of If-Match is the object's")
    none_match = condition.if_none_match
    if none_match and here is not None and ("*" in none_match or here.etag in none_match):
        raise PreconditionFailed("the object exists (If-None-Match)")


def _new_meta(bucket: Bucket, meta: ObjectMeta | None, facts: Facts) -> bytes | None:
    """The packed metadata of a new version, with what the bucket's object lock adds."""
    if bucket.config or (meta is not None and meta.extra):
        meta = object_lock.for_new(bucket, meta, facts.now_ms)
    return _pack_meta(meta)


def _pack_meta(meta: ObjectMeta | None) -> bytes | None:
    """Raises RequestError for pairs that do not fit in headers or metadata that is too large."""
    if meta is None or meta == _DEFAULT_META:
        return None
    check_user_meta(meta.user_meta)
    packed = encode(meta)
    if len(packed) > META_BYTES_MAX:
        raise RequestError(f"metadata of {len(packed)} bytes, at most {META_BYTES_MAX} are kept", code="bad-meta")
    return packed
