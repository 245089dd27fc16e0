"""GET /v1/objects/{bucket}: one page of a listing, hot. JSON is built at C speed: 1,000 entries cost about 1 ms."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from typing import Final

import msgspec

from tierstore.errors import RequestError
from tierstore.gateway.credentials import CredentialCache
from tierstore.gateway.object_answer import site_line
from tierstore.gateway.object_request import percent_decoded
from tierstore.gateway.rights import NativeRights
from tierstore.names import KEY_BYTES_MAX, PATH_BYTES_MAX, check_bucket_name, version_text
from tierstore.sdk.store import Store
from tierstore.serving.exchange import Exchange
from tierstore.wire.names import ListResult

LIMIT_DEFAULT: Final = 1000
LIMIT_MAX: Final = 10_000
_JSON: Final = b"content-type: application/json\r\n"
_encoder = msgspec.json.Encoder()


class _Listed(msgspec.Struct, frozen=True, gc=False):
    key: str
    size: int
    etag: str
    version: str
    modified_at: str
    tier: str
    heat_per_hour: float


class _Page(msgspec.Struct, frozen=True):
    objects: list[_Listed]
    prefixes: list[str]
    next_start_after: str | None


class ListingDoor:
    """The handler."""

    def __init__(self, store: Store, credentials: CredentialCache, rights: NativeRights) -> None:
        self._store = store
        self._credentials = credentials
        self._rights = rights
        self._lines = _JSON

    def open(self, site: str) -> None:
        """The gateway has joined the cluster of this site."""
        self._lines = _JSON + site_line(site)

    async def list(self, exchange: Exchange) -> None:
        """Answer one page."""
        bucket = check_bucket_name(percent_decoded(exchange.route_arg, "bucket"))
        prefix, delimiter = (_text_of(exchange, name, KEY_BYTES_MAX) for name in (b"prefix", b"delimiter"))
        after = _text_of(exchange, b"start_after", PATH_BYTES_MAX)      # where a page ended, maybe at a mount's key
        limit = _limit_of(exchange.query(b"limit"))
        header = exchange.header(b"authorization")
        principal = self._credentials.known(header) or await self._credentials.resolve(header)
        asked = {"s3:max-keys": str(limit), **({"s3:delimiter": delimiter} if delimiter else {})}
        await self._rights.require(exchange, principal, "list", bucket, prefix, asked=asked)
        page = await self._store.list_page(
            bucket, prefix=prefix, delimiter=delimiter, start_after=after, limit=limit, access=principal.access
        )
        exchange.reply(200, page_json(page), self._lines)


def page_json(page: ListResult) -> bytes:
    """The page as the published JSON."""
    return _encoder.encode(_Page(
        [
            _Listed(e.key, e.size, e.etag, version_text(e.version), rfc3339(e.created_at_ms), e.tier, e.heat_per_hour)
            for e in page.objects
        ],
        page.prefixes, page.next_start_after,
    ))  # fmt: skip


def rfc3339(at_ms: int) -> str:
    """A time in ms since 1970, as RFC 3339 in UTC with milliseconds."""
    seconds, ms = divmod(at_ms, 1000)
    return f"{_rfc3339_second(seconds)}.{ms:03d}Z"


@functools.lru_cache(maxsize=4096)      # neighbours of a page were often written in the same seconds
def _rfc3339_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _text_of(exchange: Exchange, name: bytes, bytes_max: int) -> str:
    raw = exchange.query(name)
    if not raw:
        return ""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise RequestError(f"{name.decode()} is not percent-encoded UTF-8", code="bad-query") from None
    if len(raw) > bytes_max or "\x00" in text:
        raise RequestError(f"{name.decode()} has at most {bytes_max} bytes, without NUL", code="bad-query")
    return text


def _limit_of(raw: bytes | None) -> int:
    if raw is None:
        return LIMIT_DEFAULT
    if not raw.isdigit() or len(raw) > 6 or not 1 <= int(raw) <= LIMIT_MAX:
        raise RequestError(f"limit is a number from 1 to {LIMIT_MAX}", code="bad-query")
    return int(raw)
