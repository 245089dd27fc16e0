"""The courier: messages to the gateways of another site, under the key that it gave us."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any, Final, TypeVar

from metadata.catalog.sites import SiteRow
from tierstore.errors import TierstoreError, UnavailableError
from tierstore.transport.metadata_calls import error_of
from tierstore.transport.peer import PeerReply, PeerTransport
from tierstore.wire import MEDIA_TYPE, decode, encode

T = TypeVar("T")

SECONDS_PER_CALL: Final = 10.0


class Courier:
    """Messages to the gateways of a site, tried in turn."""

    def __init__(self, transport: PeerTransport) -> None:
        self._transport = transport

    async def send(self, row: SiteRow, path: str, message: object, kind: type[T], *, seconds: float) -> T:
        """Raises what the site answered, UnavailableError when none of its gateways does."""
        headers = [
            (b"authorization", b"Bearer " + str(row.link.get("token", "")).encode("latin-1")),
            (b"content-type", MEDIA_TYPE.encode()),
        ]
        reply = await self._first(row.gateways, b"POST", path.encode(), headers, encode(message), seconds)
        return decode(reply.body, kind)

    async def send_json(
        self, url: str, path: str, token: str, message: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A call to an administration route, under an administrator's token. message None: it is only asked (GET)."""
        headers = [
            (b"authorization", b"Bearer " + token.encode("latin-1")), (b"content-type", b"application/json"),
        ]
        method, body = (b"GET", b"") if message is None else (b"POST", json.dumps(message).encode())
        reply = await self._first([url.rstrip("/")], method, path.encode(), headers, body, SECONDS_PER_CALL)
        return _object(url, reply.body)

    async def _first(  # noqa: PLR0917 - the parts of one request
        self, urls: Sequence[str], method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes,
        seconds: float,
    ) -> PeerReply:  # fmt: skip
        failure: TierstoreError = UnavailableError("no gateway of that site is known", code="unreachable")
        for url in urls:
            try:
                reply = await self._transport.call(
                    url, method, target, headers=headers, body=body, seconds=seconds
                )
            except UnavailableError as error:
                failure = error
                continue
            if reply.status < 400:
                return reply
            failure = error_of(reply)
            if reply.status < 500:
                break
        raise failure


def _object(url: str, body: bytes) -> dict[str, Any]:
    """Raises UnavailableError for what a gateway of a site would not say: something else answers at that address."""
    with contextlib.suppress(ValueError):
        answer = json.loads(body)
        if isinstance(answer, dict):
            return answer
    raise UnavailableError(f"what answers at {url} is no gateway of a site", code="unreachable")
