"""Routes of the S3 door: buckets, uploads, parts, versions. HTTP only, no rules; daemons only (the service refuses)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from metadata.services.access.credentials import Credentials
from metadata.services.names.s3_names import S3Names
from tierstore.auth.access import Principal
from tierstore.serving.exchange import Exchange
from tierstore.serving.table import Route
from tierstore.wire import MEDIA_TYPE, decode, encode
from tierstore.wire.s3 import BucketAnswer, BucketCall, PartsAsk, UploadCall, UploadsAsk, VersionsAsk

BODY_BYTES_MAX: Final = 4 << 20
_LINES: Final = b"content-type: " + MEDIA_TYPE.encode() + b"\r\n"
SUMMARIES: Final = {
    "bucket": ("A bucket as the S3 door sees it", "BucketCall", "BucketAnswer"),
    "upload": ("Begin, find or give up a multipart upload", "UploadCall", "UploadView"),
    "uploads": ("List multipart uploads", "UploadsAsk", "UploadsPage"),
    "parts": ("List the parts of an upload", "PartsAsk", "PartsPage"),
    "versions": ("List versions", "VersionsAsk", "VersionsPage"),
}


class S3Routes:
    """Handlers on the Exchange seam. One per process."""

    def __init__(self, credentials: Credentials, names: S3Names) -> None:
        self._credentials = credentials
        self._names = names

    def routes(self) -> list[Route]:
        names = self._names

        async def bucket(call: BucketCall, who: Principal) -> BucketAnswer:
            return BucketAnswer(await names.bucket(call, who))

        return [
            Route(b"POST", b"/v1/internal/s3/bucket", self._handler(BucketCall, bucket)),
            Route(b"POST", b"/v1/internal/s3/upload", self._handler(UploadCall, names.upload)),
            Route(b"POST", b"/v1/internal/s3/uploads", self._handler(UploadsAsk, names.uploads)),
            Route(b"POST", b"/v1/internal/s3/parts", self._handler(PartsAsk, names.parts)),
            Route(b"POST", b"/v1/internal/s3/versions", self._handler(VersionsAsk, names.versions)),
        ]

    def _handler(
        self, kind: type[Any], act: Callable[[Any, Principal], Awaitable[object]]
    ) -> Callable[[Exchange], None]:
        def handle(exchange: Exchange) -> None:
            header = exchange.header(b"authorization")

            async def work(body: bytes) -> None:
                caller = await self._credentials.caller(header)
                exchange.reply(200, encode(await act(decode(body, kind), caller)), _LINES)

            exchange.collect(BODY_BYTES_MAX, lambda body: exchange.spawn(work(body)))

        return handle
