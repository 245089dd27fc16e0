"""Random walks over a device against a dict, with kills, power cuts and lost indexes in between."""

from __future__ import annotations

import asyncio
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from objectd.store.disk import DiskDevice
from tests.kit.waits import until
from tests.unit.store.place import Place, body, chunk, content, put, put_large
from tierstore.checksum import sums_of
from tierstore.errors import NotFound

NUMBERS = 24
OPERATIONS = ["put", "put", "put", "large", "trash", "trash", "restore", "empty", "quarantine", "compact", "flush",
              "pending", "abort", "restart", "kill", "kill-rebuild", "cut", "cut-rebuild"]
SIZES = [0, 1, 100, 4096, 20_000, 64 * 1024]


@dataclass
class Model:
    live: dict[int, bytes] = field(default_factory=dict)
    trash: dict[int, bytes] = field(default_factory=dict)


async def check(device: DiskDevice, model: Model) -> None:
    assert [c for c, _, _ in device.chunks()] == sorted(chunk(n) for n in model.live)
    for n in range(NUMBERS):
        if n in model.live:
            assert await content(device, chunk(n)) == model.live[n]
            found = device.open_chunk(chunk(n))
            if found is not None:
                assert await found.read(0, found.chunk_bytes) == model.live[n]
                found.close()
        else:
            try:
                await device.find(chunk(n))
            except NotFound:
                continue
            raise AssertionError(f"{n} should not be there")
    usage = device.usage()
    assert usage.chunks == len(model.live)
    assert (usage.trash_bytes > 0) == bool(model.trash)


async def act(device: DiskDevice, model: Model, operation: str, number: int, size: int) -> None:
    if operation in ("put", "large"):
        if number in model.live or number in model.trash:
            return
        data = body(number, size)
        await (put if operation == "put" else put_large)(device, chunk(number), data)
        model.live[number] = data
    elif operation == "trash":
        assert await device.trash(chunk(number)) is (number in model.live)
        if number in model.live:
            model.trash[number] = model.live.pop(number)
    elif operation == "restore" and number in model.trash:
        await device.restore(chunk(number))
        model.live[number] = model.trash.pop(number)
    elif operation == "empty":
        await device.empty_trash(1 << 60)
        model.trash.clear()
    elif operation == "quarantine":
        assert await device.quarantine(chunk(number), "test") is (number in model.live or number in model.trash)
        model.live.pop(number, None)
        model.trash.pop(number, None)
    elif operation == "compact":
        await device.compact(garbage_ratio=0.2, bytes_max=1 << 30)
    elif operation == "flush":
        await device.flush()
    elif operation == "abort" and number not in model.live and number not in model.trash:
        writer = device.begin(chunk(number), size + 1)
        writer.write(body(number, size))
        writer.abort()
        await until(lambda: not device.is_writing(chunk(number)))   # the file is gone before its id may come again


async def life(place: Place, model: Model, steps: list[tuple[str, int, int]], rng: random.Random,
               uuid: bytes | None) -> bytes:
    """Run steps until one ends this life; returns the device's uuid."""
    async with place.open(uuid=uuid) as device:
        await check(device, model)
        while steps:
            operation, number, size = steps.pop(0)
            pending = None
            if operation == "pending":      # a put that nobody waited for: after a cut it may be there or not
                if number in model.live or number in model.trash or not steps:
                    continue
                data = body(number, size)
                pending = device.submit_small(chunk(number), data, sums_of(data))
                if rng.random() < 0.5:
                    place.cut(device, rng)
                else:
                    place.kill()
                operation = "over"
            elif operation.startswith("cut"):
                place.cut(device, rng)
            elif operation.startswith("kill"):
                place.kill()
            if operation == "restart":
                return device.uuid
            if operation == "over" or operation.startswith(("cut", "kill")):
                if operation.endswith("rebuild"):
                    place.lose_index()
                if pending is not None:
                    await pending
                    steps.insert(0, ("settle", number, size))
                return device.uuid
            if operation == "settle":       # whole or not at all
                try:
                    model_data = await content(device, chunk(number))
                except NotFound:
                    continue
                assert model_data == body(number, size)
                model.live[number] = model_data
                continue
            await act(device, model, operation, number, size)
        await check(device, model)
        return device.uuid


async def walk(root: Path, steps: list[tuple[str, int, int]], seed: int) -> None:
    place, model, rng = Place(root), Model(), random.Random(seed)
    uuid: bytes | None = None
    remaining = list(steps)
    while True:
        if remaining and remaining[0][0] == "settle":
            _, number, size = remaining.pop(0)
            async with place.open(uuid=uuid) as device:
                try:
                    data = await content(device, chunk(number))
                    assert data == body(number, size)
                    model.live[number] = data
                except NotFound:
                    pass
        uuid = await life(place, model, remaining, rng, uuid)
        if not remaining:
            break
    async with place.open(uuid=uuid) as device:
        await check(device, model)


STEP = st.tuples(st.sampled_from(OPERATIONS), st.integers(0, NUMBERS - 1), st.sampled_from(SIZES))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEP, min_size=5, max_size=60), seed=st.integers(0, 1 << 32))
def test_a_device_does_what_a_dict_does_through_kills_and_power_cuts(steps: list[tuple[str, int, int]],
                                                                     seed: int) -> None:
    """Nothing acknowledged is lost, wrong or resurrected, with the index and without it."""
    with tempfile.TemporaryDirectory() as root:
        asyncio.run(walk(Path(root), steps, seed))
