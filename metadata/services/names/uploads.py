"""Leases of long uploads and pins of chunks under long reads (rules 3 and 14)."""

from __future__ import annotations

from typing import Final, cast

from metadata.catalog import operations
from metadata.catalog.database import Database
from metadata.services.cluster.view import ClusterView
from tierstore.auth.access import Action, Principal, is_allowed_somewhere
from tierstore.clock import Clock
from tierstore.errors import AccessDenied, ConflictError, RequestError, TicketRefused
from tierstore.names import CHUNK_ID_BYTES, UPLOAD_ID_BYTES
from tierstore.ticket import renew_read
from tierstore.wire.names import Renew

IDS_MAX: Final = 10_000


class UploadService:
    """One per process."""

    def __init__(self, database: Database, clock: Clock, view: ClusterView) -> None:
        self._database = database
        self._clock = clock
        self._view = view

    async def renew(self, message: Renew, who: Principal) -> list[bytes]:
        """Prolong what can be; durable when it returns. Uploads need the right to write somewhere, pins and tickets to
        read somewhere: an id names no bucket yet, and a reader must not keep uploads from being collected. Returns the
        renewed tickets, b"" for one that is refused: its read began too long ago (docs/adr/0111).

        Raises AccessDenied, ConflictError(code="upload-lapsed") naming the uploads that are over (the others were
        renewed)."""
        uploads, pins, tickets = message.uploads, message.pins, message.tickets
        if len(uploads) + len(pins) + len(tickets) > IDS_MAX:
            raise RequestError(f"at most {IDS_MAX} ids in one message", code="too-many-items")
        if any(len(u) != UPLOAD_ID_BYTES for u in uploads) or any(len(p) != CHUNK_ID_BYTES for p in pins):
            raise RequestError("uploads have 12 bytes, chunk ids 16", code="bad-message")
        for ids, action in ((uploads, "write"), ([*pins, *tickets], "read")):
            if ids and not is_allowed_somewhere(who, cast(Action, action)):
                raise AccessDenied(f"{who.access or 'nobody'} may not {action} in any bucket")
        now_ms = self._clock.now_ms()
        refused, _ = await self._database.write(
            lambda connection: operations.renew(connection, uploads, pins, now_ms=now_ms)
        )
        if refused:
            raise ConflictError(
                f"{len(refused)} uploads have lapsed or were given up for dead; upload again",
                code="upload-lapsed", uploads=[upload.hex() for upload in refused],
            )  # fmt: skip
        return [self._renewed(ticket, now_ms / 1000) for ticket in tickets]

    def _renewed(self, ticket: bytes, now_seconds: float) -> bytes:
        try:
            return renew_read(ticket, self._view.ticket_keys, now_seconds=now_seconds)
        except TicketRefused:
            return b""
