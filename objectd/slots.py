"""The devices of this server under the ids the catalog gave them, with what is measured about each.

Owns the table id -> device and the list of bad copies not yet told to metadata. Invariants: a device without a grant
is not reachable by tickets; the bad list is bounded and holds a (chunk, device) at most once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from objectd.store.device import Device
from tierstore.errors import CapacityError, IntegrityError, NotFound
from tierstore.names import TIERS, ChunkId, DeviceId
from tierstore.wire.cluster import BadChunk, DeviceGrant, DeviceReport

BAD_CHUNKS_MAX: Final = 4096         # kept until metadata knows; what is beyond is found again by reads and scrub
BAD_CHUNKS_PER_HEARTBEAT: Final = 256
NOT_GRANTED: Final = DeviceId(0)
#: Following the median of a device's read times: factor of one step, reads before it is believed, what remains of it
#: with each heartbeat without a read.
OBSERVED_STEP: Final = 1.05
OBSERVATIONS_MIN: Final = 32
OBSERVED_DECAY: Final = 0.98
OBSERVED_MS_MIN: Final = 0.01


def why_bad(error: IntegrityError) -> str:
    """How BadChunk names what an IntegrityError found: the framing, or the data."""
    return "bad-footer" if error.code in ("bad-footer", "bad-header", "bad-sums") else "bad-block"


@dataclass(slots=True, eq=False)
class Slot:
    """One device in its place. id 0: not granted yet (it serves nothing)."""

    device: Device
    id: DeviceId = NOT_GRANTED
    grant: str = "ok"                      # ok | draining | removed, by the catalog
    #: Measured at start or declared; see objectd.work.speed.
    read_ms: float = 0.0
    read_bytes_per_second: float = 0.0
    #: Reads and writes that wait for the disk now, and the sum of that over samples since the last report.
    waiting: int = 0
    _waiting_sum: int = 0
    _waiting_samples: int = 0
    #: Median time of a small read that waited for the disk, as it goes now; 0: none was seen yet.
    observed_ms: float = 0.0
    _observations: int = 0
    _observed_before: int = 0
    #: Bytes that a copy found no room for; upkeep makes it from what is dead. 0: none waits.
    wanted_bytes: int = 0
    #: Small chunks stored so far; see routes.uploads.BACK_PRESSURE_EVERY.
    puts: int = 0
    #: None of the server's devices is slower. RAM is for these: what a faster device has is not waited for.
    is_slowest: bool = True
    #: Header lines of whole answers, by number of bytes of sums: formatting them costs more than finding them.
    lines: dict[int, bytes] = field(default_factory=dict)

    def answer_lines(self, sums_bytes: int) -> bytes:
        """The header lines of a chunk answer from this device. At most one entry per number of blocks is kept."""
        lines = self.lines.get(sums_bytes)
        if lines is None:
            lines = self.lines[sums_bytes] = (
                b"content-type: application/octet-stream\r\nx-tierstore-sums: %d\r\nx-tierstore-tier: %s\r\n"
                % (sums_bytes, self.device.tier.encode())
            )
        return lines

    def note_read(self, seconds: float, count: int) -> None:
        """A read that waited for the disk took so long (its share, when several waited). Follows the median by small
        steps: a device that became slow shows within some dozens of reads, a busy machine's hiccups do not."""
        took_ms = seconds * 1000
        if self.read_bytes_per_second > 0:
            took_ms -= count / self.read_bytes_per_second * 1000
        self._observations += 1
        if not self.observed_ms:
            self.observed_ms = max(self.read_ms, OBSERVED_MS_MIN)
        self.observed_ms *= OBSERVED_STEP if took_ms > self.observed_ms else 1 / OBSERVED_STEP

    def note_given_up(self, seconds: float) -> None:
        """A reader went away after so long, to another copy: the read would have taken at least that. Without these a
        slow device would only show the reads that were quick enough."""
        if seconds * 1000 > self.observed_ms:
            self.note_read(seconds, 0)

    def _read_ms_now(self) -> float:
        """What is told of the device's latency: measured or declared, more when its reads show more."""
        if self._observations == self._observed_before:
            # nobody reads it any more, perhaps because it is slow: let it be tried again by and by
            self.observed_ms *= OBSERVED_DECAY
        self._observed_before = self._observations
        return max(self.read_ms, self.observed_ms if self._observations >= OBSERVATIONS_MIN else 0.0)

    def want_room(self, count: int) -> None:
        """Look for room before a copy is read from anywhere. Raises CapacityError; then upkeep hurries to make it."""
        free = self.device.usage().free_bytes
        if free < count:
            self.wanted_bytes = max(self.wanted_bytes, count)
            raise CapacityError(f"{self.device.path} has {free} bytes left for new chunks, {count} are asked for")

    def sample_queue(self) -> None:
        """Take one sample of how many requests wait (the agent does, several times per heartbeat)."""
        self._waiting_sum += self.waiting
        self._waiting_samples += 1

    def report(self) -> DeviceReport:
        """The device as its heartbeat describes it; starts a new mean of `queue`."""
        device = self.device
        usage = device.usage()
        queue = self._waiting_sum / self._waiting_samples if self._waiting_samples else float(self.waiting)
        self._waiting_sum = self._waiting_samples = 0
        return DeviceReport(
            uuid=device.uuid, tier=device.tier, path=device.path, capacity_bytes=usage.capacity_bytes,
            # what may not be written counts as used, so that metadata's view of room is never rosier than ours
            used_bytes=max(usage.used_bytes, usage.capacity_bytes - usage.free_bytes),
            trash_bytes=usage.trash_bytes, garbage_bytes=usage.garbage_bytes, state=device.state,
            detail=device.detail, chunks=usage.chunks, seen_sequence=device.seen_sequence, read_ms=self._read_ms_now(),
            read_bytes_per_second=self.read_bytes_per_second, queue=queue, cluster_id=device.cluster_id,
        )  # fmt: skip


