"""The promoter's clock: a tick of tiering at the policy's pace, and the walk over the fast devices.

Both run only in the holder of the lease and are paused like any duty (`admin jobs pause --duty tiering`).
"""

from __future__ import annotations

from metadata.promoter.runner import Step
from metadata.services.tiering.pins import Pins
from metadata.services.tiering.read_soon import ReadSoon
from metadata.services.tiering.recorder import Recorder
from metadata.services.tiering.service import Tiering
from metadata.services.tiering.walk import ShelfWalk

WALK_SECONDS = 2.0
FLUSH_SECONDS = 5.0


class TieringDuty:
    """Ticks only once the walk has found what is resident: else it would promote what is there already."""

    name = "tiering"
    is_single = True

    def __init__(self, tiering: Tiering, walk: ShelfWalk, pins: Pins) -> None:
        self._tiering = tiering
        self._walk = walk
        self._pins = pins

    @property
    def interval_seconds(self) -> float:
        """The policy's tick; short while the first walk is not over."""
        return self._tiering.rules.tick_seconds if self._walk.is_complete else 0.5

    @interval_seconds.setter
    def interval_seconds(self, seconds: float) -> None:
        raise AttributeError("the tick is the policy's")

    async def step(self, epoch: int) -> Step:
        if not self._walk.is_complete:
            return Step(detail="waits for the first walk over the fast devices")
        plan = await self._tiering.tick(epoch, await self._pins.next_page())
        totals = self._tiering.totals
        return Step(
            done=len(plan.promotions) + len(plan.demotions), bytes_moved=plan.bytes_moved,
            detail=f"{totals.promotions} promoted, {totals.demotions} let go, {len(self._tiering.copies)} under way",
        )


class WalkDuty:
    """A page of a fast device per step; endless passes."""

    name = "shelves"
    interval_seconds = WALK_SECONDS
    is_single = True

    def __init__(self, walk: ShelfWalk) -> None:
        self._walk = walk

    async def step(self, epoch: int) -> Step:
        acted, more = await self._walk.step(epoch)
        exposed = sum(e.bytes for e in self._walk.exposed.values())
        return Step(done=acted, more=more, detail=f"{self._walk.passes} passes, {exposed} bytes landed")


class HistoryDuty:
    """Takes what was recorded into the rolling log and its files, and judges which buckets are read soon; in every
    process."""

    name = "history"
    interval_seconds = FLUSH_SECONDS
    is_single = False

    def __init__(self, recorder: Recorder, read_soon: ReadSoon) -> None:
        self._recorder = recorder
        self._read_soon = read_soon

    async def step(self, epoch: int) -> Step:
        done, soon = await self._recorder.flush(), self._read_soon.judge()
        recorded = f"{self._recorder.requests} requests recorded, {self._recorder.used_bytes} bytes"
        return Step(done=done, detail=f"{recorded}; {soon} buckets are read soon")
