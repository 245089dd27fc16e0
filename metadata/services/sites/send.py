"""Sending to one other site: names first, in order; then the bodies it is to have, the hottest first.

A worker per target and lease holder has three loops. hello: each HELLO_SECONDS, gives reachability, latency and a lag
that is true when nothing is written. names: the queue behind the mark `names_through`, in batches, several on their way
(never two with the same key: what is said of a key is heard in order); the mark moves, in order and in one transaction
with the rows that are finished (of all batches that have arrived by then), after the target has committed them. bodies:
a window of rows in the
order of services/sites/order, STREAMS parcels at a time; the target's gateway fetches each from ours and answers when
it is durable there; then its row goes. A row is deleted only after such an answer, so nothing is dropped silently; all
messages may be repeated, so a kill at any point costs only repeated work.

Costs at the source: a name is one row read and a share of a request; a body of up to 8 MiB is a share of a request
beside its own read through the gateway.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from metadata.catalog import backlog, schema, sites
from metadata.catalog.buckets import Bucket
from metadata.catalog.leases import require_epoch
from metadata.catalog.objects import ObjectRow
from metadata.catalog.queries import Connection
from metadata.catalog.sites import QueueRow
from metadata.services.cluster.duties import PROMOTER
from metadata.services.sites.bodies import NAMES_SECONDS, RETRY_SECONDS_MAX, RETRY_SECONDS_MIN, BodySender
from metadata.services.sites.hot import HOT_PER_HOUR
from metadata.services.sites.queue import chunk_ids, is_pushed, load_names, name_batch, record_of
from metadata.services.sites.target import Parts, Target, changed_rules, idle
from metadata.services.sites.wanted import ALL, HOT, bodies_rule, body_of, may_be_less
from tierstore.errors import TierstoreError
from tierstore.wire.sites import SEGMENT_BYTES, Hello, HelloAnswer, NameAnswer, NameRecord

log = logging.getLogger(__name__)

HELLO_SECONDS: Final = 2.0
NAMES_PER_BATCH: Final = 256
_Loaded = tuple[list[QueueRow], dict[tuple[int, str, int], ObjectRow], dict[int, Bucket]]
#: Batches of names on their way: over a far link a batch would else cost a round trip.
BATCHES_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class _Batch:
    """Names on their way. named: their buckets as they were read; keep: rows (by sequence) that still need their body;
    task: the target's answer."""

    rows: list[QueueRow]
    keys: set[tuple[int, str]]
    named: dict[int, Bucket] = field(default_factory=dict)
    records: list[tuple[QueueRow, NameRecord]] = field(default_factory=list)
    keep: set[int] = field(default_factory=set)
    task: asyncio.Task[NameAnswer] | None = None

    @property
    def has_arrived(self) -> bool:
        """Without waiting. What the target did not take is seen when its turn to be waited for has come."""
        task = self.task
        return task is None or (task.done() and not task.cancelled() and task.exception() is None)


