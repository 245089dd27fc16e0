"""Lifecycle: walks the buckets that have rules and does what is due, a bounded page at a time.

Owns the walk and its place in memory (a restart begins a new round, which finds the same things due). Every deletion
is an ordinary commit, conditional on the version that was judged: versioning, object lock, replication and the feed
mean for it what they mean for a client, and an object that was overwritten in between stays.

Bounds: PAGE_ROWS rows read and as many commits per step; a step is one transaction of reads and batches of commits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

import msgspec

from metadata.catalog import buckets, lifecycle, schema
from metadata.catalog.buckets import Bucket
from metadata.catalog.database import Database
from metadata.catalog.lifecycle import VersionRow
from metadata.services.names.commit import CommitService
from metadata.services.names.s3_names import S3Names
from tierstore.auth.access import JUDGED, Principal
from tierstore.clock import Clock
from tierstore.errors import NotFound
from tierstore.names import operation_id
from tierstore.policy.lifecycle import (
    DOCUMENT,
    Due,
    LifecycleRule,
    current_due,
    marker_is_due,
    noncurrent_due,
    rules_of,
    upload_is_due,
)
from tierstore.wire import decode
from tierstore.wire.names import CommitItem, Condition, Delete, Mutation, ObjectMeta, SetMeta
from tierstore.wire.s3 import PARTS_BUCKET, UploadCall
from tierstore.wire.storage_class import STANDARD, STORAGE_CLASS, class_of

PAGE_ROWS: Final = 500
UPLOADS_MAX: Final = 100
COMMIT_MS: Final = 60_000
#: A part may come a while before its upload is seen to be gone; then the gateway removes it itself.
PART_AGE_MS: Final = 3_600_000
_ME: Final = Principal(access="", user="lifecycle", grants={"*": "admin"}, seen=JUDGED)
#: Above every version id.
_TOP: Final = (1 << 63) - 1


@dataclass(slots=True)
class _Walk:
    """A place in one bucket. newer_at_ms: creation of the next newer version of `key`; noncurrent: how many versions of
    it that are not the latest were passed; marker: a latest delete marker behind which nothing was seen yet."""

    bucket: Bucket
    rules: list[LifecycleRule]
    key: str = ""
    version: int = _TOP
    newer_at_ms: int = 0
    noncurrent: int = 0
    marker: VersionRow | None = None
    due: list[Mutation] = field(default_factory=list)


class Lifecycle:
    """One per process."""

    def __init__(
        self, database: Database, commits: CommitService, names: S3Names, clock: Clock, *, rng: random.Random,
        day_seconds: float,
    ) -> None:  # fmt: skip
        self._database = database
        self._commits = commits
        self._names = names
        self._clock = clock
        self._rng = rng
        self._day_seconds = day_seconds
        self._todo: list[str] = []
        self._walk: _Walk | None = None
        self._parts_after = ""
        self.buckets = 0          # of this round, with rules
        self.walked = 0

    @property
    def progress(self) -> str:
        """For people: where the round stands."""
        if self._walk is None:
            return f"{self.buckets} buckets with rules, all walked"
        return f"bucket {self.buckets - len(self._todo)} of {self.buckets}, {self.walked} versions so far"

    async def step(self) -> tuple[int, bool]:
        """(things done, more waits). A round that ended begins anew with the next call."""
        if self._walk is None:
            if not self._todo and not self._parts_after:
                await self._begin_round()
            if not await self._next_bucket():
                return await self._sweep_parts()
        walk = self._walk
        assert walk is not None, "_next_bucket has set it"
        rows = await self._database.read(
            lambda c: lifecycle.page(c, walk.bucket.id, key=walk.key, below=walk.version, limit=PAGE_ROWS)
        )
        now_ms = self._clock.now_ms()
        for row in rows:
            self._judge(walk, row, now_ms)
        self.walked += len(rows)
        if len(rows) < PAGE_ROWS:
            self._end_key(walk, now_ms)
            self._walk = None
        done = await self._commit(walk)
        return done, self._walk is not None or bool(self._todo)

    async def _begin_round(self) -> None:
        everything = await self._database.read(buckets.everything)
        self._todo = [bucket.name for bucket in everything if DOCUMENT in bucket.config]
        self.buckets, self.walked, self._parts_after = len(self._todo), 0, ""

    async def _next_bucket(self) -> bool:
        """Go to the next bucket that still has rules; gives up its old uploads on the way."""
        while self._todo:
            name = self._todo.pop(0)
            try:
                bucket = await self._database.read(lambda c, name=name: buckets.get(c, name))  # type: ignore[misc]
            except NotFound:
                continue
            if DOCUMENT in bucket.config:
                self._walk = _Walk(bucket, rules_of(bucket.config[DOCUMENT]))
                await self._abort_uploads(self._walk)
                return True
        return False

    # -- versions -------------------------------------------------------------------------------------------
    def _judge(self, walk: _Walk, row: VersionRow, now_ms: int) -> None:
        if row.key != walk.key:
            self._end_key(walk, now_ms)
            walk.noncurrent, walk.newer_at_ms = 0, 0
        elif walk.marker is not None:
            walk.marker = None      # something stands behind the marker
        if row.is_latest:
            if row.kind == schema.KIND_MARKER:
                walk.marker = row
            else:
                self._judge_current(walk, row, now_ms)
        else:
            self._judge_noncurrent(walk, row, now_ms)
            walk.noncurrent += 1
        walk.key, walk.version, walk.newer_at_ms = row.key, row.version, row.created_at_ms

    def _judge_current(self, walk: _Walk, row: VersionRow, now_ms: int) -> None:
        meta = decode(row.meta, ObjectMeta) if row.meta else ObjectMeta()
        due = current_due(
            walk.rules, row.key, row.size, meta.tags, row.created_at_ms, _class_of(meta), now_ms,
            day_seconds=self._day_seconds,
        )  # fmt: skip
        if due is None:
            return
        condition = Condition(version=row.version)
        if due.action == "expire":
            walk.due.append(Delete(walk.bucket.name, row.key, condition=condition))
        else:
            walk.due.append(_moved(walk, row, meta, due))

    def _judge_noncurrent(self, walk: _Walk, row: VersionRow, now_ms: int) -> None:
        meta = decode(row.meta, ObjectMeta) if row.meta else ObjectMeta()
        due = noncurrent_due(
            walk.rules, row.key, row.size, meta.tags, walk.newer_at_ms, walk.noncurrent, _class_of(meta), now_ms,
            day_seconds=self._day_seconds,
        )  # fmt: skip
        if due is None:
            return
        if due.action == "expire":
            walk.due.append(Delete(walk.bucket.name, row.key, version=row.version))
        elif row.kind != schema.KIND_MARKER:
            walk.due.append(_moved(walk, row, meta, due))

    def _end_key(self, walk: _Walk, now_ms: int) -> None:
        """The key is through: a marker behind which nothing stands may go."""
        row, walk.marker = walk.marker, None
        if row is not None and marker_is_due(
            walk.rules, row.key, row.created_at_ms, now_ms, day_seconds=self._day_seconds
        ):
            walk.due.append(Delete(walk.bucket.name, row.key, version=row.version))

    async def _commit(self, walk: _Walk) -> int:
        """Do what is due; one that was overtaken, or is locked, counts as nothing."""
        due, walk.due = walk.due, []
        return await self._apply(due)

    async def _apply(self, due: list[Mutation]) -> int:
        if not due:
            return 0
        now_ms = self._clock.now_ms()
        items = [
            (CommitItem(operation_id(now_ms, self._rng.getrandbits(80)), now_ms + COMMIT_MS, mutation), _ME)
            for mutation in due
        ]
        return sum(not result.code for result in await self._commits.commit(items))

    # -- uploads and parts ----------------------------------------------------------------------------------
    async def _abort_uploads(self, walk: _Walk) -> None:
        """Give up uploads that are older than a rule allows, at most UPLOADS_MAX a round."""
        if not any(rule.enabled and rule.abort_days >= 0 for rule in walk.rules):
            return
        now_ms, bucket = self._clock.now_ms(), walk.bucket
        rows = await self._database.read(
            lambda c: lifecycle.old_uploads(c, bucket.id, before_ms=now_ms, limit=UPLOADS_MAX)
        )
        for upload, key, created_at_ms in rows:
            if upload_is_due(walk.rules, key, created_at_ms, now_ms, day_seconds=self._day_seconds):
                await self._names.give_up(UploadCall("abort", bucket.name, key, bytes(upload)))

    async def _sweep_parts(self) -> tuple[int, bool]:
        """The end of a round: parts that came while their upload ended, and that nobody removed."""
        now_ms = self._clock.now_ms()
        try:
            bucket = await self._database.read(lambda c: buckets.get(c, PARTS_BUCKET))
        except NotFound:
            return 0, False
        rows = await self._database.read(
            lambda c: lifecycle.parts_page(c, bucket.id, after=self._parts_after, limit=PAGE_ROWS)
        )
        old = [(key, version) for key, version, at_ms in rows if at_ms < now_ms - PART_AGE_MS]
        uploads = sorted({bytes.fromhex(key.partition("/")[0]) for key, _ in old})
        alive = await self._database.read(lambda c: lifecycle.living_uploads(c, uploads)) if uploads else set()
        due: list[Mutation] = [
            Delete(PARTS_BUCKET, key, condition=Condition(version=version))
            for key, version in old if bytes.fromhex(key.partition("/")[0]) not in alive
        ]  # fmt: skip
        self._parts_after = rows[-1][0] if len(rows) == PAGE_ROWS else ""
        return await self._apply(due), bool(self._parts_after)


def _class_of(meta: ObjectMeta) -> str:
    return class_of(meta) or STANDARD


def _moved(walk: _Walk, row: VersionRow, meta: ObjectMeta, due: Due) -> SetMeta:
    extra = {**meta.extra, STORAGE_CLASS: due.storage_class.encode()}
    new = msgspec.structs.replace(meta, extra=extra)
    return SetMeta(walk.bucket.name, row.key, new, row.version, Condition(version=row.version))
