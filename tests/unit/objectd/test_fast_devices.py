"""Fast devices: nearly full ones on which copies come and go make room again, slow ones are noticed."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from pathlib import Path

from objectd.app import open_disks
from objectd.config import Chunks, DeviceConfig, ObjectdConfig, Upkeep
from objectd.slots import Slot
from objectd.work import speed
from objectd.work.upkeep import Upkeep as UpkeepDuty
from tests.kit.devices import MemoryDevice
from tierstore.checksum import sums_of
from tierstore.clock import SystemClock
from tierstore.errors import CapacityError
from tierstore.names import ChunkId

MIB = 1 << 20
SIZE = 30_000
EACH_SECOND = 10


def test_a_full_fast_device_takes_new_copies_as_long_as_old_ones_go(tmp_path: Path) -> None:
    """Else a small fast tier is full of dead records after an hour, and nothing is promoted any more."""

    async def run() -> None:
        config = ObjectdConfig(
            devices=(DeviceConfig(path=str(tmp_path / "ssd"), tier="ssd", capacity=8 * MIB),),
            chunks=Chunks(), upkeep=Upkeep(interval=10.0),
        )  # fmt: skip
        clock = SystemClock()
        [device] = await open_disks(config, clock)
        duty, slot, rng = UpkeepDuty(clock=clock, settings=config.upkeep), Slot(device), random.Random(1)
        held: deque[ChunkId] = deque()
        refused = 0
        try:
            for second in range(40):        # 12 MiB through 8 MiB, filled as the promoter does
                while (len(held) + EACH_SECOND) * SIZE > 0.84 * 8 * MIB:
                    gone = held.popleft()
                    await device.trash(gone)
                    await device.forget_trashed(gone)

                async def store(number: int) -> int:
                    data, chunk = rng.randbytes(SIZE), ChunkId(number.to_bytes(16, "big"))
                    try:
                        await device.put_small(chunk, data, sums_of(data))
                    except CapacityError:
                        return 1
                    held.append(chunk)
                    return 0

                first = second * EACH_SECOND
                refused += sum(await asyncio.gather(*(store(first + n) for n in range(EACH_SECOND))))
                await duty.round(slot)
            assert refused <= 8, f"{refused} of {40 * EACH_SECOND} found no room"
        finally:
            await device.close()

    asyncio.run(run())


def test_reads_that_readers_gave_up_show_that_a_device_is_slow() -> None:
    """Hedged readers leave a slow device before it answers: what it answers in time would make it look healthy."""
    device = MemoryDevice(tier="ssd", clock=SystemClock())
    slot = Slot(device, read_ms=0.1, read_bytes_per_second=2e9)
    for _ in range(40):
        slot.note_read(0.0001, 4096)
    healthy = slot.report().read_ms
    for _ in range(120):
        slot.note_given_up(0.05)
    assert healthy < 0.2 and slot.report().read_ms > 8.0
    shown = slot.report().read_ms
    for _ in range(100):
        slot.note_given_up(0.0)      # left at once for reasons of their own
    assert slot.report().read_ms >= shown * 0.9


def test_a_device_is_measured_in_a_bounded_time_and_nothing_stays_behind(tmp_path: Path) -> None:
    """Tiers are ordered by what devices can do; a start must not wait for it."""
    began = time.monotonic()
    found = speed.measure(str(tmp_path), "ssd", random.Random(1))
    assert time.monotonic() - began < 10 * speed.BUDGET_SECONDS + 5, "an fsync of 4 MiB on a busy disk included"
    assert 0 < found.read_ms < 1000 and found.read_bytes_per_second > 1e5
    assert list(tmp_path.iterdir()) == []
    assert speed.measure(str(tmp_path / "gone"), "hdd", random.Random(1)) == speed.TYPICAL["hdd"]
