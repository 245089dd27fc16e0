"""What the S3 door asks of metadata beside lookups, commits and listings: buckets with their documents, multipart
uploads, versions. Daemons only: the gateway has judged by the S3 rules (policies, ACLs, owners) who may ask.

A part of an upload is an ordinary object of PARTS_BUCKET (docs/adr/0100), so repair, drain and collection know it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tierstore.wire.names import BucketView, ObjectMeta

#: No user can name it: bucket names begin with a letter or digit.
PARTS_BUCKET = ".multipart"
#: Document of a bucket: its policy, as JSON text; and "true" where it shuts its owner out from itself too.
POLICY: Final = "s3.policy"
POLICY_BINDS_OWNER: Final = "s3.policy-binds-owner"
#: Bytes of an upload's id; clients see it in hex.
UPLOAD_BYTES = 16
PART_NUMBER_MAX = 10_000


def part_key(upload: bytes, number: int) -> str:
    """The key of a part in PARTS_BUCKET; sorts as the number does."""
    return f"{upload.hex()}/{number:05d}"


def marked_etag(etag: str, plain_bytes: int) -> str:
    """The stored ETag of an encrypted object: clients see what stands before the mark, and the plain size."""
    return f"{etag};{plain_bytes:x}"


def is_sealed(etag: str) -> bool:
    """Whether the stored ETag is that of an encrypted object: its bytes are of use to gateways only."""
    return ";" in etag


#: Names in ObjectMeta.extra that speak of the bytes: they go when a door puts other bytes in their place.
OF_BODY: Final = frozenset({
    "s3.sse", "s3.parts", "s3.part-sums", "s3.upload", "s3.checksum-type", "s3.checksum-algorithm", "s3.by",
})  # fmt: skip
#: Name in ObjectMeta.extra: how the object came to be, where it was neither put nor completed; and what it says then.
MADE_BY: Final = "s3.by"
BY_COPY: Final = b"copy"
BY_POST: Final = b"post"
#: The same: the sizes of the parts of a completed upload, MessagePack of [[size, count], ...]: runs of equal parts.
PARTS: Final = "s3.parts"


def shown_etag(etag: str, size: int) -> tuple[str, int]:
    """(ETag, size) as clients of S3 see them, of those in the catalog."""
    shown, mark, plain = etag.partition(";")
    return (shown, int(plain, 16)) if mark else (etag, size)


class BucketCall(msgspec.Struct, array_like=True, frozen=True):
    """act: get | list | create | delete | configure | user (whether `owner` has a key). create: `owner`; configure:
    versioning ("": as it is) and documents (None removes one). list: all buckets, by name."""

    act: str
    name: str = ""
    owner: str = ""
    versioning: str = ""
    documents: dict[str, str | None] = {}


class BucketAnswer(msgspec.Struct, array_like=True, frozen=True):
    buckets: list[BucketView]


class UploadView(msgspec.Struct, array_like=True, frozen=True):
    """A multipart upload that is not ended. meta: what the object will carry."""

    id: bytes
    bucket: str
    key: str
    owner: str
    created_at_ms: int
    meta: ObjectMeta | None = None


class UploadCall(msgspec.Struct, array_like=True, frozen=True):
    """act: create (with meta) | get | abort. The three of bucket, key and id must fit."""

    act: str
    bucket: str
    key: str
    id: bytes
    owner: str = ""
    meta: ObjectMeta | None = None


class UploadsAsk(msgspec.Struct, array_like=True, frozen=True):
    """A page of a bucket's uploads in order of (key, id), behind the markers."""

    bucket: str
    prefix: str = ""
    key_marker: str = ""
    id_marker: bytes = b""
    limit: int = 1000


class UploadsPage(msgspec.Struct, array_like=True, frozen=True):
    uploads: list[UploadView]
    more: bool = False


class PartView(msgspec.Struct, array_like=True, frozen=True):
    number: int
    version: int
    size: int
    etag: str
    created_at_ms: int
    checksums: dict[str, str] = {}


class PartsAsk(msgspec.Struct, array_like=True, frozen=True):
    """Parts of an upload in order of their numbers, behind `after`."""

    upload: bytes
    after: int = 0
    limit: int = 1000


class PartsPage(msgspec.Struct, array_like=True, frozen=True):
    parts: list[PartView]
    more: bool = False


class VersionsAsk(msgspec.Struct, array_like=True, frozen=True):
    """A page of all versions and delete markers: keys in order, newest first. version_marker 0: behind all versions of
    key_marker."""

    bucket: str
    prefix: str = ""
    delimiter: str = ""
    key_marker: str = ""
    version_marker: int = 0
    limit: int = 1000


class VersionView(msgspec.Struct, array_like=True, frozen=True):
    key: str
    version: int
    is_null: bool
    is_latest: bool
    is_marker: bool
    size: int
    etag: str
    created_at_ms: int
    storage_class: str = ""       # "": STANDARD


class VersionsPage(msgspec.Struct, array_like=True, frozen=True):
    """next_key and next_version: the markers of the next page; next_key None: this was the last."""

    versions: list[VersionView]
    prefixes: list[str] = []
    next_key: str | None = None
    next_version: int = 0
