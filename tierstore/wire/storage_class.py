"""Storage classes of S3 as the catalog keeps them: in ObjectMeta.extra, where the S3 door writes it. Pure.

The class of a row can be told without decoding its metadata (a listing reads a thousand): MessagePack writes an entry
of `extra` as the name, a `bin 8` head and the bytes, and a text that a client sets cannot hold those bytes, because the
head is no valid UTF-8 in front of a length below 0x80.
"""

from __future__ import annotations

from typing import Final

from tierstore.wire.names import ObjectMeta

#: Name in ObjectMeta.extra.
STORAGE_CLASS: Final = "s3.class"
STANDARD: Final = "STANDARD"
#: The classes that AWS names.
STORAGE_CLASSES: Final = frozenset({
    STANDARD, "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER", "DEEP_ARCHIVE",
    "GLACIER_IR", "OUTPOSTS", "SNOW", "EXPRESS_ONEZONE",
})  # fmt: skip
_MARK: Final = bytes([0xA0 | len(STORAGE_CLASS)]) + STORAGE_CLASS.encode() + b"\xc4"


def class_of(meta: ObjectMeta | None) -> str:
    """The storage class of an object; "" is STANDARD, which is not kept."""
    return "" if meta is None else meta.extra.get(STORAGE_CLASS, b"").decode()


def packed_class(meta: bytes | None) -> str:
    """The same from the packed form of a row."""
    at = -1 if meta is None else meta.find(_MARK)
    if meta is None or at < 0:
        return ""
    start = at + len(_MARK) + 1
    found = meta[start : start + meta[start - 1]].decode("latin-1")
    return found if found in STORAGE_CLASSES else ""    # attributes of files may hold any bytes
