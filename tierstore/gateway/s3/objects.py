"""PutObject, GetObject, HeadObject, DeleteObject, DeleteObjects, CopyObject, GetObjectAttributes, tagging.

Owns the way of one object request: rights, conditions, walk, answer. Invariants: rights are judged before a byte is
read or looked up; conditions of writes are decided in the commit; a body is committed only after all its digests held.

Cost of a GET of 4 KiB beyond the native one: SigV4 15 us, the bucket's view from memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import unquote

import msgspec

from tierstore.errors import NotFound, TierstoreError
from tierstore.gateway.object_request import parse_range
from tierstore.gateway.s3 import checksums, documents, rights
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.documents import element, moment
from tierstore.gateway.s3.errors import XML_LINE, S3Error, s3_error
from tierstore.gateway.s3.object_meta import (
    CANNED_ACL,
    CHECKSUM_TYPE,
    OWNER,
    PARTS,
    check_tags,
    meta_of,
    object_lines,
    part_span,
    shown_version,
)
from tierstore.gateway.s3.request import Call, etags, number
from tierstore.gateway.s3.uploads import OBJECT_BYTES_MAX, BodyReader, Received, promise_of
from tierstore.names import check_bucket_name, check_key, parse_version
from tierstore.sdk.store import Store
from tierstore.wire.names import BucketView, Condition, LookupResult, ObjectMeta
from tierstore.wire.s3 import VersionsAsk

NULL_VERSION: Final = -1
DELETE_KEYS_MAX: Final = 1000
#: Objects of one DeleteObjects that are deleted at the same time.
DELETES_AT_ONCE: Final = 32


def version_of(text: str | None) -> int:
    """0: the latest. Raises S3Error(InvalidArgument)."""
    if text is None:
        return 0
    if text == "null":
        return NULL_VERSION
    try:
        return parse_version(text)
    except TierstoreError:
        raise S3Error("InvalidArgument", "Invalid version id specified", ArgumentName="versionId",
                      ArgumentValue=text[:64]) from None  # fmt: skip


class Objects:
    """Handlers of object operations."""

    def __init__(self, store: Store, catalog: S3Catalog, reader: BodyReader) -> None:
        self._store = store
        self._catalog = catalog
        self._reader = reader

    # -- put ------------------------------------------------------------------------------------------------
    async def put(self, call: Call) -> None:
        bucket = await self._catalog.bucket(call.bucket)
        rights.require(call, "s3:PutObject", bucket, call.key)
        meta = meta_of(call)
        check_acl(call, bucket)
        condition = write_condition(call)
        promise = promise_of(call)
        walk = self._store.put_walk(call.bucket, call.key, size=promise.size, size_max=OBJECT_BYTES_MAX)
        try:
            received = await self._reader.receive(
                call, promise, walk, algorithm="" if promise.algorithm else "crc64nvme"
            )
            meta = with_checksum(meta, received)
            made = await walk.finish(meta=meta, condition=condition, etag=received.md5)
        except NotFound as error:
            raise missing(error, condition) from error
        finally:
            await walk.abort()
        lines = f'etag: "{received.md5}"\r\n' + version_line(made.version, bucket) + checksum_lines(received)
        call.reply(200, b"", lines.encode())

    # -- get ------------------------------------------------------------------------------------------------
    async def get(self, call: Call) -> None:
        """GetObject and HeadObject."""
        bucket = await self._catalog.bucket(call.bucket)
        is_head = call.method == "HEAD"
        version = version_of(call.query.get("versionId"))
        wanted = parse_range(call.exchange.header(b"range")) if call.exchange.header(b"range") else None
        part = number(call.query.get("partNumber"), "partNumber", default=-1, least=1, most=10_000) \
            if "partNumber" in call.query else 0  # fmt: skip
        if part and wanted is not None:
            raise S3Error("InvalidRequest", "Cannot specify both Range header and partNumber query parameter")
        found = await self.find(call, bucket, "s3:GetObjectVersion" if version else "s3:GetObject", version=version,
                                want_chunks=not is_head)  # fmt: skip
        is_modified = read_condition(call, found.etag, found.created_at_ms)
        is_whole = wanted is None and (not part or found.meta is None or PARTS not in found.meta.extra)
        asks_checksum = (call.header(b"x-amz-checksum-mode") or "").upper() == "ENABLED"
        lines = object_lines(call, found, bucket.versioning, with_checksum=asks_checksum and is_whole and is_modified)
        if not is_modified:
            call.reply(304, b"", lines)
            return
        status, first, length = 200, 0, found.size
        if part:
            first, length, count = part_span(found.meta, part, found.size)
            if found.meta is not None and PARTS in found.meta.extra:
                lines += b"x-amz-mp-parts-count: %d\r\n" % count
            status = 206
        elif wanted is not None:
            span = wanted.within(found.size)
            if span is None:
                raise S3Error("InvalidRange", lines=b"content-range: bytes */%d\r\n" % found.size,
                              ActualObjectSize=str(found.size))  # fmt: skip
            first, length = span
            status = 206
        if status == 206 and found.size:
            lines += b"content-range: bytes %d-%d/%d\r\n" % (first, first + length - 1, found.size)
        lines += call.extra_lines
        call.has_begun = is_head
        if is_head:
            call.exchange.begin(status, lines, length)
            call.exchange.end()
            return
        await self._send(call, found, status, lines, first, length)

    async def _send(  # noqa: PLR0917 - one answer
        self, call: Call, found: LookupResult, status: int, lines: bytes, first: int, length: int
    ) -> None:
        walk = self._store.read_walk(call.bucket, call.key, found, first=first, length=length)
        try:
            await walk.start()
            call.has_begun = True
            if walk.whole is not None:
                call.exchange.reply(status, walk.whole, lines)
                return
            call.exchange.begin(status, lines, length)
            while piece := await walk.next_piece():
                await call.exchange.send(piece)
            call.exchange.end()
        finally:
            await walk.close()

    async def find(
        self, call: Call, bucket: BucketView, action: str, *, version: int = 0, key: str = "", want_chunks: bool = False
    ) -> LookupResult:
        """The object, after the caller's rights. A stranger who may not list hears AccessDenied, not NoSuchKey."""
        key = key or call.key
        if not rights.allowed(call, action, bucket, key) and not rights.block_of(bucket).ignore_acls:
            # only an ACL of the object itself can let in: it must be read first
            found = await self._lookup_or_none(bucket.name, key, version)
            acl = found.meta.extra.get(CANNED_ACL, b"").decode() if found is not None and found.meta else ""
            owner = found.meta.extra.get(OWNER, b"").decode() if found is not None and found.meta else ""
            if not rights.allowed(call, action, bucket, key, object_acl=acl, object_owner=owner):
                raise S3Error("AccessDenied")
        elif not rights.allowed(call, action, bucket, key):
            raise S3Error("AccessDenied")
        try:
            return await self._store.find(bucket.name, key, version=version, want_chunks=want_chunks)
        except NotFound as error:
            if bucket.versioning:
                await self._raise_for_marker(bucket, key, version)
            if not rights.allowed(call, "s3:ListBucket", bucket):
                raise S3Error("AccessDenied") from error
            if error.code == "no-such-version" or version:
                raise S3Error("NoSuchVersion", Key=key) from error
            raise S3Error("NoSuchKey", Key=key) from error

    async def _lookup_or_none(self, bucket: str, key: str, version: int) -> LookupResult | None:
        try:
            return await self._store.find(bucket, key, version=version, want_chunks=False)
        except NotFound:
            return None

    async def _raise_for_marker(self, bucket: BucketView, key: str, version: int) -> None:
        """A delete marker answers with its version: 404, or 405 when it was asked for by version."""
        page = await self._catalog.versions(VersionsAsk(bucket.name, key, limit=1000))
        for view in page.versions:
            if view.key != key:
                return
            is_asked = version in (view.version, 0) or (version == NULL_VERSION and view.is_null)
            if is_asked and view.is_marker:
                shown = shown_version(view.version, view.is_null)
                lines = f"x-amz-delete-marker: true\r\nx-amz-version-id: {shown}\r\n".encode()
                raise S3Error("MethodNotAllowed" if version else "NoSuchKey", lines=lines)
            if not version:
                return

    # -- delete ---------------------------------------------------------------------------------------------
    async def delete(self, call: Call) -> None:
        bucket = await self._catalog.bucket(call.bucket)
        version = version_of(call.query.get("versionId"))
        rights.require(call, "s3:DeleteObjectVersion" if version else "s3:DeleteObject", bucket, call.key)
        condition = Condition(if_match=etags(call.header(b"if-match"))) if call.header(b"if-match") else None
        done = await self._store.delete(call.bucket, call.key, version=version, condition=condition)
        lines = ""
        if bucket.versioning and done.version:
            if version:
                lines = f"x-amz-version-id: {call.query['versionId']}\r\n"
            else:
                lines = version_line(done.version, bucket)
            if done.is_delete_marker:
                lines += "x-amz-delete-marker: true\r\n"
        call.reply(204, b"", lines.encode())

    async def delete_many(self, call: Call) -> None:
        """DeleteObjects: each key has its own result."""
        bucket = await self._catalog.bucket(call.bucket)
        root = documents.parse(await self._reader.small(call, documents.BODY_BYTES_MAX), "Delete")
        is_quiet = root.text("Quiet") == "true"
        wanted = [
            (node.text("Key") or "", node.text("VersionId"), node.text("ETag")) for node in root.all("Object")
        ]
        if not 1 <= len(wanted) <= DELETE_KEYS_MAX:
            raise S3Error("MalformedXML")
        results: list[str] = []
        for at in range(0, len(wanted), DELETES_AT_ONCE):
            some = wanted[at : at + DELETES_AT_ONCE]
            results += await asyncio.gather(
                *(self._delete_one(call, bucket, *one, is_quiet=is_quiet) for one in some)
            )
        call.reply(200, documents.document("DeleteResult", "".join(results)), XML_LINE)

    async def _delete_one(
        self, call: Call, bucket: BucketView, key: str, version_text: str | None, etag: str | None, *, is_quiet: bool
    ) -> str:  # fmt: skip
        try:
            version = version_of(version_text or None)
            rights.require(call, "s3:DeleteObjectVersion" if version else "s3:DeleteObject", bucket, key)
            condition = Condition(if_match=etags(etag)) if etag else None
            done = await self._store.delete(bucket.name, check_key(key), version=version, condition=condition)
        except (S3Error, TierstoreError) as error:
            shown = s3_error(error, call.exchange.request_id)
            inner = element("Key", key) + element("VersionId", version_text) + element("Code", shown.code)
            return f"<Error>{inner}{element('Message', shown.message)}</Error>"
        if is_quiet:
            return ""
        inner = element("Key", key) + element("VersionId", version_text)
        if bucket.versioning and done.is_delete_marker and done.version:
            marker = version_text or shown_version(done.version, bucket.versioning != "enabled")
            inner += element("DeleteMarker", True) + element("DeleteMarkerVersionId", marker)
        return f"<Deleted>{inner}</Deleted>"

    # -- copy -----------------------------------------------------------------------------------------------
    async def copy_source(self, call: Call) -> tuple[BucketView, str, int, LookupResult]:
        """(bucket, key, version, object) of x-amz-copy-source, after rights and copy-source conditions."""
        raw = call.header(b"x-amz-copy-source") or ""
        path, _, query = raw.partition("?")
        name, _, key = unquote(path).lstrip("/").partition("/")
        if not name or not key or (query and not query.startswith("versionId=")):
            raise S3Error("InvalidArgument", "Copy Source must mention the source bucket and key: bucket/key",
                          ArgumentName="x-amz-copy-source", ArgumentValue=raw[:200])  # fmt: skip
        check_bucket_name(name)
        version = version_of(query.removeprefix("versionId=") if query else None)
        bucket = await self._catalog.bucket(name)
        action = "s3:GetObjectVersion" if version else "s3:GetObject"
        found = await self.find(call, bucket, action, version=version, key=check_key(key))
        if not read_condition(call, found.etag, found.created_at_ms, prefix=b"x-amz-copy-source-"):
            raise S3Error("PreconditionFailed")
        return bucket, key, version, found

    async def copy(self, call: Call) -> None:
        """CopyObject: no byte moves."""
        target = await self._catalog.bucket(call.bucket)
        rights.require(call, "s3:PutObject", target, call.key)
        source, key, _, found = await self.copy_source(call)
        if found.size > 5 << 30:
            raise S3Error("InvalidRequest", "The specified copy source is larger than the maximum allowable size for a "
                          "copy source: 5368709120")  # fmt: skip
        meta = self._copied_meta(call, found, is_same=(source.name, key) == (call.bucket, call.key))
        check_acl(call, target)
        done = await self._store.copy(
            source.name, key, call.bucket, call.key, meta=meta, condition=write_condition(call),
            from_version=found.version,
        )  # fmt: skip
        lines = version_line(done.version, target)
        if source.versioning:
            lines += f"x-amz-copy-source-version-id: {shown_version(found.version, found.is_null)}\r\n"
        inner = element("LastModified", moment(done.created_at_ms)) + element("ETag", f'"{found.etag}"')
        inner += _checksum_elements(meta)
        call.reply(200, documents.document("CopyObjectResult", inner), XML_LINE + lines.encode())

    def _copied_meta(self, call: Call, found: LookupResult, *, is_same: bool) -> ObjectMeta:
        directive = call.header(b"x-amz-metadata-directive") or "COPY"
        tagging = call.header(b"x-amz-tagging-directive") or "COPY"
        if directive not in ("COPY", "REPLACE") or tagging not in ("COPY", "REPLACE"):
            raise S3Error("InvalidArgument", "Unknown metadata directive.")
        said = meta_of(call)
        had = found.meta or ObjectMeta()
        if is_same and directive == "COPY" and "versionId=" not in (call.header(b"x-amz-copy-source") or "") \
                and call.header(b"x-amz-storage-class") is None:  # fmt: skip
            raise S3Error("InvalidRequest", "This copy request is illegal because it is trying to copy an object to "
                          "itself without changing the object's metadata, storage class, website redirect location or "
                          "encryption attributes.")  # fmt: skip
        extra = {**said.extra, **{n: v for n, v in had.extra.items() if n in (CHECKSUM_TYPE, PARTS)}}
        tags = said.tags if tagging == "REPLACE" else had.tags
        base = said if directive == "REPLACE" else had
        return msgspec.structs.replace(base, checksums=had.checksums, extra=extra, tags=tags)

    # -- attributes and tags --------------------------------------------------------------------------------
    async def attributes(self, call: Call) -> None:
        """GetObjectAttributes."""
        bucket = await self._catalog.bucket(call.bucket)
        version = version_of(call.query.get("versionId"))
        found = await self.find(call, bucket, "s3:GetObjectVersion" if version else "s3:GetObject", version=version)
        asked = {part.strip() for part in (call.header(b"x-amz-object-attributes") or "").split(",")}
        if not asked <= {"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"} or not asked - {""}:
            raise S3Error("InvalidArgument", "Invalid attribute name specified.")
        meta = found.meta or ObjectMeta()
        inner = element("ETag", found.etag) if "ETag" in asked else ""
        if "Checksum" in asked and meta.checksums:
            inner += f"<Checksum>{_checksum_elements(meta)}</Checksum>"
        if "ObjectParts" in asked and PARTS in meta.extra:
            runs = msgspec.msgpack.decode(meta.extra[PARTS], type=list[tuple[int, int]])
            inner += f"<ObjectParts>{element('PartsCount', sum(times for _, times in runs))}</ObjectParts>"
        if "StorageClass" in asked:
            inner += element("StorageClass", "STANDARD")
        inner += element("ObjectSize", found.size) if "ObjectSize" in asked else ""
        lines = f"last-modified: {_http(found.created_at_ms)}\r\n"
        if bucket.versioning:
            lines += f"x-amz-version-id: {shown_version(found.version, found.is_null)}\r\n"
        call.reply(200, documents.document("GetObjectAttributesResponse", inner), XML_LINE + lines.encode())

    async def get_tags(self, call: Call) -> None:
        bucket, found = await self._for_tags(call, "Get")
        tags = found.meta.tags if found.meta is not None else {}
        call.reply(200, tagging_document(tags), XML_LINE + self._version(bucket, found))

    async def put_tags(self, call: Call) -> None:
        bucket, found = await self._for_tags(call, "Put")
        tags = parse_tagging(await self._reader.small(call, documents.BODY_BYTES_MAX))
        await self._set_tags(call, found, tags)
        call.reply(200, b"", self._version(bucket, found))

    async def delete_tags(self, call: Call) -> None:
        bucket, found = await self._for_tags(call, "Delete")
        await self._set_tags(call, found, {})
        call.reply(204, b"", self._version(bucket, found))

    async def _for_tags(self, call: Call, verb: str) -> tuple[BucketView, LookupResult]:
        bucket = await self._catalog.bucket(call.bucket)
        version = version_of(call.query.get("versionId"))
        action = f"s3:{verb}ObjectVersionTagging" if version else f"s3:{verb}ObjectTagging"
        return bucket, await self.find(call, bucket, action, version=version)

    async def _set_tags(self, call: Call, found: LookupResult, tags: dict[str, str]) -> None:
        meta = msgspec.structs.replace(found.meta or ObjectMeta(), tags=tags)
        await self._store.set_meta(call.bucket, call.key, meta, version=found.version)

    @staticmethod
    def _version(bucket: BucketView, found: LookupResult) -> bytes:
        if not bucket.versioning:
            return b""
        return f"x-amz-version-id: {shown_version(found.version, found.is_null)}\r\n".encode()

    async def get_acl(self, call: Call) -> None:
        bucket = await self._catalog.bucket(call.bucket)
        found = await self.find(call, bucket, "s3:GetObjectAcl", version=version_of(call.query.get("versionId")))
        meta = found.meta or ObjectMeta()
        owner = meta.extra.get(OWNER, b"").decode() or bucket.owner
        call.reply(200, acl_document(owner, meta.extra.get(CANNED_ACL, b"").decode()), XML_LINE)

    async def put_acl(self, call: Call) -> None:
        bucket = await self._catalog.bucket(call.bucket)
        found = await self.find(call, bucket, "s3:PutObjectAcl", version=version_of(call.query.get("versionId")))
        check_acl(call, bucket)
        acl = meta_of(call).extra.get(CANNED_ACL, b"")
        if call.header(b"x-amz-acl") is None:
            raise S3Error("NotImplemented", "Only canned ACLs (x-amz-acl) can be set.")
        meta = found.meta or ObjectMeta()
        extra = {**meta.extra, CANNED_ACL: acl}
        await self._store.set_meta(
            call.bucket, call.key, msgspec.structs.replace(meta, extra=extra), version=found.version
        )
        call.reply(200)


