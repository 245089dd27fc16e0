"""Waiting for the kernel's next request with one registration in the event loop, for as long as the mount lives.

pyfuse3's own waiting (asyncio mode) registers the descriptor anew for each request and takes it out again: a dozen
system calls of which none is needed, as much CPU as a small request itself costs. Here the registration stays, and is
taken out only when nobody has waited for some turns of the loop although a request is there (all workers are busy): the
loop would turn without pause. A worker that answers at once waits again a turn or two later.

Invariant: wait() returns only when a read would not block; at most one task waits (pyfuse3 holds a lock meanwhile).
"""

from __future__ import annotations

import asyncio
import select
from typing import Final

import pyfuse3.asyncio

#: Turns of the loop that a request may lie there before the registration is taken out.
IDLE_TURNS_MAX: Final = 8


class Readable:
    """One per mount. Event loop only."""

    def __init__(self) -> None:
        self._fd = -1
        self._is_registered = False
        self._idle_turns = 0
        self._waiter: asyncio.Future[None] | None = None
        self._poll = select.poll()

    def install(self) -> None:
        """Have pyfuse3 wait here."""
        pyfuse3.asyncio.wait_readable = self.wait
        pyfuse3.asyncio.notify_closing = self.closing

    async def wait(self, fd: int) -> None:
        """Return when there is something to read. Raises pyfuse3.asyncio.ClosedResourceError after closing()."""
        loop = asyncio.get_running_loop()
        if fd != self._fd:
            self.forget()
            self._fd = fd
            self._poll.register(fd, select.POLLIN)
        while True:
            self._waiter = loop.create_future()
            self._idle_turns = 0
            if not self._is_registered:
                loop.add_reader(fd, self._ready)
                self._is_registered = True
            try:
                await self._waiter
            finally:
                self._waiter = None
            if self._poll.poll(0):      # what was seen may be read already: pyfuse3 takes EAGAIN for the end
                return

    def _ready(self) -> None:
        waiter = self._waiter
        if waiter is None:
            self._idle_turns += 1
            if self._idle_turns < IDLE_TURNS_MAX:
                return
            asyncio.get_running_loop().remove_reader(self._fd)
            self._is_registered = False
        elif not waiter.done():
            waiter.set_result(None)

    def closing(self, fd: int) -> None:
        """The descriptor is about to be closed: who waits for it is told."""
        if fd == self._fd and self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(pyfuse3.asyncio.ClosedResourceError())

    def forget(self) -> None:
        """Let go of the descriptor. Before it is closed: its number may soon be another file's."""
        if self._fd < 0:
            return
        if self._is_registered:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._is_registered = False
        self._poll.unregister(self._fd)
        self._fd = -1
