"""Bringing one change to one other site past the queue, because its writer waits (services/sites/sync).

A body up to PUSH_BYTES_MAX travels with its name in one message (segments beside each other, PUSH_STREAMS at a time), a
larger one is fetched by the target. Whoever waits is told of each step that shows that the way is not dead: some bytes
that the link took, a segment that the target has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

from metadata.catalog import buckets, sites
from metadata.catalog.feed import NewChange
from metadata.catalog.objects import ObjectRow
from metadata.catalog.queries import Connection
from metadata.catalog.sites import QueueRow, SiteRow
from metadata.services.sites.ahead import Ahead
from metadata.services.sites.queue import name_batch, record_of
from metadata.services.sites.read import BodyReader
from metadata.services.sites.registry import Sites
from metadata.services.sites.target import Parts
from tierstore.checksum import crc_of
from tierstore.errors import TierstoreError, UnavailableError
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

#: Segments of one body on their way: on a slow link each of many would take too long to show that it moves.
PUSH_STREAMS: Final = 4


class Said(NamedTuple):
    """What another site is to hear of a change. held: the version as it was read with it, None: it is gone. ahead: its
    body, perhaps, read meanwhile."""

    bucket: buckets.Bucket
    record: NameRecord
    held: ObjectRow | None
    ahead: Ahead | None = None


def look(c: Connection, bucket: str, change: NewChange) -> Said:
    """All that a push needs of the catalog, in one read: a writer waits for it."""
    found = buckets.get(c, bucket)
    name = (found.id, change.key, change.version)
    held = sites.versions_of(c, [name]).get(name)
    row = QueueRow(0, 0, found.id, change.key, change.version, change.kind, change.size)
    record = record_of(found, row, held) or NameRecord(bucket, change.key, NAME_GONE, change.version)
    return Said(found, record, held)


class Pusher:
    """One per process. seconds: of each step; what ends a push that stands still is the caller's to see to."""

    def __init__(self, parts: Parts, members: Sites, body: BodyReader, *, seconds: float) -> None:
        self._parts = parts
        self._members = members
        self._body = body
        self._seconds = seconds

    async def push(self, target: str, said: Said, moved: Callable[[], None]) -> bool:
        """Durable at the target when it returns: whether with its whole body. Raises TierstoreError. moved: called at
        each sign of life."""
        row, record = self._members.known.get(target), said.record
        if record.kind == NAME_PUT and said.held is not None and 0 < record.size <= PUSH_BYTES_MAX:
            await self._segments(row, said, said.held, moved)
        else:
            await self._name_and_fetch(row, said, moved)
        return record.kind == NAME_PUT and said.held is not None

    async def _segments(self, row: SiteRow, said: Said, held: ObjectRow, moved: Callable[[], None]) -> None:
        """The name with its bytes: one round trip, segments beside each other."""
        left = iter(range(0, held.size, SEGMENT_BYTES))

        async def stream() -> None:
            for first in left:      # shared: each segment is taken once
                await self._segment(row, said, held, first, moved)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(PUSH_STREAMS, -(-held.size // SEGMENT_BYTES))):
                    group.create_task(stream())
        except* TierstoreError as errors:
            failed = [error for error in errors.exceptions if isinstance(error, TierstoreError)]
            raise UnavailableError(str(failed[0]), code=failed[0].code) from None

    async def _segment(
        self, row: SiteRow, said: Said, held: ObjectRow, first: int, moved: Callable[[], None]
    ) -> None:
        length = min(SEGMENT_BYTES, held.size - first)
        async with self._body.room(length):
            data = await said.ahead.body(held.body) if said.ahead is not None and length == held.size else None
            if data is None:
                data = await self._body.read(said.bucket.name, held, first=first, length=length)
            push = Push(self._parts.me().name, said.record, said.bucket.versioning, first, crc_of(data), data)
            answer = await self._members.courier.send(
                row, "/v1/sites/push", push, PushAnswer, seconds=self._seconds, moved=moved
            )
        if answer.code:
            raise UnavailableError(answer.detail, code=answer.code)
        moved()

    async def _name_and_fetch(self, row: SiteRow, said: Said, moved: Callable[[], None]) -> None:
        """A name without bytes, or with more than metadata should hold: the target fetches them."""
        courier, bucket, record = self._members.courier, said.bucket, said.record
        batch = name_batch(self._parts.me().name, [record], [bucket])
        answer = await courier.send(row, "/v1/sites/names", batch, NameAnswer, seconds=self._seconds)
        if answer.parked:
            raise UnavailableError("its clock is a day behind", code="name-parked")
        if record.kind != NAME_PUT:
            return
        for first in range(0, record.size, SEGMENT_BYTES):
            moved()
            length = min(SEGMENT_BYTES, record.size - first)
            batch_of_one = FetchBatch([FetchItem(bucket.name, record.key, record.version, first, length)])
            fetched = await courier.send(
                row, "/v1/sites/fetch", batch_of_one, FetchAnswer, seconds=self._seconds
            )
            if fetched.results[0].code:
                raise UnavailableError(fetched.results[0].detail, code=fetched.results[0].code)
