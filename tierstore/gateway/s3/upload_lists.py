"""ListParts and ListMultipartUploads, and what names an upload.

A page of uploads is complete by keys and common prefixes, each of which comes once: behind a common prefix the list
goes on by a seek, so a page costs one more question per prefix at most.
"""

from __future__ import annotations

from typing import Final

from tierstore.gateway.s3 import rights
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.documents import document, element, moment, url_encoded
from tierstore.gateway.s3.errors import XML_LINE, S3Error
from tierstore.gateway.s3.lifecycle import abort_lines
from tierstore.gateway.s3.object_meta import CHECKSUM_ALGORITHM, CHECKSUM_TYPE, OWNER
from tierstore.gateway.s3.request import Call, number
from tierstore.wire.names import BucketView
from tierstore.wire.s3 import UPLOAD_BYTES, PartsAsk, UploadsAsk, UploadView
from tierstore.wire.storage_class import STANDARD, class_of

#: Behind every upload of the keys that begin with what stands before it: the last character there is.
_LAST: Final = "\U0010ffff"


class UploadLists:
    """Handlers of lists of uploads and of their parts."""

    def __init__(self, catalog: S3Catalog) -> None:
        self._catalog = catalog

    async def list_parts(self, call: Call) -> None:
        bucket = await self._catalog.bucket(call.bucket)
        upload = await permitted_upload(self._catalog, call, bucket, "s3:ListMultipartUploadParts")
        most = number(call.query.get("max-parts"), "max-parts", default=1000, least=0, most=1000)
        after = number(call.query.get("part-number-marker"), "part-number-marker", default=0, least=0, most=99_998)
        page = await self._catalog.parts(PartsAsk(upload.id, after, most or 1))
        parts = page.parts if most else []
        inner = element("Bucket", call.bucket) + element("Key", call.key) + element("UploadId", upload.id.hex())
        inner += _owner_and_class(upload, bucket)
        inner += element("PartNumberMarker", after)
        if page.more and parts:
            inner += element("NextPartNumberMarker", parts[-1].number)
        inner += element("MaxParts", most) + element("IsTruncated", page.more and bool(parts))
        algorithm = algorithm_of(upload)
        inner += _sum_form(upload)
        for part in parts:
            body = element("PartNumber", part.number) + element("LastModified", moment(part.created_at_ms))
            body += element("ETag", f'"{part.etag}"') + element("Size", part.size)
            body += "".join(element(f"Checksum{n.upper()}", v) for n, v in part.checksums.items() if n == algorithm)
            inner += f"<Part>{body}</Part>"
        lines = abort_lines(bucket, call.key, upload.created_at_ms).encode()
        call.reply(200, document("ListPartsResult", inner), XML_LINE + lines)

    async def list_uploads(self, call: Call) -> None:
        """ListMultipartUploads."""
        bucket = await self._catalog.bucket(call.bucket)
        rights.require(call, "s3:ListBucketMultipartUploads", bucket)
        query = call.query
        most = number(query.get("max-uploads"), "max-uploads", default=1000, least=1, most=1000)
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        key_marker, id_marker = query.get("key-marker", ""), query.get("upload-id-marker", "")
        if query.get("encoding-type") not in (None, "", "url"):
            raise S3Error("InvalidArgument", "Invalid Encoding Method specified in Request")
        shown = url_encoded if query.get("encoding-type") else str
        if not key_marker:
            id_marker = ""      # alone it means nothing, whatever it is
        start = UploadsAsk(call.bucket, prefix, key_marker, upload_bytes(id_marker) if id_marker else b"", most)
        uploads, prefixes, last = await self._page(start, delimiter)
        listed = "".join(
            f"<Upload>{element('Key', shown(upload.key))}{element('UploadId', upload.id.hex())}"
            f"{_owner_and_class(upload, bucket)}{element('Initiated', moment(upload.created_at_ms))}"
            f"{_sum_form(upload)}</Upload>"
            for upload in uploads
        )
        inner = element("Bucket", call.bucket) + element("KeyMarker", shown(key_marker))
        inner += element("UploadIdMarker", id_marker) + element("Prefix", shown(prefix))
        inner += element("Delimiter", shown(delimiter) if delimiter else None) + element("MaxUploads", most)
        inner += element("IsTruncated", last is not None)
        inner += element("EncodingType", query.get("encoding-type") or None)
        if last is not None:
            inner += element("NextKeyMarker", shown(last[0])) + element("NextUploadIdMarker", last[1])
        listed += "".join(f"<CommonPrefixes>{element('Prefix', shown(p))}</CommonPrefixes>" for p in prefixes)
        call.reply(200, document("ListMultipartUploadsResult", inner + listed), XML_LINE)

    async def _page(
        self, ask: UploadsAsk, delimiter: str
    ) -> tuple[list[UploadView], list[str], tuple[str, str] | None]:
        """(uploads, common prefixes, the markers of the next page or None), at most ask.limit of both together."""
        uploads: list[UploadView] = []
        prefixes: list[str] = []
        key, identity, last = ask.key_marker, ask.id_marker, ("", "")
        if key and _common(key, ask.prefix, delimiter) == key:
            key += _LAST        # a common prefix ended the page before: nothing below it is wanted
        while True:
            page = await self._catalog.uploads(UploadsAsk(ask.bucket, ask.prefix, key, identity, ask.limit))
            jumped = False
            for upload in page.uploads:
                if len(uploads) + len(prefixes) == ask.limit:
                    return uploads, prefixes, last
                common = _common(upload.key, ask.prefix, delimiter)
                if common:
                    prefixes.append(common)
                    last, key, identity, jumped = (common, ""), common + _LAST, b"", True
                    break
                uploads.append(upload)
                last, key, identity = (upload.key, upload.id.hex()), upload.key, upload.id
            if not jumped and not page.more:
                return uploads, prefixes, None
            if not jumped and len(uploads) + len(prefixes) == ask.limit:
                return uploads, prefixes, last


