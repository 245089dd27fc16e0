"""What a target still has to get, in objects, bytes and seconds, kept as its rows come and go.

A row comes with a larger sequence than all before it (the feed's order is that of the commits), so what was counted
once is never looked at again: a measure reads the rows that came since, a page at a time, and the oldest. A row goes by
this worker alone, which says so here. The sums are taken anew when an answer of the catalog was lost, and when what
was sent to the target is forgotten (it is rebuilt). An empty queue is zero whatever was counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from metadata.catalog import backlog, sites
from metadata.catalog.backlog import Backlog, Gone, Span
from metadata.catalog.database import Database
from metadata.catalog.queries import Connection

#: Rows that one read counts: about 10 ms of SQLite's.
PAGE_ROWS: Final = 20_000


class _Look(NamedTuple):
    span: Span
    names_through: int
    oldest_ms: int | None
    is_filling: bool


class BacklogCount:
    """One per worker. Event loop only. epoch: of the promoter's lease; while another process holds it, rows go unseen
    here."""

    def __init__(self, database: Database, target: str, *, epoch: Callable[[], int]) -> None:
        self._database = database
        self._target = target
        self._epoch = epoch
        self._counted_under = 0
        self._through = self._objects = self._bytes = self._unsent = 0
        self._names_through = 0
        self._is_doubtful = False
        #: Counting and changing the queue are kept apart: else a row that goes meanwhile is in neither or both.
        self._turn = asyncio.Lock()
        self.now = Backlog(0, 0, 0, 0)
        self.is_filling = False         # what exists is still being queued

    async def measure(self) -> None:
        """Bring `now` up to now."""
        while True:
            async with self._turn:
                if self._is_doubtful or self._counted_under != self._epoch():
                    self._forget()
                look = await self._database.scan(self._look)
                if look.names_through < self._names_through:
                    self._is_doubtful = True
                    continue
                self._add(look)
            if look.span.is_all:
                return

    async def change(self, work: Callable[[Connection], list[Gone]], *, named: Sequence[int] = ()) -> None:
        """A transaction on the queue that returns the rows it finished. named: rows whose names were sent with it."""
        async with self._turn:
            try:
                gone = await self._database.write(work)
            except BaseException:       # cancelled, too: the rows may be gone all the same; raised again
                self._is_doubtful = True
                raise
            counted = [row for row in gone if row.sequence <= self._through]
            self._objects -= len(counted)
            self._bytes -= sum(row.bytes for row in counted)
            self._unsent -= sum(sequence <= self._through for sequence in named)

    def _look(self, c: Connection) -> _Look:
        mark = sites.names_through(c, self._target)
        return _Look(
            backlog.count(c, self._target, after=self._through, names_through=mark, limit=PAGE_ROWS), mark,
            backlog.oldest_ms(c, self._target), bool(sites.backfill_state(c, self._target).get("parts")),
        )  # fmt: skip

    def _add(self, look: _Look) -> None:
        self._through = look.span.through
        self._names_through = look.names_through
        self._objects += look.span.objects
        self._bytes += look.span.bytes
        self._unsent += look.span.unsent
        if look.oldest_ms is None:
            self._objects = self._bytes = self._unsent = 0
        self.is_filling = look.is_filling
        at_least = int(look.oldest_ms is not None)
        self.now = Backlog(
            max(at_least, self._objects), max(0, self._bytes), look.oldest_ms or 0, max(0, self._unsent)
        )

    def _forget(self) -> None:
        self._through = self._objects = self._bytes = self._unsent = self._names_through = 0
        self._is_doubtful = False
        self._counted_under = self._epoch()
