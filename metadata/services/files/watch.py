"""What mounts hear of each other's changes: a long poll on the feed, and the lease on their open unlinked files.

Bounds: WATCHERS_MAX that watch, CHANGES_MAX changes of one answer; a mount that missed more is told to look at
everything anew."""

from __future__ import annotations

import asyncio
from typing import Final

from metadata.catalog import feed, inodes, leases, schema
from metadata.catalog.database import Database
from metadata.catalog.inodes import DIRECTORY, hidden
from metadata.catalog.objects import ObjectRow
from metadata.catalog.queries import Connection
from metadata.catalog.session import Session
from metadata.services.files.names import holder_of
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
#: A mount that is silent for so long has lost its open unlinked files.
MOUNT_LEASE_MS: Final = 120_000
MOUNT_LEASE: Final = "mount:"
SWEEP_MAX: Final = 500


class FileWatch:
    """One per process. Event loop only."""

    def __init__(self, database: Database, commits: CommitService, *, names: BucketNames, clock: Clock) -> None:
        self._database = database
        self._names = names
        self._clock = clock
        self._changed = asyncio.Event()
        self._watchers = 0
        self._mounts: dict[str, int] = {}
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
            changes[c.key, c.version, is_meta] = Changed(c.key, c.version, gone=gone, attributes_only=is_meta)
        elif c.bucket_id == hidden(bucket_id) and c.key.startswith(DIRECTORY):
            path = c.key[len(DIRECTORY) :].rstrip("/")
            gone = c.kind == schema.CHANGE_DELETE
            changes[f"{path}/", c.version, gone] = Changed(path, c.version, True, gone)
    return Watched(found[-1].sequence if found else sequence, list(changes.values()))
