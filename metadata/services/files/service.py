"""Files of mounts: changes, many at a time in one transaction. Questions: services/files/answers; the watch:
services/files/watch.

A change is load (buckets, receipts, what was applied already) -> decide and write (names, bodies) -> one
result per item; the rows go through the same session as commits do, so a file's creation shares its fsync with
whatever else waits. A batch that fails as a whole is redone one by one.

Bounds: BATCH_MAX changes of a transaction, WAITING_MAX that wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from metadata.catalog import inodes, schema
from metadata.catalog.database import Database
from metadata.catalog.feed import NewChange
from metadata.catalog.queries import Connection
from metadata.catalog.session import Session, StaleRows
from metadata.services.cluster.view import ClusterView
from metadata.services.files.answers import FileAnswers
from metadata.services.files.bodies import FileBodies
from metadata.services.files.delegations import Delegations
from metadata.services.files.watch import FileWatch
from metadata.services.files.work import FileWork
from metadata.services.names.bucket_names import BucketNames
from metadata.services.names.commit import ATTEMPTS_MAX, COMMIT_SECONDS, CommitService
from metadata.services.names.facts import Facts, check_operation
from metadata.services.names.object_lock import check_files
from metadata.services.names.replicas import ReplicaOrder
from metadata.services.names.rights import authorize_all_in
from metadata.services.names.writes import Committed, WriteSet
from tierstore.auth.access import Principal
from tierstore.clock import Clock
from tierstore.errors import CapacityError, TierstoreError, UnavailableError
from tierstore.wire import decode, encode
from tierstore.wire.files import (
    MAY_BE_SOON,
    FileChange,
    FileMutation,
    FileResult,
    Hold,
    Link,
    Make,
    Remove,
    Rename,
    SetAttributes,
    Sync,
    WriteFile,
)
from tierstore.wire.names import CommitItem, CommitResult, ObjectMeta, Put, SetMeta

BATCH_MAX: Final = 128
WAITING_MAX: Final = 10_000
#: A directory of the largest size that may be moved takes less.
MOVE_SECONDS: Final = 60.0


@dataclass(slots=True, eq=False)
class _Pending:
    item: FileChange
    principal: Principal
    done: asyncio.Future[FileResult]
    is_long: bool = False       # moves a directory: a transaction of its own, beside the loop
    is_soon: bool = False       # may be answered before it is durable
    told: list[NewChange] = field(default_factory=list)     # what other sites hear of


class SyncRules(Protocol):
    """Waits until other sites have what their rules want at once (services/sites/sync)."""

    @property
    def is_wanted(self) -> bool: ...

    async def confirm_changes(self, name: str, changes: Sequence[NewChange]) -> CommitResult: ...


class FilesService:
    """One per process. Event loop only."""

    def __init__(
        self, database: Database, commits: CommitService, rules: FileBodies, *, names: BucketNames,
        order: ReplicaOrder, view: ClusterView, clock: Clock, copies: Callable[[], int],
    ) -> None:  # fmt: skip
        self._database = database
        self._commits = commits
        self._rules = rules
        self._names = names
        self._clock = clock
        self._watch = FileWatch(database, commits, names=names, clock=clock)
        self.answers = FileAnswers(database, names=names, order=order, view=view, clock=clock, copies=copies)
        self.ask, self.ask_now = self.answers.ask, self.answers.ask_now
        self.watch, self.sweep = self._watch.watch, self._watch.sweep
        self.sync: SyncRules | None = None
        self._waiting: list[_Pending] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = 0

    def delegate(self, delegations: Delegations) -> bool:
        """Let mounts of this machine answer for names that are not there. False where that cannot be: other processes
        make names too."""
        if not self._database.watch_names(delegations):
            return False
        self.answers.delegations = delegations
        self._watch.place = delegations.place
        return True

    # -- changes --------------------------------------------------------------------------------------------
    async def change(self, items: Sequence[tuple[FileChange, Principal]]) -> list[FileResult]:
        """Apply each on its own; results in order, durable when they come, but for items that may be so a moment later
        (`soon`). Safe to repeat with the same ids."""
        self._check_room(len(items))
        if self._commits.gate is not None and self._commits.gate.may_refuse:
            await self._commits.gate.settle()
        loop = asyncio.get_running_loop()
        entries = [
            _Pending(
                item, who, loop.create_future(), await self._moves_a_directory(item), is_soon=self._is_soon(item)
            )
            for item, who in items
        ]
        for entry in entries:
            self._refuse_closed(entry)
        self._queue([entry for entry in entries if not entry.done.done()])
        return await self._all_told(entries)

    def submit(
        self, items: Sequence[tuple[FileChange, Principal]], then: Callable[[list[FileResult]], None],
        later: Callable[[Callable[[], Awaitable[list[FileResult]]]], None],
    ) -> bool:  # fmt: skip
        """The same without a task: then(results) follows, and must not raise; or, when a rule of other sites came
        meanwhile, later(what gives them once it is awaited). False: it takes change(), nothing was done. Raises
        UnavailableError."""
        gate = self._commits.gate
        if not items or self._is_sync or (gate is not None and gate.may_refuse):
            return False
        if any(type(item.mutation) is Rename and not item.mutation.is_file for item, _ in items):
            return False
        self._check_room(len(items))
        loop = asyncio.get_running_loop()
        entries = [
            _Pending(item, who, loop.create_future(), is_soon=self._is_soon(item)) for item, who in items
        ]
        left = len(entries)

        def settled(_: asyncio.Future[FileResult]) -> None:
            nonlocal left
            left -= 1
            if left:
                return
            if self._is_sync and any(entry.told for entry in entries):
                later(lambda: self._all_told(entries))
            else:
                then([entry.done.result() for entry in entries])

        for entry in entries:
            entry.done.add_done_callback(settled)
        self._queue(entries)
        return True

    @property
    def _is_sync(self) -> bool:
        return self.sync is not None and self.sync.is_wanted

    def _check_room(self, count: int) -> None:
        if len(self._waiting) + count > WAITING_MAX:
            raise UnavailableError("too many changes of files wait for the catalog")

    def _queue(self, entries: list[_Pending]) -> None:
        self._waiting += entries
        if self._waiting and self._running < self._database.batches_under_way_max:
            self._running += 1
            task = asyncio.get_running_loop().create_task(self._run(), name="files")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _all_told(self, entries: list[_Pending]) -> list[FileResult]:
        if self._is_sync:
            return list(await asyncio.gather(*(self._told(entry) for entry in entries)))
        return [await self._told(entry) for entry in entries]

    async def _told(self, entry: _Pending) -> FileResult:
        """Its result once it is durable here, and at the sites of sync rules."""
        result = await entry.done
        if not entry.told or self.sync is None or not self.sync.is_wanted:
            return result
        answer = await self.sync.confirm_changes(entry.item.mutation.bucket, entry.told)
        return FileResult(code=answer.code, detail=answer.detail) if answer.code else result

    def _is_soon(self, item: FileChange) -> bool:
        """Not where other sites hear of it: they must not know of a name that a power cut takes back here."""
        if not item.soon or not isinstance(item.mutation, MAY_BE_SOON):
            return False
        try:
            bucket = self._names.now(item.mutation.bucket)
        except TierstoreError:
            return False        # the change itself is going to say what is wrong
        return bucket is not None and not bucket.is_replicated

    async def _moves_a_directory(self, item: FileChange) -> bool:
        """As it looks now: should it become one in between, only the loop waits longer."""
        m = item.mutation
        if not isinstance(m, Rename) or m.is_file:
            return False
        try:
            bucket = await self._names.get(m.bucket)
            return await self._database.read(lambda c: _is_directory(c, bucket.id, m.path))
        except TierstoreError:
            return False        # the change itself is going to say what is wrong

    def _refuse_closed(self, entry: _Pending) -> None:
        gate = self._commits.gate
        closed = gate.closed(entry.item.mutation.bucket) if gate is not None and gate.may_refuse else None
        if closed is not None:
            _settle(entry, FileResult(code=closed.code, detail=closed.detail))

    async def _run(self) -> None:
        try:        # what else came in this turn of the loop waits by now, too
            while self._waiting:
                await self._settle_all(self._take())
                await asyncio.sleep(0)
        finally:
            self._running -= 1

    def _take(self) -> list[_Pending]:
        """The next batch, in the order of arrival; what is long goes alone."""
        waiting = self._waiting
        count = next((n for n, entry in enumerate(waiting[:BATCH_MAX]) if entry.is_long), BATCH_MAX) or 1
        self._waiting = waiting[count:]
        return waiting[:count]

    async def _settle_all(self, batch: list[_Pending]) -> None:
        try:
            await self._attempt(batch)
        except Exception:     # one item breaks the transaction: find it by running them alone
            for entry in batch:
                await self._alone(entry)

    async def _alone(self, entry: _Pending) -> None:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                return await self._attempt([entry])
            except StaleRows:
                if attempt == ATTEMPTS_MAX:
                    _settle(entry, FileResult(code="unavailable", detail="other processes keep changing this file"))
            except TierstoreError as error:
                return _settle(entry, FileResult(code=error.code, detail=error.detail))
            except Exception as error:    # this item's own failure is its result
                detail = f"the change failed: {type(error).__name__}: {error}"
                return _settle(entry, FileResult(code="internal", detail=detail))
        return None

    async def _attempt(self, batch: list[_Pending]) -> None:
        def transact(session: Session) -> tuple[list[FileResult], list[Committed]]:
            return self._transaction(session, batch)

        if batch[0].is_long:
            results, events = await self._database.work(transact, seconds=MOVE_SECONDS)
        else:
            is_soon = all(entry.is_soon for entry in batch)
            results, events = await self._database.batch(transact, seconds=COMMIT_SECONDS, soon=is_soon)
        for entry, result in zip(batch, results, strict=True):
            _settle(entry, result)
        for listener in self._commits.listeners if events else ():
            listener(events)
        if self._commits.on_replicated is not None and any(entry.told for entry in batch):
            self._commits.on_replicated()
        self._watch.wake()

    def _transaction(self, session: Session, batch: list[_Pending]) -> tuple[list[FileResult], list[Committed]]:
        session.guard()
        now_ms = self._clock.now_ms()
        is_full = self._database.is_full     # then only what frees space is let through (rule 19)
        facts = self._commits.reads.load(session, [_as_commit(entry.item) for entry in batch], now_ms, checked=True)
        results, events = [], []
        for entry in batch:
            repeat = facts.results.get(entry.item.operation)
            if repeat is not None:
                results.append(decode(repeat, FileResult))
                entry.told = _of_repeat(facts, entry.item, results[-1])
                continue
            # The bytes of a directory's files are as hot after its move as before: nobody need hear of each.
            writes = WriteSet(
                at_ms=now_ms, wants_events=bool(self._commits.listeners) and not entry.is_long, by=entry.item.mount
            )
            session.savepoint()
            try:
                if is_full and isinstance(entry.item.mutation, WriteFile | Make | Link):
                    raise CapacityError("the catalog's disk is full: delete files or make room", code="catalog-full")
                result = self._apply(session, facts, writes, entry.item, entry.principal)
            except TierstoreError as error:
                session.undo()
                results.append(FileResult(code=error.code, detail=error.detail))
                continue
            writes.results.append((entry.item.operation, encode(result)))
            writes.flush(session)
            session.keep()
            events += writes.events
            entry.told = [change for change in writes.changes if change.targets]
            results.append(result)
        return results, events

    def _apply(
        self, session: Session, facts: Facts, writes: WriteSet, item: FileChange, who: Principal
    ) -> FileResult:
        check_operation(item.operation, item.deadline_ms, facts.now_ms)
        m = item.mutation
        bucket = facts.bucket(m.bucket)
        authorize_all_in(who, "write", bucket)
        check_files(bucket)
        now_ns = facts.now_ms * 1_000_000 if isinstance(m, Make) else m.now_ns
        if isinstance(m, Make):
            now_ns = m.attributes.ctime_ns or now_ns
        w = FileWork(session, facts, writes, bucket, now_ns)
        result = self._decide(w, m, item, who)
        w.count()
        return msgspec.structs.replace(result, touched=w.touched) if w.touched else result

    def _decide(self, w: FileWork, m: FileMutation, item: FileChange, who: Principal) -> FileResult:
        if isinstance(m, WriteFile):
            return self._rules.write(w, m, w.facts.receipts[item.operation])
        if isinstance(m, Make):
            return self._rules.make(w, m)
        if isinstance(m, SetAttributes):
            return self._rules.set_attributes(w, m)
        if isinstance(m, Rename):
            authorize_all_in(who, "delete", w.bucket)
            return self._rules.rename(w, m)
        if isinstance(m, Remove):
            authorize_all_in(who, "delete", w.bucket)
            return self._rules.remove(w, m)
        if isinstance(m, Hold):
            return self._rules.hold(w, m)
        if isinstance(m, Sync):
            return FileResult()     # noted as done, so that there is something to sync
        assert isinstance(m, Link), "no other change exists"
        return self._rules.link(w, m)

    async def close(self) -> None:
        while self._tasks:
            await asyncio.wait(list(self._tasks), timeout=COMMIT_SECONDS)


def _is_directory(connection: Connection, bucket_id: int, path: str) -> bool:
    return not path or inodes.is_directory(connection, bucket_id, path)


def _of_repeat(facts: Facts, item: FileChange, result: FileResult) -> list[NewChange]:
    """What a write that is repeated had told other sites: it may be repeated because they had not heard of it."""
    m = item.mutation
    targets = facts.bucket(m.bucket).targets(m.path)
    if not targets or not isinstance(m, WriteFile) or result.entry is None:
        return []
    return [NewChange(schema.CHANGE_PUT, 0, m.path, result.entry.version, result.entry.size, targets)]


def _as_commit(item: FileChange) -> CommitItem:
    """The same as a commit, for what is loaded: bucket, row, receipts."""
    m = item.mutation
    path = m.path.lstrip("/") or "-"
    if isinstance(m, WriteFile):
        return CommitItem(item.operation, item.deadline_ms, Put(m.bucket, path, 0, "", m.chunks))
    return CommitItem(item.operation, item.deadline_ms, SetMeta(m.bucket, path, ObjectMeta()))


def _settle(entry: _Pending, result: FileResult) -> None:
    if not entry.done.done():
        entry.done.set_result(result)
