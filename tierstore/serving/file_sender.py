"""Sending bytes of a file on a connection with sendfile, beside an event loop that has no sendfile.

Works on a dup of the transport's socket, because event loops refuse add_writer on a descriptor they own. Invariant:
it only runs while the transport's own write buffer is empty, else bytes would overtake each other; the connection
sees to that. The head goes out with MSG_MORE so that head and data share segments.

Cost: one dup per connection that ever sends a large answer; per turn one send and sendfile calls of up to TURN_BYTES,
so that one fast reader cannot hold the loop for more than about 0.3 ms.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Final

Buffer = bytes | bytearray | memoryview

TURN_BYTES: Final = 2 * 1024 * 1024
Done = Callable[[BaseException | None], None]


class FileSender:
    """One per connection, made at its first large answer. One send at a time."""

    __slots__ = ("_armed", "_count", "_done", "_fd", "_fileno", "_front", "_loop", "_offset", "_sock", "moved")

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
        self._loop = loop
        self._sock = socket.socket(fileno=os.dup(descriptor))
        self._sock.setblocking(False)
        self._fileno = self._sock.fileno()
        self._armed = False
        self._fd = -1
        self._offset = 0
        self._count = 0
        self._front: list[memoryview] = []
        self._done: Done | None = None
        self.moved = 0                      # bytes ever sent: the sweep sees progress by it

    @property
    def is_busy(self) -> bool:
        return self._done is not None

    def start(self, front: list[Buffer], fd: int, offset: int, count: int, done: Done) -> None:
        """Send the front buffers, then count bytes of fd from offset; then done(None) or done(error), once."""
        assert self._done is None
        self._front = [memoryview(piece).cast("B") for piece in front if len(piece)]
        self._fd, self._offset, self._count, self._done = fd, offset, count, done
        self._pump()

    def _pump(self) -> None:
        budget = TURN_BYTES
        try:
            while self._front:
                flags = socket.MSG_MORE if self._count else 0
                sent = self._sock.sendmsg(self._front, (), flags)
                self.moved += sent
                self._drop_front(sent)
            while self._count and budget > 0:
                sent = os.sendfile(self._fileno, self._fd, self._offset, min(self._count, budget))
                if sent == 0:
                    raise EOFError("the file is shorter than announced")
                self._offset += sent
                self._count -= sent
                self.moved += sent
                budget -= sent
        except BlockingIOError:
            pass
        except (OSError, EOFError) as error:
            self._finish(error)
            return
        if not self._count and not self._front:
            self._finish(None)
        elif not self._armed:
            self._armed = True
            self._loop.add_writer(self._fileno, self._pump)

    def _drop_front(self, sent: int) -> None:
        while sent:
            first = self._front[0]
            if sent < len(first):
                self._front[0] = first[sent:]
                return
            sent -= len(first)
            del self._front[0]

    def _finish(self, error: BaseException | None) -> None:
        if self._armed:
            self._armed = False
            self._loop.remove_writer(self._fileno)
        done, self._done, self._front = self._done, None, []
        if done is not None:
            done(error)

    def close(self) -> None:
        """The connection is gone: a send under way ends with an error."""
        if self._done is not None:
            self._finish(ConnectionResetError("the client went away"))
        self._sock.close()
