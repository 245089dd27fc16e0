"""Scrub: finds rotten copies that nobody reads.

Two ways. The pace: object servers read through their own devices all the time at `bytes_per_second` each, told with
every heartbeat answer; what they find bad they report. A pass: on an operator's word every copy in the reverse table
gets a verify job, with progress; it also finds copies that the catalog has and the device has not. It begins when the
reverse table knows all that was committed before the word was given.

Cost of a pass: one page of PAGE rows and one lock per chunk for its checksum; at most OPEN_PER_DEVICE open jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from metadata.catalog import feed, garbage, jobs, leases, placements, workload
from metadata.catalog.database import Database
from metadata.catalog.jobs import NewJob
from metadata.catalog.leases import Connection, require_epoch
from metadata.services.cluster.duties import PROMOTER
from metadata.services.cluster.membership import Cluster
from metadata.services.jobs.work import CLASS_SCRUB, ReplicaBook, VerifyWork, is_alive
from tierstore.errors import NotFound, RequestError

PAGE: Final = 128
OPEN_PER_DEVICE: Final = 256
PACE_DEFAULT: Final = 4 << 20
PACE_MAX: Final = 10 << 30
WHY: Final = "scrub"


class ScrubState(msgspec.Struct):
    """What is kept in the catalog. left: device -> last chunk id looked at (hex), of the pass under way; sequence: the
    feed's head when it was asked for."""

    bytes_per_second: int = PACE_DEFAULT
    started_at_ms: int = 0
    finished_at_ms: int = 0
    left: dict[str, str] = {}
    queued: int = 0
    queued_bytes: int = 0
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class ScrubStatus:
    """total and checked count copies; a pass that is over has checked == total."""

    bytes_per_second: int
    is_running: bool
    started_at_ms: int
    finished_at_ms: int
    checked: int
    total: int
    bytes_queued: int


def _of_pass(now: ScrubState, seen: ScrubState, went_on: ScrubState) -> ScrubState:
    """A pass goes on as far as the step that saw it has brought it. One that was begun since stands as it is: its
    checks are queued anew."""
    if (now.started_at_ms, now.sequence, now.left) != (seen.started_at_ms, seen.sequence, seen.left):
        return now
    return msgspec.structs.replace(went_on, bytes_per_second=now.bytes_per_second)


