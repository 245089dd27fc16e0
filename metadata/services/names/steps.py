"""Steps that several mutations share: finding a version, displacing the latest, new ids, notes for the feed, and the
checks of conditions and metadata. Rules only; nothing is written before everything was checked.

S3's "null" version: a row written while versioning is not on has is_null = 1; there is at most one per key.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from metadata.catalog import objects, schema
from metadata.catalog.buckets import Bucket
from metadata.catalog.feed import NewChange
from metadata.catalog.objects import ObjectRow
from metadata.catalog.session import Session
from metadata.services.names import object_lock
from metadata.services.names.facts import Facts
from metadata.services.names.writes import Committed, WriteSet
from tierstore.clock import HybridClock
from tierstore.errors import NotFound, PreconditionFailed, RequestError
from tierstore.names import check_user_meta
from tierstore.wire import encode
from tierstore.wire.names import Condition, ObjectMeta

#: `version` of a Delete, SetMeta or lookup that means S3's "null" version.
NULL_VERSION: Final = -1
#: Bytes of the MessagePack of an object's metadata.
META_BYTES_MAX: Final = 64 << 10

_DEFAULT_META: Final = ObjectMeta()


class Steps:
    """Holds no state of a batch."""

    def __init__(
        self, versions: HybridClock, *, rng: random.Random, copies_for: Callable[[str, str, int, str], int]
    ) -> None:
        self._versions = versions
        self._rng = rng
        self._copies_for = copies_for

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
        after = 0 if old is None else old if isinstance(old, int) else old.version
        version = self._versions.next(after, writes.at_ms)
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


def missing(bucket: str, key: str, version: int) -> NotFound:
    code = "no-such-version" if version else "no-such-key"
    return NotFound(f"there is no {key!r} in bucket {bucket!r}", code=code, bucket=bucket, key=key)


def check_condition(condition: Condition | None, row: ObjectRow | None) -> None:
    """Raises PreconditionFailed. A delete marker is no object."""
    if condition is None:
        return
    here = row if row is not None and row.kind != schema.KIND_MARKER else None
    if condition.version and (here is None or here.version != condition.version):
        raise PreconditionFailed("the object has another version now")
    # an encrypted object's ETag carries a mark that clients do not see (wire.s3.marked_etag)
    etag = here.etag.partition(";")[0] if here is not None else ""
    if condition.if_match and (here is None or not ("*" in condition.if_match or etag in condition.if_match)):
        raise PreconditionFailed("no ETag of If-Match is the object's")
    none_match = condition.if_none_match
    if none_match and here is not None and ("*" in none_match or etag in none_match):
        raise PreconditionFailed("the object exists (If-None-Match)")


def new_meta(bucket: Bucket, meta: ObjectMeta | None, facts: Facts) -> bytes | None:
    """The packed metadata of a new version, with what the bucket's object lock adds."""
    if bucket.config or (meta is not None and meta.extra):
        meta = object_lock.for_new(bucket, meta, facts.now_ms)
    return pack_meta(meta)


def pack_meta(meta: ObjectMeta | None) -> bytes | None:
    """Raises RequestError for pairs that do not fit in headers or metadata that is too large."""
    if meta is None or meta == _DEFAULT_META:
        return None
    check_user_meta(meta.user_meta)
    packed = encode(meta)
    if len(packed) > META_BYTES_MAX:
        raise RequestError(f"metadata of {len(packed)} bytes, at most {META_BYTES_MAX} are kept", code="bad-meta")
    return packed
