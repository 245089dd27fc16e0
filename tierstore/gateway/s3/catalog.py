"""What the S3 door asks of metadata, typed, with a small cache of buckets.

A bucket's view is believed for BUCKET_SECONDS, and dropped at once when this gateway changes it: a policy that another
gateway set takes effect here within that time. That a bucket exists is judged again by every commit.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tierstore.clock import Clock
from tierstore.errors import NotFound
from tierstore.gateway.s3.errors import S3Error
from tierstore.transport.metadata_client import MetadataClient
from tierstore.wire.names import BucketView, ObjectMeta
from tierstore.wire.s3 import (
    BucketAnswer,
    BucketCall,
    PartsAsk,
    PartsPage,
    PartView,
    UploadCall,
    UploadsAsk,
    UploadsPage,
    UploadView,
    VersionsAsk,
    VersionsPage,
    shown_etag,
)

BUCKET_SECONDS: Final = 1.0
BUCKETS_MAX: Final = 10_000


class S3Catalog:
    """One per gateway process."""

    def __init__(self, client: MetadataClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._buckets: dict[str, tuple[BucketView, float]] = {}

    @property
    def now_ms(self) -> int:
        return self._clock.now_ms()

    def known(self, name: str) -> BucketView | None:
        """The view that is still believed, None when metadata has to be asked."""
        held = self._buckets.get(name)
        return held[0] if held is not None and held[1] > self._clock.monotonic() else None

    def held(self, name: str) -> BucketView | None:
        """The view that was heard last, however old; None when there is none."""
        held = self._buckets.get(name)
        return held[0] if held is not None else None

    async def bucket(self, name: str, *, fresh: bool = False) -> BucketView:
        """Raises NotFound(no-such-bucket)."""
        held = self.known(name)
        if held is not None and not fresh:
            return held
        now = self._clock.monotonic()
        answer = await self._call(BucketCall("get", name))
        while len(self._buckets) >= BUCKETS_MAX:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[name] = (answer.buckets[0], now + BUCKET_SECONDS)
        return answer.buckets[0]

    async def buckets(self) -> list[BucketView]:
        return (await self._call(BucketCall("list"))).buckets

    async def create(self, name: str, owner: str) -> None:
        """Raises ConflictError(bucket-exists)."""
        await self._call(BucketCall("create", name, owner))

    async def delete(self, name: str, owner: str) -> None:
        self._buckets.pop(name, None)
        await self._call(BucketCall("delete", name, owner))
        self._buckets.pop(name, None)

    async def configure(
        self, name: str, owner: str, *, versioning: str = "", documents: dict[str, str | None] | None = None
    ) -> None:
        await self._call(BucketCall("configure", name, owner, versioning, documents or {}))
        self._buckets.pop(name, None)

    async def check_user(self, user: str) -> None:
        """Raises NotFound(no-such-user) for a name that no key has."""
        await self._call(BucketCall("user", owner=user))

    async def _call(self, call: BucketCall) -> BucketAnswer:
        return await self._client.ask(b"/v1/internal/s3/bucket", call, BucketAnswer)

    # -- uploads --------------------------------------------------------------------------------------------
    async def create_upload(self, bucket: str, key: str, upload: bytes, owner: str, meta: ObjectMeta) -> None:
        call = UploadCall("create", bucket, key, upload, owner, meta)
        await self._client.ask(b"/v1/internal/s3/upload", call, UploadView)

    async def upload(self, bucket: str, key: str, upload: bytes) -> UploadView:
        """Raises S3Error(NoSuchUpload)."""
        return await self._upload(UploadCall("get", bucket, key, upload))

    async def abort(self, bucket: str, key: str, upload: bytes) -> None:
        """Raises S3Error(NoSuchUpload)."""
        await self._upload(UploadCall("abort", bucket, key, upload))

    async def _upload(self, call: UploadCall) -> UploadView:
        try:
            return await self._client.ask(b"/v1/internal/s3/upload", call, UploadView)
        except NotFound as error:
            raise S3Error("NoSuchUpload") from error

    async def uploads(self, ask: UploadsAsk) -> UploadsPage:
        return await self._client.ask(b"/v1/internal/s3/uploads", ask, UploadsPage)

    async def parts(self, ask: PartsAsk) -> PartsPage:
        """Parts with ETag and size as their uploader knows them."""
        page = await self._client.ask(b"/v1/internal/s3/parts", ask, PartsPage)
        parts = []
        for part in page.parts:
            etag, size = shown_etag(part.etag, part.size)
            parts.append(msgspec.structs.replace(part, etag=etag, size=size))
        return PartsPage(parts, page.more)

    async def all_parts(self, upload: bytes) -> dict[int, PartView]:
        """Every part of an upload by its number; at most 10,000 there are."""
        found: dict[int, PartView] = {}
        after, more = 0, True
        while more:
            page = await self.parts(PartsAsk(upload, after, 5000))
            found.update((part.number, part) for part in page.parts)
            more = page.more and bool(page.parts)
            after = page.parts[-1].number if page.parts else 0
        return found

    async def versions(self, ask: VersionsAsk) -> VersionsPage:
        return await self._client.ask(b"/v1/internal/s3/versions", ask, VersionsPage)
