"""Sending to one other site: names first, in order; then the bodies it is to have, the hottest first.

A worker per target and lease holder has three loops. hello: each HELLO_SECONDS, gives reachability, latency and a lag
that is true when nothing is written. names: the queue behind the mark `names_through`, in batches; the mark moves, in
one transaction with the rows that are finished, after the target has committed them. bodies: a window of rows in the
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
from collections.abc import Callable
from typing import Any, Final

from metadata.catalog import schema, sites
from metadata.catalog.buckets import Bucket
from metadata.catalog.leases import require_epoch
from metadata.catalog.objects import ObjectRow
from metadata.catalog.queries import Connection
from metadata.catalog.sites import QueueRow
from metadata.services.cluster.duties import PROMOTER
from metadata.services.sites.apply import rules_of
from metadata.services.sites.bodies import NAMES_SECONDS, RETRY_SECONDS_MAX, RETRY_SECONDS_MIN, BodySender
from metadata.services.sites.hot import HOT_PER_HOUR
from metadata.services.sites.queue import chunk_ids, load_names, name_batch, record_of
from metadata.services.sites.target import Parts, Target, idle
from tierstore.errors import TierstoreError
from tierstore.wire.sites import Hello, HelloAnswer, NameAnswer

log = logging.getLogger(__name__)

HELLO_SECONDS: Final = 2.0
NAMES_PER_BATCH: Final = 256


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
        status.is_paused = bool(row.link.get("paused"))
        now_ms = parts.clock.now_ms()
        standing = await parts.comparison.standing()
        ago = now_ms - status.confirmed_at_ms if status.confirmed_at_ms else -1
        hello = Hello(me.name, now_ms, me.cluster_id, standing.epoch, standing.sequence, ago)
        began = parts.clock.monotonic()
        try:
            answer = await parts.courier.send(
                row, "/v1/sites/hello", hello, HelloAnswer, seconds=HELLO_SECONDS * 2
            )
        except TierstoreError as error:
            status.is_reachable = False
            status.error = str(error)
        else:
            if not status.is_reachable:
                status.is_reachable = True
                status.error = ""
                self.kick()
            took_ms = (parts.clock.monotonic() - began) * 1000
            known = parts.known.latency_ms.get(self.name, took_ms)
            status.latency_ms = parts.known.latency_ms[self.name] = min(took_ms, known * 0.75 + took_ms * 0.25)
            others = [other.name for other in parts.known.rows]
            await parts.comparison.judge(answer, others)
            status.compare_left = await parts.comparison.go_on(row, me.name, others)
        await self.measure()
        if status.is_reachable and not status.backlog.objects:
            status.confirmed_at_ms = now_ms
        await parts.clock.sleep(HELLO_SECONDS)

    async def measure(self) -> None:
        """Bring the figures of the status up to now."""
        self.status.backlog = await self._parts.database.scan(lambda c: sites.backlog(c, self.name))
        self.status.bytes_per_second = self._target.rate()

    # -- names ----------------------------------------------------------------------------------------------
    async def _names(self) -> None:
        self._kicked.clear()
        self._target.names_since = self._parts.clock.monotonic()
        try:
            while self._target.may_send and await self._names_batch():
                pass
        finally:
            self._target.names_since = math.inf
            self._target.has_bodies.set()
        await idle(self._kicked)

    async def _names_batch(self) -> bool:
        parts = self._parts
        rows, found, named = await parts.database.read(lambda c: load_names(c, self.name, NAMES_PER_BATCH))
        if not rows:
            return False
        records = []
        keep: dict[int, bool] = {}
        for row in rows:
            bucket = named.get(row.bucket_id)
            held = found.get((row.bucket_id, row.key, row.version))
            record = record_of(bucket, row, held) if bucket is not None else None
            if record is not None and bucket is not None:
                keep[row.sequence] = self._is_body_wanted(bucket, row, held)
                records.append((row, record))
        if records:
            batch = name_batch(parts.me().name, [record for _, record in records], named.values())
            answer = await parts.courier.send(
                self._target.row, "/v1/sites/names", batch, NameAnswer, seconds=NAMES_SECONDS
            )
            for place in answer.parked:
                keep[records[place][0].sequence] = True     # its body's fetch will say that the name is wanted again
            self.status.parked += len(answer.parked)
            self.status.names_sent += len(records)
        finished = [row.sequence for row in rows if not keep.get(row.sequence)]
        through = rows[-1].sequence

        def work(c: Connection) -> None:
            require_epoch(c, PROMOTER, parts.epoch())
            sites.names_sent(c, self.name, through=through, finished=finished)

        await parts.database.write(work)
        self._target.has_bodies.set()
        return len(rows) == NAMES_PER_BATCH

    def _is_body_wanted(self, bucket: Bucket, row: QueueRow, held: ObjectRow | None) -> bool:
        if held is None or row.kind != schema.CHANGE_PUT or not held.size or held.kind == schema.KIND_REMOTE:
            return False
        if self._parts.is_hot(self.name, row.bucket_id, row.key, row.version):
            return True
        for rule in rules_of(bucket):
            if rule["target"] == self.name and row.key.startswith(rule["prefix"]):
                if rule["bodies"] == "hot":
                    return held.body is not None and self._sender.order.heat(chunk_ids(held)) >= HOT_PER_HOUR
                return rule["bodies"] == "all"
        return True     # a backfill by hand
