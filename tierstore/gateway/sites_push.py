"""POST /v1/sites/push: a name with bytes of its body, under another site's sync rule. A hot route: a writer waits."""

from __future__ import annotations

import asyncio
from typing import Final

from tierstore.auth.access import Principal
from tierstore.checksum import crc_of
from tierstore.errors import AccessDenied, NotAuthenticated, RequestError, TierstoreError
from tierstore.gateway.credentials import CredentialCache
from tierstore.gateway.objects import ObjectDoor
from tierstore.sdk.store import Store
from tierstore.serving.exchange import Exchange
from tierstore.serving.table import Route
from tierstore.wire import MEDIA_TYPE, decode, encode
from tierstore.wire.sites import SEGMENT_BYTES, SITE_USER, NameAnswer, NameBatch, Push, PushAnswer

PUSH_PATH: Final = "/v1/sites/push"
PUSH_SECONDS: Final = 10.0
#: A segment, and its name with metadata.
_PUSH_BODY_BYTES_MAX: Final = SEGMENT_BYTES + (1 << 20)
#: What a fill says when its bytes are here, or are of a version that a later one replaced.
_NEEDLESS: Final = frozenset({"already-here", "no-such-version", "no-such-key"})
_LINES: Final = b"content-type: " + MEDIA_TYPE.encode() + b"\r\n"


def check_site(principal: Principal) -> Principal:
    """Raises NotAuthenticated, AccessDenied for everybody but other sites."""
    if not principal.access:
        raise NotAuthenticated("send a site's token")
    if not principal.user.startswith(SITE_USER):
        raise AccessDenied("only other sites may call this")
    return principal


class PushDoor:
    """One per gateway."""

    def __init__(self, store: Store, credentials: CredentialCache, door: ObjectDoor) -> None:
        self._store = store
        self._credentials = credentials
        self._door = door

    def route(self) -> Route:
        return Route(b"POST", PUSH_PATH.encode(), self.post)

    def post(self, exchange: Exchange) -> None:
        header = exchange.header(b"authorization")

        def begin(body: bytes) -> None:
            self._door.begin(exchange, self._post(exchange, header, body))

        exchange.collect(_PUSH_BODY_BYTES_MAX, begin)

    async def _post(self, exchange: Exchange, header: bytes | None, body: bytes) -> None:
        principal = check_site(self._credentials.known(header) or await self._credentials.resolve(header))
        push = decode(body, Push)
        if push.first % SEGMENT_BYTES or not 0 < len(push.data) <= SEGMENT_BYTES:
            raise RequestError(f"a push begins at a multiple of {SEGMENT_BYTES}, no longer", code="bad-range")
        exchange.reply(200, encode(await self._take(push, principal.access)), _LINES)

    async def _take(self, push: Push, access: str) -> PushAnswer:
        """A name with bytes of its body: the bytes are stored while metadata takes the name; both are durable here
        when it returns. A version that a later one has replaced here meanwhile needs no bytes."""
        name = push.name
        if crc_of(push.data) != push.crc32c:
            return PushAnswer("checksum-mismatch", "the bytes do not have the CRC32C that was sent with them")
        batch = NameBatch(push.site, [name], {name.bucket: push.versioning})
        taken = asyncio.ensure_future(
            self._store.client.ask(b"/v1/sites/names", batch, NameAnswer, seconds=PUSH_SECONDS, access=access)
        )
        try:
            await self._store.fill(
                name.bucket, name.key, name.version, push.first, memoryview(push.data), access=access, named=taken
            )
            return PushAnswer(bytes=len(push.data))
        except TierstoreError as error:
            if taken.done() and not taken.cancelled() and taken.exception() is None:
                if taken.result().parked:
                    return PushAnswer("name-parked", "its version id lies a day ahead of this site's clock")
                if error.code in _NEEDLESS:
                    return PushAnswer()
            return PushAnswer(error.code, error.detail)
        finally:
            if not taken.done():
                taken.cancel()
            await asyncio.gather(taken, return_exceptions=True)
