"""Multipart uploads: create, upload, copy, complete, abort. Their lists: upload_lists.

A part is an object of PARTS_BUCKET (docs/adr/0100), stored by the ordinary walk where the bucket's rules want it, and
composed in the catalog: no byte is copied at the end. Invariants: a part of an upload that has ended meanwhile is
removed again and answered NoSuchUpload; the order, sizes and ETags of a completion are judged against the parts as
they stand, and the commit refuses when one has changed since.
"""

from __future__ import annotations

import hashlib
import secrets
from urllib.parse import quote

import msgspec

from tierstore.errors import NotFound, PreconditionFailed, RequestError
from tierstore.gateway.object_request import parse_range
from tierstore.gateway.s3 import checksums, documents, rights
from tierstore.gateway.s3.acl import Acls
from tierstore.gateway.s3.answers import checksum_lines, version_line
from tierstore.gateway.s3.auth import is_anonymous
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.completion import chosen, completed_meta, named_part, require_sums
from tierstore.gateway.s3.conditions import why_refused, write_condition
from tierstore.gateway.s3.copies import Copies
from tierstore.gateway.s3.documents import document, element, moment
from tierstore.gateway.s3.errors import XML_LINE, S3Error
from tierstore.gateway.s3.lifecycle import abort_lines
from tierstore.gateway.s3.lock_forms import locked_meta
from tierstore.gateway.s3.object_meta import (
    CHECKSUM_ALGORITHM,
    CHECKSUM_TYPE,
    UPLOAD,
    meta_of,
    shown_version,
)
from tierstore.gateway.s3.request import Call, number
from tierstore.gateway.s3.sse import Cover, part_cover
from tierstore.gateway.s3.sse_format import pieces_of
from tierstore.gateway.s3.sse_keys import Vault, Wish, sealed_lines, sealed_of, with_sealed
from tierstore.gateway.s3.upload_lists import algorithm_of, permitted_upload, upload_id
from tierstore.gateway.s3.uploads import PUT_BYTES_MAX, BodyReader, promise_of
from tierstore.sdk.store import Store
from tierstore.wire.names import BucketView, Compose, LookupResult, ObjectMeta
from tierstore.wire.s3 import (
    PART_NUMBER_MAX,
    PARTS_BUCKET,
    UPLOAD_BYTES,
    UploadView,
    marked_etag,
    part_key,
    shown_etag,
)
from tierstore.wire.storage_class import class_of


