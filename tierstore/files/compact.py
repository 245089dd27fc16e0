"""Fragmented files made whole again, in the background: windows that many small pieces hold are read and stored as one
chunk each.

A file that was written in small pieces is read in small pieces, each a request of its own. After its last close, and
now and then while it is written, each window of one chunk that more than PIECES_FEW extents hold is rewritten, on the
condition that the file is still the version that was read: whoever writes at the same time wins, and the window is
left as it is. Bytes and times stay; the version is a new one.

Bounds: one window in memory, taken from the budget of written bytes without waiting for it; QUEUE_MAX files that wait,
the rest is found at their next close; a pause after each window.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from tierstore.errors import ConflictError, NotFound, TierstoreError
from tierstore.files.reader import Reader
from tierstore.files.remote import FilesRemote
from tierstore.sdk import Store
from tierstore.sdk.budget import BufferBudget
from tierstore.telemetry.log import get_logger
from tierstore.units import KIB
from tierstore.wire.files import Entry, Extents, FileResult, Piece, WriteFile

log = get_logger("mount")

#: Files of fewer pieces, or of larger ones on average, are left alone.
PIECES_MIN: Final = 64
PIECE_BYTES_SMALL: Final = 256 * KIB
#: A file that is open is looked at when it has so many.
PIECES_MANY: Final = 1024
#: A window of so few pieces is good enough.
PIECES_FEW: Final = 8
QUEUE_MAX: Final = 1000
PAUSE_SECONDS: Final = 0.05


def is_fragmented(entry: Entry, *, is_open: bool) -> bool:
    """Whether its pieces are many and small."""
    least = PIECES_MANY if is_open else PIECES_MIN
    return entry.extents >= least and entry.size < entry.extents * PIECE_BYTES_SMALL


class Compactor:
    """One per mount. Event loop only. windows, window_bytes: rewritten so far; waiting: files."""

    def __init__(
        self, store: Store, bucket: str, remote: FilesRemote, *, budget: BufferBudget,
        change: Callable[[WriteFile], Awaitable[FileResult]], now_ns: Callable[[], int],
    ) -> None:  # fmt: skip
        self._store = store
        self._bucket = bucket
        self._remote = remote
        self._budget = budget
        self._change = change
        self._now_ns = now_ns
        self._queue: dict[int, str] = {}
        self._more = asyncio.Event()
        self.windows = 0
        self.window_bytes = 0

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def note(self, ino: int, path: str) -> None:
        """The file may be worth it."""
        if ino in self._queue or len(self._queue) < QUEUE_MAX:
            self._queue[ino] = path
            self._more.set()

    async def run(self) -> None:
        """For as long as the mount lives."""
        while True:
            await self._more.wait()
            while self._queue:
                ino, path = next(iter(self._queue.items()))
                del self._queue[ino]
                before = self.windows
                try:
                    await self._compact(ino, path)
                except (ConflictError, NotFound):
                    pass        # somebody writes it, or it has gone: its next close tells again
                except (TierstoreError, TimeoutError) as error:
                    log.warning("a file stays in pieces", path=path, error=str(error))
                if self.windows > before:
                    log.info("a file was put together", path=path, windows=self.windows - before)
            self._more.clear()

    async def _compact(self, ino: int, path: str) -> None:
        window = self._store.chunk_bytes(self._bucket, path)
        at, size = 0, 1
        while at < size:
            found = await self._remote.ask(Extents(self._bucket, path, at, window, is_own=True))
            if found.entry is None or found.is_remote:
                return
            size = found.entry.size
            pieces = sum(view.start < at + window for view in found.chunks)
            if pieces > PIECES_FEW:
                await self._rewrite(ino, path, found.entry, at, min(window, size - at))
                await asyncio.sleep(PAUSE_SECONDS)
            at += window

    async def _rewrite(self, ino: int, path: str, entry: Entry, at: int, length: int) -> None:
        while not self._budget.try_take(length):  # noqa: ASYNC110 - writers go first, and never wait for this
            await asyncio.sleep(PAUSE_SECONDS)
        try:
            data = await self._read(path, entry, at, length)
            if len(data) != length:
                return
            chunk = await self._store.store_chunk(self._bucket, path, memoryview(data))
            await self._change(WriteFile(
                self._bucket, path, ino, self._now_ns(), [Piece(at, length, 0)], [chunk], base_version=entry.version,
                keep_times=True,
            ))  # fmt: skip
            self.windows += 1
            self.window_bytes += length
        finally:
            self._budget.give_back(length)

    async def _read(self, path: str, entry: Entry, at: int, length: int) -> bytes:
        async def find(first: int, count: int) -> FileResult:
            return await self._remote.ask(Extents(self._bucket, path, first, count, is_own=True))

        reader = Reader(     # the window's memory was taken above
            self._store, self._bucket, lambda: path, find, None, version=entry.version, size=entry.size
        )
        try:
            return bytes(await reader.read(at, length))
        finally:
            await reader.close()
