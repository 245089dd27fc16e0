"""POSIX attributes in an object's metadata: found, made up for what no mount has made, put back. Pure.

They lie under `extra["posix"]` of the packed ObjectMeta, so a file is one row, and everything that moves, copies,
keeps or replicates an object takes them along. A copy made by name is another file: it loses them (`of_copy`).
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from metadata.catalog.objects import ObjectRow
from tierstore.wire import decode, encode
from tierstore.wire.files import S_IFDIR, S_IFREG, Attributes, Entry
from tierstore.wire.names import ObjectMeta
from tierstore.wire.s3 import OF_BODY

POSIX: Final = "posix"
_MARK: Final = encode(POSIX)
FILE_MODE: Final = S_IFREG | 0o644
DIRECTORY_MODE: Final = S_IFDIR | 0o755
_EMPTY: Final = ObjectMeta()
#: Set in numbers that are made from keys, never in those that mounts give.
_MADE: Final = 1 << 61


def inode_of(bucket_id: int, key: str, version: int) -> int:
    """The inode number of what no mount has touched: the same on every mount, until the object is replaced."""
    digest = hashlib.blake2b(f"{bucket_id}/{version}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2 | _MADE


def is_made(number: int) -> bool:
    """Whether inode_of may have made that number."""
    return bool(number & _MADE)


def attributes(row: ObjectRow) -> Attributes:
    """Stored, or the defaults: a plain file, as old as the object."""
    held = stored(row.meta)
    return held if held is not None else default(row.bucket_id, row.key, row.version, row.created_at_ms)


def stored(meta: bytes | None) -> Attributes | None:
    """None: no mount has touched it."""
    if meta is None or _MARK not in meta:
        return None
    raw = decode(meta, ObjectMeta).extra.get(POSIX)
    return decode(raw, Attributes) if raw is not None else None


def default(bucket_id: int, key: str, version: int, created_at_ms: int) -> Attributes:
    at_ns = created_at_ms * 1_000_000
    return Attributes(inode_of(bucket_id, key, version), FILE_MODE, atime_ns=at_ns, mtime_ns=at_ns, ctime_ns=at_ns)


def implied_directory(bucket_id: int, path: str, created_at_ms: int) -> Attributes:
    """A directory of which only keys below it speak."""
    at_ns = created_at_ms * 1_000_000
    ino = inode_of(bucket_id, path + "/", 0)
    return Attributes(ino, DIRECTORY_MODE, atime_ns=at_ns, mtime_ns=at_ns, ctime_ns=at_ns)


def with_attributes(meta: bytes | None, new: Attributes) -> bytes:
    """The packed metadata with these attributes; checksums of a body that may have changed are dropped."""
    held = decode(meta, ObjectMeta) if meta is not None else _EMPTY
    return encode(msgspec.structs.replace(held, extra={**held.extra, POSIX: encode(new)}))


def without_checksums(meta: bytes | None) -> bytes | None:
    """The body is another one now: what was said of the old one (sums, parts, encryption) goes."""
    if meta is None:
        return None
    held = decode(meta, ObjectMeta)
    if not held.checksums and OF_BODY.isdisjoint(held.extra):
        return meta
    extra = {name: value for name, value in held.extra.items() if name not in OF_BODY}
    return encode(msgspec.structs.replace(held, checksums={}, extra=extra))


def of_copy(meta: bytes | None, *, is_rename: bool) -> bytes | None:
    """The metadata for another name: a copy is another file; so is a name that leaves the others of its file."""
    if meta is None or _MARK not in meta:
        return meta
    held = decode(meta, ObjectMeta)
    raw = held.extra.get(POSIX)
    if raw is None or (is_rename and decode(raw, Attributes).links == 1):
        return meta
    left = msgspec.structs.replace(held, extra={k: v for k, v in held.extra.items() if k != POSIX})
    return None if left == _EMPTY else encode(left)


def entry(row: ObjectRow, name: str) -> Entry:
    a = attributes(row)
    return Entry(name, a, len(a.target) if a.target else row.size, row.version)