class Multipart:
    """Handlers of multipart uploads."""

    def __init__(
        self, store: Store, catalog: S3Catalog, reader: BodyReader, copies: Copies, *, vault: Vault, acls: Acls
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._reader = reader
        self._copies = copies
        self._reads = copies.reads
        self._vault = vault
        self._acls = acls

    async def create(self, call: Call) -> None:
        bucket = await self._catalog.bucket(call.bucket)
        if is_anonymous(call.principal):
            raise S3Error("AccessDenied", "Anonymous users cannot initiate multipart uploads. Please authenticate.")
        rights.require(call, "s3:PutObject", bucket, call.key)
        meta = await self._acls.of_write(call, bucket, meta_of(call))
        meta = locked_meta(call, bucket, meta, self._catalog.now_ms)
        lines = b""
        algorithm = call.header(b"x-amz-checksum-algorithm")
        kind = call.header(b"x-amz-checksum-type")
        if kind is not None and algorithm is None:
            raise S3Error("InvalidRequest", "The x-amz-checksum-type header can only be used with the "
                          "x-amz-checksum-algorithm header.")  # fmt: skip
        if algorithm is not None:
            name = checksums.algorithm_of(algorithm)
            kind = kind or checksums.default_type(name)
            is_wrong = (kind == "FULL_OBJECT" and name.startswith("sha")) or (
                kind == "COMPOSITE" and name == "crc64nvme"
            )
            if kind not in ("FULL_OBJECT", "COMPOSITE") or is_wrong:
                raise S3Error("InvalidRequest", f"The {kind[:20]} checksum type cannot be used with the "
                              f"{name} checksum algorithm.")  # fmt: skip
            extra = {**meta.extra, CHECKSUM_ALGORITHM: name.encode(), CHECKSUM_TYPE: kind.encode()}
            meta = msgspec.structs.replace(meta, extra=extra)
            lines = f"x-amz-checksum-algorithm: {name.upper()}\r\nx-amz-checksum-type: {kind}\r\n".encode()
        wish = self._vault.wish(call, bucket)
        if wish.kind:
            sealed, _ = self._vault.seal(wish, is_parts=True)
            meta = with_sealed(meta, sealed)
            lines += "".join(f"{line}\r\n" for line in sealed_lines(sealed)).encode()
        lines += abort_lines(bucket, call.key, self._catalog.now_ms).encode()
        upload = secrets.token_bytes(UPLOAD_BYTES)
        await self._catalog.create_upload(call.bucket, call.key, upload, call.principal.user, meta)
        inner = element("Bucket", call.bucket) + element("Key", call.key) + element("UploadId", upload.hex())
        call.reply(200, document("InitiateMultipartUploadResult", inner), XML_LINE + lines)

    # -- parts ----------------------------------------------------------------------------------------------
    async def put_part(self, call: Call) -> None:
        _, upload, part = await self._part_of(call)
        algorithm = algorithm_of(upload)
        promise = promise_of(call)
        if promise.algorithm and algorithm and promise.algorithm != algorithm:
            raise S3Error("InvalidRequest", f"Checksum Type mismatch occurred, expected checksum Type: {algorithm}, "
                          f"actual checksum Type: {promise.algorithm}")  # fmt: skip
        cover = self._cover(call, upload)
        walk = self._store.put_walk(
            call.bucket, call.key, size=cover.stored_bytes(promise.size), storage_class=class_of(upload.meta)
        )
        try:
            received = await self._reader.receive(
                call, promise, cover.target(walk, promise.size),
                algorithm="" if promise.algorithm else algorithm or "crc64nvme",
            )  # fmt: skip
            etag = cover.etag(received.md5)
            sums = {received.algorithm: received.checksum} if received.algorithm else {}
            walk.commit_as(PARTS_BUCKET, part_key(upload.id, part))
            stored_etag = cover.stored_etag(etag, received.size)
            made = await walk.finish(meta=ObjectMeta(checksums=sums), etag=stored_etag)
        finally:
            await walk.abort()
        await self._check_alive(call, upload, part, made.version)
        lines = f'etag: "{etag}"\r\n' + (checksum_lines(received).partition("x-amz-checksum-type")[0]) + cover.lines
        call.reply(200, b"", lines.encode())

    async def copy_part(self, call: Call) -> None:
        """UploadPartCopy. The whole of an object of one piece is shared; a range is read and written."""
        _, upload, part = await self._part_of(call)
        source, key, _, found, data_key = await self._copies.copy_source(call)
        first, length = _copy_span(call, found)
        cover = self._cover(call, upload)
        walk = self._store.put_walk(
            call.bucket, call.key, size=cover.stored_bytes(length), storage_class=class_of(upload.meta)
        )
        target = cover.target(walk, length)
        reading = self._reads.body_walk(source.name, key, found, data_key, first=first, length=length)
        md5 = hashlib.md5(usedforsecurity=False)
        algorithm = algorithm_of(upload) or "crc64nvme"
        total = checksums.new(algorithm)
        try:
            async for piece in pieces_of(reading):
                md5.update(piece)
                total.update(bytes(piece))
                if not target.push(piece):
                    await target.has_room()
            walk.commit_as(PARTS_BUCKET, part_key(upload.id, part))
            meta = ObjectMeta(checksums={algorithm: checksums.encode(total.digest())})
            etag = cover.etag(md5.hexdigest())
            made = await walk.finish(meta=meta, etag=cover.stored_etag(etag, length))
        finally:
            await reading.close()
            await walk.abort()
        await self._check_alive(call, upload, part, made.version)
        inner = element("ETag", f'"{etag}"') + element("LastModified", moment(made.created_at_ms))
        if algorithm_of(upload):
            inner += element(f"Checksum{algorithm.upper()}", meta.checksums[algorithm])
        lines = b""
        if source.versioning:
            lines = f"x-amz-copy-source-version-id: {shown_version(found.version, found.is_null)}\r\n".encode()
        lines += cover.lines.encode()
        call.reply(200, document("CopyPartResult", inner), XML_LINE + lines)

    async def _part_of(self, call: Call) -> tuple[BucketView, UploadView, int]:
        bucket = await self._catalog.bucket(call.bucket)
        rights.require(call, "s3:PutObject", bucket, call.key)
        part = number(call.query.get("partNumber"), "partNumber", default=-1, least=1, most=PART_NUMBER_MAX + 1)
        if not 1 <= part <= PART_NUMBER_MAX:
            raise S3Error("InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive")
        return bucket, await self._catalog.upload(call.bucket, call.key, upload_id(call)), part

    def _cover(self, call: Call, upload: UploadView) -> Cover:
        """How the parts of this upload are stored. Raises S3Error for a customer's key that is missing or another."""
        sealed, customer = sealed_of(upload.meta), self._customer_of(call, upload)
        return part_cover(sealed, self._vault.open(sealed, customer) if sealed is not None else b"")

    def _customer_of(self, call: Call, upload: UploadView) -> Wish:
        """The customer's key that a request on an upload brings, if any. Raises S3Error for another than its own."""
        sealed, customer = sealed_of(upload.meta), self._vault.customer(call)
        if sealed is None and customer.kind:
            raise S3Error("InvalidRequest", "The upload was begun without encryption by a customer's key.")
        if sealed is not None and customer.kind and customer.key_md5 != sealed.key_md5:
            raise S3Error("InvalidRequest", "The encryption parameters of the upload were others.")
        return customer

    async def _check_alive(self, call: Call, upload: UploadView, part: int, version: int) -> None:
        """The upload may have ended while the part came: then nobody will ever take the part."""
        try:
            await self._catalog.upload(call.bucket, call.key, upload.id)
        except S3Error:
            await self._store.delete(PARTS_BUCKET, part_key(upload.id, part), version=version)
            raise

    # -- the end --------------------------------------------------------------------------------------------
    async def complete(self, call: Call) -> None:
        bucket = await self._catalog.bucket(call.bucket)
        rights.require(call, "s3:PutObject", bucket, call.key)
        condition = write_condition(call)
        body = await self._reader.small(call, documents.BODY_BYTES_MAX, sums_are_of_object=True)
        if not body:
            raise S3Error("InvalidRequest", "You must specify at least one part")
        root = documents.parse(body, "CompleteMultipartUpload")
        wanted = [named_part(node) for node in root.all("Part")]
        if not wanted:
            raise S3Error("MalformedXML")
        identity = upload_id(call)
        try:
            upload = await self._catalog.upload(call.bucket, call.key, identity)
        except S3Error:
            await self._answer_repeat(call, bucket, identity)
            return
        self._customer_of(call, upload)
        require_sums(upload, wanted)
        held = await self._catalog.all_parts(identity)
        parts = chosen(wanted, held)
        md5 = hashlib.md5(b"".join(bytes.fromhex(part.etag) for part in parts), usedforsecurity=False)
        etag = f"{md5.hexdigest()}-{len(parts)}"
        meta = completed_meta(call, upload, parts)
        sealed = sealed_of(meta)
        stored_etag = etag if sealed is None else marked_etag(etag, sum(part.size for part in parts))
        mutation = Compose(
            call.bucket, call.key, identity, [(part.number, part.version) for part in parts], stored_etag, meta,
            condition,
        )
        try:
            made = await self._store.client.commit(mutation, seconds=self._store.limits.request_seconds)
        except NotFound as error:
            if error.code == "no-such-upload":
                await self._answer_repeat(call, bucket, identity)
                return
            raise
        except PreconditionFailed as error:
            raise await why_refused(self._store, call, condition, error) from error
        lines = version_line(made.version, bucket) + "".join(f"{line}\r\n" for line in sealed_lines(sealed))
        self._answer_complete(call, etag, meta, lines)

    async def _answer_repeat(self, call: Call, bucket: BucketView, identity: bytes) -> None:
        """A completion that was applied before is answered as then. Raises S3Error(NoSuchUpload)."""
        try:
            found = await self._store.find(call.bucket, call.key, want_chunks=False)
        except NotFound:
            raise S3Error("NoSuchUpload") from None
        if found.meta is None or found.meta.extra.get(UPLOAD) != identity:
            raise S3Error("NoSuchUpload")
        self._answer_complete(call, shown_etag(found.etag, 0)[0], found.meta, version_line(found.version, bucket))

    @staticmethod
    def _answer_complete(call: Call, etag: str, meta: ObjectMeta, lines: str) -> None:
        host = call.header(b"host") or ""
        inner = element("Location", f"http://{host}/{call.bucket}/{quote(call.key, safe='-._~/*')}")
        inner += element("Bucket", call.bucket) + element("Key", call.key) + element("ETag", f'"{etag}"')
        inner += "".join(element(f"Checksum{name.upper()}", value) for name, value in meta.checksums.items())
        if meta.checksums:
            inner += element("ChecksumType", meta.extra[CHECKSUM_TYPE].decode())
        call.reply(200, document("CompleteMultipartUploadResult", inner), XML_LINE + lines.encode())

    async def abort(self, call: Call) -> None:
        bucket = await self._catalog.bucket(call.bucket)
        upload = await permitted_upload(self._catalog, call, bucket, "s3:AbortMultipartUpload")
        await self._catalog.abort(call.bucket, call.key, upload.id)
        call.reply(204)


def _copy_span(call: Call, found: LookupResult) -> tuple[int, int]:
    raw = call.exchange.header(b"x-amz-copy-source-range")
    if raw is None:
        return 0, found.size
    try:
        wanted = parse_range(raw)
    except RequestError:
        wanted = None
    if wanted is None or wanted.first is None or wanted.last is None:
        raise S3Error("InvalidArgument", "The x-amz-copy-source-range value must be of the form bytes=first-last where "
                      "first and last are the zero-based offsets of the first and last bytes to copy")  # fmt: skip
    if wanted.last >= found.size:
        raise S3Error("InvalidArgument", f"Range specified is not valid for source object of size: {found.size}")
    length = wanted.last - wanted.first + 1
    if length > PUT_BYTES_MAX:
        raise S3Error("EntityTooLarge")
    return wanted.first, length
