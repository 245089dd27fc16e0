"""Access logs of buckets: lines gathered in memory, delivered as objects now and then. The duty of this door.

Owns the lines that wait and the one task that delivers them. Best effort, as at AWS: a line is there within minutes
mostly; a gateway that is stopped delivers what it holds, one that is killed loses it. Requests never wait for it.

Bounds: WAITING_BYTES_MAX of lines, further ones are dropped and counted; a batch is due after `every_seconds` or at
BATCH_BYTES; one object is written at a time, BATCHES_PER_SECOND at most; a delivery that fails is tried again until
GIVE_UP_SECONDS. Pause: `[s3] access_log_paused`. Progress: waiting bytes, age of the oldest, lines by outcome.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from tierstore.clock import Clock
from tierstore.gateway.s3.log_rules import LogRule

_log = logging.getLogger("tierstore.gateway.access-log")
WAITING_BYTES_MAX: Final = 16 << 20
BATCH_BYTES: Final = 1 << 20
#: Of one delivery at shutdown, all together.
CLOSE_SECONDS: Final = 10.0
#: Of one delivery.
DELIVER_SECONDS: Final = 30.0
GIVE_UP_SECONDS: Final = 3600.0
RETRY_SECONDS: Final = 10.0
BATCHES_PER_SECOND: Final = 20
#: How often the task looks for what is due, at most.
LOOK_SECONDS: Final = 1.0
_DAY_MS: Final = 86_400_000


class Refused(Exception):
    """The target does not take logs: they are dropped, as at AWS."""


@dataclass(frozen=True, slots=True)
class BatchName:
    """Whose lines they are, and where they go. day: since 1970, of the requests."""

    source: str
    rule: LogRule
    day: int


@dataclass(slots=True)
class Batch:
    """Lines of one object. since and next_at: monotonic seconds."""

    name: BatchName
    since: float
    next_at: float
    lines: list[bytes] = field(default_factory=list)
    size: int = 0


Deliver = Callable[[Batch], Awaitable[None]]


class AccessLog:
    """One per gateway process. Event loop only. deliver: writes one batch durably, raises Refused when it may not."""

    def __init__(self, deliver: Deliver, clock: Clock, *, every_seconds: float, is_paused: bool) -> None:
        self._deliver = deliver
        self._clock = clock
        self._every = every_seconds
        self.is_paused = is_paused
        self._batches: dict[BatchName, Batch] = {}
        self._task: asyncio.Task[None] | None = None
        self.waiting_bytes = 0
        self.lines_total: dict[str, int] = {"delivered": 0, "dropped": 0, "refused": 0}

    def add(self, source: str, rule: LogRule, line: str, *, at_ms: int) -> None:
        """A line of a request that was answered. Never fails, never waits."""
        raw = line.encode("utf-8", "replace")
        if self.waiting_bytes + len(raw) > WAITING_BYTES_MAX:
            self.lines_total["dropped"] += 1
            return
        name = BatchName(source, rule, at_ms // _DAY_MS)
        batch = self._batches.get(name)
        if batch is None:
            now = self._clock.monotonic()
            batch = self._batches[name] = Batch(name, now, now + self._every)
        batch.lines.append(raw)
        batch.size += len(raw)
        self.waiting_bytes += len(raw)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="access-log")

    @property
    def oldest_seconds(self) -> float:
        """Age of the oldest line that waits."""
        now = self._clock.monotonic()
        return max((now - batch.since for batch in self._batches.values()), default=0.0)

    async def _run(self) -> None:
        """While there are lines; the first line of a quiet time begins it anew."""
        while self._batches:
            await self._clock.sleep(min(LOOK_SECONDS, self._every))
            now = self._clock.monotonic()
            due = [batch for batch in self._batches.values() if self._is_due(batch, now)]
            for batch in due if not self.is_paused else ():
                await self._send(batch)
                await self._clock.sleep(1 / BATCHES_PER_SECOND)
        self._task = None

    def _is_due(self, batch: Batch, now: float) -> bool:
        has_failed = batch.next_at > batch.since + self._every
        return now >= batch.next_at or (batch.size >= BATCH_BYTES and not has_failed)

    async def _send(self, batch: Batch) -> None:
        # lines that come meanwhile begin a batch of their own
        if self._batches.get(batch.name) is batch:
            del self._batches[batch.name]
        try:
            async with asyncio.timeout(DELIVER_SECONDS):
                await self._deliver(batch)
        except Refused as error:
            name = batch.name
            _log.warning("the access log of %s is not taken by %s: %s", name.source, name.rule.target, error)
            self._end(batch, "refused")
        except asyncio.CancelledError:
            self._keep(batch)
            raise
        except Exception as error:  # whatever it is: the lines wait, and the duty goes on for the other buckets
            self._again(batch, error)
        else:
            self._end(batch, "delivered")

    def _again(self, batch: Batch, error: Exception) -> None:
        now = self._clock.monotonic()
        if now - batch.since > GIVE_UP_SECONDS:
            _log.warning("the access log of %s could not be delivered: %s", batch.name.source, error)
            self._end(batch, "dropped")
            return
        batch.next_at = max(now, batch.since + self._every) + RETRY_SECONDS
        self._keep(batch)

    def _keep(self, batch: Batch) -> None:
        """Have a batch wait again, with what came meanwhile."""
        later = self._batches.get(batch.name)
        if later is not None:
            batch.lines += later.lines
            batch.size += later.size
        self._batches[batch.name] = batch

    def _end(self, batch: Batch, outcome: str) -> None:
        self.waiting_bytes -= batch.size
        self.lines_total[outcome] += len(batch.lines)

    async def close(self) -> None:
        """Deliver what waits, within CLOSE_SECONDS; what does not get through is dropped, counted and said."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                for batch in list(self._batches.values()) if not self.is_paused else ():
                    await self._send(batch)
        except TimeoutError:
            pass        # counted below, as whatever waits still
        lost = sum(len(batch.lines) for batch in self._batches.values())
        if lost:
            self.lines_total["dropped"] += lost
            _log.warning("%d lines of access logs were not delivered before the end", lost)
        self._batches.clear()
        self.waiting_bytes = 0
