"""Quotas of buckets: how many bytes and objects one may hold, and the refusal of what would pass it.

Owns the document `quota` of a bucket and the counting. The check is made in the commit, under the lock of the bucket's
row of usage: writers side by side cannot pass a quota together. What a mount makes larger is judged the same way
(services/files/work). What comes from another site is not refused; it is counted by the next count (RECOUNT_SECONDS).
Bytes are those of the objects, not of their copies.

Invariant: a bucket without a quota costs a commit nothing but one look into its documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from metadata.catalog import accounts, buckets, schema, usage
from metadata.catalog.buckets import Bucket
from metadata.catalog.database import Database
from metadata.catalog.objects import ObjectRow
from metadata.catalog.queries import Connection
from metadata.catalog.session import Session, lock_out_commits
from metadata.catalog.usage import Usage
from metadata.services.names.bucket_names import BucketNames
from metadata.services.names.rights import require_by_policy
from tierstore.auth.access import Principal, authorize
from tierstore.clock import Clock
from tierstore.errors import AccessDenied

if TYPE_CHECKING:
    from metadata.services.names.writes import WriteSet

#: Document of a bucket: {"bytes": N, "objects": N}; 0 is no bound.
DOCUMENT: Final = "quota"
#: What a bucket holds, by the name that routes use.
Used = Usage
#: How often what a bucket holds is counted anew.
RECOUNT_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class Quota:
    """0: no bound."""

    bytes: int = 0
    objects: int = 0


def quota_of(bucket: Bucket) -> Quota | None:
    text = bucket.config.get(DOCUMENT)
    return Quota(**json.loads(text)) if text else None


def watch(writes: WriteSet, found: Iterable[Bucket]) -> None:
    """Have the batch count what it adds to those of its buckets that have a quota."""
    for bucket in found:
        if DOCUMENT in bucket.config:
            writes.usage[bucket.id] = [0, 0]


def check(session: Session, writes: WriteSet, bucket: Bucket, size: int, old: ObjectRow | None) -> None:
    """Raises AccessDenied(code="quota-exceeded") when one more object of `size` bytes would pass the bucket's quota.
    old: the latest, which it replaces."""
    if DOCUMENT not in bucket.config:
        return
    added = writes.usage[bucket.id]
    goes = old is not None and old.kind != schema.KIND_MARKER and not bucket.versioning
    more = size - (old.size if goes and old is not None else 0)
    _refuse(session, bucket, added[0] + (0 if goes else 1), added[1] + more)


def check_growth(session: Session, bucket: Bucket, objects: int, held: int) -> None:
    """Raises AccessDenied(code="quota-exceeded") when so many more objects, or bytes, would pass the bucket's quota.
    What does not grow is not refused: also a bucket above its quota can be tidied up."""
    if objects > 0 or held > 0:
        _refuse(session, bucket, objects, held, is_growth=True)


def _refuse(session: Session, bucket: Bucket, more_objects: int, more: int, *, is_growth: bool = False) -> None:
    """is_growth: only what grows is compared."""
    quota, held = quota_of(bucket), usage.load(session.connection, bucket.id)
    if quota is None or held is None:
        return          # None held: the first count is under way
    objects, total = held.objects + more_objects, held.bytes + more
    if quota.bytes and total > quota.bytes and (more > 0 or not is_growth):
        raise AccessDenied(
            f"bucket {bucket.name!r} would hold {total} bytes, its quota is {quota.bytes}", code="quota-exceeded"
        )
    if quota.objects and objects > quota.objects and (more_objects > 0 or not is_growth):
        raise AccessDenied(
            f"bucket {bucket.name!r} would hold {objects} objects, its quota is {quota.objects}", code="quota-exceeded"
        )


class Quotas:
    """Sets, shows and counts. One per process."""

    def __init__(self, database: Database, names: BucketNames, clock: Clock) -> None:
        self._database = database
        self._names = names
        self._clock = clock

    async def get(self, name: str, who: Principal) -> tuple[Quota, Usage | None]:
        """The quota and what the bucket holds of it (None: no quota, so nothing is counted). Raises NotFound."""
        authorize(who, "list", name)
        bucket = await self._names.get(name)
        require_by_policy(who, "list", bucket)
        quota = quota_of(bucket)
        if quota is None:
            return Quota(), None
        return quota, await self._database.write(lambda c: usage.load(c, bucket.id))

    async def set(self, name: str, quota: Quota, who: Principal) -> Usage | None:
        """Set or, with two zeros, remove the quota; counts the bucket before it returns. A quota below what is there
        refuses what would be added, and removes nothing. For administrators of the cluster only."""
        authorize(who, "admin")
        bucket = await self._names.get(name)
        text = json.dumps({"bytes": quota.bytes, "objects": quota.objects}) if quota.bytes or quota.objects else None
        at_ms = self._clock.now_ms()

        def work(connection: Connection) -> None:
            lock_out_commits(connection)
            shown = text or "none"
            accounts.note(connection, at_ms=at_ms, who=who.access, action="bucket.quota", target=name, detail=shown)
            buckets.configure(connection, name, at_ms=at_ms, documents={DOCUMENT: text})
            (usage.forget if text is None else usage.begin_count)(connection, bucket.id)

        await self._database.write(work)
        self._names.forget()
        return None if text is None else await self._count(bucket)

    async def recount(self) -> int:
        """Count every bucket with a quota anew; how many were."""
        found = [bucket for bucket in await self._database.read(buckets.everything) if DOCUMENT in bucket.config]
        for bucket in found:
            await self._begin(bucket)
            await self._count(bucket)
        return len(found)

    async def _begin(self, bucket: Bucket) -> None:
        def work(connection: Connection) -> None:
            lock_out_commits(connection)
            usage.begin_count(connection, bucket.id)

        await self._database.write(work)

    async def _count(self, bucket: Bucket) -> Usage:
        """The scan is made beside the commits: what they add between its mark and its first row is counted twice,
        until the next count."""
        counted = await self._database.scan(lambda connection: usage.count(connection, bucket.id))
        await self._database.write(lambda connection: usage.end_count(connection, bucket.id, counted))
        return counted