class Slots:
    """All devices of this server. Event loop only."""

    def __init__(self) -> None:
        self._all: list[Slot] = []
        #: The hot path reads this table itself; only `grant` changes it.
        self.by_id: dict[int, Slot] = {}
        self._bad: dict[tuple[ChunkId, DeviceId], BadChunk] = {}
        self.bad_dropped = 0

    def add(self, devices: Iterable[Device]) -> None:
        """Take in opened devices, at start; they serve once they are granted."""
        self._all += [Slot(device) for device in devices]
        slowest = max((TIERS.index(slot.device.tier) for slot in self._all), default=0)
        for slot in self._all:
            slot.is_slowest = TIERS.index(slot.device.tier) == slowest

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def grant(self, grants: Iterable[DeviceGrant]) -> None:
        """Take over the catalog's ids and states. A device the catalog removed keeps serving reads."""
        by_uuid = {grant.uuid: grant for grant in grants}
        table: dict[int, Slot] = {}
        for slot in self._all:
            granted = by_uuid.get(slot.device.uuid)
            if granted is not None:
                slot.id, slot.grant = DeviceId(granted.device), granted.state
                table[slot.id] = slot
        self.by_id = table

    def slot(self, device: DeviceId | int) -> Slot:
        """Raises NotFound(code="no-such-device")."""
        slot = self.by_id.get(device)
        if slot is None:
            raise NotFound(f"device {device} is not one of this object server's", code="no-such-device")
        return slot

    def note_bad(self, chunk: ChunkId, device: DeviceId, why: str) -> None:
        """Remember a missing or rotten copy for the next heartbeat. why: bad-block | missing | bad-footer."""
        if len(self._bad) < BAD_CHUNKS_MAX:
            self._bad[chunk, device] = BadChunk(chunk, device, why)
        else:
            self.bad_dropped += 1

    def bad_chunks(self) -> list[BadChunk]:
        """The oldest bad copies not yet acknowledged, as many as one heartbeat carries."""
        return [bad for bad, _ in zip(self._bad.values(), range(BAD_CHUNKS_PER_HEARTBEAT), strict=False)]

    def bad_acknowledged(self, told: Iterable[BadChunk]) -> None:
        """Metadata has these."""
        for bad in told:
            self._bad.pop((ChunkId(bad.chunk), DeviceId(bad.device)), None)
