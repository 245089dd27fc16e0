"""What a writer may say of an object himself, when he asks metadata directly (SDK, any program with a key).

Doors of the cluster (gateways, mounts' own calls) build ETags, headers and attributes from what they have checked, so
they are believed. Of everybody else metadata takes only what any reader can bear: values that fit in header lines, and
no attributes (`ObjectMeta.extra`), which belong to the S3 door and to mounts: encryption, sizes of parts, owners, lists
of grants, locks, POSIX attributes. Buckets of the system are not there for them (docs/adr/0710).

Cost for a gateway's put: two comparisons.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from metadata.catalog.objects import ObjectRow
from tierstore.auth.access import Principal
from tierstore.errors import AccessDenied, NotFound, RequestError
from tierstore.wire import decode, lock
from tierstore.wire.names import Fill, ObjectMeta, SetMeta
from tierstore.wire.s3 import OF_BODY

ETAG_BYTES_MAX: Final = 256
#: Content type, a kept header, a checksum, a tag: more than any of AWS's limits.
VALUE_CHARACTERS_MAX: Final = 1024
TAGS_MAX: Final = 50
#: Visible ASCII but for the quote, which would end it, and the semicolon, which marks encrypted objects (wire.s3).
_ETAG: Final = re.compile(r"[!#-:<-~]*")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_CHECKSUM: Final = re.compile(r"[A-Za-z0-9+/=-]{1,100}")
_HEADERS: Final = frozenset({
    "cache-control", "content-disposition", "content-encoding", "content-language", "expires",
})  # fmt: skip
_CHECKSUMS: Final = frozenset({"crc32", "crc32c", "crc64nvme", "sha1", "sha256"})
_LOCK_MODES: Final = (b"", lock.GOVERNANCE.encode(), lock.COMPLIANCE.encode())
#: Digits of a time in ms until the year 9999.
_UNTIL: Final = re.compile(rb"\d{1,15}")
_NO_META: Final = ObjectMeta()


def is_believed(who: Principal) -> bool:
    """Whether a door of the cluster says it."""
    return who.is_daemon or who.seen.is_judged


def check_bucket(who: Principal, name: str) -> None:
    """Raises NotFound for the system's own buckets: parts of uploads under way lie there, of all buckets."""
    if name.startswith(".") and not is_believed(who):
        raise NotFound(f"there is no bucket {name!r}", code="no-such-bucket", bucket=name)


def check_new(who: Principal, etag: str, meta: ObjectMeta | None) -> None:
    """What comes with a new version. Raises RequestError(bad-meta)."""
    if is_believed(who):
        return
    if len(etag) > ETAG_BYTES_MAX or not _ETAG.fullmatch(etag):
        raise RequestError("an ETag has at most 256 visible ASCII characters, without quotes and semicolons",
                           code="bad-meta")  # fmt: skip
    if meta is not None:
        _check_lines(meta)
        if meta.extra:
            raise _not_his(meta.extra)


def of_copy(who: Principal, meta: ObjectMeta, source: ObjectRow) -> ObjectMeta:
    """The metadata that somebody gives to a copy: what speaks of the bytes is as it is at the source."""
    if is_believed(who):
        return meta
    check_new(who, "", meta)
    held = _held(source)
    extra = {name: value for name, value in held.extra.items() if name in OF_BODY}
    return msgspec.structs.replace(meta, checksums=held.checksums, extra=extra)


def of_change(who: Principal, m: SetMeta, row: ObjectRow) -> SetMeta:
    """The change that somebody asks for: attributes and checksums stay as they are, but for the lock where the change
    is about it. He may send those he read. Raises RequestError(bad-meta)."""
    if is_believed(who):
        return m
    held = _held(row)
    _check_lines(m.meta)
    if m.lock:
        _check_lock(m.meta.extra)
    of_lock = {name: value for name, value in m.meta.extra.items() if name in lock.NAMES and m.lock}
    others = {name for name, value in m.meta.extra.items() if name not in of_lock and held.extra.get(name) != value}
    if others:
        raise _not_his(others)
    kept = {name: value for name, value in held.extra.items() if name not in lock.NAMES}
    meta = msgspec.structs.replace(m.meta, checksums=held.checksums, extra=kept | of_lock)
    return msgspec.structs.replace(m, meta=meta)


def check_fill(who: Principal, m: Fill) -> None:
    """Bytes of another site come from its servers by way of gateways; mounts only say that what is here stays. Raises
    AccessDenied."""
    if m.chunks and not is_believed(who):
        raise AccessDenied("bytes of another site's versions are brought by gateways only")


def _check_lines(meta: ObjectMeta) -> None:
    values = (meta.content_type, *meta.headers.values(), *meta.tags, *meta.tags.values())
    if any(len(value) > VALUE_CHARACTERS_MAX or _CONTROL.search(value) for value in values):
        raise RequestError(
            f"metadata has no control characters, and no value of more than {VALUE_CHARACTERS_MAX} characters",
            code="bad-meta",
        )
    if not meta.headers.keys() <= _HEADERS:
        raise RequestError(f"headers that are kept: {', '.join(sorted(_HEADERS))}", code="bad-meta")
    if not meta.checksums.keys() <= _CHECKSUMS or not all(map(_CHECKSUM.fullmatch, meta.checksums.values())):
        raise RequestError(f"checksums that are kept, in base64: {', '.join(sorted(_CHECKSUMS))}", code="bad-meta")
    if len(meta.tags) > TAGS_MAX:
        raise RequestError(f"an object has at most {TAGS_MAX} tags", code="bad-meta")


def _check_lock(extra: dict[str, bytes]) -> None:
    if (
        extra.get(lock.MODE, b"") not in _LOCK_MODES
        or not _UNTIL.fullmatch(extra.get(lock.UNTIL, b"0"))
        or extra.get(lock.HOLD, b"") not in (b"", b"ON", b"OFF")
    ):
        raise RequestError("retention is GOVERNANCE or COMPLIANCE until a time in ms; a hold ON or OFF",
                           code="bad-meta")  # fmt: skip


def _not_his(names: object) -> RequestError:
    shown = ", ".join(sorted(str(name)[:40] for name in names)[:5])  # type: ignore[attr-defined]
    return RequestError(f"attributes {shown} belong to the S3 door and to mounts: leave them out", code="bad-meta")


def _held(row: ObjectRow) -> ObjectMeta:
    return decode(row.meta, ObjectMeta) if row.meta is not None else _NO_META
