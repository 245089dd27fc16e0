"""Large chunks that are coming in: which there are, and the room set aside for them.

Invariants: a chunk is written by one writer at a time; its room is set aside from begin() until its file is whole, or
is gone; the index learns of a file only when it is whole and durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from objectd.store import files, records
from objectd.store.device import ChunkWriter
from objectd.store.index import pack, unpack
from objectd.store.openfiles import Handle
from objectd.store.repeat import RepeatedWriter
from tierstore.errors import UnavailableError
from tierstore.names import ChunkId

if TYPE_CHECKING:
    from objectd.store.disk import DiskDevice


class Uploads:
    """One per device. Event loop only."""

    def __init__(self, device: DiskDevice, loop: asyncio.AbstractEventLoop, *, direct_bytes_min: int) -> None:
        self._device = device
        self._loop = loop
        self._direct_bytes_min = direct_bytes_min
        self._seed = records.seed_of(device.uuid)
        self._writing: dict[bytes, int] = {}        # chunks under way -> bytes set aside
        self._going: set[asyncio.Task[None]] = set()    # files of writers that gave up, until they are unlinked

    def __contains__(self, chunk: bytes) -> bool:
        return chunk in self._writing

    @property
    def reserved_bytes(self) -> int:
        """What is set aside for all of them."""
        return sum(self._writing.values())

    def begin(self, chunk: ChunkId, chunk_bytes: int, *, name_hint: str, keep_warm: bool) -> ChunkWriter:
        """See device.Device."""
        device = self._device
        known = device.index.lookup(chunk)
        if known is not None:
            return RepeatedWriter(chunk, unpack(known), chunk_bytes, device.accept_repeat)
        if chunk in self._writing or device.is_appending(chunk):
            raise UnavailableError(f"chunk {chunk.hex()} is being written", code="chunk-busy")
        hint = name_hint.encode()[: device.settings.name_hint_bytes_max]
        stored = records.file_bytes(chunk_bytes, len(hint))
        device.admit(stored)
        try:
            writer = files.FileWriter(
                device, device.layout, chunk, chunk_bytes, hint, register=self, seed=self._seed,
                wall_ms=device.clock.now_ms(), behind_bytes=device.settings.write_behind_bytes, spindle=device.spindle,
                pending_bytes_max=device.settings.write_pending_bytes_max,
                direct_bytes_min=0 if keep_warm else self._direct_bytes_min)
        except FileExistsError:
            raise UnavailableError(f"chunk {chunk.hex()} is being written", code="chunk-busy") from None
        except OSError as error:
            raise device.write_failed(error) from error
        self._writing[chunk] = stored
        device.take_room(stored)
        return writer

    def finished(self, writer: files.FileWriter, handle: Handle, data_crc: int) -> None:
        """For FileWriter: the file is whole and durable."""
        self._writing.pop(writer.chunk, None)
        value = pack(0, 0, writer.chunk_bytes, writer.stored_bytes, data_crc, records.LIVE, writer.wall_ms)
        index = self._device.index
        index.apply(writer.chunk, value, index.lookup(writer.chunk))
        self._device.open_files.add(bytes(writer.chunk), handle)

    def given_up(self, writer: files.FileWriter, gone: Coroutine[Any, Any, None]) -> None:
        """For FileWriter: it was aborted or failed. Its room is free, and the chunk may come again, once gone ends."""
        task = self._loop.create_task(gone)
        self._going.add(task)
        task.add_done_callback(lambda _: self._file_has_gone(writer, task))

    def _file_has_gone(self, writer: files.FileWriter, task: asyncio.Task[None]) -> None:
        self._going.discard(task)
        if not task.cancelled() and task.exception() is None:   # else it counts as under way: no clean close
            stored = self._writing.pop(writer.chunk, 0)
            if self._device.state != "full":    # a full device looks at its space anew
                self._device.take_room(-stored)

    async def ended(self, deadline_seconds: float) -> bool:
        """Wait for the files of writers that gave up; else one without a footer stays, and a clean start does not look
        for any. Whether nothing is under way any more."""
        if self._going:
            _, stuck = await asyncio.wait(self._going, timeout=deadline_seconds)
            for task in stuck:
                task.cancel()
        return not self._writing
