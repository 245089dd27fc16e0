"""What an S3 upload says about itself, and the header lines that give it back. Pure.

Owns the names of this door in ObjectMeta.extra. Invariant: no line holds CR, LF or NUL.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl

import msgspec

from tierstore.gateway.object_answer import http_date
from tierstore.gateway.s3 import checksums
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.s3.lock_forms import lock_lines
from tierstore.gateway.s3.request import Call, header_text
from tierstore.gateway.s3.sse_keys import sealed_lines, sealed_of
from tierstore.names import USER_META_BYTES_MAX, version_text
from tierstore.wire.names import LookupResult, ObjectMeta
from tierstore.wire.s3 import MADE_BY, PARTS
from tierstore.wire.storage_class import STANDARD, STORAGE_CLASS, STORAGE_CLASSES

META_PREFIX: Final = b"x-amz-meta-"
#: Names in ObjectMeta.extra.
ACL: Final = "s3.acl"
OWNER: Final = "s3.owner"
CHECKSUM_TYPE: Final = "s3.checksum-type"
CHECKSUM_ALGORITHM: Final = "s3.checksum-algorithm"
PART_SUMS: Final = "s3.part-sums"   # digests of the parts, one behind the other, of the algorithm in `checksums`
UPLOAD: Final = "s3.upload"
REDIRECT: Final = "s3.redirect"

CANNED_ACLS: Final = frozenset({
    "private", "public-read", "public-read-write", "authenticated-read", "aws-exec-read", "bucket-owner-read",
    "bucket-owner-full-control", "log-delivery-write",
})  # fmt: skip
_KEPT: Final = (b"cache-control", b"content-disposition", b"content-language", b"expires")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_RESPONSE: Final = {
    "response-content-type": "content-type", "response-content-language": "content-language",
    "response-expires": "expires", "response-cache-control": "cache-control",
    "response-content-disposition": "content-disposition", "response-content-encoding": "content-encoding",
}  # fmt: skip
TAGS_MAX: Final = 10
#: What is kept and makes no header line.
_SILENT: Final = frozenset({OWNER, ACL, CHECKSUM_TYPE, CHECKSUM_ALGORITHM, PARTS, PART_SUMS, UPLOAD, MADE_BY})
_KEPT_NAMES: Final = frozenset(_KEPT) | {b"content-encoding"}
_NO_META: Final = ObjectMeta()


def meta_of(call: Call) -> ObjectMeta:
    """The metadata of a PUT, CreateMultipartUpload or a copy with REPLACE. Raises S3Error."""
    user_meta = _user_meta(call)
    headers = {} if call.header_names.isdisjoint(_KEPT_NAMES) else _kept_headers(call)
    extra: dict[str, bytes] = {OWNER: call.principal.user.encode()}
    storage = call.header(b"x-amz-storage-class")
    if storage is not None and storage not in STORAGE_CLASSES:
        raise S3Error("InvalidStorageClass", "The storage class that you specified is not valid.")
    if storage not in (None, STANDARD):
        extra[STORAGE_CLASS] = str(storage).encode()
    redirect = call.header(b"x-amz-website-redirect-location")
    if redirect is not None:
        if not redirect.startswith(("/", "http://", "https://")):
            raise S3Error("InvalidRedirectLocation", "The website redirect location must have a prefix of 'http://' or "
                          "'https://' or '/'.", 400)  # fmt: skip
        extra[REDIRECT] = _checked(redirect).encode()
    tags = parse_tag_header(call.header(b"x-amz-tagging"))
    return ObjectMeta(
        content_type=_checked(call.header(b"content-type") or "binary/octet-stream"), user_meta=user_meta,
        headers=headers, tags=tags, extra=extra,
    )  # fmt: skip


def _user_meta(call: Call) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in call.exchange.headers:
        if name.startswith(META_PREFIX):
            short = _checked(name[len(META_PREFIX) :].decode("latin-1"))
            text = _checked(header_text(value).strip())
            found[short] = f"{found[short]},{text}" if short in found else text
    if found and sum(len(n.encode()) + len(v.encode()) for n, v in found.items()) > USER_META_BYTES_MAX:
        raise S3Error("MetadataTooLarge")
    return found


def _kept_headers(call: Call) -> dict[str, str]:
    """Headers that are given back as they came; aws-chunked is the body's framing, not its coding."""
    headers = {}
    for name in _KEPT:
        kept = call.header(name)
        if kept is not None:
            headers[name.decode()] = _checked(kept)
    encodings = [part.strip() for part in (call.header(b"content-encoding") or "").split(",")]
    encoding = ", ".join(part for part in encodings if part and part != "aws-chunked")
    if encoding:
        headers["content-encoding"] = _checked(encoding)
    return headers


