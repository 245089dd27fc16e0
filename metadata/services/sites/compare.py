"""A site whose catalog went back in time (restored from an old backup, or lost with its disks) hears from the others
what it has forgotten, before it takes writes again.

Each hello names the site's epoch and the sequence of its catalog, with a checksum of the change at that sequence; the
other side keeps the newest it heard, and answers with what it had heard before. A site that hears of a later state than
its own, or of another change than it has at that sequence (it went back and has written since), was restored: it takes
a new epoch, durably, and asks every other site to send all names of the buckets that they share, deletes too (their
tombstones are kept for at least `[duties] tombstone_keep`). Last writer wins then does the rest: what was deleted
meanwhile is deleted again, what was written and had arrived elsewhere comes back. Writes to shared buckets are refused
until every site that it knows has sent its names; reads go on. An operator may open it sooner (`accept`).

Until a site has sent its names, nothing is sent to it either: the queue and the backfills of an old catalog name
versions that were removed for good since, and no tombstone tells of those. What that site still knows of their end
comes with its names, and takes them out of the queue (a row whose version is gone says nothing). Only when it is being
compared, too, both send at once: else each would wait for the other.

A site that has just started may have been restored a moment ago. Until it is shown that it was not, it holds writes to
shared buckets for PROOF_SECONDS and then refuses them: another site that knows its epoch answers a hello, or all its
object servers that live have been heard, and none has seen a later state of the catalog (rule 1). So a site that is cut
off from all others starts too. Where several processes share the catalog, one that knows vouches for the others: only
one of them talks to other sites, and an operator's word reaches only one. A voucher answers a random token that the
asker made after it had started, so a backup that holds an old answer vouches for nobody (setting ASKED).

A backup older than tombstone_keep, or than the feed is kept, is not enough: deletes may have been forgotten. Such a
site stays closed; it is to be rebuilt (`tierstore admin sites rebuild`).
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from metadata.catalog import feed, leases, sites
from metadata.catalog.database import Database
from metadata.catalog.queries import Connection
from metadata.services.cluster.refreshing import Refreshing
from metadata.services.sites.courier import Courier
from tierstore.clock import Clock
from tierstore.wire.sites import Compare, CompareAnswer, HelloAnswer

log = logging.getLogger(__name__)

COMPARE_SECONDS: Final = 10.0
#: What a site says of itself is written down when it has changed and so much time has passed.
HEARD_MS: Final = 5_000
#: Writes wait so long for the proof that the catalog is not an old one; then they are refused until there is one.
PROOF_SECONDS: Final = 8.0
PROOF_LOOK_SECONDS: Final = 0.05
#: Setting: token -> whether a process that knows the catalog's age vouched for it; the last ASKERS_MAX that asked.
ASKED: Final = "catalog-age-asked"
ASKERS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Standing:
    """Of this site's catalog. comparing: sites whose names it waits for; newest_ms: when its newest change was made;
    mark: a checksum of that."""

    epoch: int
    sequence: int
    newest_ms: int
    comparing: list[str]
    mark: int = 0


class Comparison:
    """One per process. keep_ms: for how long all sites remember deletes. devices_agree: whether its object servers show
    that the catalog is not an older one; None: that is known. token: random, of this life of the process; "": no other
    shares the catalog."""

    def __init__(
        self, database: Database, clock: Clock, courier: Courier, *, keep_ms: int,
        devices_agree: Callable[[], bool] | None = None, token: str = "",
    ) -> None:  # fmt: skip
        self._token = token
        self._database = database
        self._clock = clock
        self._courier = courier
        self._keep_ms = keep_ms
        #: The sites that are waited for, as last read; not empty: writes to shared buckets are refused.
        self.waiting: list[str] = []
        self.is_too_old = False
        #: Of `waiting`, those that are being compared themselves and wait for this site's names.
        self._asking: frozenset[str] = frozenset()
        self._devices_agree = devices_agree
        self._is_proven = devices_agree is None
        #: Sites that have said what they know of this catalog since this process began.
        self._checked: set[str] = set()
        self._refreshing = Refreshing(self._refresh)

    async def refresh(self) -> None:
        """Follow what other processes on the same catalog found out; with them, ask for the catalog's age or tell it.
        Called every second or so by each of them. What it takes over is no older than the call."""
        await self._refreshing.now()

    async def _refresh(self) -> None:
        self.waiting, text = await self._database.read(lambda c: (sites.comparing(c), leases.setting(c, ASKED)))
        if not self._token:
            return
        asked = _asked(text)
        if not self.is_proven and asked.get(self._token):
            self._is_proven = True      # behind the `waiting` that was read with it
        elif (not all(asked.values())) if self.is_proven else (self._token not in asked):
            await self._database.write(lambda c: leases.change_setting(c, ASKED, self._ask_or_vouch))

    def _ask_or_vouch(self, text: str) -> str:
        asked = _asked(text)
        if self._is_proven:
            asked = dict.fromkeys(asked, True)
        else:
            asked.setdefault(self._token, False)
        return msgspec.json.encode(dict(list(asked.items())[-ASKERS_MAX:])).decode()

    async def standing(self) -> Standing:
        def work(c: Connection) -> Standing:
            sequence = feed.head(c)[0]
            newest = feed.read(c, sequence - 1, 1) if sequence else []
            at_ms = newest[0].at_ms if newest else 0
            return Standing(sites.epoch(c), sequence, at_ms, sites.comparing(c), _mark(newest))

        return await self._database.read(work)

    # -- of others ------------------------------------------------------------------------------------------
    async def hear(
        self, name: str, epoch: int, sequence: int, confirmed_ms_ago: int, *, mark: int = 0
    ) -> sites.Heard:
        """What a site says of itself; the newest that it had ever said before. confirmed_ms_ago: since when it has sent
        us everything, -1 when it has not."""
        now_ms = self._clock.now_ms()
        confirmed = now_ms - confirmed_ms_ago if confirmed_ms_ago >= 0 else 0
        known = await self._database.read(lambda c: sites.heard(c, name))
        new = known
        if (epoch, sequence) >= known[:2]:
            new = sites.Heard(epoch, sequence, max(confirmed, known.confirmed_at_ms), mark)
        is_due = new.confirmed_at_ms - known.confirmed_at_ms >= HEARD_MS or new[:2] != known[:2]
        if is_due:
            await self._database.write(lambda c: sites.set_heard(c, name, new))
        return known

    # -- of this site ---------------------------------------------------------------------------------------
    async def told(self, name: str) -> Standing:
        """What a site may hear: nothing before it has said what it knows, for it keeps the newest that it hears."""
        now = await self.standing()
        return now if name in self._checked else Standing(0, 0, now.newest_ms, now.comparing)

    async def judge(self, answer: HelloAnswer, others: list[str]) -> None:
        """After a hello: whether the other site knows a later state of this catalog than it has, or another past."""
        now = await self.standing()
        self.waiting = now.comparing
        self._checked.add(answer.site)
        is_later = (answer.seen_epoch, answer.seen_sequence) > (now.epoch, now.sequence)
        if not is_later and not await self._has_forked(answer, now):
            self._is_proven = self._is_proven or answer.seen_epoch > 0
            return
        log.error(
            "this catalog is not the one that site %s has seen (epoch %d, sequence %d; here %d, %d): it is compared "
            "with the other sites before it takes writes", answer.site, answer.seen_epoch,
            answer.seen_sequence, now.epoch, now.sequence,
        )  # fmt: skip
        await self.begin(others, epoch=answer.seen_epoch + 1)
        self._is_proven = True      # from here on it is the comparison that keeps it closed

    async def _has_forked(self, answer: HelloAnswer, now: Standing) -> bool:
        """Whether the change that the other site has heard of is another one here. False when it is too long ago."""
        if answer.seen_epoch != now.epoch or not answer.seen_mark or not answer.seen_sequence:
            return False
        found = await self._database.read(lambda c: feed.read(c, answer.seen_sequence - 1, 1))
        return bool(found) and found[0].sequence == answer.seen_sequence and _mark(found) != answer.seen_mark

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
        is_asking = await self._database.read(lambda c: sites.is_compared(c, row.name))
        self._asking = self._asking | {row.name} if is_asking else self._asking - {row.name}
        answer = await self._courier.send(
            row, "/v1/sites/compare", Compare(me, now.epoch), CompareAnswer, seconds=COMPARE_SECONDS
        )
        if not answer.left:
            left = [name for name in now.comparing if name != row.name and name in known]
            await self._database.write(lambda c: sites.set_comparing(c, left))
            await self.refresh()
            log.warning("site %s has sent all its names; waiting for: %s", row.name, ", ".join(left) or "none")
        return answer.left

    def holds_back(self, name: str) -> bool:
        """Whether nothing may be sent to a site, because this one has yet to hear from it what it forgot."""
        return name in self.waiting and name not in self._asking

    async def accept(self) -> list[str]:
        """An operator's word: take writes without having heard these sites."""
        left = await self._database.read(sites.comparing)
        await self._database.write(lambda c: sites.set_comparing(c, []))
        self._is_proven = True
        await self.refresh()
        return left

    @property
    def is_proven(self) -> bool:
        """Whether it is known of what age this catalog is."""
        if not self._is_proven and self._devices_agree is not None:
            self._is_proven = self._devices_agree()
        return self._is_proven

    async def settle(self) -> None:
        """Wait until that is known, for a while."""
        until = self._clock.monotonic() + PROOF_SECONDS
        while not self.is_proven and self._clock.monotonic() < until:
            await self._clock.sleep(PROOF_LOOK_SECONDS)

    def refusal(self) -> str:
        """Why a write is refused; "" when it is not."""
        if not self.is_proven:
            return (
                "this site has started, and neither another site nor all of its own object servers have shown yet that "
                "its catalog is not an old one"
            )
        if not self.waiting:
            return ""
        if self.is_too_old:
            return "this site's catalog is an old backup, older than deletes are kept: rebuild it from another site"
        return f"this site's catalog went back in time and is being compared with {', '.join(self.waiting)}"


def _asked(text: str) -> dict[str, bool]:
    return msgspec.json.decode(text, type=dict[str, bool]) if text else {}


def _mark(changes: Sequence[feed.Change]) -> int:
    """A checksum of one change, never 0; 0 without one."""
    if not changes:
        return 0
    change = changes[0]
    return zlib.crc32(f"{change.at_ms} {change.kind} {change.key} {change.version}".encode()) | 1
