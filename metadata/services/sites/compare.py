"""A site whose catalog went back in time (restored from an old backup, or lost with its disks) hears from the others
what it has forgotten, before it takes writes again.

Each hello names the site's epoch and the sequence of its catalog; the other side keeps the newest it heard and says it
back. A site that hears of a later state than its own was restored: it takes a new epoch, durably, and asks every other
site to send all names of the buckets that they share, deletes too (their tombstones are kept for at least
`[duties] tombstone_keep`). Last writer wins then does the rest: what was deleted meanwhile is deleted again, what was
written and had arrived elsewhere comes back. Writes to shared buckets are refused until every site that it knows has
sent its names; reads go on. An operator may open it sooner (`accept`).

A backup older than tombstone_keep is not enough: tombstones may have gone. Such a site stays closed; it is to be
rebuilt (`tierstore admin sites rebuild`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from metadata.catalog import feed, sites
from metadata.catalog.database import Database
from metadata.catalog.queries import Connection
from metadata.services.sites.courier import Courier
from tierstore.clock import Clock
from tierstore.wire.sites import Compare, CompareAnswer, HelloAnswer

log = logging.getLogger(__name__)

COMPARE_SECONDS: Final = 10.0
#: What a site says of itself is written down when it has changed and so much time has passed.
HEARD_MS: Final = 5_000


@dataclass(frozen=True, slots=True)
class Standing:
    """Of this site's catalog. comparing: sites whose names it waits for; newest_ms: when its newest change was made."""

    epoch: int
    sequence: int
    newest_ms: int
    comparing: list[str]


class Comparison:
    """One per process."""

    def __init__(self, database: Database, clock: Clock, courier: Courier, *, keep_ms: int) -> None:
        self._database = database
        self._clock = clock
        self._courier = courier
        self._keep_ms = keep_ms
        #: The sites that are waited for, as last read; not empty: writes to shared buckets are refused.
        self.waiting: list[str] = []
        self.is_too_old = False

    async def refresh(self) -> None:
        self.waiting = await self._database.read(sites.comparing)

    async def standing(self) -> Standing:
        def work(c: Connection) -> Standing:
            sequence = feed.head(c)[0]
            newest = feed.read(c, sequence - 1, 1) if sequence else []
            return Standing(sites.epoch(c), sequence, newest[0].at_ms if newest else 0, sites.comparing(c))

        return await self._database.read(work)

    # -- of others ------------------------------------------------------------------------------------------
    async def hear(self, name: str, epoch: int, sequence: int, confirmed_ms_ago: int) -> sites.Heard:
        """What a site says of itself; the newest that it ever said. confirmed_ms_ago: since when it has sent us
        everything, -1 when it has not."""
        now_ms = self._clock.now_ms()
        confirmed = now_ms - confirmed_ms_ago if confirmed_ms_ago >= 0 else 0
        known = await self._database.read(lambda c: sites.heard(c, name))
        new = known
        if (epoch, sequence) >= known[:2]:
            new = sites.Heard(epoch, sequence, max(confirmed, known.confirmed_at_ms))
        is_due = new.confirmed_at_ms - known.confirmed_at_ms >= HEARD_MS or new[:2] != known[:2]
        if is_due:
            await self._database.write(lambda c: sites.set_heard(c, name, new))
        return new

    # -- of this site ---------------------------------------------------------------------------------------
    async def judge(self, answer: HelloAnswer, others: list[str]) -> None:
        """After a hello: whether the other site knows a later state of this catalog than it has now."""
        now = await self.standing()
        self.waiting = now.comparing
        if (answer.seen_epoch, answer.seen_sequence) <= (now.epoch, now.sequence):
            return
        log.error(
            "this catalog is older than what site %s has seen of it (epoch %d, sequence %d; here %d, %d): it is "
            "compared with the other sites before it takes writes", answer.site, answer.seen_epoch,
            answer.seen_sequence, now.epoch, now.sequence,
        )  # fmt: skip
        await self.begin(others, epoch=answer.seen_epoch + 1)

    async def begin(self, others: list[str], *, epoch: int = 0) -> None:
        """Take no writes to shared buckets until these sites have sent their names. epoch 0: the next one."""

        def work(c: Connection) -> None:
            sites.set_comparing(c, sorted(others), new_epoch=epoch or sites.epoch(c) + 1)

        await self._database.write(work)
        await self.refresh()

    async def go_on(self, row: sites.SiteRow, me: str, known: list[str]) -> int:
        """Ask one of the sites that are waited for; how much it has still to send."""
        now = await self.standing()
        self.waiting = now.comparing
        if row.name not in now.comparing:
            return 0
        self.is_too_old = 0 < now.newest_ms < self._clock.now_ms() - self._keep_ms
        if self.is_too_old:
            return 1
        answer = await self._courier.send(
            row, "/v1/sites/compare", Compare(me, now.epoch), CompareAnswer, seconds=COMPARE_SECONDS
        )
        if not answer.left:
            left = [name for name in now.comparing if name != row.name and name in known]
            await self._database.write(lambda c: sites.set_comparing(c, left))
            await self.refresh()
            log.warning("site %s has sent all its names; waiting for: %s", row.name, ", ".join(left) or "none")
        return answer.left

    async def accept(self) -> list[str]:
        """An operator's word: take writes without having heard these sites."""
        left = await self._database.read(sites.comparing)
        await self._database.write(lambda c: sites.set_comparing(c, []))
        await self.refresh()
        return left

    def refusal(self) -> str:
        """Why a write is refused; "" when it is not."""
        if not self.waiting:
            return ""
        if self.is_too_old:
            return "this site's catalog is an old backup, older than tombstones are kept: rebuild it from another site"
        return f"this site's catalog went back in time and is being compared with {', '.join(self.waiting)}"
