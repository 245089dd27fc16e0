"""Sync rules (rule 17): who writes under one waits until the other site has committed, or hears that it has not.

The local commit, with its queue row, is durable first; then name and bytes go to each site whose rule is sync, past the
queue and in one message (one round trip); then the writer hears of success. When that does not end in SYNC_SECONDS the
rule decides: `fail` answers outcome-unknown (the version stays, and is delivered later by the queue), `degrade` answers
success at once and is counted; while a target is known to be away, degrading costs no wait.

A delivery outlives the request that waits for it: a gateway that has no answer after 5 s asks again under the same
operation, and then waits for the delivery that is under way, instead of beginning a large body anew.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from metadata.catalog import buckets, schema, sites
from metadata.catalog.feed import NewChange
from metadata.catalog.objects import ObjectRow
from metadata.catalog.queries import Connection
from metadata.catalog.sites import QueueRow, SiteRow
from metadata.services.sites.ahead import Ahead, AheadReader
from metadata.services.sites.apply import rules_of
from metadata.services.sites.queue import name_batch, record_of
from metadata.services.sites.read import BodyReader
from metadata.services.sites.registry import Sites
from metadata.services.sites.target import Parts
from tierstore.checksum import crc_of
from tierstore.errors import TierstoreError, UnavailableError
from tierstore.wire.names import CommitItem, CommitResult, SetMeta
from tierstore.wire.sites import (
    NAME_GONE,
    NAME_PUT,
    PUSH_BYTES_MAX,
    SEGMENT_BYTES,
    FetchAnswer,
    FetchBatch,
    FetchItem,
    NameAnswer,
    NameRecord,
    Push,
    PushAnswer,
)

#: Less than two attempts of a gateway (tierstore/transport/metadata_calls), so that it hears how it ended.
SYNC_SECONDS: Final = 8.0
#: What was pushed is remembered, so that the queue need not say it again.
DELIVERED_MAX: Final = 10_000
#: Changes of one message (a directory's move) that are on their way at the same time.
CHANGES_AT_ONCE: Final = 16


class _Said(NamedTuple):
    """What another site is to hear of a change. held: the version as it was read with it, None: it is gone. ahead: its
    body, perhaps, read meanwhile."""

    bucket: buckets.Bucket
    record: NameRecord
    held: ObjectRow | None
    ahead: Ahead | None = None


def _look(c: Connection, bucket: str, change: NewChange) -> _Said:
    """All that a push needs of the catalog, in one read: a writer waits for it."""
    found = buckets.get(c, bucket)
    name = (found.id, change.key, change.version)
    held = sites.versions_of(c, [name]).get(name)
    row = QueueRow(0, 0, found.id, change.key, change.version, change.kind, change.size)
    record = record_of(found, row, held) or NameRecord(bucket, change.key, NAME_GONE, change.version)
    return _Said(found, record, held)


class SyncWaits:
    """One per process. is_away: whether a site is known not to answer."""

    def __init__(
        self, parts: Parts, members: Sites, body: BodyReader, ahead: AheadReader, *, is_away: Callable[[str], bool]
    ) -> None:
        self._parts = parts
        self._members = members
        self._body = body
        self._ahead = ahead
        self._is_away = is_away
        #: (site, bucket, key, version) that it has, by a push of this process: its queue row needs no message.
        self._delivered: OrderedDict[tuple[str, int, str, int], None] = OrderedDict()
        #: Under way, SYNC_SECONDS at most; of one version to one site there is one.
        self._deliveries: dict[tuple[object, ...], asyncio.Task[str]] = {}
        self.waits = 0
        self.degraded = 0
        self.failed = 0

    def is_delivered(self, target: str, bucket_id: int, key: str, version: int) -> bool:
        """Whether a site is known to have a version whole."""
        return (target, bucket_id, key, version) in self._delivered

    @property
    def is_wanted(self) -> bool:
        """Whether any bucket has a sync rule."""
        return bool(self._members.sync_buckets)

    def holds_back(self, items: Sequence[CommitItem]) -> bool:
        """Whether one of these changes a bucket that has a sync rule."""
        wanted = self._members.sync_buckets
        return bool(wanted) and any(item.mutation.bucket in wanted for item in items)

    def read_ahead(self, items: Sequence[CommitItem]) -> Ahead:
        """Begin to read what these bring to such buckets, before they are committed; for confirm()."""
        return self._ahead.begin([item for item in items if item.mutation.bucket in self._members.sync_buckets])

    async def confirm(
        self, items: Sequence[CommitItem], results: Sequence[CommitResult], ahead: Ahead | None = None
    ) -> list[CommitResult]:
        """The results as their writers may hear them, after the sites of sync rules have what they must."""
        return list(await asyncio.gather(*(self._one(i, r, ahead) for i, r in zip(items, results, strict=True))))

    async def confirm_changes(self, name: str, changes: Sequence[NewChange]) -> CommitResult:
        """The same for what one message changed in a bucket; code "" when the writer may hear of success."""
        turns = asyncio.Semaphore(CHANGES_AT_ONCE)

        async def one(change: NewChange) -> CommitResult:
            async with turns:
                return await self._confirm(name, change)

        if name not in self._members.sync_buckets:
            return CommitResult()
        found = await asyncio.gather(*(one(change) for change in changes))
        return next((result for result in found if result.code), CommitResult())

    async def _one(self, item: CommitItem, result: CommitResult, ahead: Ahead | None) -> CommitResult:
        m = item.mutation
        if result.code or not result.version or m.bucket not in self._members.sync_buckets:
            return result
        kind = schema.CHANGE_META if isinstance(m, SetMeta) else schema.CHANGE_PUT
        answer = await self._confirm(m.bucket, NewChange(kind, 0, m.key, result.version, result.size), ahead)
        return answer if answer.code else result

    async def _confirm(self, name: str, change: NewChange, ahead: Ahead | None = None) -> CommitResult:
        """code "" when every site that a sync rule names has the version, or its rule lets it come later."""
        said = (await self._parts.database.read(lambda c: _look(c, name, change)))._replace(ahead=ahead)
        seen: set[str] = set()
        for rule in rules_of(said.bucket):
            target = rule["target"]
            if not change.key.startswith(rule["prefix"]) or target in seen:
                continue
            seen.add(target)
            if rule["mode"] != "sync":
                continue
            is_degrading = rule["on_failure"] == "degrade"
            problem = await self._deliver(target, said, change, may_skip=is_degrading)
            if problem and not is_degrading:
                self.failed += 1
                return CommitResult(
                    code="outcome-unknown",
                    detail=f"stored at this site, not yet at {target!r} ({problem}); it is delivered later",
                )
            if problem:
                self.degraded += 1
        return CommitResult()

    async def _deliver(self, target: str, said: _Said, change: NewChange, *, may_skip: bool) -> str:
        """"" when the target has it durably, else why not."""
        if may_skip and self._is_away(target):
            return "the site is away"
        # Metadata has no version of its own: each change of it is said for itself.
        name = (target, said.bucket.id, change.key, change.version, change.kind)
        key = (*name, object()) if change.kind == schema.CHANGE_META else name
        task = self._deliveries.get(key)
        if task is None:
            self.waits += 1
            task = asyncio.get_running_loop().create_task(self._try(target, said, change), name=f"sync {target}")
            self._deliveries[key] = task
            task.add_done_callback(lambda _: self._deliveries.pop(key, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """What is under way is left to the queue."""
        tasks = list(self._deliveries.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _try(self, target: str, said: _Said, change: NewChange) -> str:
        """"" when the target has it durably, else why not. Raises nothing that is expected."""
        try:
            async with asyncio.timeout(SYNC_SECONDS):
                await self._send(target, said, change)
        except TimeoutError:
            return f"no answer in {SYNC_SECONDS:.0f} s"
        except TierstoreError as error:
            return str(error)
        return ""

    async def _send(self, target: str, said: _Said, change: NewChange) -> None:
        row, bucket, record = self._members.known.get(target), said.bucket, said.record
        if said.held is not None and record.kind == NAME_PUT and 0 < record.size <= PUSH_BYTES_MAX:
            await self._push(row, said, said.held)
            self._delivered[target, bucket.id, change.key, change.version] = None
            while len(self._delivered) > DELIVERED_MAX:
                self._delivered.popitem(last=False)
        else:
            await self._name_and_fetch(row, bucket, record)

    async def _push(self, row: SiteRow, said: _Said, held: ObjectRow) -> None:
        """The name with its bytes: one round trip, segments beside each other."""
        try:
            async with asyncio.TaskGroup() as group:
                for first in range(0, held.size, SEGMENT_BYTES):
                    group.create_task(self._push_segment(row, said, held, first))
        except* TierstoreError as errors:
            failed = [error for error in errors.exceptions if isinstance(error, TierstoreError)]
            raise UnavailableError(str(failed[0]), code=failed[0].code) from None

    async def _push_segment(self, row: SiteRow, said: _Said, held: ObjectRow, first: int) -> None:
        length = min(SEGMENT_BYTES, held.size - first)
        async with self._body.room(length):
            data = await said.ahead.body(held.body) if said.ahead is not None and length == held.size else None
            if data is None:
                data = await self._body.read(said.bucket.name, held, first=first, length=length)
            push = Push(self._parts.me().name, said.record, said.bucket.versioning, first, crc_of(data), data)
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
        if record.kind != NAME_PUT:
            return
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
