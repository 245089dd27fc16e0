"""Leases of long uploads and pins of chunks under long reads (rules 3 and 14)."""

from __future__ import annotations

from typing import Final, cast

from metadata.catalog import operations
from metadata.catalog.database import Database
from tierstore.auth.access import Action, Principal, is_allowed_somewhere
from tierstore.clock import Clock
from tierstore.errors import AccessDenied, ConflictError, RequestError
from tierstore.names import CHUNK_ID_BYTES, UPLOAD_ID_BYTES
from tierstore.wire.names import Renew

IDS_MAX: Final = 10_000


class UploadService:
    """One per process."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def renew(self, message: Renew, who: Principal) -> None:
        """Prolong what can be; durable when it returns. Uploads need the right to write somewhere, pins to read
        somewhere: an id names no bucket yet, and a reader must not keep uploads from being collected.

        Raises AccessDenied, ConflictError(code="upload-lapsed") naming the uploads that are over (the others were
        renewed)."""
        uploads, pins = message.uploads, message.pins
        if len(uploads) + len(pins) > IDS_MAX:
            raise RequestError(f"at most {IDS_MAX} ids in one message", code="too-many-items")
        if any(len(u) != UPLOAD_ID_BYTES for u in uploads) or any(len(p) != CHUNK_ID_BYTES for p in pins):
            raise RequestError("uploads have 12 bytes, chunk ids 16", code="bad-message")
        for ids, action in ((uploads, "write"), (pins, "read")):
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
