"""A device's threads: blocking calls and cold reads, each within the deadline of the disk.

Invariant: a call that hangs costs its thread and nothing else: nobody waits for it past io_deadline_seconds, and the
handle it reads from stays open until it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from objectd.store.openfiles import Handle
from objectd.store.reading import read_fully
from objectd.store.slow import Spindle
from tierstore.errors import UnavailableError
from tierstore.failpoints import hit

if TYPE_CHECKING:
    from objectd.store.disk import DiskDevice


class Threads:
    """One per device. Event loop only, but for what says it runs in a thread."""

    def __init__(self, device: DiskDevice, pool: ThreadPoolExecutor, loop: asyncio.AbstractEventLoop, *,
                 spindle: Spindle | None) -> None:
        self._device = device
        self._pool = pool
        self._loop = loop
        self._spindle = spindle
        self._deadline_seconds = device.settings.io_deadline_seconds
        self._read_point = f"store.read.{device.tier}"      # failpoint of all devices of a tier

    def submit(self, call: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Hand a blocking call to a thread. The caller sees to the deadline and the result."""
        return self._loop.run_in_executor(self._pool, call, *arguments)

    async def settled(self, future: asyncio.Future[Any]) -> Any:
        """The result of what was handed to a thread. The call itself is not interrupted: a disk that hangs fails the
        device (UnavailableError), the thread stays until the kernel lets go."""
        if future.done():
            return future.result()
        done, _ = await asyncio.wait({future}, timeout=self._deadline_seconds)
        if not done:
            future.add_done_callback(_look_at)
            self._device.fail("failed", f"no answer from the disk for {self._deadline_seconds:.0f} s")
            raise UnavailableError(f"{self._device.path} does not answer", code="device-failed")
        return future.result()

    async def read(self, where: object, offset: int, count: int, handle: Handle) -> bytes:
        """For open chunks: exactly count bytes of the handle's file, which stays open until the thread is done. A read
        that hangs raises UnavailableError; the device goes on, its writes may be well."""
        handle.acquire()
        future = self.submit(self._read_in_thread, where, offset, count, handle.fd)
        future.add_done_callback(lambda _: handle.release())
        done, _ = await asyncio.wait({future}, timeout=self._deadline_seconds)
        if not done:
            future.add_done_callback(_look_at)
            raise UnavailableError(f"{self._device.path} does not answer", code="device-failed")
        raw: bytes = future.result()
        return raw

    def _read_in_thread(self, where: object, offset: int, count: int, fd: int) -> bytes:
        hit(self._read_point)
        if self._spindle is not None:
            self._spindle.transfer(where, offset, count)
        return read_fully(fd, count, offset)

    def close(self) -> None:
        """No more calls; threads that hang are left to the kernel."""
        self._pool.shutdown(wait=False)


def _look_at(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()      # the caller was told already
