"""Identifiers and names: their types, their forms, and the checks of names that come from outside.

Owns no state. Every id that crosses a process has one form here and nowhere else.
"""

from __future__ import annotations

import re
from typing import Final, Literal, NewType

from tierstore.errors import RequestError

UploadId = NewType("UploadId", bytes)    # 12 bytes: u48 allocation time (catalog ms, big-endian) + 48 random bits
ChunkId = NewType("ChunkId", bytes)      # 16 bytes: upload id + u32 index (big-endian): a chunk id holds its upload
OperationId = NewType("OperationId", bytes)  # 16 bytes: u48 catalog ms (big-endian) + 80 random bits
VersionId = NewType("VersionId", int)    # 63 bits: u42 ms | u13 counter | u8 site; see clock.HybridClock
BucketId = NewType("BucketId", int)
ServerId = NewType("ServerId", int)      # 1..65535, given by the catalog at the first registration
DeviceId = NewType("DeviceId", int)      # 1..2^32-1, given by the catalog at the first registration
SiteId = NewType("SiteId", int)          # 1..255

Tier = Literal["mem", "nvme", "ssd", "hdd"]
#: From fastest to slowest.
TIERS: Final[tuple[Tier, ...]] = ("mem", "nvme", "ssd", "hdd")

UPLOAD_ID_BYTES: Final = 12
CHUNK_ID_BYTES: Final = 16
OPERATION_ID_BYTES: Final = 16
_OF_UPLOAD: Final = bytes(OPERATION_ID_BYTES - UPLOAD_ID_BYTES)     # ends the operation that commits an upload
KEY_BYTES_MAX: Final = 1024              # as in S3, counted in UTF-8
#: Of a key that a mount made: twice what a program may name in one call, so that whatever it can name from a directory
#: can be made there. PostgreSQL refuses shorter ones (metadata/catalog/postgres.py).
PATH_BYTES_MAX: Final = 8192
USER_META_BYTES_MAX: Final = 2048        # as in S3, sum of names and values
RESERVED_BUCKETS: Final = frozenset({"v1", "-"})

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_IPV4 = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}")


def chunk_id(upload: UploadId, index: int) -> ChunkId:
    """The id of the chunk number `index` (0..2^32-1) of an upload."""
    return ChunkId(upload + index.to_bytes(4, "big"))


def upload_of(chunk: ChunkId) -> UploadId:
    return UploadId(chunk[:UPLOAD_ID_BYTES])


def allocated_at_ms(upload: UploadId | ChunkId | OperationId) -> int:
    """Catalog time, in ms since 1970, at which an upload (or the upload of a chunk, or an operation) began."""
    return int.from_bytes(upload[:6], "big")


def upload_id(at_ms: int, random48: int) -> UploadId:
    return UploadId(at_ms.to_bytes(6, "big") + random48.to_bytes(6, "big"))


def operation_id(at_ms: int, random80: int) -> OperationId:
    return OperationId(at_ms.to_bytes(6, "big") + random80.to_bytes(10, "big"))


def operation_of(upload: UploadId) -> OperationId:
    """The operation that commits this upload and nothing else. Its row in the catalog says that the upload has
    committed, so a put under this id costs one row less than under one of its own."""
    return OperationId(upload + _OF_UPLOAD)


def version_text(version: VersionId | int) -> str:
    """The form in which clients see a version: 16 lower-case hex digits; sorts as the id does."""
    return f"{version:016x}"


def parse_version(text: str) -> VersionId:
    """Raises RequestError(code="bad-version") unless text is 16 hex digits."""
    if len(text) == 16:
        try:
            value = int(text, 16)
        except ValueError:
            value = -1
        if 0 <= value < 1 << 63:
            return VersionId(value)
    raise RequestError(f"{text!r} is not a version id (16 hex digits)", code="bad-version")


def check_bucket_name(name: str) -> str:
    """Return name if it may be a bucket's: S3's rules (3-63 of a-z 0-9 . -), neither `v1` nor `-`."""
    if (
        name in RESERVED_BUCKETS
        or not _BUCKET.fullmatch(name)
        or ".." in name
        or _IPV4.fullmatch(name)
    ):
        raise RequestError(
            f"{name!r} is not a bucket name: 3 to 63 characters of a-z, 0-9, '.' and '-', "
            "beginning and ending with a letter or digit, not an IP address",
            code="bad-bucket-name",
        )
    return name


def check_key(key: str) -> str:
    """Return key if an object may have it: 1..1024 bytes of UTF-8 without NUL and lone surrogates."""
    if key.isascii() and 0 < len(key) <= KEY_BYTES_MAX and "\x00" not in key:
        return key
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise RequestError("the key is not valid UTF-8", code="bad-key") from None
    if not 0 < size <= KEY_BYTES_MAX:
        raise RequestError(f"a key has 1 to {KEY_BYTES_MAX} bytes, this one has {size}", code="bad-key")
    if "\x00" in key:
        raise RequestError("a key must not contain NUL", code="bad-key")
    return key


def check_user_meta(user_meta: dict[str, str]) -> dict[str, str]:
    """Return the pairs if they fit in headers: printable names, no CR, LF or NUL, 2048 bytes in all."""
    size = 0
    for name, value in user_meta.items():
        size += len(name.encode()) + len(value.encode())
        if any(c in value or c in name for c in "\r\n\x00"):
            raise RequestError(f"user metadata {name!r} contains CR, LF or NUL", code="bad-user-metadata")
    if size > USER_META_BYTES_MAX:
        raise RequestError(
            f"user metadata has {size} bytes, at most {USER_META_BYTES_MAX} are kept", code="bad-user-metadata"
        )
    return user_meta
