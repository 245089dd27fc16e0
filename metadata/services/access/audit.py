"""What operators did, readable by administrators. Entries are written in the transaction of the act itself."""

from __future__ import annotations

from metadata.catalog import accounts
from metadata.catalog.accounts import AuditRow
from metadata.catalog.database import Database
from tierstore.clock import Clock

PAGE_MAX = 1000


class AuditService:
    """One per process."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def page(self, *, before: int = 0, limit: int = 100) -> list[AuditRow]:
        """The newest first; before: an id (0: from the newest)."""
        count = max(1, min(limit, PAGE_MAX))
        return await self._database.read(lambda connection: accounts.audit_page(connection, before=before, limit=count))

    async def note(self, *, who: str, action: str, target: str = "", detail: str = "") -> None:
        """Write down an act that has no catalog transaction of its own. Durable when it returns."""
        at_ms = self._clock.now_ms()
        await self._database.write(
            lambda connection: accounts.note(
                connection, at_ms=at_ms, who=who, action=action, target=target, detail=detail
            )
        )
