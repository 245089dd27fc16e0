"""Replication of this process: a worker per target while it holds the promoter's lease, and the waits of sync rules.

Sync (rule 17): the local commit, with its queue row, is durable first; then name and bytes go to each site whose rule
is sync, past the queue and in one message (one round trip); then the writer hears of success. When that does not end
in SYNC_SECONDS the rule decides: `fail` answers outcome-unknown (the version stays, and is delivered later by the
queue), `degrade` answers success at once and is counted; while a target is known to be away, degrading costs no wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from metadata.catalog import buckets, sites
from metadata.catalog.queries import Connection
from metadata.catalog.sites import QueueRow, SiteRow
from metadata.services.sites.apply import rules_of
from metadata.services.sites.backfill import Backfills
from metadata.services.sites.hot import HotBodies
from metadata.services.sites.queue import name_batch, record_of
from metadata.services.sites.read import BodyReader
from metadata.services.sites.registry import Sites
from metadata.services.sites.send import TargetWorker
from metadata.services.sites.target import Parts, TargetStatus
from tierstore.checksum import crc_of
from tierstore.errors import TierstoreError, UnavailableError
from tierstore.wire.names import CommitItem, CommitResult, Fill
from tierstore.wire.sites import (
    NAME_GONE,
    NAME_PUT,
    SEGMENT_BYTES,
    FetchAnswer,
    FetchBatch,
    FetchItem,
    NameAnswer,
    NameRecord,
    Push,
    PushAnswer,
)

log = logging.getLogger(__name__)

SYNC_SECONDS: Final = 10.0
#: Bodies up to this travel with their name; larger ones are fetched, two round trips later, past metadata.
PUSH_BYTES_MAX: Final = 8 * SEGMENT_BYTES
#: Pages of a backfill per step.
BACKFILL_PAGES: Final = 8


class Replication:
    """One per process."""

    def __init__(
        self, parts: Parts, members: Sites, body: BodyReader, *, backfills: Backfills, hot: HotBodies
    ) -> None:
        self._parts = parts
        self._members = members
        self._body = body
        self._backfills = backfills
        self._hot = hot
        self._workers: dict[str, tuple[TargetWorker, asyncio.Task[None]]] = {}
        self.sync_waits = 0
        self.sync_degraded = 0
        self.sync_failed = 0

    # -- workers --------------------------------------------------------------------------------------------
    async def step(self) -> int:
        """Follow membership, go on with backfills; how many targets there are."""
        await self._members.refresh()
        wanted = set(self._members.names())
        for name in sorted(wanted - self._workers.keys()):
            worker = TargetWorker(self._parts, name)
            task = asyncio.get_running_loop().create_task(worker.run(), name=f"site {name}")
            self._workers[name] = (worker, task)
        for name in sorted(self._workers.keys() - wanted):
            await self._end(name)
        for name, (worker, task) in list(self._workers.items()):
            if task.done():
                log.error("the worker of site %s ended: %s", name, task.exception() if not task.cancelled() else "")
                await self._end(name)       # begun again by the next step
            elif not worker.status.is_paused:
                for _ in range(BACKFILL_PAGES):
                    if not await self._backfills.step(name):
                        break
                    worker.kick()
        if await self._hot.step(self._members.hot_rules):
            self.kick()
        return len(self._workers)

    async def _end(self, name: str) -> None:
        _, task = self._workers.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def kick(self) -> None:
        """Something was queued."""
        for worker, _ in self._workers.values():
            worker.kick()

    def statuses(self) -> list[TargetStatus]:
        return [worker.status for _, (worker, _) in sorted(self._workers.items())]

    async def measured(self) -> list[TargetStatus]:
        """The same with the backlogs of this moment."""
        for worker, _ in list(self._workers.values()):
            await worker.measure()
        return self.statuses()

    def is_away(self, name: str) -> bool:
        """Whether a target is known not to answer."""
        entry = self._workers.get(name)
        return entry is not None and not entry[0].status.is_reachable

    async def close(self) -> None:
        for name in list(self._workers):
            await self._end(name)

    @property
    def comparing(self) -> int:
        """Sites whose names this one, which was restored, waits for."""
        return len(self._parts.comparison.waiting)

    @property
    def hot_queued(self) -> int:
        """Bodies that were queued because they became hot."""
        return self._hot.queued

    def confirmed(self) -> dict[str, int]:
        """Site -> when it was last known to have everything, ms; 0: not yet."""
        workers = self._workers
        return {
            name: workers[name][0].status.confirmed_at_ms if name in workers else 0 for name in self._members.names()
        }

    # -- what a commit meets --------------------------------------------------------------------------------
    def refusal(self, item: CommitItem) -> CommitResult | None:
        """Why this site does not take a mutation, None when it does."""
        m = item.mutation
        if isinstance(m, Fill):
            return None
        reason = self._parts.comparison.refusal() if self._parts.comparison.waiting else ""
        if reason and m.bucket in self._members.shared_buckets:
            return CommitResult(code="site-comparing", detail=reason)
        home = self._members.homes.get(m.bucket)
        if home is not None and m.condition is not None:
            return CommitResult(
                code="not-home-site",
                detail=f"conditional writes to {m.bucket!r} are judged at its home site {home!r}: send it there",
            )
        return None

    @property
    def may_refuse(self) -> bool:
        """Whether any mutation may be refused by refusal()."""
        return bool(self._parts.comparison.waiting or self._members.homes)

    @property
    def is_wanted(self) -> bool:
        """Whether any bucket has a sync rule."""
        return bool(self._members.sync_buckets)

    # -- sync -----------------------------------------------------------------------------------------------
    async def confirm(
        self, items: Sequence[CommitItem], results: Sequence[CommitResult]
    ) -> list[CommitResult]:
        """The results as their writers may hear them, after the sites of sync rules have what they must."""
        return list(await asyncio.gather(*(self._one(i, r) for i, r in zip(items, results, strict=True))))

    async def _one(self, item: CommitItem, result: CommitResult) -> CommitResult:
        m = item.mutation
        if result.code or not result.version or m.bucket not in self._members.sync_buckets:
            return result
        bucket = await self._parts.database.read(lambda c: buckets.get(c, m.bucket))
        seen: set[str] = set()
        for rule in rules_of(bucket):
            target = rule["target"]
            if not m.key.startswith(rule["prefix"]) or target in seen:
                continue
            seen.add(target)
            if rule["mode"] != "sync":
                continue
            problem = await self._deliver(target, bucket, m.key, result, may_skip=rule["on_failure"] == "degrade")
            if problem and rule["on_failure"] == "fail":
                self.sync_failed += 1
                return CommitResult(
                    code="outcome-unknown",
                    detail=f"stored at this site, not yet at {target!r} ({problem}); it is delivered later",
                )
            if problem:
                self.sync_degraded += 1
        return result

    async def _deliver(
        self, target: str, bucket: buckets.Bucket, key: str, result: CommitResult, *, may_skip: bool
    ) -> str:
        """"" when the target has it durably, else why not."""
        if may_skip and self.is_away(target):
            return "the site is away"
        self.sync_waits += 1
        try:
            async with asyncio.timeout(SYNC_SECONDS):
                await self._send(target, bucket, key, result)
        except TimeoutError:
            return f"no answer in {SYNC_SECONDS:.0f} s"
        except TierstoreError as error:
            return str(error)
        return ""

    async def _send(self, target: str, bucket: buckets.Bucket, key: str, result: CommitResult) -> None:
        row = self._members.known.get(target)
        name = (bucket.id, key, result.version)

        def work(c: Connection) -> NameRecord | None:
            held = sites.versions_of(c, [name]).get(name)
            change = QueueRow(0, 0, bucket.id, key, result.version, 0, result.size)
            return record_of(bucket, change, held)

        record = await self._parts.database.read(work)
        record = record or NameRecord(bucket.name, key, NAME_GONE, result.version)
        if record.kind == NAME_PUT and 0 < record.size <= PUSH_BYTES_MAX:
            await self._push(row, bucket, record)
        else:
            await self._name_and_fetch(row, bucket, record)

    async def _push(self, row: SiteRow, bucket: buckets.Bucket, record: NameRecord) -> None:
        """The name with its bytes: one round trip, segments beside each other."""
        try:
            async with asyncio.TaskGroup() as group:
                for first in range(0, record.size, SEGMENT_BYTES):
                    group.create_task(self._push_segment(row, bucket, record, first))
        except* TierstoreError as errors:
            failed = [error for error in errors.exceptions if isinstance(error, TierstoreError)]
            raise UnavailableError(str(failed[0]), code=failed[0].code) from None

    async def _push_segment(self, row: SiteRow, bucket: buckets.Bucket, record: NameRecord, first: int) -> None:
        length = min(SEGMENT_BYTES, record.size - first)
        async with self._body.turns:
            data = await self._body.read(record.bucket, record.key, record.version, first=first, length=length)
            push = Push(self._parts.me().name, record, bucket.versioning, first, crc_of(data), data)
            answer = await self._members.courier.send(
                row, "/v1/sites/push", push, PushAnswer, seconds=SYNC_SECONDS
            )
        if answer.code:
            raise UnavailableError(answer.detail, code=answer.code)

    async def _name_and_fetch(self, row: SiteRow, bucket: buckets.Bucket, record: NameRecord) -> None:
        """A name without bytes, or with more than metadata should hold: the target fetches them."""
        courier = self._members.courier
        batch = name_batch(self._parts.me().name, [record], [bucket])
        answer = await courier.send(row, "/v1/sites/names", batch, NameAnswer, seconds=SYNC_SECONDS)
        if answer.parked:
            raise UnavailableError("its clock is a day behind", code="name-parked")
        firsts = range(0, record.size, SEGMENT_BYTES)
        items = [
            FetchItem(bucket.name, record.key, record.version, f, min(SEGMENT_BYTES, record.size - f)) for f in firsts
        ]
        for item in items:
            fetched = await courier.send(
                row, "/v1/sites/fetch", FetchBatch([item]), FetchAnswer, seconds=SYNC_SECONDS
            )
            if fetched.results[0].code:
                raise UnavailableError(fetched.results[0].detail, code=fetched.results[0].code)


#: Figures of all targets together, and per site.