def with_checksum(meta: ObjectMeta, received: Received) -> ObjectMeta:
    if not received.algorithm:
        return meta
    return msgspec.structs.replace(meta, checksums={received.algorithm: received.checksum})


def checksum_lines(received: Received) -> str:
    if not received.algorithm:
        return ""
    return f"{checksums.PREFIX}{received.algorithm}: {received.checksum}\r\nx-amz-checksum-type: FULL_OBJECT\r\n"


def _checksum_elements(meta: ObjectMeta) -> str:
    inner = "".join(element(f"Checksum{name.upper()}", value) for name, value in meta.checksums.items())
    if inner:
        inner += element("ChecksumType", meta.extra.get(CHECKSUM_TYPE, b"FULL_OBJECT").decode())
    return inner


def version_line(version: int, bucket: BucketView) -> str:
    """x-amz-version-id of a write; nothing while versioning was never on."""
    if not bucket.versioning:
        return ""
    return f"x-amz-version-id: {shown_version(version, bucket.versioning != 'enabled')}\r\n"


def write_condition(call: Call) -> Condition | None:
    """If-Match and If-None-Match of a write. Raises S3Error(NotImplemented) for what S3 does not take."""
    if_match, if_none = call.header(b"if-match"), call.header(b"if-none-match")
    if if_match is None and if_none is None:
        return None
    return Condition(etags(if_match), etags(if_none))


