"""Questions that only the holder of the promoter's lease can answer. Where several processes share the catalog, the one
that is asked passes them on to it, under the caller's own credentials; when it does not answer, the one that is asked
says what it knows itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fastapi import Request, Response

from tierstore.errors import UnavailableError
from tierstore.transport.peer import PeerTransport
from tierstore.wire.cluster import ACCESS_HEADER

#: Of a question that was passed on: it is answered where it arrives, whatever that process takes for the holder.
PASSED_ON: Final = "x-tierstore-passed-on"
SECONDS: Final = 5.0
_KEPT: Final = ("authorization", ACCESS_HEADER, "content-type", "accept")


class AskHolder:
    """One per process. url: where the holder is; "" when this process holds the lease, or nobody does."""

    def __init__(self, transport: PeerTransport, url: Callable[[], str]) -> None:
        self._transport = transport
        self._url = url

    async def answer(self, request: Request) -> Response | None:
        """What the holder says; None: answer here. To be called once the caller's rights were judged."""
        url = self._url()
        if not url or PASSED_ON in request.headers:
            return None
        headers = [
            (name.encode(), value.encode("latin-1"))
            for name in _KEPT if (value := request.headers.get(name)) is not None
        ]  # fmt: skip
        headers.append((PASSED_ON.encode(), b"1"))
        try:
            reply = await self._transport.call(
                url, request.method.encode(), request.url.path.encode(), headers=headers, body=await request.body(),
                seconds=SECONDS,
            )  # fmt: skip
        except UnavailableError:
            return None
        if reply.status >= 400:
            return None
        kind = reply.header(b"content-type") or b"application/json"
        return Response(reply.body, media_type=kind.decode("latin-1"))
