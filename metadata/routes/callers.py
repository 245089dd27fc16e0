"""Who sends a FastAPI request: the caller, and for whom it acts (daemons only, by `x-tierstore-access`)."""

from __future__ import annotations

from fastapi import Request

from metadata.services.access.credentials import Credentials
from tierstore.auth.access import NOTHING_SEEN, Principal, Seen, authorize
from tierstore.clock import Clock
from tierstore.errors import AccessDenied
from tierstore.wire.cluster import ACCESS_HEADER, FROM_HEADER


class Callers:
    """One per process, handed to the routers."""

    def __init__(self, credentials: Credentials, clock: Clock) -> None:
        self._credentials = credentials
        self._clock = clock

    async def caller(self, request: Request) -> Principal:
        """Whoever shows a valid credential. Raises NotAuthenticated."""
        header = request.headers.get("authorization")
        found = await self._credentials.caller(None if header is None else header.encode("latin-1"))
        return self._credentials.sending(found, request.client.host if request.client is not None else "")

    async def who(self, request: Request) -> Principal:
        """For whom the request is: the caller, or the user that a gateway names, who comes from where the gateway says.
        Raises NotAuthenticated."""
        caller = await self.caller(request)
        found = await self._credentials.behind(caller, request.headers.get(ACCESS_HEADER, ""))
        return found if found is caller else found.sending(self._forwarded(request.headers.get(FROM_HEADER, "")))

    def _forwarded(self, said: str) -> Seen:
        """What a gateway saw, and did not judge: address and scheme."""
        address, _, scheme = said.partition(" ")
        return Seen(address, scheme == "https", self._clock.now_ms()) if address else NOTHING_SEEN

    async def daemon(self, request: Request) -> Principal:
        """Raises AccessDenied for everybody but the cluster's own servers."""
        caller = await self.caller(request)
        if not caller.is_daemon:
            raise AccessDenied("only the cluster's own servers may call this")
        return caller

    async def admin(self, request: Request) -> Principal:
        """Raises AccessDenied for everybody but administrators of the cluster."""
        who = await self.who(request)
        authorize(who, "admin")
        return who
