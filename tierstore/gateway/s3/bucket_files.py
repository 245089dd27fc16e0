"""Documents of a bucket: judged, read, replaced and shown; the steps that all handlers of configurations share.

A document is kept as the text that was set, after it was checked, and given back as it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tierstore.gateway.s3 import documents, rights
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.documents import document
from tierstore.gateway.s3.errors import XML_LINE, S3Error
from tierstore.gateway.s3.request import Call
from tierstore.gateway.s3.uploads import BodyReader
from tierstore.wire.names import BucketView


class BucketFiles:
    """One per gateway process."""

    def __init__(self, catalog: S3Catalog, reader: BodyReader) -> None:
        self._catalog = catalog
        self._reader = reader

    async def bucket(self, call: Call, action: str) -> BucketView:
        bucket = await self._catalog.bucket(call.bucket, fresh=True)
        rights.require(call, action, bucket)
        return bucket

    async def body(self, call: Call) -> bytes:
        return await self._reader.small(call, documents.BODY_BYTES_MAX)

    async def set(self, call: Call, name: str, text: str | None) -> None:
        await self._catalog.configure(call.bucket, call.principal.user, documents={name: text})

    async def set_all(self, call: Call, texts: dict[str, str | None]) -> None:
        """Several at once: all or none of them."""
        await self._catalog.configure(call.bucket, call.principal.user, documents=texts)

    async def show(self, call: Call, action: str, name: str, code: str) -> None:
        bucket = await self.bucket(call, action)
        text = bucket.config.get(name)
        if text is None:
            raise S3Error(code)
        call.reply(200, text.encode(), XML_LINE)

    def unset(self, action: str, code: str, root: str = "", inner: str = "") -> Callable[[Call], Awaitable[None]]:
        """A handler that answers as AWS does for a configuration that was never set: a document, or an error."""

        async def handle(call: Call) -> None:
            await self.bucket(call, action)
            if code:
                raise S3Error(code)
            call.reply(200, document(root, inner), XML_LINE)

        return handle
