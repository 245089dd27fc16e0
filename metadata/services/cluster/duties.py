"""What every background duty stands on: the promoter's lease and the switches by which operators pause duties.

The lease is one row of the catalog (name, holder, epoch, until). Its epoch rises with every change of holder, and the
writes of duties are conditional on it, so that two metadata processes never both act, even if one of them slept
through the end of its lease. In memory the holder gives up a margin earlier than the row says.

    one renewal: a read-modify-write of one row each `renew_seconds`; nothing else touches the catalog
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from metadata.catalog import leases
from metadata.catalog.database import Database
from tierstore.clock import Clock
from tierstore.errors import TierstoreError

log = logging.getLogger(__name__)

PROMOTER: Final = "promoter"
#: How long a holder that died keeps others waiting.
LEASE_SECONDS: Final = 10.0
#: The holder stops this long before the row's end: its clock may run slower than the database's.
MARGIN_SECONDS: Final = 2.0
#: A renewal that hangs must not be taken for one that succeeded late.
RENEW_DEADLINE_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease: name identifies the process (unique per start), url is where it can be reached."""

    name: str
    url: str


class LeaseKeeper:
    """Tries to hold one named lease for this process. `epoch` is 0 while it does not."""

    def __init__(self, database: Database, clock: Clock, me: Holder, *, name: str = PROMOTER) -> None:
        self._database = database
        self._clock = clock
        self._me = me
        self._name = name
        self._epoch = 0
        self._valid_until = 0.0       # monotonic seconds
        self.holder = Holder("", "")  # as last read; for heat_url in heartbeat answers
        #: Addresses of the metadata processes that live, this one first; for whoever asks for the map.
        self.urls = [me.url]

    @property
    def epoch(self) -> int:
        return self._epoch if self._clock.monotonic() < self._valid_until else 0

    @property
    def is_mine(self) -> bool:
        return self.epoch != 0

    @property
    def holder_elsewhere(self) -> str:
        """Where another process that holds the lease is, as last read; "" when this one does, or nobody."""
        return "" if self.is_mine or self.holder.name == self._me.name else self.holder.url

    async def run(self) -> None:
        """Renew, or try to take over, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(RENEW_DEADLINE_SECONDS):
                    await self.renew()
            except (TierstoreError, TimeoutError) as error:
                log.warning("lease %s was not renewed: %s", self._name, str(error) or type(error).__name__)
            await self._clock.sleep(LEASE_SECONDS / 4)

    async def renew(self) -> int:
        """Take the lease if it is free or mine; returns the epoch, 0 when another process holds it."""
        asked_at = self._clock.monotonic()
        now_ms = self._clock.now_ms()
        row, urls = await self._database.write(lambda connection: self._take(connection, now_ms))
        self.urls = [self._me.url, *(url for url in urls if url != self._me.url)]
        self.holder = Holder(row.holder, row.url)
        if row.holder != self._me.name:
            self._epoch = 0
            return 0
        if row.epoch != self._epoch:
            log.info("lease %s taken with epoch %d", self._name, row.epoch)
        self._epoch = row.epoch
        # Counted from before the question, so that a slow answer shortens it and never lengthens it.
        self._valid_until = asked_at + LEASE_SECONDS - MARGIN_SECONDS
        return row.epoch

    def _take(self, connection: leases.Connection, now_ms: int) -> tuple[leases.LeaseRow, list[str]]:
        row = leases.take(
            connection, self._name, holder=self._me.name, url=self._me.url, clock_ms=now_ms,
            lease_ms=int(LEASE_SECONDS * 1000),
        )  # fmt: skip
        if not self._has_others:
            return row, []
        return row, leases.note_process(
            connection, holder=self._me.name, url=self._me.url, clock_ms=now_ms, lease_ms=int(LEASE_SECONDS * 1000)
        )

    @property
    def _has_others(self) -> bool:
        """Whether several metadata processes may share this database."""
        return self._database.dialect == "postgresql"

    async def release(self) -> None:
        """Give the lease back at once (planned stop); best effort, it lapses by itself otherwise."""
        epoch, self._epoch = self._epoch, 0
        if not epoch and not self._has_others:
            return

        def work(connection: leases.Connection) -> None:
            if epoch:
                leases.release(connection, self._name, holder=self._me.name, epoch=epoch)
            if self._has_others:
                leases.forget_process(connection, holder=self._me.name, url=self._me.url)

        try:
            async with asyncio.timeout(RENEW_DEADLINE_SECONDS):
                await self._database.write(work)
        except (TierstoreError, TimeoutError) as error:
            log.warning("lease %s was not given back: %s", self._name, error)


class DutySwitches:
    """Which duties and job kinds operators have paused; one document in the catalog's settings, read now and then."""

    SETTING: Final = "paused"

    def __init__(self, database: Database) -> None:
        self._database = database
        self._paused: frozenset[str] = frozenset()

    def is_paused(self, name: str) -> bool:
        return name in self._paused

    @property
    def paused(self) -> frozenset[str]:
        return self._paused

    async def load(self) -> None:
        text = await self._database.read(lambda c: leases.setting(c, self.SETTING))
        self._paused = frozenset(name for name in text.split(",") if name)

    async def set(self, name: str, *, paused: bool) -> None:
        """Durable when it returns; other metadata processes follow within seconds (their flush reads it)."""

        def change(old: str) -> str:
            names = {n for n in old.split(",") if n}
            names = names | {name} if paused else names - {name}
            return ",".join(sorted(names))

        text = await self._database.write(lambda c: leases.change_setting(c, self.SETTING, change))
        self._paused = frozenset(n for n in text.split(",") if n)
