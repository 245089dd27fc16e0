"""The one way in which a background duty runs: its loop, throttle, pause, progress and single-runner lease.

A duty does bounded work in `step` and says whether more waits; everything else is here, so that each duty can be
paused, slowed, watched and tested the same way. The invariant: a duty that is `is_single` steps only while this
process holds the promoter's lease, and gets the lease's epoch, which its writes are conditional on (rule 15): a
holder that was asleep past its lease cannot write with an old epoch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from metadata.services.cluster.duties import DutySwitches, LeaseKeeper
from tierstore.clock import Clock
from tierstore.errors import TierstoreError

log = logging.getLogger(__name__)

#: A step that takes longer is cancelled and counted as failed; steps are bounded far below it.
STEP_SECONDS_MAX = 60.0
#: How soon a duty that is paused or without the lease looks whether that has changed.
LOOK_AGAIN_SECONDS = 2.0
#: After failures the wait doubles up to this.
BACKOFF_SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did. more: call again at once (the throttle still applies); bytes_moved feeds the throttle."""

    done: int = 0
    bytes_moved: int = 0
    more: bool = False
    detail: str = ""


class Duty(Protocol):
    name: str
    interval_seconds: float
    is_single: bool

    async def step(self, epoch: int) -> Step:
        """A bounded piece of the duty's work. Safe to cancel at any await and to repeat."""
        ...


@dataclass(slots=True)
class DutyStatus:
    """What operators see of a duty; also its counters since this process started."""

    name: str
    is_running: bool = False
    is_paused: bool = False
    is_waiting_for_lease: bool = False
    steps: int = 0
    done: int = 0
    bytes_moved: int = 0
    failures: int = 0
    last_step_at_ms: int = 0
    last_step_seconds: float = 0.0
    detail: str = ""
    error: str = ""


@dataclass(slots=True)
class DutyRunner:
    """Runs one duty until `run` is cancelled. `kick` makes it step now instead of at its next interval."""

    duty: Duty
    clock: Clock
    lease: LeaseKeeper
    switches: DutySwitches
    status: DutyStatus = field(init=False)
    _kicked: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _failures_in_a_row: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.status = DutyStatus(name=self.duty.name)

    def kick(self) -> None:
        self._kicked.set()

    async def run(self) -> None:
        self.status.is_running = True
        try:
            while True:
                wait_seconds = await self.turn()
                await self._wait(wait_seconds)
        finally:
            self.status.is_running = False

    async def turn(self) -> float:
        """One turn: a step if allowed; returns the seconds until the next. Tests call it directly."""
        status = self.status
        status.is_paused = self.switches.is_paused(self.duty.name)
        epoch = self.lease.epoch if self.duty.is_single else 0
        status.is_waiting_for_lease = self.duty.is_single and epoch == 0
        if status.is_paused or status.is_waiting_for_lease:
            return min(self.duty.interval_seconds, LOOK_AGAIN_SECONDS)
        began = self.clock.monotonic()
        try:
            async with asyncio.timeout(STEP_SECONDS_MAX):
                step = await self.duty.step(epoch)
        except TierstoreError as error:
            return self._failed(str(error))
        except TimeoutError:
            return self._failed(f"a step took more than {STEP_SECONDS_MAX:.0f} s and was cancelled")
        except Exception as error:  # a duty must outlive any bug of its own: it is logged, shown and tried again
            log.exception("duty %s failed", self.duty.name)
            return self._failed(f"{type(error).__name__}: {error}")
        self._failures_in_a_row = 0
        seconds = self.clock.monotonic() - began
        status.steps += 1
        status.done += step.done
        status.bytes_moved += step.bytes_moved
        status.last_step_at_ms = self.clock.now_ms()
        status.last_step_seconds = seconds
        status.detail = step.detail
        status.error = ""
        if not step.more:
            return self.duty.interval_seconds
        # The throttle of last resort: a duty with endless work takes at most half of this process' time.
        return seconds

    def _failed(self, why: str) -> float:
        self._failures_in_a_row += 1
        self.status.failures += 1
        self.status.error = why
        log.warning("duty %s: %s", self.duty.name, why)
        wait = self.duty.interval_seconds * 2.0 ** min(self._failures_in_a_row, 10)
        return float(min(wait, max(BACKOFF_SECONDS_MAX, self.duty.interval_seconds)))

    async def _wait(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        sleeping = asyncio.ensure_future(self.clock.sleep(seconds))
        kicked = asyncio.ensure_future(self._kicked.wait())
        try:
            await asyncio.wait({sleeping, kicked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiting in (sleeping, kicked):
                waiting.cancel()
            self._kicked.clear()
            # Not awaited one by one: who suppresses their end suppresses his own, when he is cancelled in that moment.
            await asyncio.wait({sleeping, kicked})


class Promoter:
    """All duties of this process and the task group that owns them."""

    def __init__(self, runners: Sequence[DutyRunner], lease: LeaseKeeper, clock: Clock) -> None:
        self.runners = {runner.duty.name: runner for runner in runners}
        self._lease = lease
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="promoter")

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._lease.run(), name="promoter lease")
            for runner in self.runners.values():
                group.create_task(runner.run(), name=f"duty {runner.duty.name}")

    async def stop(self) -> None:
        """Cancel every duty, wait for them, and give the lease back so that another process need not wait."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._lease.release()

    def kick(self, name: str) -> None:
        runner = self.runners.get(name)
        if runner is not None:
            runner.kick()

    def statuses(self) -> list[DutyStatus]:
        return [runner.status for runner in self.runners.values()]
