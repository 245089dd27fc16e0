"""Header lines of native object answers, ready for the wire. Pure.

Invariant: no line holds CR, LF or NUL of anybody's making: values were checked when they came in, and are checked
again here because other doors write metadata too.
"""

from __future__ import annotations

import functools
import re
from email.utils import formatdate
from typing import Final

from tierstore.names import version_text
from tierstore.sdk.put import etag_crc32c
from tierstore.wire.names import LookupResult, ObjectMeta

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_DEFAULT_TYPE: Final = b"content-type: application/octet-stream\r\n"


@functools.lru_cache(maxsize=4096)
def http_date(seconds: int) -> str:
    """RFC 9110's date of a time in seconds since 1970; many objects share a second."""
    return formatdate(seconds, usegmt=True)


def object_lines(found: LookupResult, *, tier: str, site_line: bytes) -> bytes:
    """The lines of a GET or HEAD answer but for Content-Range."""
    meta = found.meta
    checksum = etag_crc32c(found.etag)
    if meta is not None and "crc32c" in meta.checksums:
        checksum = meta.checksums["crc32c"]
    head = (
        f'etag: "{found.etag}"\r\nlast-modified: {http_date(found.created_at_ms // 1000)}\r\n'
        f"accept-ranges: bytes\r\nx-tierstore-version: {version_text(found.version)}\r\n"
        + (f"x-tierstore-tier: {tier}\r\n" if tier else "")
        + (f"x-tierstore-checksum-crc32c: {checksum}\r\n" if checksum else "")
    )
    return b"".join((head.encode("latin-1", "replace"), site_line, meta_lines(meta) if meta else _DEFAULT_TYPE))


def meta_lines(meta: ObjectMeta) -> bytes:
    """Content type, kept headers and user metadata."""
    lines = []
    if not meta.content_type or _UNSAFE.search(meta.content_type):
        lines.append("content-type: application/octet-stream\r\n")
    else:
        lines.append(f"content-type: {meta.content_type}\r\n")
    for name, value in meta.headers.items():
        if _TOKEN.fullmatch(name) and not _UNSAFE.search(value):
            lines.append(f"{name}: {value}\r\n")
    for name, value in meta.user_meta.items():
        if _TOKEN.fullmatch(name) and not _UNSAFE.search(value):
            lines.append(f"x-tierstore-meta-{name}: {value}\r\n")
    return "".join(lines).encode()


def range_line(first: int, length: int, size: int) -> bytes:
    return b"content-range: bytes %d-%d/%d\r\n" % (first, first + length - 1, size)


def put_lines(version: int, etag: str, crc_text: str, tier: str, site_line: bytes) -> bytes:
    """The lines of a PUT answer."""
    tier_line = f"x-tierstore-tier: {tier}\r\n" if tier else ""
    return (
        f'etag: "{etag}"\r\nx-tierstore-version: {version_text(version)}\r\n{tier_line}'
        f"x-tierstore-checksum-crc32c: {crc_text}\r\n"
    ).encode("ascii") + site_line


def site_line(site: str) -> bytes:
    """The line that names the site which answers."""
    return f"x-tierstore-site: {site}\r\n".encode("ascii", "replace")
