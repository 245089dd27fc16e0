"""Sending to one other site: names first, in order; then the bodies it is to have, the hottest first.

A worker per target and lease holder has three loops. hello: each HELLO_SECONDS, gives reachability, latency and a lag
that is true when nothing is written. names: the queue behind the mark `names_through`, in batches; the mark moves, in
one transaction with the rows that are finished, after the target has committed them. bodies: a window of rows in the
order of services/sites_order, STREAMS parcels at a time; the target's gateway fetches each from ours and answers when
it is durable there; then its row goes. A row is deleted only after such an answer, so nothing is dropped silently; all
messages may be repeated, so a kill at any point costs only repeated work.

Costs at the source: a name is one row read and a share of a request; a body of up to 8 MiB is a share of a request
beside its own read through the gateway.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from metadata.catalog import schema, sites
from metadata.catalog.buckets import Bucket
from metadata.catalog.database import Database
from metadata.catalog.leases import require_epoch
from metadata.catalog.objects import ObjectRow
from metadata.catalog.queries import Connection
from metadata.catalog.sites import Backlog, QueueRow, SiteRow
from metadata.services.duties import PROMOTER
from metadata.services.sites import Known, Self
from metadata.services.sites_apply import rules_of
from metadata.services.sites_compare import Comparison
from metadata.services.sites_courier import Courier
from metadata.services.sites_hot import HOT_PER_HOUR
from metadata.services.sites_link import SHARE, bandwidth
from metadata.services.sites_order import BodyOrder
from metadata.services.sites_queue import chunk_ids, load_bodies, load_names, name_batch, record_of
from tierstore.clock import Clock
from tierstore.errors import TierstoreError, UnavailableError
from tierstore.wire.sites import (
    SEGMENT_BYTES,
    FetchAnswer,
    FetchBatch,
    FetchItem,
    Hello,
    HelloAnswer,
    NameAnswer,
)

log = logging.getLogger(__name__)

HELLO_SECONDS: Final = 2.0
NAMES_PER_BATCH: Final = 256
NAMES_SECONDS: Final = 30.0
#: Bodies wait so long for names that keep coming.
NAMES_FIRST_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 1.0
#: Rows of bodies whose order is known; the queue behind it waits on disk.
WINDOW_ROWS: Final = 20_000
WINDOW_PAGE: Final = 512
RANK_SECONDS: Final = 2.0
#: Parcels on their way; together with the bandwidth the back-pressure on foreground requests.
STREAMS: Final = 6
PARCEL_ITEMS: Final = 24
PARCEL_BYTES: Final = SEGMENT_BYTES
SEGMENTS_AT_ONCE: Final = 4
#: For one parcel to be durable at the target.
PARCEL_SECONDS: Final = 60.0
RETRY_SECONDS_MIN: Final = 1.0
RETRY_SECONDS_MAX: Final = 30.0
RATE_SECONDS: Final = 10.0
#: More requests of clients than this: bodies leave them their share of the time (see sites_link.SHARE).
BUSY_PER_SECOND: Final = 10.0
BUSY_SECONDS: Final = 1.0
YIELD_SECONDS_MAX: Final = 5.0
#: Codes of a fetch that mean: the target does not have that version's name (any more).
_NO_NAME: Final = frozenset({"no-such-version", "no-such-key", "no-such-bucket"})


@dataclass(slots=True)
class TargetStatus:
    """What operators see of a target."""

    site: str
    is_paused: bool = False
    is_reachable: bool = False
    error: str = ""
    latency_ms: float = 0.0
    backlog: Backlog = field(default_factory=lambda: Backlog(0, 0, 0, 0))
    confirmed_at_ms: int = 0        # the target had everything then
    names_sent: int = 0
    bodies_sent: int = 0
    bytes_sent: int = 0
    parked: int = 0
    failures: int = 0
    bytes_per_second: float = 0.0
    compare_left: int = 0           # it is still sending this site what that has forgotten


@dataclass(frozen=True, slots=True)
class Parts:
    """What a worker works with. epoch: of the promoter's lease, 0 without it. is_hot: whether a body goes because of
    its heat, though its name went before: (target, bucket, key, version). foreground:
    requests of clients that this process has had, counted up."""

    database: Database
    clock: Clock
    courier: Courier
    known: Known
    me: Callable[[], Self]
    heat_of: Callable[[bytes], float]
    epoch: Callable[[], int]
    comparison: Comparison
    is_hot: Callable[[str, int, str, int], bool]
    foreground: Callable[[], int] = lambda: 0


class TargetWorker:
    """One target. `run` until cancelled; `kick` when something was queued."""

    def __init__(self, parts: Parts, name: str) -> None:
        self._parts = parts
        self.name = name
        self.status = TargetStatus(name)
        self._order = BodyOrder(parts.heat_of)
        self._loaded = 0                # rows up to here are, or were, in the window
        self._kicked = asyncio.Event()
        self._has_bodies = asyncio.Event()
        self._retries: dict[int, tuple[QueueRow, float, int]] = {}
        self._ready_at = 0.0            # of the bandwidth
        self._names_since = math.inf    # when the batches of names under way began
        self._moved: list[tuple[float, int]] = []
        self._asked = (parts.clock.monotonic(), parts.foreground())
        self._was_busy = False

    @property
    def row(self) -> SiteRow:
        return self._parts.known.get(self.name)

    @property
    def _may_send(self) -> bool:
        return self.status.is_reachable and not self.status.is_paused and self._parts.epoch() != 0

    def _may_send_bodies(self, now: float) -> bool:
        """Names go first, and the order of bodies wants to know them all; but not for ever."""
        return self._may_send and not 0 <= now - self._names_since < NAMES_FIRST_SECONDS

    def kick(self) -> None:
        self._kicked.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for name, loop in (("hello", self._hello), ("names", self._names), ("bodies", self._bodies)):
                group.create_task(self._for_ever(loop), name=f"site {self.name} {name}")

    async def _for_ever(self, turn: Callable[[], Any]) -> None:
        while True:
            try:
                await turn()
            except TierstoreError as error:
                self._failed(error)
                await self._parts.clock.sleep(RETRY_SECONDS_MIN)
            except Exception as error:  # a target's loop must outlive any bug of its own: logged, shown, tried again
                log.exception("replication to %s failed", self.name)
                self.status.error = f"{type(error).__name__}: {error}"
                await self._parts.clock.sleep(RETRY_SECONDS_MAX)

    def _failed(self, error: TierstoreError) -> None:
        self.status.failures += 1
        self.status.error = str(error)
        log.warning("site %s: %s", self.name, error)

    # -- hello ----------------------------------------------------------------------------------------------
    async def _hello(self) -> None:
        parts, status = self._parts, self.status
        row, me = self.row, parts.me()
        status.is_paused = bool(row.link.get("paused"))
        now_ms = parts.clock.now_ms()
        standing = await parts.comparison.standing()
        ago = now_ms - status.confirmed_at_ms if status.confirmed_at_ms else -1
        hello = Hello(me.name, now_ms, me.cluster_id, standing.epoch, standing.sequence, ago)
        began = parts.clock.monotonic()
        try:
            answer = await parts.courier.send(
                row, "/v1/sites/hello", hello, HelloAnswer, seconds=HELLO_SECONDS * 2
            )
        except TierstoreError as error:
            status.is_reachable = False
            status.error = str(error)
        else:
            if not status.is_reachable:
                status.is_reachable = True
                status.error = ""
                self.kick()
            took_ms = (parts.clock.monotonic() - began) * 1000
            known = parts.known.latency_ms.get(self.name, took_ms)
            status.latency_ms = parts.known.latency_ms[self.name] = min(took_ms, known * 0.75 + took_ms * 0.25)
            others = [other.name for other in parts.known.rows]
            await parts.comparison.judge(answer, others)
            status.compare_left = await parts.comparison.go_on(row, me.name, others)
        await self.measure()
        if status.is_reachable and not status.backlog.objects:
            status.confirmed_at_ms = now_ms
        await parts.clock.sleep(HELLO_SECONDS)

    async def measure(self) -> None:
        """Bring the figures of the status up to now."""
        self.status.backlog = await self._parts.database.scan(lambda c: sites.backlog(c, self.name))
        self.status.bytes_per_second = self._rate()

    # -- names ----------------------------------------------------------------------------------------------
    async def _names(self) -> None:
        self._kicked.clear()
        self._names_since = self._parts.clock.monotonic()
        try:
            while self._may_send and await self._names_batch():
                pass
        finally:
            self._names_since = math.inf
            self._has_bodies.set()
        waiting = asyncio.ensure_future(self._kicked.wait())
        try:
            await asyncio.wait({waiting}, timeout=IDLE_SECONDS)
        finally:
            waiting.cancel()

    async def _names_batch(self) -> bool:
        parts = self._parts
        rows, found, named = await parts.database.read(lambda c: load_names(c, self.name, NAMES_PER_BATCH))
        if not rows:
            return False
        records = []
        keep: dict[int, bool] = {}
        for row in rows:
            bucket = named.get(row.bucket_id)
            held = found.get((row.bucket_id, row.key, row.version))
            record = record_of(bucket, row, held) if bucket is not None else None
            if record is not None and bucket is not None:
                keep[row.sequence] = self._is_body_wanted(bucket, row, held)
                records.append((row, record))
        if records:
            batch = name_batch(parts.me().name, [record for _, record in records], named.values())
            answer = await parts.courier.send(
                self.row, "/v1/sites/names", batch, NameAnswer, seconds=NAMES_SECONDS
            )
            for place in answer.parked:
                keep[records[place][0].sequence] = True     # its body's fetch will say that the name is wanted again
            self.status.parked += len(answer.parked)
            self.status.names_sent += len(records)
        finished = [row.sequence for row in rows if not keep.get(row.sequence)]
        through = rows[-1].sequence

        def work(c: Connection) -> None:
            require_epoch(c, PROMOTER, parts.epoch())
            sites.names_sent(c, self.name, through=through, finished=finished)

        await parts.database.write(work)
        self._has_bodies.set()
        return len(rows) == NAMES_PER_BATCH

    def _is_body_wanted(self, bucket: Bucket, row: QueueRow, held: ObjectRow | None) -> bool:
        if held is None or row.kind != schema.CHANGE_PUT or not held.size or held.kind == schema.KIND_REMOTE:
            return False
        if self._parts.is_hot(self.name, row.bucket_id, row.key, row.version):
            return True
        for rule in rules_of(bucket):
            if rule["target"] == self.name and row.key.startswith(rule["prefix"]):
                if rule["bodies"] == "hot":
                    return held.body is not None and self._order.heat(chunk_ids(held)) >= HOT_PER_HOUR
                return rule["bodies"] == "all"
        return True     # a backfill by hand

    # -- bodies ---------------------------------------------------------------------------------------------
    async def _bodies(self) -> None:
        """Parcels until nothing is left, STREAMS at a time."""
        running: set[asyncio.Task[None]] = set()
        ranked_at = self._parts.clock.monotonic()
        try:
            while True:
                self._has_bodies.clear()
                if self._may_send and len(self._order) < WINDOW_ROWS // 2:
                    await self._load_window()
                self._take_back()
                now = self._parts.clock.monotonic()
                if now - ranked_at >= RANK_SECONDS:
                    self._order.rank()
                    ranked_at = now
                while self._may_send_bodies(now) and len(running) < STREAMS and (parcel := self._parcel()):
                    running.add(asyncio.ensure_future(self._deliver(parcel)))
                if running:
                    done, running = await asyncio.wait(
                        running, timeout=IDLE_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        task.result()
                else:
                    waiting = asyncio.ensure_future(self._has_bodies.wait())
                    await asyncio.wait({waiting}, timeout=IDLE_SECONDS)
                    waiting.cancel()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _load_window(self) -> None:
        while len(self._order) < WINDOW_ROWS:
            found = await self._parts.database.scan(
                lambda c, after=self._loaded: load_bodies(c, self.name, after, WINDOW_PAGE)  # type: ignore[misc]
            )
            finished = []
            for row, chunks in found:
                self._loaded = row.sequence
                if chunks is None:
                    finished.append(row.sequence)       # replaced or deleted since: the newer name says so
                else:
                    self._order.add(row, chunks)
            await self._finish(finished)
            if len(found) < WINDOW_PAGE:
                return

    def _take_back(self) -> None:
        """Rows whose time to be tried again has come."""
        now = self._parts.clock.monotonic()
        for sequence, (row, at, times) in list(self._retries.items()):
            if at <= now:
                self._retries[sequence] = (row, math.inf, times)
                self._order.add(row, [])

    def _parcel(self) -> list[QueueRow]:
        rows: list[QueueRow] = []
        size = 0
        while len(rows) < PARCEL_ITEMS and (not rows or size + self._order.peek_bytes() <= PARCEL_BYTES):
            row = self._order.take()
            if row is None:
                break
            rows.append(row)
            size += row.size
        return rows

    async def _deliver(self, rows: list[QueueRow]) -> None:
        """Bring a parcel there; then, while clients are busy here, leave this stream to them for their share."""
        began = self._parts.clock.monotonic()
        await self._bring(rows)
        share = float(self.row.link.get("share", SHARE))
        if share < 1 and self._is_busy():
            took = self._parts.clock.monotonic() - began
            await self._parts.clock.sleep(min(took * (1 - share) / share, YIELD_SECONDS_MAX))

    def _is_busy(self) -> bool:
        """Whether clients asked more than BUSY_PER_SECOND of this process lately."""
        now, count = self._parts.clock.monotonic(), self._parts.foreground()
        since, before = self._asked
        if now - since >= BUSY_SECONDS:
            self._was_busy = count - before > BUSY_PER_SECOND * (now - since)
            self._asked = (now, count)
        return self._was_busy

    async def _bring(self, rows: list[QueueRow]) -> None:
        """Bring the bodies of these rows to the target, then let go of the rows."""
        try:
            names = await self._parts.database.read(lambda c: sites.buckets_of(c, {row.bucket_id for row in rows}))
            small = [row for row in rows if row.size <= SEGMENT_BYTES and row.bucket_id in names]
            if small:
                items = [
                    FetchItem(names[row.bucket_id].name, row.key, row.version, 0, max(row.size, 1)) for row in small
                ]
                codes = await self._fetch(items, sum(row.size for row in small))
                await self._judge(small, codes, names)
            for row in rows:
                if row.bucket_id not in names:
                    await self._finish([row.sequence])
                elif row.size > SEGMENT_BYTES:
                    code = await self._deliver_large(names[row.bucket_id].name, row)
                    await self._judge([row], [code], names)
        except TierstoreError as error:
            self._failed(error)
            if isinstance(error, UnavailableError) and error.code in ("unreachable", "deadline"):
                self.status.is_reachable = False        # the next hello says when it is back
            for row in rows:
                self._retry(row)

    async def _deliver_large(self, bucket: str, row: QueueRow) -> str:
        """Segment by segment, SEGMENTS_AT_ONCE on their way; those that the target has do not travel. The first code
        that is not ""."""
        firsts = iter(range(0, row.size, SEGMENT_BYTES))
        codes: list[str] = []

        async def bring() -> None:
            for first in firsts:        # shared: each segment is taken once
                item = FetchItem(bucket, row.key, row.version, first, min(SEGMENT_BYTES, row.size - first))
                codes.extend(code for code in await self._fetch([item], item.length) if code)
                if codes:
                    return

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(SEGMENTS_AT_ONCE):
                    group.create_task(bring())
        except* TierstoreError as errors:
            raise next(error for error in errors.exceptions if isinstance(error, TierstoreError)) from None
        return codes[0] if codes else ""

    async def _fetch(self, items: Sequence[FetchItem], size: int) -> list[str]:
        await self._pace(size)
        answer = await self._parts.courier.send(
            self.row, "/v1/sites/fetch", FetchBatch(list(items)), FetchAnswer, seconds=PARCEL_SECONDS
        )
        moved = sum(result.bytes for result in answer.results)
        self.status.bytes_sent += moved
        self._moved.append((self._parts.clock.monotonic(), moved))
        for result in answer.results:
            if result.code and result.code not in _NO_NAME:
                self.status.error = f"{result.code}: {result.detail}"
        return [result.code for result in answer.results]

    async def _judge(self, rows: Sequence[QueueRow], codes: Sequence[str], names: dict[int, Bucket]) -> None:
        done = [row for row, code in zip(rows, codes, strict=True) if not code]
        self.status.bodies_sent += len(done)
        await self._finish([row.sequence for row in done])
        for row, code in zip(rows, codes, strict=True):
            if code in _NO_NAME:
                await self._name_again(row, names)
            elif code:
                self._retry(row)

    async def _name_again(self, row: QueueRow, names: dict[int, Bucket]) -> None:
        """The target does not know this version: it was replaced there (then the row is done), or its name was parked
        or lost with an older catalog (then it goes again)."""
        wanted = [(row.bucket_id, row.key, row.version)]
        held = (await self._parts.database.read(lambda c: sites.versions_of(c, wanted))).get(wanted[0])
        bucket = names[row.bucket_id]
        record = record_of(bucket, row, held)
        if record is None:
            await self._finish([row.sequence])
            return
        batch = name_batch(self._parts.me().name, [record], [bucket])
        answer = await self._parts.courier.send(self.row, "/v1/sites/names", batch, NameAnswer, seconds=NAMES_SECONDS)
        if answer.applied or answer.parked:
            self._retry(row)
        else:
            await self._finish([row.sequence])

    def _retry(self, row: QueueRow) -> None:
        _, _, times = self._retries.get(row.sequence, (row, 0.0, 0))
        wait = min(RETRY_SECONDS_MAX, RETRY_SECONDS_MIN * 2**times)
        self._retries[row.sequence] = (row, self._parts.clock.monotonic() + wait, min(times + 1, 10))

    async def _finish(self, sequences: list[int]) -> None:
        if not sequences:
            return

        def work(c: Connection) -> None:
            require_epoch(c, PROMOTER, self._parts.epoch())
            sites.finish(c, self.name, sequences)

        await self._parts.database.write(work)
        for sequence in sequences:
            self._retries.pop(sequence, None)

    async def _pace(self, size: int) -> None:
        """Wait for this many bytes' turn under the target's bandwidth."""
        clock = self._parts.clock
        rate = bandwidth(self.row.link, clock.now_ms())
        if not rate:
            return
        now = clock.monotonic()
        at = max(self._ready_at, now)
        self._ready_at = at + size / rate
        if at > now:
            await clock.sleep(at - now)

    def _rate(self) -> float:
        now = self._parts.clock.monotonic()
        self._moved = [(at, size) for at, size in self._moved if now - at <= RATE_SECONDS]
        return sum(size for _, size in self._moved) / RATE_SECONDS
