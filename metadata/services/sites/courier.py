"""The courier: messages to the gateways of another site, under the key that it gave us."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from metadata.catalog.sites import SiteRow
from tierstore.errors import TierstoreError, UnavailableError
from tierstore.transport.metadata_calls import error_of
from tierstore.transport.peer import PeerReply, PeerTransport
from tierstore.wire import MEDIA_TYPE, decode, encode

T = TypeVar("T")

SECONDS_PER_CALL: Final = 10.0
#: What a link takes of a message between two signs of life.
PIECE_BYTES: Final = 256 << 10


class Courier:
    """Messages to the gateways of a site, tried in turn."""

    def __init__(self, transport: PeerTransport) -> None:
        self._transport = transport

    async def send(
        self, row: SiteRow, path: str, message: object, kind: type[T], *, seconds: float,
        moved: Callable[[], None] | None = None,
    ) -> T:  # fmt: skip
        """Raises what the site answered, UnavailableError when none of its gateways does. moved: called whenever the
        link has taken a piece of a long message; then `seconds` bound each step."""
        headers = [
            (b"authorization", b"Bearer " + str(row.link.get("token", "")).encode("latin-1")),
            (b"content-type", MEDIA_TYPE.encode()),
        ]
        body = encode(message)
        reply = await self._first(row.gateways, b"POST", path.encode(), headers, body, seconds, moved)
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
        seconds: float, moved: Callable[[], None] | None = None,
    ) -> PeerReply:  # fmt: skip
        failure: TierstoreError = UnavailableError("no gateway of that site is known", code="unreachable")
        for url in urls:
            try:
                if moved is not None and len(body) > PIECE_BYTES:
                    reply = await self._in_pieces(url, method, target, headers, body, seconds, moved)
                else:
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

    async def _in_pieces(  # noqa: PLR0917 - the parts of one request
        self, url: str, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes, seconds: float,
        moved: Callable[[], None],
    ) -> PeerReply:  # fmt: skip
        upload = await self._transport.upload(
            url, method, target, headers=headers, length=len(body), seconds=seconds
        )
        whole = memoryview(body)
        try:
            for at in range(0, len(body), PIECE_BYTES):
                await upload.write(whole[at : at + PIECE_BYTES])
                moved()
        except UnavailableError as error:
            if error.code != "answered-early":
                upload.abort()
                raise
        except BaseException:       # cancelled, too: the connection must not stay with half a message on it
            upload.abort()
            raise
        return await upload.finish()


def _object(url: str, body: bytes) -> dict[str, Any]:
    """Raises UnavailableError for what a gateway of a site would not say: something else answers at that address."""
    with contextlib.suppress(ValueError):
        answer = json.loads(body)
        if isinstance(answer, dict):
            return answer
    raise UnavailableError(f"what answers at {url} is no gateway of a site", code="unreachable")