class Scrub:
    """The pace and the pass. The state is a setting, so a pass goes on after a restart or take-over."""

    SETTING: Final = "scrub"

    def __init__(
        self, database: Database, cluster: Cluster, book: ReplicaBook, *, pace_default: int = PACE_DEFAULT
    ) -> None:
        self._database = database
        self._cluster = cluster
        self._book = book
        self._pace_default = pace_default
        self._state = self._parsed("")

    @property
    def bytes_per_second(self) -> int:
        """For each device; goes out with heartbeat answers."""
        return self._state.bytes_per_second

    async def load(self) -> None:
        text = await self._database.read(lambda c: leases.setting(c, self.SETTING))
        self._state = self._parsed(text)

    async def _change(self, how: Callable[[ScrubState], ScrubState]) -> None:
        """Change what stands in the catalog then, under its lock: a step of a pass, an operator's pace and the next
        pass may come at the same time, also in two processes."""

        def change(text: str) -> str:
            return msgspec.json.encode(how(self._parsed(text))).decode()

        text = await self._database.write(lambda c: leases.change_setting(c, self.SETTING, change))
        self._state = self._parsed(text)

    def _parsed(self, text: str) -> ScrubState:
        return msgspec.json.decode(text, type=ScrubState) if text else ScrubState(self._pace_default)

    async def set_pace(self, bytes_per_second: int) -> None:
        """0 stops the object servers' own scrubbing. Raises RequestError."""
        if not 0 <= bytes_per_second <= PACE_MAX:
            raise RequestError(f"a scrub pace is 0 to {PACE_MAX} bytes per second", code="bad-pace")
        await self._change(lambda now: msgspec.structs.replace(now, bytes_per_second=bytes_per_second))

    async def start(self, devices: list[int] | None = None) -> list[int]:
        """Check every copy on these devices, once, from now on. Raises NotFound.

        None: on all. Who does not answer, as most do just after a start, is waited for, until it is back or the
        catalog counts on no copy of it any more."""
        view = self._cluster.view
        chosen = devices if devices is not None else [d.id for d in view.devices.values() if d.state != "removed"]
        unknown = [d for d in chosen if d not in view.devices]
        if unknown:
            raise NotFound(f"no device has the id {unknown[0]}", code="no-such-device")
        now_ms = self._cluster.now_ms()
        left = {str(device): "" for device in sorted(chosen)}
        sequence, _ = await self._database.read(feed.head)
        await self._change(
            lambda now: ScrubState(now.bytes_per_second, now_ms, 0 if left else now_ms, left, sequence=sequence)
        )
        return sorted(chosen)

    async def step(self, epoch: int) -> tuple[int, bool]:
        """Queue the next verify jobs of the pass; (queued, more at once)."""
        await self.load()
        state = self._state
        if state.left and await self._database.read(placements.mark) < state.sequence:
            return 0, False     # the copies of the newest objects are not in the reverse table yet
        left, queued, size, more = dict(state.left), 0, 0, False
        for device_text, after in state.left.items():
            device = int(device_text)
            if not is_alive(self._cluster.view, device):
                if not await self._has_more(device, bytes.fromhex(after)):
                    del left[device_text]    # its copies were made anew elsewhere
                continue    # else it waits for the device to come back
            made, last, is_end = await self._plan(device, bytes.fromhex(after), epoch)
            queued += len(made)
            size += sum(job.bytes for job in made)
            more = more or not is_end
            if is_end and not made and last is None:
                continue    # full queue
            if is_end:
                del left[device_text]
            elif last is not None:
                left[device_text] = last.hex()
        if left != state.left or queued:
            now_ms = self._cluster.now_ms() if not left and state.left else 0
            went_on = msgspec.structs.replace(
                state, finished_at_ms=now_ms, left=left, queued=state.queued + queued,
                queued_bytes=state.queued_bytes + size,
            )  # fmt: skip
            await self._change(lambda now: _of_pass(now, state, went_on))
        return queued, more and queued > 0

    async def _has_more(self, device: int, after: bytes) -> bool:
        return bool(
            await self._database.read(lambda c: garbage.placed_between(c, device, after=after, last=None, limit=1))
        )

    async def _plan(self, device: int, after: bytes, epoch: int) -> tuple[list[NewJob], bytes | None, bool]:
        """(jobs queued, last id looked at or None when the queue is full, whether the device is through)."""
        now_ms = self._cluster.now_ms()
        server = self._cluster.view.devices[device].server

        def work(c: Connection) -> tuple[list[NewJob], bytes | None, bool]:
            require_epoch(c, PROMOTER, epoch)
            if workload.open_on_device(c, device, ["verify"]) >= OPEN_PER_DEVICE:
                return [], None, True
            page = garbage.placed_between(c, device, after=after, last=None, limit=PAGE)
            made: list[NewJob] = []
            for chunk, _ in page:
                located = self._book.locate(c, device, chunk)
                if located is None:
                    continue
                size = located.chunk.chunk_bytes
                payload = msgspec.msgpack.encode(VerifyWork(size, located.chunk.crc32c))
                made.append(NewJob("verify", WHY, CLASS_SCRUB, server, device, chunk, payload, bytes=size))
            jobs.add(c, made, now_ms=now_ms)
            return made, page[-1][0] if page else after, len(page) < PAGE

        return await self._database.write(work)

    async def status(self) -> ScrubStatus:
        state = self._state
        waiting, ahead = await self._database.read(
            lambda c: (
                sum(n.jobs for n in workload.counts(c) if n.why == WHY and n.state != jobs.FAILED),
                sum(garbage.count_after(c, int(d), after=bytes.fromhex(last)) for d, last in state.left.items()),
            )
        )
        return ScrubStatus(
            bytes_per_second=state.bytes_per_second, is_running=bool(state.left) or waiting > 0,
            started_at_ms=state.started_at_ms, finished_at_ms=state.finished_at_ms,
            checked=max(0, state.queued - waiting), total=state.queued + ahead, bytes_queued=state.queued_bytes,
        )  # fmt: skip
