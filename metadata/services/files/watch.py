"""What mounts hear of each other's changes: a long poll on the feed, and the lease on their open unlinked files.

Bounds: WATCHERS_MAX that watch, CHANGES_MAX changes of one answer; a mount that missed more is told to look at
everything anew."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from metadata.catalog import feed, inodes, leases, schema
from metadata.catalog.database import Database
from metadata.catalog.inodes import DIRECTORY, hidden
from metadata.catalog.objects import LATEST_LOCKED, ObjectRow
from metadata.catalog.queries import Connection
from metadata.catalog.session import Session
from metadata.services.files.unlinked import HOLD_MS, MOUNT_LEASE_MS, holders_of
from metadata.services.names.bucket_names import BucketNames
from metadata.services.names.commit import CommitService
from metadata.services.names.rights import authorize_all_in
from metadata.services.names.writes import Committed, WriteSet
from tierstore.auth.access import Principal
from tierstore.clock import Clock
from tierstore.errors import UnavailableError
from tierstore.wire.files import Changed, Watch, Watched

WATCHERS_MAX: Final = 1000
WATCH_SECONDS_MAX: Final = 30.0
#: How often a watch looks at the feed when no commit of this process woke it (other processes write too).
WATCH_POLL_SECONDS: Final = 0.5
#: What is committed within so short a time is told together: a mount that writes hears of its own changes too.
WATCH_GATHER_SECONDS: Final = 0.03
CHANGES_MAX: Final = 2000
#: Files of one transaction of the sweep, and transactions of one round.
SWEEP_MAX: Final = 500
SWEEPS_MAX: Final = 100
#: Rows of mounts that are gone are kept for so long after their leases ended.
MOUNTS_KEPT_MS: Final = 3_600_000


class FileWatch:
    """One per process. Event loop only."""

    def __init__(self, database: Database, commits: CommitService, *, names: BucketNames, clock: Clock) -> None:
        self._database = database
        self._names = names
        self._clock = clock
        self._changed = asyncio.Event()
        self._watchers = 0
        self._mounts: dict[str, int] = {}
        #: Of this process's delegations; "": it gives none.
        self.place = ""
        commits.listeners.append(self._heard)

    def _heard(self, events: list[Committed]) -> None:
        self.wake()

    def wake(self) -> None:
        """Whoever waits now has something to look at; whoever looks at this moment waits for the next one."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def watch(self, item: Watch, who: Principal) -> Watched:
        """What changed behind item.after. Raises UnavailableError when too many watch."""
        bucket = await self._names.get(item.bucket)
        authorize_all_in(who, "read", bucket)
        if item.mount:
            await self._renew_mount(bucket.id, item.mount)
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
                    return msgspec.structs.replace(seen, place=self.place) if self.place else seen
                after = seen.sequence
                try:
                    async with asyncio.timeout(min(left, WATCH_POLL_SECONDS)):
                        await changed.wait()
                except TimeoutError:
                    continue
                await asyncio.sleep(WATCH_GATHER_SECONDS)
        finally:
            self._watchers -= 1

    async def _renew_mount(self, bucket_id: int, mount: str) -> None:
        """Prolong a mount's lease, at most every quarter of its length."""
        now_ms = self._clock.now_ms()
        name = leases.mount_lease(bucket_id, mount)
        if now_ms - self._mounts.get(name, 0) < MOUNT_LEASE_MS // 4:
            return
        if len(self._mounts) >= WATCHERS_MAX:
            self._mounts.clear()
        self._mounts[name] = now_ms

        def take(connection: Connection) -> None:
            leases.take(connection, name, holder=mount, url="", clock_ms=now_ms, lease_ms=MOUNT_LEASE_MS)

        try:
            await self._database.write(take)
        except BaseException:  # cancelled too: the next watch takes it, for without its lease a mount's files go
            self._mounts.pop(name, None)
            raise

    async def sweep(self) -> int:
        """Delete unlinked files that no live mount holds any more, or has held in time; how many."""

        def begin(connection: Connection) -> tuple[list[int], frozenset[str]]:
            now_ms = leases.catalog_now_ms(connection, self._clock.now_ms())
            return inodes.orphan_buckets(connection), leases.live_mounts(connection, 0, now_ms=now_ms)

        buckets, live = await self._database.read(begin)
        count = 0
        place = (buckets.pop(), "") if buckets else None
        for _ in range(SWEEPS_MAX):
            if place is None:
                break
            bucket_id, after = place
            found = await self._database.read(
                lambda c, b=bucket_id, a=after: inodes.orphans(c, b, a, limit=SWEEP_MAX)   # type: ignore[misc]
            )
            now_ms = self._clock.now_ms()
            lost = [row for row in found if now_ms - row.created_at_ms > HOLD_MS and not holders_of(row) & live]
            count += await self._drop(lost)
            if len(found) == SWEEP_MAX:
                place = bucket_id, found[-1].key
            else:
                place = (buckets.pop(), "") if buckets else None
        await self._database.write(
            lambda c: leases.forget_mounts(c, before_ms=self._clock.now_ms() - MOUNTS_KEPT_MS)
        )
        return count

    async def _drop(self, lost: list[ObjectRow]) -> int:
        """Those of them that nobody has changed, and so held, meanwhile; how many."""
        if not lost:
            return 0

        def drop(session: Session) -> int:
            writes = WriteSet(at_ms=self._clock.now_ms())
            now = session.fetch(LATEST_LOCKED, sorted((row.bucket_id, row.key) for row in lost))
            held = {(row.bucket_id, row.key): row for row in map(ObjectRow._make, now)}
            gone = [row for row in lost if _is_same(held.get((row.bucket_id, row.key)), row)]
            for row in gone:
                writes.discard(session, row)
                writes.deleted.append((row.bucket_id, row.key))
                writes.changes.append(feed.NewChange(schema.CHANGE_DELETE, row.bucket_id, row.key, row.version))
            writes.flush(session)
            return len(gone)

        return await self._database.batch(drop)


