"""What requests say of object lock: headers and documents read and checked, header lines made. Pure but for rights."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from tierstore.gateway.s3 import rights
from tierstore.gateway.s3.documents import Node, moment
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.s3.request import Call
from tierstore.wire.lock import COMPLIANCE, DOCUMENT, GOVERNANCE, Lock, LockRule, lock_of, with_lock
from tierstore.wire.names import BucketView, ObjectMeta

_MODES: Final = (GOVERNANCE, COMPLIANCE)
_HEADERS: Final = frozenset({
    b"x-amz-object-lock-mode", b"x-amz-object-lock-retain-until-date", b"x-amz-object-lock-legal-hold",
})  # fmt: skip
_DAYS_MAX: Final = 36_500
_YEARS_MAX: Final = 100


def may_bypass(call: Call, bucket: BucketView) -> bool:
    """Whether the caller asked to pass governance retention. Raises S3Error(AccessDenied) when he may not."""
    if (call.header(b"x-amz-bypass-governance-retention") or "").lower() != "true":
        return False
    rights.require(call, "s3:BypassGovernanceRetention", bucket, call.key)
    return True


def locked_meta(call: Call, bucket: BucketView, meta: ObjectMeta, now_ms: int) -> ObjectMeta:
    """The metadata with the lock that the headers of a PUT, copy or CreateMultipartUpload ask for. Raises S3Error."""
    if call.header_names.isdisjoint(_HEADERS):
        return meta
    mode, until = call.header(b"x-amz-object-lock-mode"), call.header(b"x-amz-object-lock-retain-until-date")
    hold = call.header(b"x-amz-object-lock-legal-hold")
    if DOCUMENT not in bucket.config:
        raise S3Error("InvalidRequest", "Bucket is missing Object Lock Configuration")
    if (mode is None) != (until is None):
        raise S3Error("InvalidArgument", "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be "
                      "supplied")  # fmt: skip
    if hold not in (None, "ON", "OFF"):
        raise S3Error("InvalidArgument", "Legal Hold must be either of 'ON' or 'OFF'")
    lock = Lock(hold=hold or "")
    if mode is not None and until is not None:
        rights.require(call, "s3:PutObjectRetention", bucket, call.key)
        if mode not in _MODES:
            raise S3Error("InvalidArgument", "Unknown wormMode directive.")
        lock = Lock(mode, _future(until, now_ms, "InvalidArgument"), hold or "")
    if hold is not None:
        rights.require(call, "s3:PutObjectLegalHold", bucket, call.key)
    return with_lock(meta, lock)


def lock_lines(meta: ObjectMeta) -> list[str]:
    """The header lines of a GET or HEAD."""
    if not meta.extra:
        return []
    lock = lock_of(meta)
    lines = []
    if lock.mode:
        lines += [f"x-amz-object-lock-mode: {lock.mode}",
                  f"x-amz-object-lock-retain-until-date: {moment(lock.until_ms)}"]  # fmt: skip
    if lock.hold:
        lines.append(f"x-amz-object-lock-legal-hold: {lock.hold}")
    return lines


def parse_configuration(root: Node) -> LockRule:
    """Raises S3Error(MalformedXML, InvalidRetentionPeriod)."""
    if root.text("ObjectLockEnabled") != "Enabled":
        raise S3Error("MalformedXML")
    rule = root.one("Rule")
    if rule is None:
        return LockRule()
    kept = rule.one("DefaultRetention")
    mode, days, years = (kept.text(n) for n in ("Mode", "Days", "Years")) if kept is not None else (None, None, None)
    if mode not in _MODES or (days is None) == (years is None):
        raise S3Error("MalformedXML")
    return LockRule(mode, _period(days, _DAYS_MAX), _period(years, _YEARS_MAX))


def _period(text: str | None, most: int) -> int:
    if text is None:
        return 0
    if not text.lstrip("-").isascii() or not text.lstrip("-").isdigit() or len(text) > 10:
        raise S3Error("MalformedXML")
    if not 1 <= int(text) <= most:
        raise S3Error("InvalidRetentionPeriod", "Default retention period must be a positive integer value.")
    return int(text)


def parse_retention(root: Node, now_ms: int) -> Lock:
    """A retention; an empty document asks to take it away. Raises S3Error(MalformedXML, InvalidArgument)."""
    mode, until = root.text("Mode"), root.text("RetainUntilDate")
    if mode is None and until is None:
        return Lock()
    if mode not in _MODES or until is None:
        raise S3Error("MalformedXML")
    return Lock(mode, _future(until, now_ms, "MalformedXML"))


def _future(text: str, now_ms: int, code: str) -> int:
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise S3Error(code) from None
    at_ms = int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    if at_ms <= now_ms:
        raise S3Error("InvalidArgument", "The retain until date must be in the future!")
    return at_ms
