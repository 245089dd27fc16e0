"""What each mutation does to a key: put and fill (services/names/puts), delete, copy and rename, set meta: conditions,
versions, rights.

Rules only: it reads the Facts that the batch loaded (and, for the rare cases, single rows through the catalog),
checks everything, then adds rows to the WriteSet. A refusal is an exception raised before anything was written.
"""

from __future__ import annotations

import msgspec

from metadata.catalog import bodies, objects, placements, schema
from metadata.catalog.buckets import Bucket
from metadata.catalog.objects import ObjectRow
from metadata.catalog.packed import unpack
from metadata.catalog.session import Session
from metadata.services.names import claims, object_lock, quotas
from metadata.services.names.compose import compose
from metadata.services.names.facts import Facts, check_operation
from metadata.services.names.posix import of_copy
from metadata.services.names.puts import Puts
from metadata.services.names.rights import authorize_bypass, authorize_in, authorize_more
from metadata.services.names.steps import check_condition, missing, new_meta, pack_meta
from metadata.services.names.writes import WriteSet
from tierstore.auth.access import OF_FACTS, OF_VERSIONS, Principal
from tierstore.errors import ConflictError, RequestError
from tierstore.names import check_key
from tierstore.policy import notify
from tierstore.wire import decode, encode, names
from tierstore.wire.names import CommitItem, CommitResult, Copy, Delete, Fill, ObjectMeta, Put, SetMeta
from tierstore.wire.s3 import BY_COPY, MADE_BY


class Mutator(Puts):
    """Decides. Holds no state of a batch."""

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

    def _compose(
        self, session: Session, facts: Facts, writes: WriteSet, m: names.Compose, who: Principal
    ) -> CommitResult:
        bucket = facts.bucket(m.bucket)
        authorize_in(who, "write", bucket, m.key)
        check_key(m.key)
        claims.check_new(who, m.etag, m.meta)
        meta = new_meta(bucket, m.meta, facts)
        old = facts.latest.get((bucket.id, m.key))
        check_condition(m.condition, old)
        made = compose(session, writes, bucket, m, body_id=self._body_id(), old=old)
        row = ObjectRow(
            bucket.id, m.key, self._new_version(writes, old), made.kind, int(bucket.versioning != "enabled"), made.size,
            m.etag, facts.now_ms, made.body, meta, made.ref,
        )  # fmt: skip
        self._displace(session, writes, bucket, old)
        writes.put(row, old)
        writes.count(bucket.id, 1, row.size)
        self._note(writes, schema.CHANGE_PUT, bucket, row, old)
        return CommitResult(version=row.version, etag=row.etag, created_at_ms=row.created_at_ms, size=row.size)

    # -- delete ---------------------------------------------------------------------------------------------
    def _delete(self, session: Session, facts: Facts, writes: WriteSet, m: Delete, who: Principal) -> CommitResult:
        bucket = facts.bucket(m.bucket)
        authorize_in(who, "delete", bucket, m.key)
        check_key(m.key)
        old = facts.latest.get((bucket.id, m.key))
        if m.version:
            authorize_more(who, OF_VERSIONS["delete"], bucket, m.key)
            if m.bypass_governance:
                authorize_bypass(who, bucket)
            return self._delete_version(session, facts, writes, bucket, m, old)
        check_condition(m.condition, old)
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
        check_condition(m.condition, row)
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
        authorize_in(who, "read", source_bucket, m.from_key)
        authorize_in(who, "write", bucket, m.key)
        check_key(m.key)
        check_key(m.from_key)
        is_same = (source_bucket.id, m.from_key) == (bucket.id, m.key)
        if m.from_version:
            authorize_more(who, OF_VERSIONS["read"], source_bucket, m.from_key)
        if m.rename:
            authorize_in(who, "delete", source_bucket, m.from_key)
            if is_same or m.from_version:
                raise RequestError("rename the latest version to another key", code="bad-rename")
        source_latest = facts.latest.get((source_bucket.id, m.from_key))
        source = self._find(session, source_bucket, m.from_key, m.from_version, source_latest)
        if source is None or source.kind == schema.KIND_MARKER:
            raise missing(m.from_bucket, m.from_key, m.from_version)
        if source.kind == schema.KIND_INODE:
            raise ConflictError("a file with hard links cannot be copied by name", code="is-inode")
        if source.kind == schema.KIND_REMOTE:
            raise ConflictError("its bytes have not all come from another site yet", code="body-not-here")
        check_condition(m.source_condition, source)
        old = facts.latest.get((bucket.id, m.key))
        check_condition(m.condition, old)
        if m.meta is None:
            meta = object_lock.for_copy(bucket, of_copy(source.meta, is_rename=m.rename), facts.now_ms)
            if notify.DOCUMENT in bucket.config and not m.rename:
                meta = _marked_as_copy(meta)
        else:
            meta = new_meta(bucket, claims.of_copy(who, m.meta, source), facts)
        if not m.rename or source_bucket is not bucket:
            quotas.check(session, writes, bucket, source.size, old)
        newest = max(source.version, old.version if old is not None else 0)
        version = self._new_version(writes, newest)

        if m.rename and not source_bucket.versioning and not source_bucket.is_replicated:
            kind, body, ref = source.kind, source.body, source.ref
            writes.deleted.append((source.bucket_id, source.key))
            writes.count(source.bucket_id, -1, -source.size)
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
        writes.count(bucket.id, 1, row.size)
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
        authorize_in(who, "write", bucket, m.key)
        check_key(m.key)
        authorize_more(who, OF_FACTS, bucket, m.key)
        if m.bypass_governance:
            authorize_bypass(who, bucket)
        latest = facts.latest.get((bucket.id, m.key))
        row = self._find(session, bucket, m.key, m.version, latest)
        check_condition(m.condition, row)
        if row is None or row.kind == schema.KIND_MARKER:
            raise missing(m.bucket, m.key, m.version)
        m = claims.of_change(who, m, row)
        new = row._replace(meta=pack_meta(object_lock.for_change(bucket, row, m, facts.now_ms)))
        session.write(objects.REPLACE_LATEST if row is latest else objects.REPLACE_VERSION, [new])
        self._note(writes, schema.CHANGE_META, bucket, new, None)
        return CommitResult(version=row.version, etag=row.etag, created_at_ms=row.created_at_ms, size=row.size)


def _marked_as_copy(meta: bytes | None) -> bytes:
    """So that those who asked to be notified hear of a copy."""
    held = decode(meta, ObjectMeta) if meta is not None else ObjectMeta()
    return encode(msgspec.structs.replace(held, extra={**held.extra, MADE_BY: BY_COPY}))