class TargetWorker:
    """One target. `run` until cancelled; `kick` when something was queued."""

    def __init__(self, parts: Parts, name: str) -> None:
        self._parts = parts
        self.name = name
        self._target = Target(parts, name)
        self._sender = BodySender(self._target)
        self.status = self._target.status
        self._kicked = asyncio.Event()

    def kick(self) -> None:
        self._kicked.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for name, loop in (("hello", self._hello), ("names", self._names), ("bodies", self._sender.turn)):
                group.create_task(self._for_ever(loop), name=f"site {self.name} {name}")

    async def _for_ever(self, turn: Callable[[], Any]) -> None:
        while True:
            try:
                await turn()
            except TierstoreError as error:
                self._target.failed(error)
                await self._parts.clock.sleep(RETRY_SECONDS_MIN)
            except Exception as error:  # a target's loop must outlive any bug of its own: logged, shown, tried again
                log.exception("replication to %s failed", self.name)
                self.status.error = f"{type(error).__name__}: {error}"
                await self._parts.clock.sleep(RETRY_SECONDS_MAX)

    # -- hello ----------------------------------------------------------------------------------------------
    async def _hello(self) -> None:
        parts, status = self._parts, self.status
        row, me = self._target.row, parts.me()
        status.is_paused = self._target.is_paused
        now_ms = parts.clock.now_ms()
        standing = await parts.comparison.told(self.name)
        ago = now_ms - status.confirmed_at_ms if status.confirmed_at_ms else -1
        hello = Hello(me.name, now_ms, me.cluster_id, standing.epoch, standing.sequence, ago, standing.mark)
        began = parts.clock.monotonic()
        try:
            answer = await parts.courier.send(
                row, "/v1/sites/hello", hello, HelloAnswer, seconds=HELLO_SECONDS * 2
            )
        except TierstoreError as error:
            status.is_reachable, status.has_asked = False, True
            status.error = str(error)
        else:
            took_ms = (parts.clock.monotonic() - began) * 1000
            known = parts.known.latency_ms.get(self.name, took_ms)
            status.latency_ms = parts.known.latency_ms[self.name] = min(took_ms, known * 0.75 + took_ms * 0.25)
            others = [other.name for other in parts.known.rows]
            await parts.comparison.judge(answer, others)    # first: an old catalog's queue must not be sent
            if self._target.answered():
                self.kick()
            status.compare_left = await parts.comparison.go_on(row, me.name, others)
            status.is_held = parts.comparison.holds_back(self.name)
        await self.measure()
        if status.is_reachable and status.lacks_nothing:
            status.confirmed_at_ms = now_ms
        await parts.clock.sleep(HELLO_SECONDS)

    async def measure(self) -> None:
        """Bring the figures of the status up to now."""
        await self._target.measure()

    # -- names ----------------------------------------------------------------------------------------------
    async def _names(self) -> None:
        self._kicked.clear()
        try:
            await self._send_names()
        finally:
            self._target.names_since = math.inf
            self._target.has_bodies.set()
        await idle(self._kicked)

    async def _send_names(self) -> None:
        under_way: deque[_Batch] = deque()
        after, is_more = 0, True
        try:
            while True:
                if is_more and len(under_way) < BATCHES_MAX and self._target.may_send:
                    found = await self._load_names(after)
                    is_more = found is not None and len(found[0]) == NAMES_PER_BATCH
                    self._note_backlog(is_more)
                    if found is not None:
                        keys = {(row.bucket_id, row.key) for row in found[0]}
                        while any(not keys.isdisjoint(batch.keys) for batch in under_way):
                            await self._names_arrived(under_way)
                        under_way.append(self._begin_names(_Batch(found[0], keys, found[2]), found[1]))
                        after = found[0][-1].sequence
                elif under_way:
                    await self._names_arrived(under_way)
                else:
                    return
        finally:
            tasks = [batch.task for batch in under_way if batch.task is not None]
            for task in tasks:      # what they carried is sent again: the mark has not passed it
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _note_backlog(self, is_more: bool) -> None:
        """Bodies wait for names while there are more than a message takes, not for those that come one by one."""
        if not is_more:
            self._target.names_since = math.inf
            self._target.has_bodies.set()
        elif self._target.names_since == math.inf:
            self._target.names_since = self._parts.clock.monotonic()

    async def _load_names(self, after: int) -> _Loaded | None:
        rows, found, named = await self._parts.database.read(
            lambda c: load_names(c, self.name, NAMES_PER_BATCH, after)
        )
        return (rows, found, named) if rows else None

    def _begin_names(self, batch: _Batch, found: dict[tuple[int, str, int], ObjectRow]) -> _Batch:
        """On its way, when there is something to say."""
        named = batch.named
        now_ms = self._parts.clock.now_ms()
        for row in batch.rows:
            bucket = named.get(row.bucket_id)
            held = found.get((row.bucket_id, row.key, row.version))
            if bucket is not None and is_pushed(bucket, row, self.name, now_ms):
                batch.keep.add(row.sequence)    # its writer waits for a push, which brings both: no second message
                continue
            record = record_of(bucket, row, held) if bucket is not None else None
            if record is not None and bucket is not None:
                if self._is_body_wanted(bucket, row, held):
                    batch.keep.add(row.sequence)
                batch.records.append((row, record))
        if not batch.records:
            return batch
        message = name_batch(self._parts.me().name, [record for _, record in batch.records], named.values())
        sent = self._parts.courier.send(
            self._target.row, "/v1/sites/names", message, NameAnswer, seconds=NAMES_SECONDS
        )
        return replace(batch, task=asyncio.get_running_loop().create_task(sent, name=f"names to {self.name}"))

    async def _names_arrived(self, under_way: deque[_Batch]) -> None:
        """Once the target has the first batch: it leaves, with those behind it that have arrived by then; the mark
        moves, and rows that need no body go. Raises what the target answered."""
        first = under_way[0]
        if first.task is not None:
            await first.task
        arrived = [under_way.popleft()]
        while under_way and under_way[0].has_arrived:
            arrived.append(under_way.popleft())
        for batch in arrived:
            self._note_answer(batch)
        rows = [row for batch in arrived for row in batch.rows]
        finished = [row for batch in arrived for row in batch.rows if row.sequence not in batch.keep]
        # as the oldest batch has it: by it some rows were judged to need no body
        judged = {i: b for batch in reversed(arrived) for i, b in batch.named.items() if may_be_less(b, self.name)}

        def work(c: Connection) -> list[backlog.Gone]:
            require_epoch(c, PROMOTER, self._parts.epoch())
            sites.set_names_through(c, self.name, rows[-1].sequence)
            changed = changed_rules(c, judged) if judged else ()
            again = {row.sequence for row in finished if row.kind == schema.CHANGE_PUT and row.bucket_id in changed}
            return backlog.finish(c, self.name, [row.sequence for row in finished if row.sequence not in again])

        await self._target.count.change(work, named=[row.sequence for row in rows])
        self._target.has_bodies.set()

    def _note_answer(self, batch: _Batch) -> None:
        if batch.task is None:
            return
        parked = batch.task.result().parked
        for place in parked:
            batch.keep.add(batch.records[place][0].sequence)    # its body's fetch will ask for the name again
        self.status.parked += len(parked)
        self.status.names_sent += len(batch.records)

    def _is_body_wanted(self, bucket: Bucket, row: QueueRow, held: ObjectRow | None) -> bool:
        """Some of it, at least. Larger ones under a `hot` rule are left to the duty that finds what of them is hot."""
        if held is None or row.kind != schema.CHANGE_PUT or not held.size:
            return False
        rule = bodies_rule(bucket, row.key, self.name)
        if rule != HOT or self._parts.hot.knows(body_of(self.name, row)):
            return rule in (ALL, HOT)
        is_small = held.body is not None and held.size <= SEGMENT_BYTES
        return is_small and self._sender.order.heats([chunk_ids(held)])[0] >= HOT_PER_HOUR