def canned_acl(call: Call) -> str:
    acl = call.header(b"x-amz-acl") or ""
    if acl and acl not in CANNED_ACLS:
        raise S3Error("InvalidArgument", "", ArgumentName="x-amz-acl", ArgumentValue=acl[:64])
    return acl


def _checked(text: str) -> str:
    if _CONTROL.search(text):
        raise S3Error("InvalidArgument", "A header contains control characters")
    return text


def parse_tag_header(value: str | None) -> dict[str, str]:
    if not value:
        return {}
    try:
        pairs = parse_qsl(value, keep_blank_values=True, errors="strict", max_num_fields=TAGS_MAX + 1)
    except (ValueError, UnicodeDecodeError):
        raise S3Error("InvalidTag", "The tag set is malformed.") from None
    return check_tags(pairs)


def check_tags(pairs: list[tuple[str, str]], *, most: int = TAGS_MAX) -> dict[str, str]:
    """Raises S3Error(InvalidTag, BadRequest)."""
    tags = dict(pairs)
    if len(pairs) > most:
        raise S3Error("BadRequest", f"Object tags cannot be greater than {most}")
    if len(tags) != len(pairs):
        raise S3Error("InvalidTag", "Cannot provide multiple Tags with the same key")
    for name, value in tags.items():
        if not 1 <= len(name) <= 128 or len(value) > 256 or name.startswith("aws:"):
            raise S3Error("InvalidTag", "The TagKey or TagValue you have provided is invalid")
    return tags


def object_lines(
    call: Call, found: LookupResult, versioning: str, *, with_checksum: bool = False
) -> bytes:
    """The lines of a GET or HEAD answer but for Content-Range and length."""
    meta = found.meta or _NO_META
    headers = {"content-type": meta.content_type or "binary/octet-stream", **meta.headers}
    if not call.names.isdisjoint(_RESPONSE):
        headers |= _overrides(call)
    lines = [
        f'etag: "{found.etag}"', f"last-modified: {http_date(found.created_at_ms // 1000)}", "accept-ranges: bytes",
        *(f"{name}: {value}" for name, value in headers.items() if not _CONTROL.search(value)),
    ]
    for name, value in meta.user_meta.items():
        if _TOKEN.fullmatch(name) and not _CONTROL.search(value):
            lines.append(f"x-amz-meta-{name}: {value}")
    if versioning:
        lines.append(f"x-amz-version-id: {shown_version(found.version, found.is_null)}")
    if meta.tags:
        lines.append(f"x-amz-tagging-count: {len(meta.tags)}")
    if not meta.extra.keys() <= _SILENT:
        lines += _extra_lines(meta)
    if with_checksum:
        lines += [f"{checksums.PREFIX}{name}: {value}" for name, value in meta.checksums.items()
                  if name in checksums.ALGORITHMS]  # fmt: skip
        if meta.checksums:
            lines.append(f"x-amz-checksum-type: {meta.extra.get(CHECKSUM_TYPE, b'FULL_OBJECT').decode()}")
    lines.append("")
    return "\r\n".join(lines).encode()


def _overrides(call: Call) -> dict[str, str]:
    """Headers that the request wants otherwise (response-content-type and its kin)."""
    if not call.principal.access:
        raise S3Error("InvalidRequest", "Request specific response headers cannot be used for anonymous GET requests.")
    return {header: _checked(call.query[name]) for name, header in _RESPONSE.items() if name in call.query}


def _extra_lines(meta: ObjectMeta) -> list[str]:
    """What an object says of its class, redirect, lock and encryption."""
    lines = []
    for extra, name in ((STORAGE_CLASS, "x-amz-storage-class"), (REDIRECT, "x-amz-website-redirect-location")):
        if extra in meta.extra:
            lines.append(f"{name}: {meta.extra[extra].decode()}")
    return lines + lock_lines(meta) + sealed_lines(sealed_of(meta))


def shown_version(version: int, is_null: bool) -> str:
    return "null" if is_null else version_text(version)


def pack_parts(sizes: list[int]) -> bytes:
    runs: list[list[int]] = []
    for size in sizes:
        if runs and runs[-1][0] == size:
            runs[-1][1] += 1
        else:
            runs.append([size, 1])
    return msgspec.msgpack.encode(runs)


def part_span(meta: ObjectMeta | None, number: int, size: int) -> tuple[int, int, int]:
    """(first byte, length, count of parts) of a part. Raises S3Error(InvalidPart) for one that is not there."""
    raw = meta.extra.get(PARTS) if meta is not None else None
    runs = msgspec.msgpack.decode(raw, type=list[tuple[int, int]]) if raw else [(size, 1)]
    count = sum(times for _, times in runs)
    if not 1 <= number <= count:
        raise S3Error("InvalidPartNumber", "The requested partnumber is not satisfiable", 416)
    at, left = 0, number - 1
    for length, times in runs:
        if left < times:
            return at + left * length, length, count
        at += length * times
        left -= times
    raise AssertionError("the count was checked")
