"""What a Store gives back: facts of an object, what a put made, an object being read; and how they come from a look-up.

Owns no connection and no call. Invariant: a reader gives the bytes of one version, in order, once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

from tierstore.errors import PreconditionFailed
from tierstore.names import check_user_meta
from tierstore.sdk.put import etag_crc32c
from tierstore.sdk.remote import BodyWalk
from tierstore.wire.names import Condition, LookupResult, ObjectMeta

_NO_META: Final = ObjectMeta()


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object without its bytes. checksum_crc32c: S3's base64 form, "" if none is kept. tier: of the first byte, ""
    if not known."""

    bucket: str
    key: str
    size: int
    etag: str
    version: int
    created_at_ms: int
    content_type: str = ""
    user_meta: dict[str, str] = field(default_factory=dict)
    checksum_crc32c: str = ""
    tier: str = ""


@dataclass(frozen=True, slots=True)
class PutInfo:
    """What a put made."""

    version: int
    etag: str
    size: int
    crc32c: int
    tier: str
    created_at_ms: int


class ObjectReader:
    """An object being read: `info`, then the bytes, once. Use as an async context manager, or close() it."""

    def __init__(self, info: ObjectInfo, walk: BodyWalk, first: int, length: int) -> None:
        self.info = info
        self.first = first
        self.length = length
        self._walk = walk

    async def next_piece(self) -> memoryview:
        """The next verified bytes; valid until the next call; empty at the end."""
        return await self._walk.next_piece()

    async def read(self) -> bytes:
        """All the bytes asked for. Memory: their length."""
        out = bytearray()
        while piece := await self._walk.next_piece():
            out += piece
        return bytes(out)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._walk.next_piece():
            yield bytes(piece)

    async def close(self) -> None:
        await self._walk.close()

    async def __aenter__(self) -> ObjectReader:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:  # fmt: skip
        await self.close()


def make_meta(content_type: str, user_meta: dict[str, str] | None) -> ObjectMeta | None:
    """What to keep beside the bytes; None when there is nothing. Raises RequestError(bad-user-metadata)."""
    if not content_type and not user_meta:
        return None
    return ObjectMeta(content_type=content_type, user_meta=check_user_meta(user_meta or {}))


def info_of(bucket: str, key: str, found: LookupResult) -> ObjectInfo:
    meta = found.meta or _NO_META
    checksum = meta.checksums.get("crc32c") or etag_crc32c(found.etag) or ""
    tier = found.chunks[0].replicas[0].tier if found.chunks and found.chunks[0].replicas else ""
    return ObjectInfo(
        bucket, key, found.size, found.etag, found.version, found.created_at_ms, meta.content_type, meta.user_meta,
        checksum, tier,
    )  # fmt: skip


def check_condition(found: LookupResult, condition: Condition | None) -> None:
    """Raises PreconditionFailed unless a version that was found meets the condition."""
    if condition is None:
        return
    if condition.if_match and "*" not in condition.if_match and found.etag not in condition.if_match:
        raise PreconditionFailed(f"the object's ETag is {found.etag!r}")
    if condition.if_none_match and ("*" in condition.if_none_match or found.etag in condition.if_none_match):
        raise PreconditionFailed(f"the object's ETag is {found.etag!r}")
    if condition.version and condition.version != found.version:
        raise PreconditionFailed("the object has another version")