def _common(key: str, prefix: str, delimiter: str) -> str:
    """The common prefix that stands for the key, "" when it stands for itself."""
    at = key.find(delimiter, len(prefix)) if delimiter and key.startswith(prefix) else -1
    return key[: at + len(delimiter)] if at >= 0 else ""


def _owner_and_class(upload: UploadView, bucket: BucketView) -> str:
    """The owner is whose the object will be: where no lists count, the bucket's."""
    extra = upload.meta.extra if upload.meta is not None else {}
    owner = (extra.get(OWNER, b"").decode() or upload.owner) if rights.has_acls(bucket) else bucket.owner
    inner = "".join(
        f"<{role}>{element('ID', who)}{element('DisplayName', who)}</{role}>"
        for role, who in (("Initiator", upload.owner), ("Owner", owner))
    )
    return inner + element("StorageClass", class_of(upload.meta) or STANDARD)


def _sum_form(upload: UploadView) -> str:
    """Which checksums an upload was created for."""
    extra = upload.meta.extra if upload.meta is not None else {}
    if CHECKSUM_ALGORITHM not in extra:
        return ""
    kind = extra.get(CHECKSUM_TYPE, b"FULL_OBJECT").decode()
    return element("ChecksumAlgorithm", algorithm_of(upload).upper()) + element("ChecksumType", kind)


async def permitted_upload(catalog: S3Catalog, call: Call, bucket: BucketView, action: str) -> UploadView:
    """The upload that a request names, for callers with rights in the bucket and for who began it. Raises
    S3Error(AccessDenied, NoSuchUpload); of uploads that are not there only the first hear."""
    may = rights.allowed(call, action, bucket, call.key)
    try:
        upload = await catalog.upload(call.bucket, call.key, upload_id(call))
    except S3Error as error:
        raise error if may else S3Error("AccessDenied") from None
    if not may and not rights.allowed(call, action, bucket, call.key, object_owner=upload.owner):
        raise S3Error("AccessDenied")
    return upload


def upload_id(call: Call) -> bytes:
    return upload_bytes(call.query.get("uploadId", ""))


def upload_bytes(text: str) -> bytes:
    """Raises S3Error(NoSuchUpload) for what is no id of ours."""
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != UPLOAD_BYTES or len(text) != 2 * UPLOAD_BYTES:
        raise S3Error("NoSuchUpload")
    return raw


def algorithm_of(upload: UploadView) -> str:
    return upload.meta.extra.get(CHECKSUM_ALGORITHM, b"").decode() if upload.meta is not None else ""
