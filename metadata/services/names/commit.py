"""Commits: every change of a name goes through here, many at a time in one transaction.

A batch is taken from those that wait (no timers), holds a key and an operation at most once (later ones wait in
arrival order), is sorted by key, and runs as load (bulk reads with locks: services/names/fact_reads) -> decide
(services/names/mutations) -> write (one bulk statement per table). Each item has its own result; a refusal of one
changes nothing of the others.

Three ways down: optimistic (repeats are noticed by the primary key of `operations`, which saves reading it), checked
(it is read first), one by one (so that one bad item cannot stop its batch).

Cost per put of one chunk on SQLite: 3 rows (key, operation, change), two MACs and 1/n of four reads and a commit.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Final, Protocol

from metadata.catalog import operations
from metadata.catalog.database import Database
from metadata.catalog.session import Session, StaleRows
from metadata.services.cluster.view import ClusterView
from metadata.services.names import quotas
from metadata.services.names.fact_reads import BRINGS_CHUNKS, FactReads, names_of
from metadata.services.names.mutations import Mutator
from metadata.services.names.receipts import Opened
from metadata.services.names.writes import Committed, WriteSet
from tierstore.auth.access import Principal
from tierstore.clock import Clock, HybridClock
from tierstore.errors import CapacityError, IntegrityError, TierstoreError, UnavailableError
from tierstore.names import UPLOAD_ID_BYTES
from tierstore.wire import decode, encode
from tierstore.wire.names import CommitItem, CommitResult, Fill

BATCH_MAX: Final = 512
#: Waiting items looked at for one batch: behind many writers of one key the others wait their turn too.
LOOKED_AT_MAX: Final = 4 * BATCH_MAX
#: Items that wait; more are refused as `unavailable`.
WAITING_MAX: Final = 20_000
COMMIT_SECONDS: Final = 30.0
#: How often an item that other processes keep overtaking is tried alone.
ATTEMPTS_MAX: Final = 5

#: What a client takes for a last word: kept as a result, so that a late repeat of the same message gets it too and does
#: not take effect in a world that has changed since (ADR 0123). Other refusals may be tried again.
FINAL_REFUSALS: Final = frozenset({"precondition-failed", "no-such-key", "no-such-version"})
_UNANSWERED: Final = CommitResult(code="unavailable")

#: (bucket, key, size, storage class) -> home copies that the policy asks for.
CopiesFor = Callable[[str, str, int, str], int]


@dataclass(slots=True, eq=False)
class _Message:
    """Items that came together; answered, once, when the last of them is."""

    then: Callable[[list[CommitResult]], None]
    results: list[CommitResult]
    left: int
    asker: asyncio.Future[list[CommitResult]] | None = None

    @property
    def is_given_up(self) -> bool:
        """Nobody waits any more: what is not in a batch yet is not done."""
        return self.asker is not None and self.asker.cancelled()


@dataclass(slots=True, eq=False)
class _Pending:
    item: CommitItem
    principal: Principal
    message: _Message
    place: int                      # among the message's items
    marks: tuple[object, ...]       # what must be in a batch only once: keys (the first: its own), operation, uploads
    opened: list[Opened] | TierstoreError | None
    is_settled: bool = False


class Gate(Protocol):
    """Whatever keeps a site from taking some mutations for a while."""

    @property
    def may_refuse(self) -> bool: ...

    def refusal(self, item: CommitItem) -> CommitResult | None: ...

    def closed(self, bucket: str) -> CommitResult | None: ...

    async def settle(self) -> None: ...


class CommitService:
    """One per process. Event loop only."""

    def __init__(
        self, database: Database, view: ClusterView, clock: Clock, versions: HybridClock, *, rng: random.Random,
        copies_for: CopiesFor,
    ) -> None:  # fmt: skip
        self._database = database
        self._clock = clock
        self._versions = versions
        self.reads = FactReads(view)
        self._mutator = Mutator(versions, rng=rng, copies_for=copies_for)
        self._waiting: list[_Pending] = []
        self._busy: set[object] = set()          # marks of the batches under way
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = 0       # tasks that will look at the queue once more; lowered in the step that saw it empty
        #: Called with what a batch changed, after it is durable; must not raise or block.
        self.listeners: list[Callable[[list[Committed]], None]] = []
        #: Called after a batch that other sites must hear of; must not raise or block.
        self.on_replicated: Callable[[], None] | None = None
        self.gate: Gate | None = None
        self.batches = 0
        self.items = 0
        self.fills = 0                  # of them, bytes of other sites, which no client waits for

    async def commit(self, items: Sequence[tuple[CommitItem, Principal]]) -> list[CommitResult]:
        """Apply each item on its own; results in order, durable when they come. Raises UnavailableError when too many
        wait. Safe to repeat with the same operation ids."""
        if not items:
            return []
        if self.gate is not None and self.gate.may_refuse:
            return await self._commit_gated(self.gate, items)
        return await self._queue(items)

    async def _commit_gated(
        self, gate: Gate, items: Sequence[tuple[CommitItem, Principal]]
    ) -> list[CommitResult]:
        await gate.settle()
        refused = [gate.refusal(item) for item, _ in items]
        taken = [pair for pair, no in zip(items, refused, strict=True) if no is None]
        done = iter(await self._queue(taken) if taken else [])
        return [no if no is not None else next(done) for no in refused]

    def submit(
        self, items: Sequence[tuple[CommitItem, Principal]], then: Callable[[list[CommitResult]], None]
    ) -> bool:
        """The same without a task: then(results) follows, must not raise, and is called whatever becomes of the asker.
        False: it takes commit(), nothing was done. Raises UnavailableError when too many wait."""
        if not items or (self.gate is not None and self.gate.may_refuse):
            return False
        self._enqueue(items, then)
        return True

    def _queue(self, items: Sequence[tuple[CommitItem, Principal]]) -> asyncio.Future[list[CommitResult]]:
        """The results; cancelled while it waits: what is not in a batch yet is not done."""
        done: asyncio.Future[list[CommitResult]] = asyncio.get_running_loop().create_future()
        self._enqueue(items, partial(_tell, done)).asker = done
        return done

    def _enqueue(
        self, items: Sequence[tuple[CommitItem, Principal]], then: Callable[[list[CommitResult]], None]
    ) -> _Message:
        if len(self._waiting) + len(items) > WAITING_MAX:
            raise UnavailableError("too many commits wait for the catalog")
        message = _Message(then, [_UNANSWERED] * len(items), len(items))
        self._waiting += [
            # Receipts are opened here, where the loop may be waiting for the disk, and not in the transaction.
            _Pending(item, who, message, place, _marks(item), self.reads.receipts_of(item))
            for place, (item, who) in enumerate(items)
        ]
        if self._running < self._database.batches_under_way_max:
            self._wake()
        return message

    def _wake(self) -> None:
        self._running += 1
        task = asyncio.get_running_loop().create_task(self._run(), name="commits")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        """Batch after batch until nobody waits who may go."""
        try:
            await self._run_batches()
        finally:
            self._running -= 1

    async def _run_batches(self) -> None:
        await asyncio.sleep(0)
        while batch := self._take():
            self.batches += 1
            self.items += len(batch)
            self.fills += sum([type(entry.item.mutation) is Fill for entry in batch])
            marks = set(chain.from_iterable([entry.marks for entry in batch]))
            self._busy |= marks
            try:
                await self._commit(batch)
            except Exception as error:      # every waiter must hear of it, or it waits for ever
                for entry in batch:
                    _settle(entry, _refusal(error))
            finally:
                self._busy -= marks
            # Those who were just answered may speak before the next batch closes.
            await asyncio.sleep(0)

    def _take(self) -> list[_Pending]:
        """The next batch: in arrival order, but no mark twice, and nothing that overtakes one with the same mark."""
        batch = self._take_all() if len(self._waiting) <= BATCH_MAX and not self._busy else None
        if batch is None:
            batch = self._take_some()
        batch.sort(key=_own_key)
        return batch

    def _take_all(self) -> list[_Pending] | None:
        """Everything that waits, the usual case; None when a mark is there twice."""
        batch = [entry for entry in self._waiting if not entry.message.is_given_up]
        marks = list(chain.from_iterable([entry.marks for entry in batch]))
        if len(set(marks)) < len(marks):
            return None
        self._waiting = []
        return batch

    def _take_some(self) -> list[_Pending]:
        taken: list[_Pending] = []
        left: list[_Pending] = []
        seen: set[object] = set(self._busy)
        for place, entry in enumerate(self._waiting):
            if len(taken) >= BATCH_MAX or place >= LOOKED_AT_MAX:
                left += self._waiting[place:]
                break
            if entry.message.is_given_up:
                continue
            (left if not seen.isdisjoint(entry.marks) else taken).append(entry)
            seen.update(entry.marks)
        self._waiting = left
        return taken

    async def _commit(self, batch: list[_Pending]) -> None:
        for checked in (False, True):
            try:
                return await self._attempt(batch, checked=checked)
            except StaleRows:
                continue
            except TierstoreError:
                raise
            except Exception:     # one item breaks the statement: find it by running them alone
                break
        for entry in batch:
            await self._alone(entry)
        return None

    async def _alone(self, entry: _Pending) -> None:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                return await self._attempt([entry], checked=True)
            except StaleRows as error:
                if attempt == ATTEMPTS_MAX:
                    _settle(entry, _refusal(error))
            except Exception as error:    # this item's own failure is its result
                _settle(entry, _refusal(error))
                return None
        return None

    async def _attempt(self, batch: list[_Pending], *, checked: bool) -> None:
        outcome = await self._database.batch(
            lambda session: self._transaction(session, batch, checked=checked), seconds=COMMIT_SECONDS
        )
        results, writes, floor = outcome
        if floor:
            self._versions.observe(floor)
        for entry, result in zip(batch, results, strict=True):
            _settle(entry, result)
        if writes.has_targets and self.on_replicated is not None:
            self.on_replicated()
        if self.listeners and writes.events:
            for listener in self.listeners:
                listener(writes.events)

    def _transaction(
        self, session: Session, batch: list[_Pending], *, checked: bool
    ) -> tuple[list[CommitResult], WriteSet, int]:
        session.guard()
        now_ms = self._clock.now_ms()
        opened = {entry.item.operation: entry.opened for entry in batch if entry.opened is not None}
        facts = self.reads.load(session, [entry.item for entry in batch], now_ms, checked=checked, opened=opened)
        is_full = self._database.is_full     # then only what frees space is let through (rule 19)
        writes = WriteSet(at_ms=now_ms, wants_events=bool(self.listeners))
        quotas.watch(writes, facts.buckets.values())
        results = []
        apply = self._mutator.apply
        for entry in batch:
            item = entry.item
            repeat = facts.results.get(item.operation)
            if repeat is not None:
                results.append(decode(repeat, CommitResult))
                continue
            try:
                if is_full and isinstance(item.mutation, BRINGS_CHUNKS):
                    raise _full()
                result = apply(session, facts, writes, item, entry.principal)
                writes.results.append((item.operation, encode(result)))
            except TierstoreError as error:
                # Perhaps a repeat of something that was answered before: then its first result counts.
                known = session.fetch(operations.RESULTS, [(item.operation,)])
                if known and known[0][1]:
                    results.append(decode(known[0][1], CommitResult))
                    continue
                result = CommitResult(code=error.code, detail=error.detail)
                if error.code in FINAL_REFUSALS and not known:
                    writes.results.append((item.operation, encode(result)))
            results.append(result)
        return results, writes, writes.flush(session)

    async def close(self) -> None:
        """Wait for the batches under way."""
        while self._tasks:
            await asyncio.wait(list(self._tasks), timeout=COMMIT_SECONDS)


def _marks(item: CommitItem) -> tuple[object, ...]:
    m = item.mutation
    if isinstance(m, BRINGS_CHUNKS):
        if len(m.chunks) == 1:
            return (m.bucket, m.key), item.operation, m.chunks[0].id[:UPLOAD_ID_BYTES]
        return ((m.bucket, m.key), item.operation, *{chunk.id[:UPLOAD_ID_BYTES] for chunk in m.chunks})
    return (*names_of(item), item.operation)


def _own_key(entry: _Pending) -> Any:
    return entry.marks[0]


def _full() -> TierstoreError:
    return CapacityError("the catalog's disk is full: delete objects or make room", code="catalog-full")


def _tell(asker: asyncio.Future[list[CommitResult]], results: list[CommitResult]) -> None:
    if not asker.done():
        asker.set_result(results)


def _settle(entry: _Pending, result: CommitResult) -> None:
    if entry.is_settled:
        return
    entry.is_settled = True
    message = entry.message
    message.results[entry.place] = result
    message.left -= 1
    if not message.left:
        message.then(message.results)


def _refusal(error: Exception) -> CommitResult:
    if isinstance(error, StaleRows):
        return CommitResult(code="unavailable", detail="other processes keep changing this key; try again")
    if not isinstance(error, TierstoreError):
        error = IntegrityError(f"the commit failed: {type(error).__name__}: {error}", code="internal")
    return CommitResult(code=error.code, detail=error.detail)