def _is_same(now: ObjectRow | None, row: ObjectRow) -> bool:
    """Whether nobody has written or held it since."""
    return now is not None and (now.version, now.meta) == (row.version, row.meta)


def _changes(connection: Connection, bucket_id: int, after: int) -> Watched:
    sequence, _ = feed.head(connection)
    if after < 0:
        return Watched(sequence)
    oldest = feed.oldest(connection)
    if after > sequence or (oldest and after < oldest - 1):
        return Watched(sequence, resync=True)
    found = feed.read(connection, after, CHANGES_MAX)
    changes: dict[tuple[str, int, bool], Changed] = {}
    kinds = (schema.CHANGE_PUT, schema.CHANGE_DELETE, schema.CHANGE_MARKER, schema.CHANGE_META)
    for c in found:
        if c.kind not in kinds:
            continue
        if c.bucket_id == bucket_id:
            gone = c.kind in (schema.CHANGE_DELETE, schema.CHANGE_MARKER)
            # Told one by one: a mount passes over the puts that it made itself, not over others' just before or after.
            is_meta = c.kind == schema.CHANGE_META
            # A removal has the version of the put, and stands where it was told itself: renames are read off the order.
            changes.pop((c.key, c.version, is_meta), None)
            changes[c.key, c.version, is_meta] = Changed(c.key, c.version, gone=gone, attributes_only=is_meta)
        elif c.bucket_id == hidden(bucket_id) and c.key.startswith(DIRECTORY):
            path = c.key[len(DIRECTORY) :].rstrip("/")
            gone = c.kind == schema.CHANGE_DELETE
            changes[f"{path}/", c.version, gone] = Changed(path, c.version, True, gone)
    return Watched(found[-1].sequence if found else sequence, list(changes.values()))
