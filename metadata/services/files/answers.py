"""Questions of mounts, each answered from one snapshot: what stands at a path, a page of a directory, where the bytes
of a range are, how much room there is. Rules only; SQL: catalog/inodes."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from metadata.catalog import bodies, inodes, schema, usage
from metadata.catalog.buckets import Bucket
from metadata.catalog.database import Database
from metadata.catalog.inodes import DIRECTORY, hidden
from metadata.catalog.objects import ObjectRow
from metadata.catalog.packed import unpack
from metadata.catalog.queries import Connection
from metadata.services.cluster.view import ClusterView
from metadata.services.files.delegations import Delegations
from metadata.services.files.names import check_clear
from metadata.services.files.numbers import NUMBERS_MAX, paths_of
from metadata.services.files.work import check_path, directory_key, name_of
from metadata.services.names import posix
from metadata.services.names.bucket_names import BucketNames
from metadata.services.names.quotas import quota_of
from metadata.services.names.replicas import ReplicaOrder
from metadata.services.names.rights import authorize_all_in
from tierstore.auth.access import Principal
from tierstore.clock import Clock
from tierstore.errors import IntegrityError, NotFound, RequestError, TierstoreError
from tierstore.wire.files import ORPHAN, Entry, Extents, FileQuestion, FileResult, Find, Look, ReadDirectory, Space
from tierstore.wire.names import LOOKUP_CHUNKS_MAX, ChunkView

#: Entries of one page.
ENTRIES_MAX = 2000


class FileAnswers:
    """One per process. Event loop only."""

    def __init__(
        self, database: Database, *, names: BucketNames, order: ReplicaOrder, view: ClusterView, clock: Clock,
        copies: Callable[[], int],
    ) -> None:  # fmt: skip
        self._database = database
        self._names = names
        self._order = order
        self._view = view
        self._clock = clock
        self._copies = copies
        #: What mounts may answer themselves; None: nothing.
        self.delegations: Delegations | None = None
        #: Told of each part of a file that is about to be read: bucket, path, size of the file, share of it that is
        #: asked for. Must not raise or block.
        self.on_read: Callable[[str, str, int, float], None] = lambda bucket, path, size, share: None

    async def ask(self, item: FileQuestion, who: Principal) -> FileResult:
        """One answer; errors of the item are in it."""
        q = item.question
        try:
            bucket = await self._names.get(q.bucket)
            authorize_all_in(who, "read", bucket)
            if isinstance(q, Space):
                return await self._space(bucket)
            if isinstance(q, Find):
                return await self._find(bucket, q)
            return self._told(q, await self._database.read(self._answer(bucket, q)))
        except TierstoreError as error:
            return FileResult(code=error.code, detail=error.detail)

    def ask_now(self, item: FileQuestion, who: Principal) -> FileResult | None:
        """The same at once; None when it takes ask()."""
        q = item.question
        if isinstance(q, Space | Find):
            return None
        try:
            bucket = self._names.now(q.bucket)
            if bucket is None:
                return None
            authorize_all_in(who, "read", bucket)
            found = self._database.read_now(self._answer(bucket, q))
            return self._told(q, found) if found is not None else None
        except TierstoreError as error:
            return FileResult(code=error.code, detail=error.detail)

    def _told(self, q: Look | ReadDirectory | Extents, found: FileResult) -> FileResult:
        """The answer; the history of accesses hears of it when it is where bytes to be read are."""
        if isinstance(q, Extents) and q.length > 1 and found.chunks and found.entry is not None and not q.is_own:
            last = found.chunks[-1]     # of a long file not all chunks of the range are told of
            asked = min(q.first + q.length, last.start + last.length) - q.first
            if asked > 0 and not q.path.startswith(ORPHAN):
                self.on_read(q.bucket, q.path, found.entry.size, min(asked / found.entry.size, 1.0))
        return found

    def _answer(self, bucket: Bucket, q: Look | ReadDirectory | Extents) -> Callable[[Connection], FileResult]:
        """What is to be read. Raises RequestError for what cannot be a path."""
        check_path(q.path)
        if isinstance(q, Look):
            return lambda c: FileResult(entry=self._look(c, bucket.id, bucket.created_at_ms, q.path))
        if isinstance(q, ReadDirectory):
            return lambda c: self._directory(c, bucket.id, bucket.created_at_ms, q)
        return lambda c: self._extents(c, bucket.id, q)

    async def _find(self, bucket: Bucket, q: Find) -> FileResult:
        """Beside the loop, for it is slow; answered with what stands there when it was found."""
        if len(q.numbers) > NUMBERS_MAX:
            raise RequestError(f"at most {NUMBERS_MAX} numbers are looked for at once", code="too-many-items")

        def find(connection: Connection) -> FileResult:
            paths = paths_of(connection, bucket.id, q.numbers)
            entries = []
            for number, path in paths.items():
                entry = self._look(connection, bucket.id, bucket.created_at_ms, path)
                if entry.attributes.ino == number:      # else a directory hides it
                    entries.append(msgspec.structs.replace(entry, name=path))
            return FileResult(entries=entries)

        return await self._database.scan(find)

    def _look(self, connection: Connection, bucket_id: int, created_at_ms: int, path: str) -> Entry:
        place = _place(bucket_id, path)
        if place[0] > 0 and (not path or inodes.is_directory(connection, bucket_id, path)):
            directory = inodes.latest(connection, hidden(bucket_id), directory_key(path))
            if directory is not None:
                return Entry(name_of(path), posix.attributes(directory), 0, directory.version)
            return Entry(name_of(path), posix.implied_directory(bucket_id, path, created_at_ms))
        row = inodes.latest(connection, *place) if path else None
        if row is None:
            raise NotFound(f"there is no file {path!r}", code="no-such-file")
        return posix.entry(row, name_of(path))

    def _directory(self, connection: Connection, bucket_id: int, created_at_ms: int, q: ReadDirectory) -> FileResult:
        """A page; with a delegation, if it is asked for, the page is all, and no change is under way that has been told
        (catalog/session.NameWitness) and cannot be seen yet."""
        page = self._page(connection, bucket_id, created_at_ms, q)
        is_whole = not q.after and page.next is None
        if not q.mount or not is_whole or self.delegations is None or not self._database.is_idle:
            return page
        directory = self._look(connection, bucket_id, created_at_ms, q.path)
        if not directory.attributes.is_directory:
            return page
        number = self.delegations.give(bucket_id, q.path, q.mount)
        return msgspec.structs.replace(page, entry=directory, delegation=number)

    def _page(self, connection: Connection, bucket_id: int, created_at_ms: int, q: ReadDirectory) -> FileResult:
        """Files and directories in key order; two streams, merged."""
        prefix = f"{q.path}/" if q.path else ""
        limit = max(1, min(q.limit, ENTRIES_MAX))
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
                    entries.append(posix.entry(row, name))
                continue
            plain_name, held = name[:-1], directories[name]
            a = (
                posix.attributes(held) if held is not None
                else posix.implied_directory(bucket_id, prefix + plain_name, created_at_ms)
            )  # fmt: skip
            entries.append(Entry(plain_name, a, 0, held.version if held is not None else 0))
        return FileResult(entries=entries, next=last if end is not None else None)

    def _extents(self, connection: Connection, bucket_id: int, q: Extents) -> FileResult:
        row = inodes.latest(connection, *_place(bucket_id, q.path))
        if row is None:
            raise NotFound(f"there is no file {q.path!r}", code="no-such-file")
        check_clear(row)
        if row.kind == schema.KIND_REMOTE and row.size:
            return FileResult(entry=posix.entry(row, name_of(q.path)), is_remote=True)
        end = min(row.size, q.first + q.length)
        views, more = self._views(connection, row, q.first, end) if q.first < end else ([], False)
        return FileResult(entry=posix.entry(row, name_of(q.path)), chunks=views, more=more)

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

    async def _space(self, bucket: Bucket) -> FileResult:
        """Room for bytes of files: what the slowest tier's devices have, divided by the copies; less where the bucket's
        quota is less."""
        devices = [d for d in self._view.devices.values() if d.state == "ok" and d.health in ("ok", "full")]
        copies = max(1, self._copies())
        total = sum(d.capacity_bytes for d in devices) // copies
        free = sum(d.free_bytes for d in devices) // copies
        quota = quota_of(bucket)
        if quota is not None and quota.bytes:
            held = await self._database.read(lambda connection: usage.look(connection, bucket.id))
            left = quota.bytes - (held.bytes if held is not None else 0)
            total, free = min(total, quota.bytes), max(0, min(free, left))
        return FileResult(total_bytes=total, free_bytes=free)


def _place(bucket_id: int, path: str) -> tuple[int, str]:
    if path.startswith(ORPHAN):
        return hidden(bucket_id), inodes.ORPHAN + path[len(ORPHAN) :]
    return bucket_id, path
