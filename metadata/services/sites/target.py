"""One other site as its senders share it: what they work with, what operators see, and when something may be sent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from metadata.catalog import backlog, sites
from metadata.catalog.backlog import Backlog
from metadata.catalog.buckets import Bucket
from metadata.catalog.database import Database
from metadata.catalog.leases import require_epoch
from metadata.catalog.queries import Connection
from metadata.catalog.sites import SiteRow
from metadata.services.cluster.duties import PROMOTER
from metadata.services.sites.apply import rules_of
from metadata.services.sites.backlog import BacklogCount
from metadata.services.sites.compare import Comparison
from metadata.services.sites.courier import Courier
from metadata.services.sites.hot import HotParts
from metadata.services.sites.order import HeatsOf
from metadata.services.sites.registry import Known, Self
from tierstore.clock import Clock
from tierstore.errors import NotFound, TierstoreError

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 1.0
RATE_SECONDS: Final = 10.0


@dataclass(slots=True)
class TargetStatus:
    """What operators see of a target."""

    site: str
    is_paused: bool = False
    is_reachable: bool = False
    has_asked: bool = False         # a hello was answered, or was not
    reachable_since: float = math.inf       # monotonic; without a break, as far as hellos and bodies have shown
    error: str = ""
    latency_ms: float = 0.0
    backlog: Backlog = field(default_factory=lambda: Backlog(0, 0, 0, 0))
    is_filling: bool = False        # what exists is still being queued for it
    confirmed_at_ms: int = 0        # the target had everything then
    names_sent: int = 0
    bodies_sent: int = 0
    bytes_sent: int = 0
    parked: int = 0
    failures: int = 0
    bytes_per_second: float = 0.0
    compare_left: int = 0           # it is still sending this site what that has forgotten
    is_held: bool = False           # and gets nothing from this one until it has

    @property
    def lacks_nothing(self) -> bool:
        """Whether the target has everything, by the figures as last measured."""
        return not self.backlog.objects and not self.is_filling

    @property
    def drain_seconds(self) -> float:
        """Until it has the bytes that wait, at the rate of now; inf: nothing moves."""
        if not self.backlog.objects:
            return 0.0
        return self.backlog.bytes / self.bytes_per_second if self.bytes_per_second else math.inf


@dataclass(frozen=True, slots=True)
class Parts:
    """What a worker works with. epoch: of the promoter's lease, 0 without it. hot: what goes because of its heat,
    though its name went before. foreground: requests of clients that this process has had, counted up. lost_devices:
    those whose copies count no more. is_delivered, asked with (target, bucket, key, version): whether a push has
    brought that version there; is_under_way: whether one is bringing it."""

    database: Database
    clock: Clock
    courier: Courier
    known: Known
    me: Callable[[], Self]
    heats_of: HeatsOf
    epoch: Callable[[], int]
    comparison: Comparison
    hot: HotParts
    foreground: Callable[[], int] = lambda: 0
    is_delivered: Callable[[str, int, str, int], bool] = lambda target, bucket_id, key, version: False
    is_under_way: Callable[[str, int, str, int], bool] = lambda target, bucket_id, key, version: False
    lost_devices: Callable[[], Collection[int]] = tuple


class Target:
    """Shared by the senders of one worker."""

    def __init__(self, parts: Parts, name: str) -> None:
        self.parts = parts
        self.name = name
        self.status = TargetStatus(name)
        self.count = BacklogCount(parts.database, name, epoch=parts.epoch)
        self.has_bodies = asyncio.Event()
        #: Since when more names go than one message takes; inf: no more than that.
        self.names_since = math.inf
        self._moved: list[tuple[float, int]] = []

    @property
    def row(self) -> SiteRow:
        return self.parts.known.get(self.name)

    @property
    def is_paused(self) -> bool:
        """By an operator, as last read; also when the site was removed."""
        try:
            return bool(self.row.link.get("paused"))
        except NotFound:
            return True

    @property
    def may_send(self) -> bool:
        """It answers, an operator has not paused it, and this site has nothing to hear from it first."""
        is_held = self.parts.comparison.holds_back(self.name)
        return self.status.is_reachable and not self.is_paused and not is_held and self.parts.epoch() != 0

    def answered(self) -> bool:
        """The site has answered a hello; whether it did not before."""
        self.status.has_asked = True
        if self.status.is_reachable:
            return False
        self.status.is_reachable = True
        self.status.reachable_since = self.parts.clock.monotonic()
        self.status.error = ""
        return True

    def failed(self, error: TierstoreError) -> None:
        self.status.failures += 1
        self.status.error = str(error)
        log.warning("site %s: %s", self.name, error)

    async def finish(self, sequences: list[int]) -> None:
        """These rows of the queue need nothing more."""
        if not sequences:
            return

        def work(c: Connection) -> list[backlog.Gone]:
            require_epoch(c, PROMOTER, self.parts.epoch())
            return backlog.finish(c, self.name, sequences)

        await self.count.change(work)

    async def finish_as_judged(self, sequences: list[int], bucket: Bucket) -> bool:
        """The same for rows of which less than the whole body went, by the rules of their bucket as it is given; False:
        they are others by now, and the rows stay."""
        is_current = True

        def work(c: Connection) -> list[backlog.Gone]:
            nonlocal is_current
            require_epoch(c, PROMOTER, self.parts.epoch())
            is_current = not changed_rules(c, {bucket.id: bucket})
            return backlog.finish(c, self.name, sequences) if is_current else []

        await self.count.change(work)
        return is_current

    async def measure(self) -> None:
        """Bring the figures of the status up to now."""
        await self.count.measure()
        self.status.backlog, self.status.is_filling = self.count.now, self.count.is_filling
        self.status.bytes_per_second = self.rate()

    def moved(self, size: int) -> None:
        """Bytes of bodies that have travelled."""
        self.status.bytes_sent += size
        self._moved.append((self.parts.clock.monotonic(), size))

    def rate(self) -> float:
        now = self.parts.clock.monotonic()
        self._moved = [(at, size) for at, size in self._moved if now - at <= RATE_SECONDS]
        return sum(size for _, size in self._moved) / RATE_SECONDS


async def idle(event: asyncio.Event) -> None:
    """Until the event, or for a while."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(IDLE_SECONDS):
            await event.wait()


def changed_rules(c: Connection, judged: Mapping[int, Bucket]) -> set[int]:
    """Those of these buckets that have other replication rules by now. Their rules stay as they are to the end of the
    transaction."""
    now = sites.buckets_of(c, judged, hold=True)
    return {i for i, bucket in judged.items() if i in now and rules_of(now[i]) != rules_of(bucket)}
