"""The name hint that is stored beside a chunk: what `metadata rebuild` needs to make an object again that no copy of
the catalog knows. Written by whoever writes whole objects, kept in the chunk's header by the object server, read by
nobody else.

    hint = bucket "/" key [ NUL base64url(MessagePack of WriteHint) ]

A key has no NUL, so the first one ends it. A hint without the second part belongs to something that is no object by
itself (a part of a multipart upload, a piece of a file): it names its owner for people and is never adopted.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final, NamedTuple

import msgspec

from tierstore.wire.names import Condition, ObjectMeta

#: Longer ones are cut by object servers, so the writer leaves the metadata out before.
HINT_BYTES_MAX: Final = 2048
BEGUN_BYTES: Final = 16
_NUL: Final = "\0"


class WriteHint(msgspec.Struct, array_like=True, frozen=True):
    """One write of a whole object. begun: catalog ms (6 bytes, big-endian) at which it began and 10 random ones, the
    same for all its chunks. size: of the object; -1 in chunks that were sent before it was known (the last one has it).
    crc32c: what the body must have, -1: anything. etag: the one that was given, "" for a native one (from `begun`)."""

    begun: bytes
    size: int = -1
    crc32c: int = -1
    etag: str = ""
    meta: ObjectMeta | None = None
    condition: Condition | None = None
    is_cut: bool = False          # meta was too long to be kept here

    @property
    def begun_ms(self) -> int:
        """Catalog time, ms since 1970."""
        return int.from_bytes(self.begun[:6], "big")


class Named(NamedTuple):
    """A hint, read."""

    bucket: str
    key: str
    write: WriteHint | None


def native_etag(crc32c: int, size: int, operation: bytes) -> str:
    """The ETag of a native write: "ts-<crc32c>-<size>-<48 random bits>", all hex. Never 32 hex digits, so nobody takes
    it for an MD5; another write of the same bytes has another ETag."""
    return f"ts-{crc32c:08x}-{size:x}-{operation[6:12].hex()}"


def name_of(bucket: str, key: str) -> str:
    """The hint of a chunk that is no object, nor part of one, by itself."""
    return f"{bucket}/{key}"


def hint_of(bucket: str, key: str, write: WriteHint) -> str:
    """The hint of a chunk of an object."""
    text = _joined(bucket, key, write)
    if len(text) > HINT_BYTES_MAX // 2 and len(text.encode()) > HINT_BYTES_MAX:
        text = _joined(bucket, key, msgspec.structs.replace(write, meta=None, is_cut=True))
    return text


def _joined(bucket: str, key: str, write: WriteHint) -> str:
    return f"{bucket}/{key}{_NUL}{base64.urlsafe_b64encode(msgspec.msgpack.encode(write)).decode()}"


def parse_hint(text: str) -> Named | None:
    """What a hint says; None for one that names nothing. A damaged second part counts as missing."""
    name, _, rest = text.partition(_NUL)
    bucket, slash, key = name.partition("/")
    if not bucket or not slash or not key:
        return None
    write = None
    if rest:
        try:
            write = msgspec.msgpack.decode(base64.urlsafe_b64decode(rest.encode()), type=WriteHint)
        except (msgspec.MsgspecError, binascii.Error, ValueError):
            write = None
    if write is not None and len(write.begun) != BEGUN_BYTES:
        write = None
    return Named(bucket, key, write)
