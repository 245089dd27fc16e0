"""PutObject, DeleteObject, DeleteObjects.

Owns the way of one write: rights, conditions, walk, answer. Invariants: rights are judged before a byte is read;
conditions are decided in the commit; a body is committed only after all its digests held.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from tierstore.errors import PreconditionFailed, TierstoreError
from tierstore.gateway.s3 import documents, rights
from tierstore.gateway.s3.acl import Acls
from tierstore.gateway.s3.answers import checksum_lines, version_line, with_checksum
from tierstore.gateway.s3.body import Collected
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.conditions import (
    ONLY_DIRECTORY_BUCKETS,
    delete_condition,
    named_etags,
    version_of,
    why_refused,
    write_condition,
)
from tierstore.gateway.s3.documents import element
from tierstore.gateway.s3.errors import XML_LINE, S3Error, s3_error
from tierstore.gateway.s3.lifecycle import expiration_line
from tierstore.gateway.s3.lock_forms import locked_meta, may_bypass
from tierstore.gateway.s3.log_rules import DOCUMENT as LOGGING
from tierstore.gateway.s3.object_meta import meta_of, shown_version
from tierstore.gateway.s3.request import Call, Deleted
from tierstore.gateway.s3.sse import Cover, cover_of
from tierstore.gateway.s3.sse_keys import Vault
from tierstore.gateway.s3.uploads import OBJECT_BYTES_MAX, BodyReader, Promise, Received, promise_of
from tierstore.gateway.upload import Pushed
from tierstore.names import check_key
from tierstore.sdk.objects import PutInfo
from tierstore.sdk.store import Store
from tierstore.wire.names import BucketView, CommitResult, Condition, ObjectMeta
from tierstore.wire.storage_class import class_of

DELETE_KEYS_MAX: Final = 1000
#: Objects of one DeleteObjects that are deleted at the same time.
DELETES_AT_ONCE: Final = 32


class Writes:
    """Handlers of writes."""

    def __init__(self, store: Store, catalog: S3Catalog, reader: BodyReader, vault: Vault, acls: Acls) -> None:
        self._store = store
        self._catalog = catalog
        self._reader = reader
        self._vault = vault
        self._acls = acls

    async def put(self, call: Call) -> None:
        bucket = await self._catalog.bucket(call.bucket)
        rights.require(call, "s3:PutObject", bucket, call.key)
        if "partNumber" in call.names:
            # a part whose upload is not named: kept as the object, it would replace all of it
            raise S3Error("InvalidArgument", "A part number goes with the uploadId of its upload.",
                          ArgumentName="uploadId")  # fmt: skip
        if "versionId" in call.names:
            raise S3Error("InvalidArgument", "This operation does not accept a version-id.",
                          ArgumentName="versionId", ArgumentValue=call.query.get("versionId", "")[:64])  # fmt: skip
        if call.header(b"x-amz-write-offset-bytes") is not None:
            # passed over, the end of an object would replace all of it
            raise S3Error("NotImplemented", "Only directory buckets append to objects.",
                          Header="x-amz-write-offset-bytes")  # fmt: skip
        meta = locked_meta(call, bucket, meta_of(call), self._catalog.now_ms)
        meta = await self._acls.of_write(call, bucket, meta)
        condition = write_condition(call)
        promise = promise_of(call)
        cover = cover_of(self._vault, self._vault.wish(call, bucket))
        stored_bytes = cover.stored_bytes(promise.size)
        is_small = stored_bytes <= self._store.small_bytes(call.bucket, call.key)
        # memory is short: the streaming way waits for its share
        is_small = is_small and self._store.budget.try_take(stored_bytes)
        try:
            put = self._put_small if is_small else self._put_stream
            made, received = await put(call, promise, cover, meta, condition)
        except PreconditionFailed as error:
            raise await why_refused(self._store, call, condition, error) from error
        finally:
            if is_small:
                self._store.budget.give_back(stored_bytes)
        call.answer.object_bytes = received.size
        lines = f'etag: "{cover.etag(received.md5)}"\r\n' + version_line(made.version, bucket)
        lines += checksum_lines(received) + cover.lines
        lines += expiration_line(bucket, call.key, received.size, meta.tags, made.created_at_ms)
        call.reply(200, b"", lines.encode())

    async def _put_small(
        self, call: Call, promise: Promise, cover: Cover, meta: ObjectMeta, condition: Condition | None
    ) -> tuple[PutInfo | CommitResult, Received]:
        """A body of one small chunk: received whole, then stored in as few steps as there are."""
        body: bytes | bytearray
        if cover.sealed is None and not promise.is_chunked:
            body, received = await self._reader.whole(call, promise, algorithm=_own_sum(promise))
        else:
            held = Collected(cover.stored_bytes(promise.size), code="IncompleteBody")
            received = await self._receive(call, promise, cover.target(held, promise.size))
            body = held.body
        made = await self._store.put_small(
            call.bucket, call.key, body, meta=cover.meta(with_checksum(meta, received)), condition=condition,
            etag=cover.stored_etag(cover.etag(received.md5), received.size),
        )  # fmt: skip
        return made, received

    async def _put_stream(
        self, call: Call, promise: Promise, cover: Cover, meta: ObjectMeta, condition: Condition | None
    ) -> tuple[PutInfo | CommitResult, Received]:
        # what a rebuild is told leaves before the digests are known: the client's own MD5, if it sent one. The ETag of
        # a sealed body says how long it is in clear: without it, no rebuild may make an object of the chunks
        known = promise.md5.hex() if promise.md5 is not None else ""
        write = None if cover.sealed else self._store.write_hint(meta=meta, condition=condition, etag=known)
        walk = self._store.put_walk(
            call.bucket, call.key, size=cover.stored_bytes(promise.size), size_max=OBJECT_BYTES_MAX, write=write,
            storage_class=class_of(meta),
        )  # fmt: skip
        try:
            received = await self._receive(call, promise, cover.target(walk, promise.size))
            made = await walk.finish(
                meta=cover.meta(with_checksum(meta, received)), condition=condition,
                etag=cover.stored_etag(cover.etag(received.md5), received.size),
            )  # fmt: skip
            return made, received
        finally:
            await walk.abort()

    async def _receive(self, call: Call, promise: Promise, target: Pushed) -> Received:
        return await self._reader.receive(call, promise, target, algorithm=_own_sum(promise))

    # -- delete ---------------------------------------------------------------------------------------------
    async def delete(self, call: Call) -> None:
        bucket = await self._catalog.bucket(call.bucket)
        version = version_of(call.query.get("versionId"))
        action = "s3:DeleteObjectVersion" if version else "s3:DeleteObject"
        rights.require(call, action, bucket, call.key)
        await self._acls.require_own(call, bucket, call.key, action, version=version)
        condition = delete_condition(call)
        bypass = may_bypass(call, bucket)
        try:
            done = await self._store.delete(
                call.bucket, call.key, version=version, condition=condition, bypass_governance=bypass
            )
        except PreconditionFailed as error:
            raise await why_refused(self._store, call, condition, error) from error
        lines = ""
        if bucket.versioning and done.version:
            if version:
                lines = f"x-amz-version-id: {call.query['versionId']}\r\n"
            else:
                # of a delete marker the null version is named too
                lines = version_line(done.version, bucket) or "x-amz-version-id: null\r\n"
            if done.is_delete_marker:
                lines += "x-amz-delete-marker: true\r\n"
        call.reply(204, b"", lines.encode())

    async def delete_many(self, call: Call) -> None:
        """DeleteObjects: each key has its own result."""
        bucket = await self._catalog.bucket(call.bucket)
        root = documents.parse(await self._reader.small(call, documents.BODY_BYTES_MAX), "Delete")
        is_quiet = root.text("Quiet") == "true"
        wanted = [_Doomed.of(node) for node in root.all("Object")]
        if not 1 <= len(wanted) <= DELETE_KEYS_MAX:
            raise S3Error("MalformedXML")
        results: list[str] = []
        for at in range(0, len(wanted), DELETES_AT_ONCE):
            some = wanted[at : at + DELETES_AT_ONCE]
            results += await asyncio.gather(
                *(self._delete_one(call, bucket, one, is_quiet=is_quiet) for one in some)
            )
        call.reply(200, documents.document("DeleteResult", "".join(results)), XML_LINE)

    async def _delete_one(self, call: Call, bucket: BucketView, what: _Doomed, *, is_quiet: bool) -> str:
        key, version_text = what.key, what.version
        try:
            if what.has_other_conditions:
                raise S3Error("NotImplemented", ONLY_DIRECTORY_BUCKETS)
            if not key:
                raise S3Error("UserKeyMustBeSpecified", "The key of an object to delete is missing.")
            version = _version_among_many(version_text)
            action = "s3:DeleteObjectVersion" if version else "s3:DeleteObject"
            rights.require(call, action, bucket, key)
            await self._acls.require_own(call, bucket, check_key(key), action, version=version)
            condition = Condition(if_match=named_etags(what.etag)) if what.etag is not None else None
            done = await self._store.delete(
                bucket.name, check_key(key), version=version, condition=condition,
                bypass_governance=may_bypass(call, bucket),
            )  # fmt: skip
        except (S3Error, TierstoreError) as error:
            shown = s3_error(error, call.exchange.request_id)
            _note(call, bucket, what, shown.status, shown.code)
            inner = element("Key", key) + element("VersionId", version_text) + element("Code", shown.code)
            return f"<Error>{inner}{element('Message', shown.message)}</Error>"
        _note(call, bucket, what, 204, "")
        if is_quiet:
            return ""
        inner = element("Key", key) + element("VersionId", version_text)
        if bucket.versioning and done.is_delete_marker and done.version:
            marker = version_text or shown_version(done.version, bucket.versioning != "enabled")
            inner += element("DeleteMarker", True) + element("DeleteMarkerVersionId", marker)
        return f"<Deleted>{inner}</Deleted>"


class _Doomed(NamedTuple):
    """One object of a DeleteObjects. has_other_conditions: than its ETag."""

    key: str
    version: str | None
    etag: str | None
    has_other_conditions: bool

    @classmethod
    def of(cls, node: documents.Node) -> _Doomed:
        others = node.text("Size") is not None or node.text("LastModifiedTime") is not None
        return cls(node.text("Key") or "", node.text("VersionId"), node.text("ETag"), others)


def _note(call: Call, bucket: BucketView, what: _Doomed, status: int, code: str) -> None:
    """For the bucket's access log, which has a line of each key."""
    if LOGGING in bucket.config:
        call.answer.deleted.append(Deleted(what.key, what.version or "", status, code))


def _own_sum(promise: Promise) -> str:
    """The checksum that is kept when the client sent none, as AWS does."""
    return "" if promise.algorithm else "crc64nvme"


def _version_among_many(text: str | None) -> int:
    """Raises S3Error(NoSuchVersion): in DeleteObjects, what cannot be a version's id is none that is there."""
    try:
        return version_of(text or None)
    except S3Error:
        raise S3Error("NoSuchVersion") from None
