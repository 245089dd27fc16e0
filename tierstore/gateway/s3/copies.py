"""CopyObject, and the source of it and of UploadPartCopy.

Invariant: no byte moves, but where another encryption or another checksum is asked for; the conditions on the source
are judged on the version that is copied.
"""

from __future__ import annotations

import hashlib
from urllib.parse import unquote

import msgspec

from tierstore.gateway.s3 import checksums, documents, rights
from tierstore.gateway.s3.acl import Acls
from tierstore.gateway.s3.answers import checksum_elements, version_line
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.conditions import read_condition, version_of, write_condition
from tierstore.gateway.s3.documents import element, moment
from tierstore.gateway.s3.errors import XML_LINE, S3Error
from tierstore.gateway.s3.lock_forms import locked_meta
from tierstore.gateway.s3.object_meta import CHECKSUM_TYPE, PART_SUMS, meta_of, shown_version
from tierstore.gateway.s3.reads import Reads
from tierstore.gateway.s3.request import Call
from tierstore.gateway.s3.sse import Cover, cover_of
from tierstore.gateway.s3.sse_format import pieces_of
from tierstore.gateway.s3.sse_keys import CUSTOMER, Sealed, Vault, Wish, sealed_lines, sealed_of, with_sealed
from tierstore.names import check_bucket_name, check_key
from tierstore.sdk.store import Store
from tierstore.wire.names import BucketView, CommitResult, LookupResult, ObjectMeta
from tierstore.wire.s3 import BY_COPY, MADE_BY, PARTS
from tierstore.wire.storage_class import class_of


