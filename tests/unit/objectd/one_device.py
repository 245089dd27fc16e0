"""One device of one object server on a real directory, granted and with a ticket key: what the doors stand on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from objectd.slots import Slots
from objectd.standing import Standing
from objectd.store.disk import DiskDevice
from tests.unit.store import place
from tierstore.clock import SystemClock
from tierstore.names import DeviceId, ServerId
from tierstore.wire.cluster import DeviceGrant, TicketKey

SERVER, DEVICE, KEY = ServerId(1), DeviceId(4), b"k" * 32


@dataclass
class OneDevice:
    device: DiskDevice
    slots: Slots
    standing: Standing


@asynccontextmanager
async def one_device(root: Path) -> AsyncIterator[OneDevice]:
    """The device keeps chunks above 64 KiB in files of their own; tickets are signed with KEY, whose id is 1."""
    standing = Standing(SystemClock(), incarnation=1)
    standing.server = SERVER
    standing.set_keys([TicketKey(1, KEY)])
    async with place.Place(root).open() as device:
        slots = Slots()
        slots.add([device])
        slots.grant([DeviceGrant(device.uuid, DEVICE)])
        yield OneDevice(device, slots, standing)
