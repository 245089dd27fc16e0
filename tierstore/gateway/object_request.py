"""What a native REST request says: its object, range, conditions, metadata. Pure parsing of raw bytes.

Owns the rules of what is accepted. Invariant: everything returned was checked; anything malformed is a RequestError
(400), ChecksumMismatch(bad-checksum) or RangeNotSatisfiable, never another exception.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from tierstore.checksum import decode_crc
from tierstore.errors import RequestError, TooLarge
from tierstore.names import check_bucket_name, check_key, check_user_meta
from tierstore.wire.names import Condition, ObjectMeta

META_PREFIX: Final = b"x-tierstore-meta-"
CHECKSUM_HEADER: Final = b"x-tierstore-checksum-crc32c"
#: Headers that are kept with the object and given back as they came.
KEPT_HEADERS: Final = frozenset({
    b"cache-control", b"content-disposition", b"content-encoding", b"content-language", b"expires",
})  # fmt: skip
CONTENT_TYPE_BYTES_MAX: Final = 256
KEPT_HEADER_BYTES_MAX: Final = 1024
ETAGS_MAX: Final = 64
_RANGE = re.compile(rb"bytes\s*=\s*(\d*)\s*-\s*(\d*)", re.IGNORECASE)
_BYTES_UNIT = re.compile(rb"\s*bytes\s*=", re.IGNORECASE)
#: A percent sign that is not followed by two hex digits.
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ETAG = re.compile(rb'\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|$)')
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
#: More digits than any size has; keeps int() from long work.
_DIGITS_MAX: Final = 19


@dataclass(frozen=True, slots=True)
class ByteRange:
    """bytes=first-last; last None: to the end; first None: the last `last` bytes (a suffix)."""

    first: int | None
    last: int | None

    def within(self, size: int) -> tuple[int, int] | None:
        """(first byte, length) in a body of `size` bytes; None: not satisfiable."""
        if self.first is None:
            assert self.last is not None
            count = min(self.last, size)
            return (size - count, count) if count else None
        if self.first >= size:
            return None
        last = size - 1 if self.last is None else min(self.last, size - 1)
        return self.first, last - self.first + 1


def split_object_path(rest: bytes) -> tuple[str, str]:
    """bucket and key of the raw path behind /v1/objects/; the key keeps "..", empty segments and slashes."""
    bucket, _, key = rest.partition(b"/")
    return check_bucket_name(percent_decoded(bucket, "bucket")), check_key(percent_decoded(key, "key"))


def percent_decoded(raw: bytes, what: str) -> str:
    """Percent-decoded UTF-8. Raises RequestError(bad-key | bad-bucket | ...)."""
    if b"%" in raw:
        if _BAD_ESCAPE.search(raw):
            raise RequestError(f"the {what} has a '%' that is not followed by two hex digits", code=f"bad-{what}")
        raw = unquote_to_bytes(raw)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise RequestError(f"the {what} is not percent-encoded UTF-8", code=f"bad-{what}") from None


def parse_range(header: bytes | None) -> ByteRange | None:
    """The one range asked for. None: the whole body (no header, another unit, or several ranges, which RFC 9110 lets
    a server ignore). Raises RequestError(bad-range) on a byte range that makes no sense."""
    if header is None or not _BYTES_UNIT.match(header) or b"," in header:
        return None
    match = _RANGE.fullmatch(header.strip())
    first, last = (match[1], match[2]) if match else (b"", b"")
    if not (first or last) or len(first) > _DIGITS_MAX or len(last) > _DIGITS_MAX:
        raise RequestError(
            f"Range: {_shown(header)} is not like bytes=0-99, bytes=100- or bytes=-100", code="bad-range"
        )
    if not first:
        return ByteRange(None, int(last))
    if last and int(last) < int(first):
        raise RequestError(f"Range: {_shown(header)} ends before it begins", code="bad-range")
    return ByteRange(int(first), int(last) if last else None)


def parse_etags(header: bytes | None, name: str) -> list[str]:
    """The ETags of If-Match or If-None-Match without quotes, "*" as it is; weak ones keep their W/ in If-Match, where
    they never match, and lose it in If-None-Match, which compares weakly (RFC 9110, 13.1)."""
    if header is None:
        return []
    header = header.strip()
    if header == b"*":
        return ["*"]
    etags: list[str] = []
    at = 0
    while at < len(header):
        match = _ETAG.match(header, at)
        if match is None or len(etags) >= ETAGS_MAX:
            raise RequestError(f'{name}: {_shown(header)} is neither * nor a list of quoted ETags', code="bad-etag")
        weak = match[1] is not None and name == "If-Match"
        etags.append(("W/" if weak else "") + match[2].decode("latin-1"))
        at = match.end()
    if not etags:
        raise RequestError(f'{name} is empty; send * or a list of quoted ETags', code="bad-etag")
    return etags


def parse_condition(if_match: bytes | None, if_none_match: bytes | None) -> Condition | None:
    if if_match is None and if_none_match is None:
        return None
    return Condition(parse_etags(if_match, "If-Match"), parse_etags(if_none_match, "If-None-Match"))


def parse_meta(headers: Iterable[tuple[bytes, bytes]]) -> ObjectMeta | None:
    """What an upload says about itself; None when it says nothing. Raises RequestError(bad-user-metadata, ...)."""
    content_type = ""
    user_meta: dict[str, str] = {}
    kept: dict[str, str] = {}
    for name, value in headers:
        if name == b"content-type":
            content_type = _text(name, value, CONTENT_TYPE_BYTES_MAX, "bad-content-type")
        elif name.startswith(META_PREFIX):
            short = name[len(META_PREFIX) :].decode("latin-1")
            if not short:
                raise RequestError("nothing stands behind x-tierstore-meta- in a header", code="bad-user-metadata")
            text = _text(name, value, KEPT_HEADER_BYTES_MAX * 2, "bad-user-metadata")
            # several headers of one name are one value, as RFC 9110 5.3 joins them
            user_meta[short] = f"{user_meta[short]}, {text}" if short in user_meta else text
        elif name in KEPT_HEADERS:
            kept[name.decode("ascii")] = _text(name, value, KEPT_HEADER_BYTES_MAX, "bad-header")
    if not content_type and not user_meta and not kept:
        return None
    return ObjectMeta(content_type=content_type, user_meta=check_user_meta(user_meta), headers=kept)


def parse_checksum(header: bytes | None) -> int | None:
    """x-tierstore-checksum-crc32c. Raises ChecksumMismatch(bad-checksum) on another form."""
    return None if header is None else decode_crc(header.strip().decode("latin-1"))


def check_length(length: int | None, limit_bytes: int) -> None:
    """Raises TooLarge before a byte of the body was read."""
    if length is not None and length > limit_bytes:
        raise TooLarge(f"the body has {length} bytes, an object has at most {limit_bytes}")


def _text(name: bytes, value: bytes, bytes_max: int, code: str) -> str:
    """A header's value as text that can be sent back: UTF-8 without control characters."""
    shown = name.decode("latin-1")
    if len(value) > bytes_max:
        raise RequestError(f"{shown} has {len(value)} bytes, at most {bytes_max} are kept", code=code)
    if _CONTROL.search(value):
        raise RequestError(f"{shown} contains control characters", code=code)
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise RequestError(f"{shown} is not UTF-8", code=code) from None


def _shown(header: bytes) -> str:
    """A header in an error's detail: short and printable."""
    return repr(header[:60].decode("latin-1"))