class Copies:
    """Handlers of copies."""

    def __init__(self, store: Store, catalog: S3Catalog, reads: Reads, vault: Vault, acls: Acls) -> None:
        self._store = store
        self._catalog = catalog
        self.reads = reads
        self._vault = vault
        self._acls = acls

    async def copy_source(self, call: Call) -> tuple[BucketView, str, int, LookupResult, bytes]:
        """(bucket, key, version, object, its data key) of x-amz-copy-source, after rights and conditions."""
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
        try:
            found = await self.reads.find(call, bucket, action, version=version, key=check_key(key), want_chunks=True)
        except S3Error as error:
            if error.code == "MethodNotAllowed":
                raise S3Error("InvalidRequest", "The source of a copy request may not specifically refer to a delete "
                              "marker by version id.") from None  # fmt: skip
            raise
        data_key = self.reads.data_key(call, found, of_source=True)
        if not read_condition(call, found.etag, found.created_at_ms, prefix=b"x-amz-copy-source-"):
            raise S3Error("PreconditionFailed")
        return bucket, key, version, found, data_key

    async def copy(self, call: Call) -> None:
        """CopyObject."""
        target = await self._catalog.bucket(call.bucket)
        rights.require(call, "s3:PutObject", target, call.key)
        source, key, _, found, data_key = await self.copy_source(call)
        if found.size > 5 << 30:
            raise S3Error("InvalidRequest", "The specified copy source is larger than the maximum allowable size for a "
                          "copy source: 5368709120")  # fmt: skip
        meta = self._copied_meta(call, target, found, is_same=(source.name, key) == (call.bucket, call.key))
        meta = await self._acls.of_write(call, target, meta)
        sealed, wish = sealed_of(found.meta), self._vault.wish(call, target)
        algorithm = _new_sum(call, found.meta)
        if _keeps_cover(sealed, wish) and not algorithm:
            done = await self._store.copy(
                source.name, key, call.bucket, call.key, meta=meta if sealed is None else with_sealed(meta, sealed),
                condition=write_condition(call), from_version=found.version,
            )  # fmt: skip
            etag, lines = found.etag, version_line(done.version, target) + "".join(
                f"{line}\r\n" for line in sealed_lines(sealed)
            )
        else:
            cover = cover_of(self._vault, _same_cover(sealed) if _keeps_cover(sealed, wish) else wish)
            reading = (source.name, key, found, data_key)
            done, etag, meta = await self._rewrite(call, reading, cover, meta, algorithm or "crc64nvme")
            lines = version_line(done.version, target) + cover.lines
        if source.versioning:
            lines += f"x-amz-copy-source-version-id: {shown_version(found.version, found.is_null)}\r\n"
        inner = element("LastModified", moment(done.created_at_ms)) + element("ETag", f'"{etag}"')
        inner += checksum_elements(meta)
        call.reply(200, documents.document("CopyObjectResult", inner), XML_LINE + lines.encode())

    async def _rewrite(
        self, call: Call, source: tuple[str, str, LookupResult, bytes], cover: Cover, meta: ObjectMeta, algorithm: str
    ) -> tuple[CommitResult, str, ObjectMeta]:
        """A copy whose encryption or checksum changes: every byte is read, and sealed anew (or not at all)."""
        bucket, key, found, data_key = source
        extra = {name: value for name, value in meta.extra.items() if name not in (PARTS, PART_SUMS, CHECKSUM_TYPE)}
        walk = self._store.put_walk(
            call.bucket, call.key, size=cover.stored_bytes(found.size), storage_class=class_of(meta)
        )
        target, md5 = cover.target(walk, found.size), hashlib.md5(usedforsecurity=False)
        total = checksums.new(algorithm)
        reading = self.reads.body_walk(bucket, key, found, data_key, first=0, length=found.size)
        try:
            async for piece in pieces_of(reading):
                md5.update(piece)
                total.update(bytes(piece))
                if not target.push(piece):
                    await target.has_room()
            sums = {algorithm: checksums.encode(total.digest())}
            meta = cover.meta(msgspec.structs.replace(meta, extra=extra, checksums=sums))
            etag = cover.etag(md5.hexdigest())
            done = await walk.finish(
                meta=meta, condition=write_condition(call), etag=cover.stored_etag(etag, found.size)
            )
        finally:
            await reading.close()
            await walk.abort()
        return done, etag, meta

    def _copied_meta(self, call: Call, target: BucketView, found: LookupResult, *, is_same: bool) -> ObjectMeta:
        directive = call.header(b"x-amz-metadata-directive") or "COPY"
        tagging = call.header(b"x-amz-tagging-directive") or "COPY"
        if directive not in ("COPY", "REPLACE") or tagging not in ("COPY", "REPLACE"):
            raise S3Error("InvalidArgument", "Unknown metadata directive.")
        said = locked_meta(call, target, meta_of(call), self._catalog.now_ms)
        had = found.meta or ObjectMeta()
        if is_same and directive == "COPY" and "versionId=" not in (call.header(b"x-amz-copy-source") or "") \
                and call.header(b"x-amz-storage-class") is None and not self._vault.wish(call).kind:  # fmt: skip
            raise S3Error("InvalidRequest", "This copy request is illegal because it is trying to copy an object to "
                          "itself without changing the object's metadata, storage class, website redirect location or "
                          "encryption attributes.")  # fmt: skip
        extra = {**said.extra, **{n: v for n, v in had.extra.items() if n in (CHECKSUM_TYPE, PARTS, PART_SUMS)},
                 MADE_BY: BY_COPY}  # fmt: skip
        tags = said.tags if tagging == "REPLACE" else had.tags
        base = said if directive == "REPLACE" else had
        return msgspec.structs.replace(base, checksums=had.checksums, extra=extra, tags=tags)


def _new_sum(call: Call, meta: ObjectMeta | None) -> str:
    """The checksum that the copy is to carry and its source does not, "" for none. Raises S3Error(InvalidRequest)."""
    named = call.header(b"x-amz-checksum-algorithm")
    if named is None:
        return ""
    algorithm = checksums.algorithm_of(named)
    had = meta.checksums.get(algorithm) if meta is not None else None
    return "" if had is not None and "-" not in had else algorithm


def _same_cover(sealed: Sealed | None) -> Wish:
    """What asks for the encryption that the source has."""
    return Wish(sealed.kind, sealed.key_id) if sealed is not None else Wish()


def _keeps_cover(sealed: Sealed | None, wish: Wish) -> bool:
    """Whether a copy may share the bytes: nothing else was asked for, and no customer's key is between them."""
    if sealed is None or CUSTOMER in (sealed.kind, wish.kind):
        return sealed is None and not wish.kind
    return not wish.kind or (wish.kind == sealed.kind and wish.key_id in ("", sealed.key_id))
