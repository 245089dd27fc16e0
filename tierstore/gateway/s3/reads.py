"""GetObject, HeadObject, GetObjectAttributes: an object found, judged, and its bytes sent.

Owns the way of one read: rights, lookup, conditions, range, walk. Invariant: rights are judged before a byte is read;
a stranger who may not list hears AccessDenied, not NoSuchKey.

Cost of a GET of 4 KiB beyond the native one: 14 us by a presigned URL, 20 us by a signed header
(SigV4 8 us of them), the bucket's view from memory.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from tierstore.errors import AccessDenied, NotFound, RequestError
from tierstore.gateway.object_request import ByteRange, parse_range
from tierstore.gateway.objects import OpenWalk
from tierstore.gateway.s3 import checksums, documents, rights
from tierstore.gateway.s3.answers import checksum_elements, http_moment
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.conditions import NULL_VERSION, has_no_condition, read_condition, version_of
from tierstore.gateway.s3.documents import element
from tierstore.gateway.s3.errors import XML_LINE, S3Error
from tierstore.gateway.s3.lifecycle import expiration_line
from tierstore.gateway.s3.object_meta import (
    ACL,
    CHECKSUM_TYPE,
    OWNER,
    PART_SUMS,
    object_lines,
    part_span,
    shown_version,
)
from tierstore.gateway.s3.request import Call, number
from tierstore.gateway.s3.sse_format import DecryptWalk
from tierstore.gateway.s3.sse_keys import CUSTOMER, Vault, Wish, sealed_of
from tierstore.policy.lifecycle import DOCUMENT as LIFECYCLE
from tierstore.sdk.early import EarlyRead
from tierstore.sdk.remote import BodyWalk
from tierstore.sdk.store import Store
from tierstore.wire.names import BucketView, LookupResult, ObjectMeta
from tierstore.wire.s3 import PART_NUMBER_MAX, PARTS, VersionsAsk, shown_etag
from tierstore.wire.storage_class import STANDARD, class_of

_log = logging.getLogger(__name__)
ENCRYPTION: Final = b"x-amz-server-side-encryption"


class Reads:
    """Handlers of reads, and the lookup that other handlers share."""

    def __init__(self, store: Store, catalog: S3Catalog, vault: Vault) -> None:
        self._store = store
        self._catalog = catalog
        self._vault = vault

    async def get(self, call: Call) -> None:
        """GetObject and HeadObject."""
        bucket = await self._catalog.bucket(call.bucket)
        is_head = call.method == "HEAD"
        version = version_of(call.query.get("versionId"))
        wanted = _range_of(call)
        part = number(call.query.get("partNumber"), "partNumber", default=-1, least=1, most=PART_NUMBER_MAX + 1) \
            if "partNumber" in call.query else 0  # fmt: skip
        if part > PART_NUMBER_MAX:
            raise S3Error("InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive",
                          ArgumentName="partNumber", ArgumentValue=call.query["partNumber"][:40])  # fmt: skip
        if part and wanted is not None:
            raise S3Error("InvalidRequest", "Cannot specify both Range header and partNumber query parameter")
        is_plain = wanted is None and not (is_head or version or part) and has_no_condition(call)
        found = await self.find(call, bucket, "s3:GetObjectVersion" if version else "s3:GetObject", version=version,
                                want_chunks=not is_head, is_early=is_plain)  # fmt: skip
        data_key = self.data_key(call, found)
        is_modified = read_condition(call, found.etag, found.created_at_ms)
        is_whole = wanted is None and (not part or found.meta is None or PARTS not in found.meta.extra)
        asks_checksum = (call.header(b"x-amz-checksum-mode") or "").upper() == "ENABLED"
        lines = object_lines(call, found, bucket.versioning, with_checksum=asks_checksum and is_whole and is_modified)
        if LIFECYCLE in bucket.config and not version:
            tags = found.meta.tags if found.meta is not None else {}
            lines += expiration_line(bucket, call.key, found.size, tags, found.created_at_ms).encode()
        if not is_modified:
            call.reply(304, b"", lines)
            return
        status, first, length = 200, 0, found.size
        if part:
            first, length, count = part_span(found.meta, part, found.size)
            if found.meta is not None and PARTS in found.meta.extra:
                lines += b"x-amz-mp-parts-count: %d\r\n" % count
                lines += _part_sum_lines(found.meta, part) if asks_checksum else b""
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
        answer = call.answer
        answer.status, answer.length, answer.object_bytes = status, 0 if is_head else length, found.size
        if is_head:
            call.exchange.begin(status, lines, length)
            call.exchange.end()
            return
        walk = self.body_walk(call.bucket, call.key, found, data_key, first=first, length=length, early=call.early)
        await self._send(call, walk, status, lines, length)

    def data_key(self, call: Call, found: LookupResult, *, of_source: bool = False) -> bytes:
        """The key of an encrypted object, b"" of a plain one. Raises S3Error for a key that is missing or wrong."""
        if not of_source and call.method in ("GET", "HEAD") and call.header(ENCRYPTION) is not None:
            raise S3Error("InvalidArgument", "x-amz-server-side-encryption is not for reads")
        customer = self._vault.customer(call, of_source=of_source)
        sealed = sealed_of(found.meta)
        if sealed is not None:
            return self._vault.open(sealed, customer)
        if customer.kind:
            raise S3Error("InvalidRequest", "The encryption parameters are not applicable to this object.")
        return b""

    def body_walk(
        self, bucket: str, key: str, found: LookupResult, data_key: bytes, *, first: int, length: int,
        early: EarlyRead | None = None,
    ) -> BodyWalk:  # fmt: skip
        """Plain bytes of what find() found; always close() it. early: what find() began, of a whole object."""
        sealed = sealed_of(found.meta)
        if sealed is None:
            return self._store.read_walk(bucket, key, found, first=first, length=length, early=early)

        def source(at: int, count: int) -> BodyWalk:
            return self._store.read_walk(bucket, key, found, first=at, length=count)

        raw = found.meta.extra.get(PARTS) if found.meta is not None else None
        runs = msgspec.msgpack.decode(raw, type=list[tuple[int, int]]) if raw else [(found.size, 1)]
        return DecryptWalk(source, data_key, runs, has_header=sealed.is_parts, first=first, length=length)

    async def open_sealed(self, bucket: str, key: str, found: LookupResult) -> OpenWalk:
        """The plain bytes of an encrypted object for the native door. Raises AccessDenied(encrypted-object) when the
        key is the customer's, or a master key that is not here."""
        sealed = sealed_of(found.meta)
        try:
            if sealed is None or sealed.kind == CUSTOMER:
                raise S3Error("InvalidRequest", "Its key is the customer's, which only the S3 API carries.")
            data_key = self._vault.open(sealed, Wish())
        except S3Error as error:
            _log.warning("%s/%s is encrypted and cannot be opened here: %s", bucket, key, error.message)
            raise AccessDenied(f"the object is encrypted: {error.message}", code="encrypted-object") from error
        # the range that was looked up is one of plain bytes: ask for all the sealed ones
        whole = _as_shown(await self._store.find(bucket, key, version=found.version))
        return lambda first, length: self.body_walk(bucket, key, whole, data_key, first=first, length=length)

    async def _send(self, call: Call, walk: BodyWalk, status: int, lines: bytes, length: int) -> None:
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
        self, call: Call, bucket: BucketView, action: str, *, version: int = 0, key: str = "",
        want_chunks: bool = False, is_early: bool = False,
    ) -> LookupResult:  # fmt: skip
        """The object, after the caller's rights. A stranger who may not list hears AccessDenied, not NoSuchKey.
        is_early: its whole body is wanted, whatever is found (call.early); begun only where the rights need no look at
        the object."""
        key = key or call.key
        tags = await self._tags_of(bucket.name, key, version) if rights.asks_existing_tags(call, bucket) else None
        has_acls = rights.has_acls(bucket)
        if rights.allowed(call, action, bucket, key, tags=tags):
            if is_early and not has_acls:
                call.early = self._store.early.begin(bucket.name, key)
        elif not has_acls:
            if not version and rights.allowed(call, "s3:ListBucket", bucket, prefix=key) \
                    and await self._lookup_or_none(bucket.name, key, 0) is None:  # fmt: skip
                raise await self._why_missing(call, bucket, key, 0)     # no more than a list would tell
            raise S3Error("AccessDenied")
        else:
            # only an ACL of the object itself can let in: it must be read first
            first = await self._lookup_or_none(bucket.name, key, version)
            if first is None:
                raise await self._why_missing(call, bucket, key, version)
            extra = first.meta.extra if first.meta is not None else {}
            acl, owner = extra.get(ACL, b"").decode(), extra.get(OWNER, b"").decode()
            if not rights.allowed(call, action, bucket, key, object_acl=acl, object_owner=owner, tags=tags):
                raise S3Error("AccessDenied")
        try:
            found = _as_shown(await self._store.find(bucket.name, key, version=version, want_chunks=want_chunks))
        except NotFound as error:
            raise await self._why_missing(call, bucket, key, version, code=error.code) from error
        if has_acls and found.meta is not None and OWNER in found.meta.extra:
            # somebody else's object in the caller's bucket: what let the caller in so far may be the bucket alone
            acl, owner = found.meta.extra.get(ACL, b"").decode(), found.meta.extra[OWNER].decode()
            if not rights.allowed(call, action, bucket, key, object_acl=acl, object_owner=owner, tags=tags):
                raise S3Error("AccessDenied")
        return found

    async def _why_missing(
        self, call: Call, bucket: BucketView, key: str, version: int, *, code: str = ""
    ) -> S3Error:
        """What is heard of an object that is not there: nothing, by those who may not list."""
        # as if the one key were listed: a policy may let callers list below some prefix only
        may_list = rights.allowed(call, "s3:ListBucket", bucket, prefix=key)
        if bucket.versioning and (code or may_list):
            await self._raise_for_marker(bucket, key, version)
        if not may_list:
            return S3Error("AccessDenied")
        if code == "no-such-version" or version:
            return S3Error("NoSuchVersion", Key=key)
        return S3Error("NoSuchKey", Key=key)

    async def _lookup_or_none(self, bucket: str, key: str, version: int) -> LookupResult | None:
        try:
            return await self._store.find(bucket, key, version=version, want_chunks=False)
        except NotFound:
            return None

    async def _tags_of(self, bucket: str, key: str, version: int) -> dict[str, str]:
        """The tags of an object whose policy looks at them: one look-up more, in such buckets only."""
        found = await self._lookup_or_none(bucket, key, version)
        return found.meta.tags if found is not None and found.meta is not None else {}

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

    async def attributes(self, call: Call) -> None:
        """GetObjectAttributes."""
        bucket = await self._catalog.bucket(call.bucket)
        version = version_of(call.query.get("versionId"))
        found = await self.find(call, bucket, "s3:GetObjectVersion" if version else "s3:GetObject", version=version)
        self.data_key(call, found)
        asked = {part.strip() for part in (call.header(b"x-amz-object-attributes") or "").split(",")}
        if not asked <= {"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"} or not asked - {""}:
            raise S3Error("InvalidArgument", "Invalid attribute name specified.")
        meta = found.meta or ObjectMeta()
        inner = element("ETag", found.etag) if "ETag" in asked else ""
        if "Checksum" in asked and meta.checksums:
            inner += f"<Checksum>{checksum_elements(meta)}</Checksum>"
        if "ObjectParts" in asked and PARTS in meta.extra:
            inner += f"<ObjectParts>{_parts(call, meta)}</ObjectParts>"
        if "StorageClass" in asked:
            inner += element("StorageClass", class_of(meta) or STANDARD)
        inner += element("ObjectSize", found.size) if "ObjectSize" in asked else ""
        lines = f"last-modified: {http_moment(found.created_at_ms)}\r\n"
        if bucket.versioning:
            lines += f"x-amz-version-id: {shown_version(found.version, found.is_null)}\r\n"
        call.reply(200, documents.document("GetObjectAttributesResponse", inner), XML_LINE + lines.encode())


