"""Who sends a FastAPI request: the caller, and for whom it acts (daemons only, by `x-tierstore-access`)."""

from __future__ import annotations

from typing import Final

from fastapi import Request

from metadata.services.access.credentials import Credentials
from tierstore.auth.access import Principal, authorize
from tierstore.errors import AccessDenied

ACCESS_HEADER: Final = "x-tierstore-access"


class Callers:
    """One per process, handed to the routers."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def caller(self, request: Request) -> Principal:
        """Whoever shows a valid credential. Raises NotAuthenticated."""
        header = request.headers.get("authorization")
        return await self._credentials.caller(None if header is None else header.encode("latin-1"))

    async def who(self, request: Request) -> Principal:
        """For whom the request is: the caller, or the user that a gateway names. Raises NotAuthenticated."""
        caller = await self.caller(request)
        return await self._credentials.behind(caller, request.headers.get(ACCESS_HEADER, ""))

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
