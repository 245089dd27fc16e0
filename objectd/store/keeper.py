"""The index's way to the disk: fresh entries go to LMDB every second or so, or sooner when there are many.

Owns the task that does it and the ballast's refilling. Invariants: one flush at a time; a flush that failed leaves its
entries fresh; a failure is a state of the device, never raised.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import lmdb

from objectd.store.index import Flush
from objectd.store.removal import NO_SPACE
from tierstore.errors import UnavailableError

if TYPE_CHECKING:
    from objectd.store.disk import DiskDevice


class IndexKeeper:
    """One per device. Event loop only, but for what says it runs in a thread."""

    def __init__(self, device: DiskDevice) -> None:
        self._device = device
        self._flushed: asyncio.Future[None] | None = None
        self._tick: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tick = loop.create_task(self._keep_index(), name=f"index of {self._device.path}")

    async def stop(self) -> None:
        """End the task; a flush under way is waited for."""
        if self._tick is not None:
            self._tick.cancel()
            await asyncio.wait({self._tick})
        if self._flushed is not None:
            await asyncio.wait({self._flushed})

    def wake(self) -> None:
        """Many entries are fresh: do not wait for the time."""
        self._wake.set()

    async def _keep_index(self) -> None:
        """Flush the index every index_flush_seconds, or sooner when half its bound is reached; look at the space."""
        while True:
            try:
                await asyncio.wait_for(self._wake.wait(), self._device.settings.index_flush_seconds)
            except TimeoutError:
                pass
            self._wake.clear()
            if self._device.state in ("ok", "full"):
                await self.flush()
                self._device.refresh_room()
                if self._device.ballast_is_out and self._device.room_bytes > self._device.settings.ballast_bytes:
                    await self._refill_ballast()

    async def _refill_ballast(self) -> None:
        self._device.ballast_is_out = False
        try:
            await self._device.run(self._device.layout.fill_ballast, self._device.settings.ballast_bytes)
        except OSError as error:
            self._device.write_failed(error)
        except UnavailableError:
            pass    # the disk hangs; run() has failed the device

    async def flush(self) -> None:
        """Write all fresh entries; returns when they are in LMDB. A failure is a state of the device, not raised."""
        while self._flushed is not None:
            await asyncio.wait({self._flushed})
        flush = self._device.index.take()
        if flush is None:
            return
        self._flushed = asyncio.get_running_loop().create_future()
        try:
            # not bounded: LMDB must not be left in a transaction; puts have the bound
            await asyncio.wait({future := self._device.submit(self._write_index, flush)})
            try:
                future.result()
                self._device.index.done()
            except (OSError, lmdb.Error) as error:
                self._device.index.failed(flush)
                self._device.write_failed(_as_os_error(error))
        finally:
            done, self._flushed = self._flushed, None
            done.set_result(None)

    def _write_index(self, flush: Flush) -> None:
        try:
            self._device.index.write(flush)
        except (OSError, lmdb.Error) as error:
            if _as_os_error(error).errno not in NO_SPACE or not self._device.release_ballast():
                raise
            self._device.index.write(flush)    # a transaction that was given up left nothing behind


def _as_os_error(error: Exception) -> OSError:
    if isinstance(error, OSError):
        return error
    text = str(error)
    return OSError(errno.ENOSPC if "No space" in text or isinstance(error, lmdb.MapFullError) else errno.EIO, text)
