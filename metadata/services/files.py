"""Files of mounts: questions answered from one snapshot, changes many at a time in one transaction, the watch.

A change is load (buckets, receipts, what was applied already) -> decide and write (files_names, files_bodies) -> one
result per item; the rows go through the same session as commits do, so a file's creation shares its fsync with
whatever else waits. A batch that fails as a whole is redone one by one.

Bounds: BATCH_MAX changes of a transaction, WAITING_MAX that wait, WATCHERS_MAX that watch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from metadata.catalog import bodies, feed, inodes, leases, schema
from metadata.catalog.database import Database
from metadata.catalog.inodes import DIRECTORY, hidden
from metadata.catalog.objects import ObjectRow
from metadata.catalog.packed import unpack
from metadata.catalog.queries import Connection
from metadata.catalog.session import Session, StaleRows
from metadata.services import files_meta
from metadata.services.bucket_names import BucketNames
from metadata.services.commit import ATTEMPTS_MAX, COMMIT_SECONDS, CommitService
from metadata.services.files_bodies import FileBodies
from metadata.services.files_names import holder_of
from metadata.services.files_work import FileWork, check_path, directory_key, name_of
from metadata.services.mutations import Facts, check_operation
from metadata.services.object_lock import check_files
from metadata.services.replicas_view import ReplicaOrder
from metadata.services.view import ClusterView
from metadata.services.writes import Committed, WriteSet
from tierstore.auth.access import Principal, authorize
from tierstore.clock import Clock
from tierstore.errors import CapacityError, IntegrityError, NotFound, RequestError, TierstoreError, UnavailableError
from tierstore.wire import decode, encode
from tierstore.wire.files import (
    ORPHAN,
    Changed,
    Entry,
    Extents,
    FileChange,
    FileQuestion,
    FileResult,
    Link,
    Look,
    Make,
    ReadDirectory,
    Remove,
    Rename,
    SetAttributes,
    Space,
    Watch,
    Watched,
    WriteFile,
)
from tierstore.wire.names import LOOKUP_CHUNKS_MAX, ChunkView, CommitItem, ObjectMeta, Put, SetMeta

BATCH_MAX: Final = 128
WAITING_MAX: Final = 10_000
WATCHERS_MAX: Final = 1000
WATCH_SECONDS_MAX: Final = 30.0
#: How often a watch looks at the feed when no commit of this process woke it (other processes write too).
WATCH_POLL_SECONDS: Final = 0.5
#: What is committed within so short a time is told together: a mount that writes hears of its own changes too.
WATCH_GATHER_SECONDS: Final = 0.03
CHANGES_MAX: Final = 2000
#: A mount that is silent for so long has lost its open unlinked files.
MOUNT_LEASE_MS: Final = 120_000
MOUNT_LEASE: Final = "mount:"
SWEEP_MAX: Final = 500
#: A directory of the largest size that may be moved takes less.
MOVE_SECONDS: Final = 60.0


@dataclass(slots=True, eq=False)
class _Pending:
    item: FileChange
    principal: Principal
    done: asyncio.Future[FileResult]
    is_long: bool = False       # moves a directory: a transaction of its own, beside the loop


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
        self._order = order
        self._view = view
        self._clock = clock
        self._copies = copies
        self._waiting: list[_Pending] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = 0
        self._changed = asyncio.Event()
        self._watchers = 0
        self._mounts: dict[str, int] = {}
        commits.listeners.append(self._heard)

    # -- questions ------------------------------------------------------------------------------------------
    async def ask(self, item: FileQuestion, who: Principal) -> FileResult:
        """One answer; errors of the item are in it."""
        q = item.question
        try:
            bucket = await self._names.get(q.bucket)
            authorize(who, "read", q.bucket)
            if isinstance(q, Space):
                return self._space()
            check_path(q.path)

            def answer(connection: Connection) -> FileResult:
                if isinstance(q, Look):
                    return FileResult(entry=self._look(connection, bucket.id, bucket.created_at_ms, q.path))
                if isinstance(q, ReadDirectory):
                    return self._page(connection, bucket.id, bucket.created_at_ms, q)
                return self._extents(connection, bucket.id, q)

            return await self._database.read(answer)
        except TierstoreError as error:
            return FileResult(code=error.code, detail=error.detail)

    def _look(self, connection: Connection, bucket_id: int, created_at_ms: int, path: str) -> Entry:
        place = _place(bucket_id, path)
        if place[0] > 0:
            directory = inodes.latest(connection, hidden(bucket_id), directory_key(path))
            if directory is not None:
                return Entry(name_of(path), files_meta.attributes(directory), 0, directory.version)
            if not path or inodes.below(connection, bucket_id, f"{path}/", itself=True) or inodes.below(
                connection, hidden(bucket_id), directory_key(path), itself=True
            ):
                return Entry(name_of(path), files_meta.implied_directory(bucket_id, path, created_at_ms))
        row = inodes.latest(connection, *place) if path else None
        if row is None:
            raise NotFound(f"there is no file {path!r}", code="no-such-file")
        return files_meta.entry(row, name_of(path))

    def _page(self, connection: Connection, bucket_id: int, created_at_ms: int, q: ReadDirectory) -> FileResult:
        """Files and directories in key order; two streams, merged."""
        prefix = f"{q.path}/" if q.path else ""
        limit = max(1, min(q.limit, CHANGES_MAX))
        plain, more = inodes.children(connection, bucket_id, prefix, q.after, limit)
        explicit, more_explicit = inodes.children(
            connection, hidden(bucket_id), DIRECTORY + prefix, q.after, limit
        )
        if q.path and not plain and not explicit and not q.after:
            found = self._look(connection, bucket_id, created_at_ms, q.path)
            if not found.attributes.is_directory:
                raise RequestError(f"{q.path!r} is not a directory", code="not-directory")
        ends = [page[-1].name for page, is_cut in ((plain, more), (explicit, more_explicit)) if is_cut]
        end = min(ends) if ends else None
        found_rows = {child.name: child.row for child in plain if not child.name.endswith("/")}
        directories: dict[str, ObjectRow | None] = {c.name: None for c in plain if c.name.endswith("/")}
        directories.update((c.name, c.row) for c in explicit)
        entries = []
        last = None
        for name in sorted({*found_rows, *directories}):
            if end is not None and name > end:
                break
            last = name
            if not name.endswith("/"):
                row = found_rows[name]
                if f"{name}/" not in directories and row is not None:
                    entries.append(files_meta.entry(row, name))
                continue
            plain_name, held = name[:-1], directories[name]
            a = (
                files_meta.attributes(held) if held is not None
                else files_meta.implied_directory(bucket_id, prefix + plain_name, created_at_ms)
            )  # fmt: skip
            entries.append(Entry(plain_name, a, 0, held.version if held is not None else 0))
        return FileResult(entries=entries, next=last if end is not None else None)

    def _extents(self, connection: Connection, bucket_id: int, q: Extents) -> FileResult:
        row = inodes.latest(connection, *_place(bucket_id, q.path))
        if row is None:
            raise NotFound(f"there is no file {q.path!r}", code="no-such-file")
        if row.kind == schema.KIND_REMOTE and row.size:
            return FileResult(entry=files_meta.entry(row, name_of(q.path)), is_remote=True)
        end = min(row.size, q.first + q.length)
        views, more = self._views(connection, row, q.first, end) if q.first < end else ([], False)
        return FileResult(entry=files_meta.entry(row, name_of(q.path)), chunks=views, more=more)

    def _views(self, connection: Connection, row: ObjectRow, first: int, end: int) -> tuple[list[ChunkView], bool]:
        now_ms = self._clock.now_ms()
        views: list[ChunkView] = []
        if row.kind == schema.KIND_INLINE:
            start = 0
            for chunk in unpack(row.body or b""):
                if start < end and start + chunk.length > first:
                    views.append(self._order.chunk_view(
                        chunk, start=start, chunk_offset=0, length=chunk.length, now_ms=now_ms
                    ))  # fmt: skip
                start += chunk.length
            return views, False
        assert row.ref is not None, "a row of this kind names its body"
        found = [
            e for e in bodies.extents_from(connection, row.ref, first, LOOKUP_CHUNKS_MAX + 1)
            if e.start < end and e.start + e.length > first
        ]  # fmt: skip
        chunks = bodies.chunks_of(connection, (e.chunk_id for e in found))
        for e in found[:LOOKUP_CHUNKS_MAX]:
            held = chunks.get(bytes(e.chunk_id))
            if held is None:
                raise IntegrityError(f"chunk {e.chunk_id.hex()} of {row.key!r} has no row", code="catalog-corrupt")
            views.append(self._order.chunk_view(
                held, start=e.start, chunk_offset=e.chunk_offset, length=e.length, now_ms=now_ms
            ))  # fmt: skip
        return views, len(found) > LOOKUP_CHUNKS_MAX

    def _space(self) -> FileResult:
        """Room for bytes of files: what the slowest tier's devices have, divided by the copies."""
        devices = [d for d in self._view.devices.values() if d.state == "ok" and d.health in ("ok", "full")]
        copies = max(1, self._copies())
        total = sum(d.capacity_bytes for d in devices) // copies
        return FileResult(total_bytes=total, free_bytes=sum(d.free_bytes for d in devices) // copies)

    # -- changes --------------------------------------------------------------------------------------------
    async def change(self, items: Sequence[tuple[FileChange, Principal]]) -> list[FileResult]:
        """Apply each on its own; results in order, durable when they come. Safe to repeat with the same ids."""
        if len(self._waiting) + len(items) > WAITING_MAX:
            raise UnavailableError("too many changes of files wait for the catalog")
        loop = asyncio.get_running_loop()
        entries = [
            _Pending(item, who, loop.create_future(), await self._moves_a_directory(item)) for item, who in items
        ]
        self._waiting += entries
        if self._running < self._database.batches_under_way_max:
            self._running += 1
            task = loop.create_task(self._run(), name="files")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return list(await asyncio.gather(*(entry.done for entry in entries)))

    async def _moves_a_directory(self, item: FileChange) -> bool:
        """As it looks now: should it become one in between, only the loop waits longer."""
        m = item.mutation
        if not isinstance(m, Rename):
            return False
        try:
            bucket = await self._names.get(m.bucket)
            return await self._database.read(lambda c: _is_directory(c, bucket.id, m.path))
        except TierstoreError:
            return False        # the change itself is going to say what is wrong

    async def _run(self) -> None:
        try:
            await asyncio.sleep(0)
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
        if batch[0].is_long:
            run, seconds = self._database.work, MOVE_SECONDS
        else:
            run, seconds = self._database.batch, COMMIT_SECONDS
        results, events = await run(lambda session: self._transaction(session, batch), seconds=seconds)
        for entry, result in zip(batch, results, strict=True):
            _settle(entry, result)
        for listener in self._commits.listeners if events else ():
            listener(events)
        self._wake()

    def _transaction(self, session: Session, batch: list[_Pending]) -> tuple[list[FileResult], list[Committed]]:
        session.guard()
        now_ms = self._clock.now_ms()
        is_full = self._database.is_full     # then only what frees space is let through (rule 19)
        facts = self._commits.load(session, [_as_commit(entry.item) for entry in batch], now_ms, checked=True)
        results, events = [], []
        for entry in batch:
            repeat = facts.results.get(entry.item.operation)
            if repeat is not None:
                results.append(decode(repeat, FileResult))
                continue
            # The bytes of a directory's files are as hot after its move as before: nobody need hear of each.
            writes = WriteSet(at_ms=now_ms, wants_events=bool(self._commits.listeners) and not entry.is_long)
            session.connection.exec_driver_sql("SAVEPOINT change")
            try:
                if is_full and isinstance(entry.item.mutation, WriteFile | Make | Link):
                    raise CapacityError("the catalog's disk is full: delete files or make room", code="catalog-full")
                result = self._apply(session, facts, writes, entry.item, entry.principal)
            except TierstoreError as error:
                session.connection.exec_driver_sql("ROLLBACK TO SAVEPOINT change")
                results.append(FileResult(code=error.code, detail=error.detail))
                continue
            writes.results.append((entry.item.operation, encode(result)))
            writes.flush(session)
            events += writes.events
            results.append(result)
        return results, events

    def _apply(
        self, session: Session, facts: Facts, writes: WriteSet, item: FileChange, who: Principal
    ) -> FileResult:
        check_operation(item.operation, item.deadline_ms, facts.now_ms)
        m = item.mutation
        bucket = facts.bucket(m.bucket)
        authorize(who, "write", m.bucket)
        check_files(bucket)
        now_ns = facts.now_ms * 1_000_000 if isinstance(m, Make) else m.now_ns
        if isinstance(m, Make):
            now_ns = m.attributes.ctime_ns or now_ns
        w = FileWork(session, facts, writes, bucket, now_ns)
        if isinstance(m, WriteFile):
            return self._rules.write(w, m, facts.receipts[item.operation])
        if isinstance(m, Make):
            return self._rules.make(w, m)
        if isinstance(m, SetAttributes):
            return self._rules.set_attributes(w, m)
        if isinstance(m, Rename):
            authorize(who, "delete", m.bucket)
            return self._rules.rename(w, m)
        if isinstance(m, Remove):
            authorize(who, "delete", m.bucket)
            return self._rules.remove(w, m)
        assert isinstance(m, Link), "no other change exists"
        return self._rules.link(w, m)

    # -- watching -------------------------------------------------------------------------------------------
    def _heard(self, events: list[Committed]) -> None:
        self._wake()

    def _wake(self) -> None:
        """Whoever waits now has something to look at; whoever looks at this moment waits for the next one."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def watch(self, item: Watch, who: Principal) -> Watched:
        """What changed behind item.after. Raises UnavailableError when too many watch."""
        bucket = await self._names.get(item.bucket)
        authorize(who, "read", item.bucket)
        if item.mount:
            await self._renew_mount(item.mount)
        if self._watchers >= WATCHERS_MAX:
            raise UnavailableError("too many mounts watch", code="busy")
        self._watchers += 1
        try:
            until = self._clock.monotonic() + min(item.wait_seconds, WATCH_SECONDS_MAX)
            after = item.after
            while True:
                changed = self._changed
                seen = await self._database.read(lambda c, after=after: _changes(c, bucket.id, after))  # type: ignore[misc]
                left = until - self._clock.monotonic()
                if seen.changes or seen.resync or item.after < 0 or left <= 0:
                    return seen
                after = seen.sequence
                try:
                    async with asyncio.timeout(min(left, WATCH_POLL_SECONDS)):
                        await changed.wait()
                except TimeoutError:
                    continue
                await asyncio.sleep(WATCH_GATHER_SECONDS)
        finally:
            self._watchers -= 1

    async def _renew_mount(self, mount: str) -> None:
        """Prolong a mount's lease, at most every quarter of its length."""
        now_ms = self._clock.now_ms()
        if now_ms - self._mounts.get(mount, 0) < MOUNT_LEASE_MS // 4:
            return
        if len(self._mounts) >= WATCHERS_MAX:
            self._mounts.clear()
        self._mounts[mount] = now_ms

        def take(connection: Connection) -> None:
            leases.take(
                connection, MOUNT_LEASE + mount, holder=mount, url="", clock_ms=now_ms, lease_ms=MOUNT_LEASE_MS
            )

        await self._database.write(take)

    async def sweep(self) -> int:
        """Delete open unlinked files whose mount is gone; how many."""

        def look(connection: Connection) -> list[ObjectRow]:
            now_ms = leases.catalog_now_ms(connection, self._clock.now_ms())
            live = inodes.live_leases(connection, MOUNT_LEASE, now_ms=now_ms)
            found = inodes.orphans(connection, limit=SWEEP_MAX)
            return [
                row for row in found
                if holder_of(row) not in live and self._clock.now_ms() - row.created_at_ms > MOUNT_LEASE_MS
            ]

        lost = await self._database.read(look)

        def drop(session: Session) -> None:
            writes = WriteSet(at_ms=self._clock.now_ms())
            for row in lost:
                writes.discard(session, row)
                writes.deleted.append((row.bucket_id, row.key))
                writes.changes.append(feed.NewChange(schema.CHANGE_DELETE, row.bucket_id, row.key, row.version))
            writes.flush(session)

        if lost:
            await self._database.batch(drop)
        return len(lost)

    async def close(self) -> None:
        while self._tasks:
            await asyncio.wait(list(self._tasks), timeout=COMMIT_SECONDS)


def _place(bucket_id: int, path: str) -> tuple[int, str]:
    if path.startswith(ORPHAN):
        return hidden(bucket_id), inodes.ORPHAN + path[len(ORPHAN) :]
    return bucket_id, path


def _is_directory(connection: Connection, bucket_id: int, path: str) -> bool:
    return inodes.latest(connection, hidden(bucket_id), directory_key(path)) is not None or inodes.below(
        connection, bucket_id, f"{path}/", itself=True
    )


def _changes(connection: Connection, bucket_id: int, after: int) -> Watched:
    sequence, _ = feed.head(connection)
    if after < 0:
        return Watched(sequence)
    oldest = feed.oldest(connection)
    if after > sequence or (oldest and after < oldest - 1):
        return Watched(sequence, resync=True)
    found = feed.read(connection, after, CHANGES_MAX)
    changes: dict[tuple[str, bool], Changed] = {}
    kinds = (schema.CHANGE_PUT, schema.CHANGE_DELETE, schema.CHANGE_MARKER, schema.CHANGE_META)
    for c in found:
        if c.kind not in kinds:
            continue
        if c.bucket_id == bucket_id:
            gone = c.kind in (schema.CHANGE_DELETE, schema.CHANGE_MARKER)
            before = changes.get((c.key, False))
            is_meta = c.kind == schema.CHANGE_META and (before is None or before.attributes_only)
            changes[c.key, False] = Changed(c.key, c.version, gone=gone, attributes_only=is_meta)
        elif c.bucket_id == hidden(bucket_id) and c.key.startswith(DIRECTORY):
            path = c.key[len(DIRECTORY) :].rstrip("/")
            changes[path, True] = Changed(path, c.version, True)
    return Watched(found[-1].sequence if found else sequence, list(changes.values()))


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
