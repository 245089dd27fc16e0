"""Receives the rest of a large request body without the parser: a BufferedProtocol in place for its duration.

Invariant: get_buffer never offers more than the body still lacks, so the bytes of the next request stay in the
socket for the parser. All pieces come through one buffer per process: a piece is consumed before the next read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tierstore.serving.protocol import HotProtocol


class BodyReceiver(asyncio.BufferedProtocol):
    """One per connection, made at its first large body."""

    def __init__(self, owner: HotProtocol) -> None:
        self._owner = owner

    def get_buffer(self, sizehint: int) -> memoryview:
        exchange = self._owner.exchange
        view = self._owner.state.receive_view
        if exchange is None:                # the connection is being closed
            return view
        return view[: exchange.body_left] if exchange.body_left < len(view) else view

    def buffer_updated(self, nbytes: int) -> None:
        owner = self._owner
        exchange = owner.exchange
        if exchange is None:
            return
        owner.note_progress()
        exchange.take_view(owner.state.receive_view[:nbytes])
        if not exchange.body_left and owner.exchange is exchange:
            owner.swap_out()
            owner.body_complete(exchange)

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()
