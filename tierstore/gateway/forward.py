"""Passing name and admin requests on to metadata, for the user who asked.

The gateway shows its own secret and names the user in `x-tierstore-access`, and where he comes
from in `x-tierstore-from`; whatever the client sent under these names is not passed on. Requests are held while
metadata restarts: a connection that is refused is tried again for `hold_seconds`; one that broke after it was sent is
repeated only when the method may be (GET, HEAD, PUT, DELETE: RFC 9110, 9.2.2).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from fastapi import Request, Response

from tierstore.clock import Clock
from tierstore.errors import NotAuthenticated, TooLarge, UnavailableError
from tierstore.gateway.credentials import CredentialCache
from tierstore.transport.peer import Headers, NotSent, PeerReply, PeerTransport
from tierstore.wire.cluster import ACCESS_HEADER, FROM_HEADER

_REQUEST_HEADERS: Final = ("accept", "content-type", "if-match", "if-none-match")
_ANSWER_HEADERS: Final = ("content-type", "retry-after", "www-authenticate", "etag", "location", "content-disposition")
_REPEATABLE: Final = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_PAUSE_SECONDS: Final = 0.1
#: A change below these may take rights away: what this gateway remembers of keys goes at once.
_RIGHTS: Final = (b"/v1/admin/keys", b"/v1/admin/users")


class Forwarder:
    """One per gateway process."""

    def __init__(
        self, transport: PeerTransport, urls: Sequence[str], credentials: CredentialCache, clock: Clock, *,
        hold_seconds: float = 10.0, request_seconds: float = 30.0, body_bytes_max: int = 4 << 20,
        on_rights: Callable[[], None] = lambda: None, is_secure: bool = False,
    ) -> None:  # fmt: skip
        """request_seconds: of silence. is_secure: what it forwards came by TLS."""
        self._scheme = "https" if is_secure else "http"
        self._transport = transport
        self._urls = list(urls)
        self._at = 0
        self._credentials = credentials
        self._clock = clock
        self._hold_seconds = hold_seconds
        self._request_seconds = request_seconds
        self._body_bytes_max = body_bytes_max
        self._on_rights = on_rights
        self._secret = ""
        self._is_open = False

    def set_secret(self, secret: str) -> None:
        """The gateway's credential, from its registration."""
        self._secret = secret

    def open(self) -> None:
        """Take requests: the gateway has joined the cluster."""
        self._is_open = True

    async def forward(self, request: Request) -> Response:
        """Metadata's answer to this request, as it came. Raises NotAuthenticated, UnavailableError, TooLarge."""
        if not self._is_open:
            raise UnavailableError("this gateway has not joined the cluster yet", code="not-ready")
        principal = await self._credentials.resolve(_authorization(request))
        if not principal.access:
            raise NotAuthenticated("send a token: Authorization: Bearer tst.<access>.<secret>")
        shown = {name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers}
        shown["authorization"] = f"Bearer {self._secret}"
        shown[ACCESS_HEADER] = principal.access
        if request.client is not None and request.client.host:
            shown[FROM_HEADER] = f"{request.client.host} {self._scheme}"
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in shown.items()]
        # the raw path: a key in it must arrive with the escapes it came with
        target = bytes(request.scope.get("raw_path") or request.scope["path"].encode())
        if query := request.scope.get("query_string", b""):
            target += b"?" + query
        body = await read_body(request, self._body_bytes_max)
        answer = await self._held(request.method, target, headers, body)
        if request.method != "GET" and target.startswith(_RIGHTS):
            self._on_rights()
        kept = {name: value.decode("latin-1") for name in _ANSWER_HEADERS if (value := answer.header(name.encode()))}
        return Response(answer.body, status_code=answer.status, headers=kept)

    async def _held(self, method: str, target: bytes, headers: Headers, body: bytes) -> PeerReply:
        until = self._clock.monotonic() + self._hold_seconds
        while True:
            try:
                return await self._once(method.encode(), target, headers, body)
            except UnavailableError as error:
                may_repeat = isinstance(error, NotSent) or method in _REPEATABLE
                if not may_repeat or self._clock.monotonic() + _PAUSE_SECONDS >= until:
                    raise UnavailableError(
                        f"metadata did not answer ({error.code}); try again", code="metadata-unreachable"
                    ) from error
            self._at = (self._at + 1) % len(self._urls)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _once(self, method: bytes, target: bytes, headers: Headers, body: bytes) -> PeerReply:
        stream = await self._transport.open(
            self._urls[self._at], method, target, headers=headers, body=body, seconds=self._request_seconds
        )
        try:
            # however long: a history in CSV has more bytes than a message between processes may have
            return PeerReply(stream.status, stream.headers, await stream.read_all(stream.content_length))
        finally:
            stream.close()


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body of a small request. Raises TooLarge before more than the limit is held."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit_bytes:
            raise TooLarge(f"the body has more than {limit_bytes} bytes")
    return bytes(body)


def _authorization(request: Request) -> bytes | None:
    value = request.headers.get("authorization")
    return None if value is None else value.encode("latin-1")
