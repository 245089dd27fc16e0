"""Object lock in the commit: what may be destroyed, what new versions get, how metadata of a locked version changes.

Invariant: no mutation takes a locked version away or weakens its retention, whichever door it came through. Costs a
search for a few bytes in the metadata of the rows that a mutation destroys or changes, nothing for other buckets.
"""

from __future__ import annotations

from metadata.catalog.buckets import Bucket
from metadata.catalog.objects import ObjectRow
from tierstore.errors import AccessDenied, ConflictError
from tierstore.wire import decode, encode, lock
from tierstore.wire.lock import Lock
from tierstore.wire.names import ObjectMeta, SetMeta


def check_destroy(row: ObjectRow, now_ms: int, *, bypass: bool = False) -> None:
    """Raises AccessDenied(object-locked) for a version that must stay."""
    if row.meta is None or lock.MARK not in row.meta:
        return
    if lock.lock_of(decode(row.meta, ObjectMeta)).blocks(now_ms, bypass=bypass):
        raise AccessDenied(
            "the version is under retention or legal hold (object lock); it goes when that ends", code="object-locked"
        )


def check_files(bucket: Bucket) -> None:
    """Raises AccessDenied(object-locked): files change in place, which a bucket of write-once versions rules out."""
    if lock.DOCUMENT in bucket.config:
        raise AccessDenied("a bucket with object lock can be read by mounts, not written", code="object-locked")


def for_new(bucket: Bucket, meta: ObjectMeta | None, now_ms: int) -> ObjectMeta | None:
    """The metadata of a new version: with the bucket's default retention when it names none itself. Raises
    ConflictError(no-object-lock) for a lock where the bucket has none."""
    text = bucket.config.get(lock.DOCUMENT)
    own = lock.lock_of(meta)
    if text is None:
        if own != Lock():
            raise ConflictError("the bucket has no object lock", code="no-object-lock")
        return meta
    rule = lock.rule_of(text)
    if not rule.mode or own.mode:
        return meta
    return lock.with_lock(meta or ObjectMeta(), Lock(rule.mode, rule.until_ms(now_ms), own.hold))


def for_copy(bucket: Bucket, meta: bytes | None, now_ms: int) -> bytes | None:
    """The packed metadata of a copy: the lock of the source stays with the source."""
    if lock.DOCUMENT not in bucket.config and (meta is None or lock.MARK not in meta):
        return meta
    held = decode(meta, ObjectMeta) if meta is not None else ObjectMeta()
    return encode(for_new(bucket, lock.with_lock(held, Lock()), now_ms) or held)


def for_change(bucket: Bucket, row: ObjectRow, m: SetMeta, now_ms: int) -> ObjectMeta:
    """The metadata that a change leaves: the lock of the row, but for the part that the change is about (m.lock).

    Raises ConflictError(no-object-lock), AccessDenied(object-locked) for retention taken away or shortened."""
    had = Lock()
    if row.meta is not None and lock.MARK in row.meta:
        had = lock.lock_of(decode(row.meta, ObjectMeta))
    wanted = lock.lock_of(m.meta)
    if m.lock and lock.DOCUMENT not in bucket.config:
        raise ConflictError("the bucket has no object lock", code="no-object-lock")
    new = had
    if m.lock == "retention":
        new = Lock(wanted.mode, wanted.until_ms, had.hold)
        may_bypass = m.bypass_governance and had.mode != lock.COMPLIANCE
        if had.weakened_by(new, now_ms) and not may_bypass:
            raise AccessDenied("the retention of this version may not be taken away or shortened", code="object-locked")
    elif m.lock == "hold":
        new = Lock(had.mode, had.until_ms, wanted.hold)
    return m.meta if new == wanted else lock.with_lock(m.meta, new)
