"""The body of an upload on its way from the exchange into a PutWalk.

Owns the back-pressure between the two: when the target has no room, the exchange's body is paused; run() waits for room
and lets it go on. Doors that look at the bytes on their way derive from UploadSink. Invariant: an error of the target,
of the client or of the body ends run() with that error; the walk is finished or aborted by the caller.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from tierstore.serving.exchange import Exchange


class Pushed(Protocol):
    """Where bytes go: PutWalk, or what collects a small body."""

    def push(self, piece: memoryview, /) -> bool: ...

    async def has_room(self) -> None: ...


class UploadSink:
    """A BodySink. Use: exchange.receive(sink), then await sink.run()."""

    def __init__(self, exchange: Exchange, target: Pushed) -> None:
        self._exchange = exchange
        self._target = target
        self._is_paused = False
        self._target_full = False
        self._is_complete = False
        self._error: BaseException | None = None
        self._changed: asyncio.Future[None] | None = None

    # -- what a door may do otherwise -----------------------------------------------------------------------
    def take(self, piece: memoryview) -> None:
        """The next bytes of the body, valid during the call. Raises what is wrong with them."""
        self.push(piece)

    @property
    def is_behind(self) -> bool:
        """Whether the body must wait for something else than the target; wake() when that changes."""
        return False

    def push(self, piece: memoryview) -> None:
        """Bytes for the target."""
        if not self._target.push(piece):
            self._target_full = True

    def wake(self) -> None:
        """Have run() look again."""
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    # -- BodySink -------------------------------------------------------------------------------------------
    def data(self, piece: memoryview) -> None:
        if self._error is not None:
            return
        try:
            self.take(piece)
        except Exception as error:  # whatever it is, run() raises it and the door answers with it, once
            self._error = error
        if (self._error is not None or self._target_full or self.is_behind) and not self._is_paused:
            self._is_paused = True
            self._exchange.pause_body()
            self.wake()

    def complete(self) -> None:
        self._is_complete = True
        self.wake()

    def aborted(self, error: BaseException) -> None:
        self._error = self._error or error
        self.wake()

    # -- the pump -------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Return when the whole body is in the target. Raises what went wrong."""
        while True:
            if self._error is not None:
                raise self._error
            if self._target_full:
                await self._target.has_room()
                self._target_full = False
                continue
            if self._is_paused and not self.is_behind:
                self._is_paused = False
                self._exchange.resume_body()
                continue
            if self._is_complete:
                return
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed
