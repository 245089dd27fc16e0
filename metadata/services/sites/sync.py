"""Sync rules (rule 17): who writes under one waits until the other site has committed, or hears that it has not.

The local commit, with its queue row, is durable first; then name and bytes go to each site whose rule is sync, past the
queue and in one message (one round trip); then the writer hears of success. When that fails, or stands still for
SYNC_SECONDS, the rule decides: `fail` answers outcome-unknown (the version stays, and is delivered later by the queue),
`degrade` answers success at once and is counted; while a target is known to be away, degrading costs no wait.

A large body on a slow link takes as long as it takes while it moves, up to `[duties] sync_wait`. A delivery outlives
the request that waits for it: after ANSWER_SECONDS a gateway hears that it is under way, asks again under the same
operation, and waits for its end instead of beginning it anew.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from metadata.catalog import schema
from metadata.catalog.feed import NewChange
from metadata.services.sites.ahead import Ahead, AheadReader
from metadata.services.sites.apply import rules_of
from metadata.services.sites.push import Pusher, Said, look
from metadata.services.sites.read import BodyReader
from metadata.services.sites.registry import Sites
from metadata.services.sites.target import Parts
from tierstore.errors import TierstoreError
from tierstore.wire.names import UNDER_WAY, WAITED, CommitItem, CommitResult, SetMeta

#: A delivery that stands still so long has failed.
SYNC_SECONDS: Final = 8.0
#: The last bytes of a body lie in the buffers of the way, where nobody sees them move: this share of the time that the
#: delivery has taken is waited for them, when that is longer.
STILL_SHARE: Final = 0.5
#: Then a request that waits is told that its delivery is under way: less than an attempt of a gateway may take
#: (tierstore/transport/metadata_calls).
ANSWER_SECONDS: Final = 3.0
#: Whoever has its answer waits so long for the others of its message; those are told the same.
TOGETHER_SECONDS: Final = 0.05
#: What was pushed is remembered, so that the queue need not say it again.
DELIVERED_MAX: Final = 10_000
#: Failures that are remembered until their writer asks again.
FAILURES_MAX: Final = 1_000
#: Changes of one message (a directory's move) that are on their way at the same time.
CHANGES_AT_ONCE: Final = 16

_UNDER_WAY: Final = CommitResult(code="outcome-unknown", detail="on its way to another site", waits=UNDER_WAY)


class SyncWaits:
    """One per process. is_away: whether a site is known not to answer. wait_seconds: for one delivery that moves."""

    def __init__(
        self, parts: Parts, members: Sites, body: BodyReader, ahead: AheadReader, *, is_away: Callable[[str], bool],
        wait_seconds: float,
    ) -> None:  # fmt: skip
        self._parts = parts
        self._members = members
        self._ahead = ahead
        self._is_away = is_away
        self._wait_seconds = wait_seconds
        self._pusher = Pusher(parts, members, body, seconds=wait_seconds)
        #: (site, bucket, key, version) that it has, by a push of this process: its queue row needs no message.
        self._delivered: OrderedDict[tuple[str, int, str, int], None] = OrderedDict()
        #: Under way, wait_seconds at most; of one version to one site there is one.
        self._deliveries: dict[tuple[object, ...], asyncio.Task[str]] = {}
        #: How deliveries failed of which nobody has heard: they ended between two attempts of a gateway.
        self._failures: OrderedDict[tuple[object, ...], str] = OrderedDict()
        self.waits = 0
        self.degraded = 0
        self.failed = 0

    def is_delivered(self, target: str, bucket_id: int, key: str, version: int) -> bool:
        """Whether a site is known to have a version whole."""
        return (target, bucket_id, key, version) in self._delivered

    def is_under_way(self, target: str, bucket_id: int, key: str, version: int) -> bool:
        """Whether a push of that version goes to a site now."""
        return (target, bucket_id, key, version, schema.CHANGE_PUT) in self._deliveries

    @property
    def has_writers(self) -> bool:
        """Whether a write under such a rule is under way."""
        return self._ahead.open > 0

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
        """The results as their writers may hear them, after the sites of sync rules have what they must. Nobody waits
        long for another's site or body: what takes longer than the first of the message is under way (UNDER_WAY)."""
        waiting = [
            asyncio.ensure_future(self._one(i, r, ahead)) for i, r in zip(items, results, strict=True)
        ]
        try:
            done, late = await asyncio.wait(waiting, timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if done and late:
                await asyncio.wait(late, timeout=TOGETHER_SECONDS)
            return [task.result() if task.done() else _UNDER_WAY for task in waiting]
        finally:
            for task in waiting:
                task.cancel()       # the deliveries go on

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
        change = NewChange(kind, 0, m.key, result.version, result.size)
        answer = await self._confirm(m.bucket, change, ahead, operation=item.operation)
        return answer if answer.code else msgspec.structs.replace(result, waits=answer.waits)

    async def _confirm(
        self, name: str, change: NewChange, ahead: Ahead | None = None, operation: object = None
    ) -> CommitResult:
        """code "" when every site that a sync rule names has the version, or its rule lets it come later."""
        said = (await self._parts.database.read(lambda c: look(c, name, change)))._replace(ahead=ahead)
        rules: dict[str, dict[str, str]] = {}
        for rule in rules_of(said.bucket):
            if change.key.startswith(rule["prefix"]):
                rules.setdefault(rule["target"], rule)
        wanted = [rule for rule in rules.values() if rule["mode"] == "sync"]
        found = await asyncio.gather(*(self._judged(rule, said, change, operation) for rule in wanted))
        waits = WAITED if wanted else 0
        return next((result for result in found if result.code), CommitResult(waits=waits))

    async def _judged(
        self, rule: dict[str, str], said: Said, change: NewChange, operation: object
    ) -> CommitResult:
        """What its writer hears of one rule."""
        target, is_degrading = rule["target"], rule["on_failure"] == "degrade"
        problem = await self._deliver(target, said, change, operation, may_skip=is_degrading)
        if problem and not is_degrading:
            self.failed += 1
            return CommitResult(
                code="outcome-unknown",
                detail=f"stored at this site, not yet at {target!r} ({problem}); it is delivered later",
                waits=WAITED,
            )
        if problem:
            self.degraded += 1
        return CommitResult()

    async def _deliver(
        self, target: str, said: Said, change: NewChange, operation: object, *, may_skip: bool
    ) -> str:
        """"" when the target has it durably, else why not."""
        if may_skip and self._is_away(target):
            return "the site is away"
        version = (target, said.bucket.id, change.key, change.version)
        # Metadata has no version of its own: each change of it is said for itself, and known by its operation.
        is_meta = change.kind == schema.CHANGE_META
        if not is_meta and version in self._delivered:
            return ""
        key: tuple[object, ...] = (*version, change.kind, operation or object()) if is_meta else (*version, change.kind)
        task = self._deliveries.get(key)
        if task is None:
            if key in self._failures:
                return self._failures.pop(key)
            self.waits += 1
            task = asyncio.get_running_loop().create_task(self._try(target, said, change), name=f"sync {target}")
            self._deliveries[key] = task
            task.add_done_callback(lambda task: self._ended(key, task))
        problem = await asyncio.shield(task)
        self._failures.pop(key, None)
        return problem

    def _ended(self, key: tuple[object, ...], task: asyncio.Task[str]) -> None:
        self._deliveries.pop(key, None)
        if not task.cancelled() and task.exception() is None and task.result():
            self._failures[key] = task.result()
            if len(self._failures) > FAILURES_MAX:
                self._failures.popitem(last=False)

    async def close(self) -> None:
        """What is under way is left to the queue."""
        tasks = list(self._deliveries.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _try(self, target: str, said: Said, change: NewChange) -> str:
        """"" when the target has it durably, else why not. Raises nothing that is expected."""
        loop = asyncio.get_running_loop()
        began = loop.time()

        def until() -> float:
            now = loop.time()
            return min(now + max(SYNC_SECONDS, (now - began) * STILL_SHARE), began + self._wait_seconds)

        try:
            async with asyncio.timeout_at(until()) as limit:
                def moved() -> None:
                    if not limit.expired():     # a step that comes in the moment in which the time is over
                        limit.reschedule(until())

                if await self._pusher.push(target, said, moved):
                    self._note_delivered(target, said.bucket.id, change)
        except TimeoutError:
            if loop.time() >= began + self._wait_seconds:
                return f"still on its way after {self._wait_seconds:.0f} s"
            return f"no answer in {SYNC_SECONDS:.0f} s"
        except TierstoreError as error:
            return str(error)
        return ""

    def _note_delivered(self, target: str, bucket_id: int, change: NewChange) -> None:
        self._delivered[target, bucket_id, change.key, change.version] = None
        while len(self._delivered) > DELIVERED_MAX:
            self._delivered.popitem(last=False)
