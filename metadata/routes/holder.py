"""Questions that only the holder of the promoter's lease can answer. Where several processes share the catalog, the one
that is asked passes them on to it, under the caller's own credentials; when it does not answer, the one that is asked
says what it knows itself. What each process counts for itself the holder asks the others for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from fastapi import Request, Response

from tierstore.errors import UnavailableError
from tierstore.transport.peer import PeerReply, PeerTransport
from tierstore.wire.cluster import ACCESS_HEADER

#: Of a question that was passed on: it is answered where it arrives, whatever that process takes for the holder.
PASSED_ON: Final = "x-tierstore-passed-on"
_TO_HOLDER: Final = b"1"
#: Only what this process itself counts is wanted.
_OWN: Final = b"own"
SECONDS: Final = 5.0
#: A process that has just died is asked in vain until its row lapses.
OWN_SECONDS: Final = 2.0
_KEPT: Final = ("authorization", ACCESS_HEADER, "content-type", "accept")


class AskHolder:
    """One per process. url: where the holder is; "" when this process holds the lease, or nobody does. others: of the
    other processes that live."""

    def __init__(
        self, transport: PeerTransport, url: Callable[[], str], others: Callable[[], Sequence[str]] = tuple
    ) -> None:
        self._transport = transport
        self._url = url
        self._others = others

    async def answer(self, request: Request) -> Response | None:
        """What the holder says; None: answer here. To be called once the caller's rights were judged."""
        url = self._url()
        if not url or PASSED_ON in request.headers:
            return None
        reply = await self._ask(url, request, _TO_HOLDER, SECONDS)
        if reply is None:
            return None
        kind = reply.header(b"content-type") or b"application/json"
        return Response(reply.body, media_type=kind.decode("latin-1"))

    async def of_others(self, request: Request) -> list[bytes]:
        """What the other processes answer to the same question about themselves; those that do not are left out."""
        if request.headers.get(PASSED_ON, "").encode("latin-1") == _OWN:
            return []
        asked = (self._ask(url, request, _OWN, OWN_SECONDS) for url in self._others())
        return [reply.body for reply in await asyncio.gather(*asked) if reply is not None]

    async def _ask(self, url: str, request: Request, passed_on: bytes, seconds: float) -> PeerReply | None:
        headers = [
            (name.encode(), value.encode("latin-1"))
            for name in _KEPT if (value := request.headers.get(name)) is not None
        ]  # fmt: skip
        headers.append((PASSED_ON.encode(), passed_on))
        try:
            reply = await self._transport.call(
                url, request.method.encode(), request.url.path.encode(), headers=headers, body=await request.body(),
                seconds=seconds,
            )  # fmt: skip
        except UnavailableError:
            return None
        return reply if reply.status < 400 else None
