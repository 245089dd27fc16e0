"""The completion of a multipart upload: which parts, in which order, and what the whole carries. Pure.

The order, sizes, ETags and checksums that a completion names are judged against the parts as they stand.
"""

from __future__ import annotations

import base64
from typing import Final

import msgspec

from tierstore.gateway.s3 import checksums
from tierstore.gateway.s3.documents import Node
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.s3.object_meta import CHECKSUM_TYPE, PART_SUMS, UPLOAD, pack_parts
from tierstore.gateway.s3.request import Call
from tierstore.gateway.s3.upload_lists import algorithm_of
from tierstore.wire.names import ObjectMeta
from tierstore.wire.s3 import PARTS, PartView, UploadView

#: Every part but the last.
PART_BYTES_MIN: Final = 5 << 20
#: Digests of parts are kept with the object up to this: every look-up reads them.
PART_SUMS_BYTES_MAX: Final = 8192


def named_part(node: Node) -> tuple[int, str, dict[str, str]]:
    raw, etag = node.text("PartNumber") or "", node.text("ETag")
    if not raw.isascii() or not raw.isdigit() or len(raw) > 5 or etag is None:
        raise S3Error("MalformedXML")
    sums = {n: v for n in checksums.ALGORITHMS if (v := node.text(f"Checksum{n.upper()}")) is not None}
    return int(raw), etag.strip().strip('"'), sums


def chosen(wanted: list[tuple[int, str, dict[str, str]]], held: dict[int, PartView]) -> list[PartView]:
    """The parts of a completion, checked. Raises S3Error(InvalidPartOrder, InvalidPart, EntityTooSmall)."""
    parts, before = [], 0
    for place, etag, sums in wanted:
        if place <= before:
            raise S3Error("InvalidPartOrder")
        before = place
        part = held.get(place)
        if part is None or part.etag != etag.lower():
            raise S3Error("InvalidPart", PartNumber=str(place))
        if any(name in part.checksums and part.checksums[name] != value for name, value in sums.items()):
            raise S3Error("InvalidPart", PartNumber=str(place))
        parts.append(part)
    for part in parts[:-1]:
        if part.size < PART_BYTES_MIN:
            raise S3Error("EntityTooSmall", PartNumber=str(part.number), ProposedSize=str(part.size),
                          MinSizeAllowed=str(PART_BYTES_MIN))  # fmt: skip
    return parts


def require_sums(upload: UploadView, wanted: list[tuple[int, str, dict[str, str]]]) -> None:
    """Of an upload that was created for checksums of its parts, each part is named with its own. Raises
    S3Error(InvalidRequest)."""
    algorithm = algorithm_of(upload)
    kind = upload.meta.extra.get(CHECKSUM_TYPE) if upload.meta is not None else None
    if not algorithm or kind != b"COMPOSITE":
        return
    for place, _, sums in wanted:
        if algorithm not in sums:
            raise S3Error(
                "InvalidRequest", f"The upload was created using a {algorithm} checksum. The complete request must "
                f"include the checksum for each part. It was missing for part {place} in the request.",
            )  # fmt: skip


def completed_meta(call: Call, upload: UploadView, parts: list[PartView]) -> ObjectMeta:
    meta = upload.meta or ObjectMeta()
    extra = {**meta.extra, UPLOAD: upload.id, PARTS: pack_parts([part.size for part in parts])}
    algorithm = algorithm_of(upload) or "crc64nvme"
    kind = extra.setdefault(CHECKSUM_TYPE, b"FULL_OBJECT").decode()
    sums: dict[str, str] = {}
    said = call.header(b"x-amz-checksum-type")
    if said is not None and said.upper() != kind:
        raise S3Error("InvalidRequest", f"The upload was created for checksums of type {kind}, not {said[:32]}.")
    if all(algorithm in part.checksums for part in parts):
        values = [part.checksums[algorithm] for part in parts]
        if algorithm_of(upload) and len(parts) * checksums.ALGORITHMS[algorithm] <= PART_SUMS_BYTES_MAX:
            extra[PART_SUMS] = b"".join(map(base64.b64decode, values))
        if kind == "COMPOSITE":
            sums[algorithm] = checksums.composite(algorithm, values)
        else:
            sums[algorithm] = checksums.full_object(
                algorithm, list(zip(values, [part.size for part in parts], strict=True))
            )
        sent = call.header(f"{checksums.PREFIX}{algorithm}".encode())
        if sent is not None and sent not in (sums[algorithm], sums[algorithm].partition("-")[0]):
            raise S3Error("BadDigest")
    size = call.header(b"x-amz-mp-object-size")
    if size is not None and size != str(sum(part.size for part in parts)):
        raise S3Error("InvalidRequest", "The provided 'x-amz-mp-object-size' header does not match what was computed.")
    return msgspec.structs.replace(meta, extra=extra, checksums=sums)