def missing(error: NotFound, condition: Condition | None) -> Exception:
    """If-Match on a key that is not there is NoSuchKey, as AWS has it."""
    return error if condition is None or error.code != "no-such-key" else S3Error("NoSuchKey")


def read_condition(call: Call, etag: str, created_at_ms: int, *, prefix: bytes = b"") -> bool:
    """False: 304. Raises S3Error(PreconditionFailed). RFC 9110, 13.2.2."""
    if_match, if_none = call.header(prefix + b"if-match"), call.header(prefix + b"if-none-match")
    modified = created_at_ms // 1000
    if if_match is not None:
        if etag not in etags(if_match) and if_match.strip() != "*":
            raise S3Error("PreconditionFailed", Condition="If-Match")
    elif (since := _date(call.header(prefix + b"if-unmodified-since"))) is not None and modified > since:
        raise S3Error("PreconditionFailed", Condition="If-Unmodified-Since")
    if if_none is not None:
        return etag not in etags(if_none) and if_none.strip() != "*"
    since = _date(call.header(prefix + b"if-modified-since"))
    return since is None or modified > since


def _date(text: str | None) -> float | None:
    """Seconds; None for no date, which a server ignores."""
    if text is None:
        return None
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        found = parsedate_to_datetime(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return None


def _http(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


def check_acl(call: Call, bucket: BucketView) -> None:
    """ACLs are off where ownership is BucketOwnerEnforced (the default): only the two that change nothing pass."""
    acl = call.header(b"x-amz-acl")
    if any(name.startswith(b"x-amz-grant-") for name, _ in call.exchange.headers):
        raise S3Error("NotImplemented", "Grant headers are not supported; use a bucket policy.")
    if acl is None:
        return
    ownership = bucket.config.get(rights.OWNERSHIP, "BucketOwnerEnforced")
    if ownership == "BucketOwnerEnforced" and acl not in ("bucket-owner-full-control", "private"):
        raise S3Error("AccessControlListNotSupported", "The bucket does not allow ACLs")
    if rights.block_of(bucket).block_acls and acl in ("public-read", "public-read-write", "authenticated-read"):
        raise S3Error("AccessDenied")


def acl_document(owner: str, acl: str) -> bytes:
    """The ACL that a canned one stands for."""
    shown = element("ID", owner) + element("DisplayName", owner)
    head = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type='
    grants = [(f'<Grantee {head}"CanonicalUser">{shown}</Grantee>', "FULL_CONTROL")]
    group = {"public-read": "AllUsers", "public-read-write": "AllUsers", "authenticated-read": "AuthenticatedUsers"}
    if acl in group:
        uri = element("URI", f"http://acs.amazonaws.com/groups/global/{group[acl]}")
        grantee = f'<Grantee {head}"Group">{uri}</Grantee>'
        grants += [(grantee, "READ")] + ([(grantee, "WRITE")] if acl == "public-read-write" else [])
    listed = "".join(f"<Grant>{who}{element('Permission', what)}</Grant>" for who, what in grants)
    return documents.document(
        "AccessControlPolicy", f"<Owner>{shown}</Owner><AccessControlList>{listed}</AccessControlList>"
    )


def parse_tagging(body: bytes, *, most: int = 10) -> dict[str, str]:
    root = documents.parse(body, "Tagging")
    tag_set = root.one("TagSet")
    if tag_set is None:
        raise S3Error("MalformedXML")
    pairs = []
    for tag in tag_set.all("Tag"):
        key, value = tag.text("Key"), tag.text("Value")
        if key is None or value is None:
            raise S3Error("MalformedXML")
        pairs.append((key, value))
    return check_tags(pairs, most=most)


def tagging_document(tags: dict[str, str]) -> bytes:
    listed = "".join(f"<Tag>{element('Key', key)}{element('Value', value)}</Tag>" for key, value in tags.items())
    return documents.document("Tagging", f"<TagSet>{listed}</TagSet>")