def _range_of(call: Call) -> ByteRange | None:
    """The range asked for; what makes no sense is as if it were not there, as at AWS."""
    try:
        return parse_range(call.exchange.header(b"range"))
    except RequestError:
        return None


def _as_shown(found: LookupResult) -> LookupResult:
    """ETag and size as S3's clients see them."""
    if ";" not in found.etag:
        return found
    etag, size = shown_etag(found.etag, found.size)
    return msgspec.structs.replace(found, etag=etag, size=size)


def _parts(call: Call, meta: ObjectMeta) -> str:
    """One page of the parts of an object, as GetObjectAttributes shows them."""
    after = number(call.header(b"x-amz-part-number-marker"), "part-number-marker", default=0, least=0, most=10_000)
    most = number(call.header(b"x-amz-max-parts"), "max-parts", default=1000, least=0, most=1000)
    sizes = [size for size, times in msgspec.msgpack.decode(meta.extra[PARTS], type=list[tuple[int, int]])
             for _ in range(times)]  # fmt: skip
    shown = list(enumerate(sizes, 1))[after : after + most]
    inner = element("IsTruncated", after + most < len(sizes)) + element("MaxParts", most)
    inner += element("NextPartNumberMarker", shown[-1][0] if shown else after) + element("PartNumberMarker", after)
    inner += element("PartsCount", len(sizes))
    return inner + "".join(
        f"<Part>{element('PartNumber', at)}{element('Size', size)}{_part_sum(meta, at)}</Part>" for at, size in shown
    )


def _part_sum(meta: ObjectMeta, at: int) -> str:
    algorithm, value = _sum_of_part(meta, at)
    return element(f"Checksum{algorithm.upper()}", value) if value else ""


def _part_sum_lines(meta: ObjectMeta, at: int) -> bytes:
    """What a read of one part says of its checksum: the part's own, and the kind that the whole has."""
    algorithm, value = _sum_of_part(meta, at)
    kind = meta.extra.get(CHECKSUM_TYPE, b"FULL_OBJECT").decode()
    return f"{checksums.PREFIX}{algorithm}: {value}\r\nx-amz-checksum-type: {kind}\r\n".encode() if value else b""


def _sum_of_part(meta: ObjectMeta, at: int) -> tuple[str, str]:
    """Algorithm and checksum of part `at`; "" for both where those of parts are not kept."""
    held = meta.extra.get(PART_SUMS)
    algorithm = next(iter(meta.checksums), "")
    if held is None or algorithm not in checksums.ALGORITHMS:
        return "", ""
    size = checksums.ALGORITHMS[algorithm]
    return algorithm, checksums.encode(held[(at - 1) * size : at * size])
