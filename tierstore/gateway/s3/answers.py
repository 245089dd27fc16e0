"""Header lines and elements that several answers share: versions, checksums, times."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from tierstore.gateway.s3 import checksums
from tierstore.gateway.s3.documents import element
from tierstore.gateway.s3.object_meta import CHECKSUM_TYPE, shown_version
from tierstore.gateway.s3.uploads import Received
from tierstore.wire.names import BucketView, ObjectMeta


def with_checksum(meta: ObjectMeta, received: Received) -> ObjectMeta:
    if not received.algorithm:
        return meta
    return msgspec.structs.replace(meta, checksums={received.algorithm: received.checksum})


def checksum_lines(received: Received) -> str:
    if not received.algorithm:
        return ""
    return f"{checksums.PREFIX}{received.algorithm}: {received.checksum}\r\nx-amz-checksum-type: FULL_OBJECT\r\n"


def checksum_elements(meta: ObjectMeta) -> str:
    inner = "".join(element(f"Checksum{name.upper()}", value) for name, value in meta.checksums.items())
    if inner:
        inner += element("ChecksumType", meta.extra.get(CHECKSUM_TYPE, b"FULL_OBJECT").decode())
    return inner


def version_line(version: int, bucket: BucketView) -> str:
    """x-amz-version-id of a write; nothing of null versions, as at AWS."""
    return f"x-amz-version-id: {shown_version(version, False)}\r\n" if bucket.versioning == "enabled" else ""


def http_moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
