"""Tags and ACL of an object: what is read and replaced beside its bytes."""

from __future__ import annotations

import msgspec

from tierstore.gateway.s3 import documents, rights
from tierstore.gateway.s3.acl import Acls, acl_document
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.conditions import version_of
from tierstore.gateway.s3.errors import XML_LINE
from tierstore.gateway.s3.object_meta import ACL, OWNER, shown_version
from tierstore.gateway.s3.reads import Reads
from tierstore.gateway.s3.request import Call
from tierstore.gateway.s3.tagging import parse_tagging, tagging_document
from tierstore.gateway.s3.uploads import BodyReader
from tierstore.sdk.store import Store
from tierstore.wire.names import BucketView, LookupResult, ObjectMeta


class ObjectFacts:
    """Handlers of what stands beside the bytes."""

    def __init__(self, store: Store, catalog: S3Catalog, reader: BodyReader, reads: Reads, acls: Acls) -> None:
        self._store = store
        self._catalog = catalog
        self._reader = reader
        self._reads = reads
        self._acls = acls

    async def get_tags(self, call: Call) -> None:
        bucket, found = await self._for_tags(call, "Get")
        tags = found.meta.tags if found.meta is not None else {}
        call.reply(200, tagging_document(tags), XML_LINE + self._version(bucket, found))

    async def put_tags(self, call: Call) -> None:
        """A policy that looks at the new tags must know them before it judges."""
        bucket = await self._catalog.bucket(call.bucket)
        if rights.asks_request_tags(call, bucket):
            call.tags = await self._said_tags(call)
        bucket, found = await self._for_tags(call, "Put")
        tags = call.tags if call.tags is not None else await self._said_tags(call)
        await self._set_tags(call, found, tags)
        call.reply(200, b"", self._version(bucket, found))

    async def _said_tags(self, call: Call) -> dict[str, str]:
        return parse_tagging(await self._reader.small(call, documents.BODY_BYTES_MAX))

    async def delete_tags(self, call: Call) -> None:
        bucket, found = await self._for_tags(call, "Delete")
        await self._set_tags(call, found, {})
        call.reply(204, b"", self._version(bucket, found))

    async def _for_tags(self, call: Call, verb: str) -> tuple[BucketView, LookupResult]:
        bucket = await self._catalog.bucket(call.bucket)
        version = version_of(call.query.get("versionId"))
        action = f"s3:{verb}ObjectVersionTagging" if version else f"s3:{verb}ObjectTagging"
        return bucket, await self._reads.find(call, bucket, action, version=version)

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
        found = await self._reads.find(call, bucket, "s3:GetObjectAcl", version=version_of(call.query.get("versionId")))
        owner, text = _listed(bucket, found)
        call.reply(200, acl_document(owner, text, bucket), XML_LINE + self._version(bucket, found))

    async def put_acl(self, call: Call) -> None:
        bucket = await self._catalog.bucket(call.bucket)
        found = await self._reads.find(call, bucket, "s3:PutObjectAcl", version=version_of(call.query.get("versionId")))
        text = await self._acls.of_change(call, bucket, _listed(bucket, found)[0])
        meta = found.meta or ObjectMeta()
        extra = {**meta.extra, ACL: text.encode()}
        await self._store.set_meta(
            call.bucket, call.key, msgspec.structs.replace(meta, extra=extra), version=found.version
        )
        call.reply(200, b"", self._version(bucket, found))


def _listed(bucket: BucketView, found: LookupResult) -> tuple[str, str]:
    """(owner, list) of an object. Where lists do not count, it is the bucket's owner's and nobody else's."""
    if not rights.has_acls(bucket):
        return bucket.owner, ""
    extra = (found.meta or ObjectMeta()).extra
    return extra.get(OWNER, b"").decode() or bucket.owner, extra.get(ACL, b"").decode()
