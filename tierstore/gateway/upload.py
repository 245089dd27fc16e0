"""The body of a PUT on its way from the exchange into a PutWalk.

Owns the back-pressure between the two: when the walk has no room, the exchange's body is paused; run() waits for room
and lets it go on. Invariant: an error of the walk, of the client or of the body ends run() with that error; the walk
is finished or aborted by the caller.
"""

from __future__ import annotations

import asyncio

from tierstore.sdk.put import PutWalk
from tierstore.serving.exchange import Exchange


class UploadSink:
    """A BodySink. Use: exchange.receive(sink), then await sink.run()."""

    def __init__(self, exchange: Exchange, walk: PutWalk) -> None:
        self._exchange = exchange
        self._walk = walk
        self._is_full = False
        self._is_complete = False
        self._error: BaseException | None = None
        self._changed: asyncio.Future[None] | None = None

    # -- BodySink -------------------------------------------------------------------------------------------
    def data(self, piece: memoryview) -> None:
        if self._error is not None:
            return
        try:
            has_room = self._walk.push(piece)
        except Exception as error:  # whatever it is, run() raises it and the exchange answers with it, once
            self._error = error
            has_room = False
        if not has_room and not self._is_full:
            self._is_full = True
            self._exchange.pause_body()
            self._wake()

    def complete(self) -> None:
        self._is_complete = True
        self._wake()

    def aborted(self, error: BaseException) -> None:
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    # -- the pump -------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Return when the whole body is in the walk. Raises what went wrong."""
        while True:
            if self._error is not None:
                raise self._error
            if self._is_full:
                await self._walk.has_room()
                self._is_full = False
                self._exchange.resume_body()
                continue
            if self._is_complete:
                return
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed
