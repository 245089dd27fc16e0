"""ListObjects v1 and v2, ListObjectVersions: one index range per page, common prefixes by seeks (metadata's)."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Final

from tierstore.gateway.s3 import rights
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.conditions import version_of
from tierstore.gateway.s3.documents import document, element, moment, text, url_encoded
from tierstore.gateway.s3.errors import XML_LINE, S3Error
from tierstore.gateway.s3.object_meta import shown_version
from tierstore.gateway.s3.request import Call, number
from tierstore.sdk.store import Store
from tierstore.wire.names import BucketView, ListResult
from tierstore.wire.s3 import VersionsAsk, shown_etag
from tierstore.wire.storage_class import STANDARD

KEYS_MAX: Final = 1000


class Listings:
    """Handlers of lists of names."""

    def __init__(self, store: Store, catalog: S3Catalog) -> None:
        self._store = store
        self._catalog = catalog

    async def objects(self, call: Call) -> None:
        """ListObjects (v1)."""
        bucket, shown, most = await self._begin(call, "s3:ListBucket")
        marker = call.query.get("marker", "")
        page = await self._page(call, marker, most)
        inner = element("Name", call.bucket) + element("Prefix", shown(call.query.get("prefix", "")))
        inner += element("Marker", shown(marker)) + element("MaxKeys", most)
        inner += _delimiter(call, shown) + element("IsTruncated", page.next_start_after is not None and most > 0)
        if page.next_start_after is not None and call.query.get("delimiter") and most:
            inner += element("NextMarker", shown(page.next_start_after))
        inner += _encoding(call) + _contents(page, bucket, shown, with_owner=True)
        call.reply(200, document("ListBucketResult", inner), XML_LINE)

    async def objects_v2(self, call: Call) -> None:
        """ListObjectsV2."""
        bucket, shown, most = await self._begin(call, "s3:ListBucket")
        token = call.query.get("continuation-token")
        after = call.query.get("start-after", "")
        if token is not None:
            after = _opened(token)
        page = await self._page(call, after, most)
        is_truncated = page.next_start_after is not None and most > 0
        inner = element("Name", call.bucket) + element("Prefix", shown(call.query.get("prefix", "")))
        inner += element("MaxKeys", most) + element("KeyCount", len(page.objects) + len(page.prefixes))
        inner += _delimiter(call, shown) + element("IsTruncated", is_truncated)
        inner += element("ContinuationToken", token)
        if is_truncated:
            inner += element("NextContinuationToken", _token(page.next_start_after or ""))
        if token is None and "start-after" in call.query:      # of the two, the token counts
            inner += element("StartAfter", shown(call.query["start-after"]))
        with_owner = call.query.get("fetch-owner") == "true"
        inner += _encoding(call) + _contents(page, bucket, shown, with_owner=with_owner)
        call.reply(200, document("ListBucketResult", inner), XML_LINE)

    async def versions(self, call: Call) -> None:
        """ListObjectVersions."""
        bucket, shown, most = await self._begin(call, "s3:ListBucketVersions")
        query = call.query
        key_marker, version_marker = query.get("key-marker", ""), query.get("version-id-marker", "")
        if version_marker and not key_marker:
            raise S3Error("InvalidArgument", "A version-id marker cannot be specified without a key marker.")
        below = version_of(version_marker) if version_marker else 0
        if below < 0:
            below = await self._null_version(bucket.name, key_marker)
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        page = await self._catalog.versions(
            VersionsAsk(bucket.name, prefix, delimiter, key_marker, below, most or 1)
        )
        owner = _owner(bucket)
        listed = []
        for v in page.versions if most else ():
            etag, size = shown_etag(v.etag, v.size)
            name = "DeleteMarker" if v.is_marker else "Version"
            body = element("Key", shown(v.key)) + element("VersionId", shown_version(v.version, v.is_null))
            body += element("IsLatest", v.is_latest) + element("LastModified", moment(v.created_at_ms))
            if not v.is_marker:
                body += element("ETag", f'"{etag}"') + element("Size", size)
                body += element("StorageClass", v.storage_class or STANDARD)
            listed.append(f"<{name}>{body}{owner}</{name}>")
        inner = element("Name", call.bucket) + element("Prefix", shown(query.get("prefix", "")))
        inner += element("KeyMarker", shown(key_marker)) + element("VersionIdMarker", version_marker)
        inner += element("MaxKeys", most) + _delimiter(call, shown)
        is_truncated = page.next_key is not None and most > 0
        inner += element("IsTruncated", is_truncated)
        if is_truncated:
            inner += element("NextKeyMarker", shown(page.next_key or ""))
            if page.next_version:
                last = page.versions[-1]
                inner += element("NextVersionIdMarker", shown_version(last.version, last.is_null))
        prefixes = page.prefixes if most else []
        call.reply(
            200, document("ListVersionsResult", inner + _encoding(call) + "".join(listed) + _prefixes(prefixes, shown)),
            XML_LINE,
        )

    async def _null_version(self, bucket: str, key: str) -> int:
        page = await self._catalog.versions(VersionsAsk(bucket, key, limit=1000))
        return next((v.version for v in page.versions if v.key == key and v.is_null), 0)

    async def _begin(self, call: Call, action: str) -> tuple[BucketView, Callable[[str], str], int]:
        bucket = await self._catalog.bucket(call.bucket)
        rights.require(call, action, bucket)
        encoding = call.query.get("encoding-type")
        if encoding not in (None, "", "url"):
            raise S3Error("InvalidArgument", "Invalid Encoding Method specified in Request")
        most = number(call.query.get("max-keys"), "max-keys", default=KEYS_MAX, least=0, most=KEYS_MAX)
        return bucket, (url_encoded if encoding == "url" else str), most

    async def _page(self, call: Call, after: str, most: int) -> ListResult:
        query = call.query
        if not most:
            return ListResult()
        return await self._store.list_page(
            call.bucket, prefix=query.get("prefix", ""), delimiter=query.get("delimiter", ""), start_after=after,
            limit=most, want_placement=False, want_class=True,
        )  # fmt: skip


def _contents(page: ListResult, bucket: BucketView, shown: Callable[[str], str], *, with_owner: bool) -> str:
    owner = _owner(bucket) if with_owner else ""
    parts = [
        f"<Contents><Key>{text(shown(e.key))}</Key><LastModified>{moment(e.created_at_ms)}</LastModified>"
        f"<ETag>&quot;{text(etag)}&quot;</ETag><Size>{size}</Size>{owner}<StorageClass>"
        f"{e.storage_class or STANDARD}</StorageClass></Contents>"
        for e in page.objects
        for etag, size in (shown_etag(e.etag, e.size),)
    ]
    return "".join(parts) + _prefixes(page.prefixes, shown)


def _prefixes(prefixes: list[str], shown: Callable[[str], str]) -> str:
    return "".join(f"<CommonPrefixes>{element('Prefix', shown(prefix))}</CommonPrefixes>" for prefix in prefixes)


def _owner(bucket: BucketView) -> str:
    return f"<Owner>{element('ID', bucket.owner)}{element('DisplayName', bucket.owner)}</Owner>"


def _delimiter(call: Call, shown: Callable[[str], str]) -> str:
    delimiter = call.query.get("delimiter")
    return element("Delimiter", shown(delimiter)) if delimiter else ""


def _encoding(call: Call) -> str:
    return element("EncodingType", call.query.get("encoding-type") or None)


def _token(after: str) -> str:
    return base64.urlsafe_b64encode(after.encode()).decode("ascii")


def _opened(token: str) -> str:
    try:
        if not token:
            raise ValueError("empty")
        return base64.urlsafe_b64decode(token.encode("ascii")).decode()
    except (ValueError, UnicodeError):
        raise S3Error("InvalidArgument", "The continuation token provided is incorrect") from None
