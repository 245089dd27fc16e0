"""Seeing that a delegation of metadata still holds, where metadata runs on the same machine (wire/delegations).

Owns the mapped page and the connection over which it came. Invariant: `holds` is true only if, at some moment during
the call, the delegation stood in the page and the process that keeps the page true lived: the word is read first, then
the connection is looked at, which the kernel ends with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import select
import socket
from typing import Final, Self

from tierstore.transport.machine import connected
from tierstore.wire.delegations import GREETING, PAGE_BYTES, slot_of, socket_name

#: For the descriptor; who is slower than that is not asked again before the process changes.
GREETING_SECONDS: Final = 2.0


class DelegationPage:
    """One per process of metadata that is on this machine. close() it."""

    def __init__(self, connection: socket.socket, fd: int) -> None:
        """Takes the connection over, not the descriptor. Raises OSError for what is no page."""
        if os.fstat(fd).st_size != PAGE_BYTES:
            raise OSError("the page of delegations has another size")
        self._words = memoryview(mmap.mmap(fd, PAGE_BYTES, prot=mmap.PROT_READ)).cast("Q")
        self._connection = connection
        self._end = select.poll()
        self._end.register(connection, select.POLLIN | select.POLLRDHUP)

    @classmethod
    async def open(cls, place: str) -> Self | None:
        """The page of the process that says it is at `place`; None: it is on another machine, or not ours."""
        connection = connected(socket_name(place))
        if connection is None:
            return None
        fds: list[int] = []
        try:
            await _readable(connection)
            message, fds, _, _ = socket.recv_fds(connection, len(GREETING), 1, socket.MSG_CMSG_CLOEXEC)
            if message != GREETING or len(fds) != 1:
                raise OSError("no page came")
            return cls(connection, fds[0])
        except (OSError, TimeoutError):
            connection.close()
            return None
        except BaseException:
            connection.close()
            raise
        finally:
            for fd in fds:
                os.close(fd)

    def holds(self, number: int) -> bool:
        """Whether nobody else has brought a name to the delegation's directory."""
        return self._words[slot_of(number)] == number != 0 and not self._end.poll(0)

    def close(self) -> None:
        """Nothing holds from now on: do not ask again."""
        with contextlib.suppress(OSError):
            self._connection.close()


async def _readable(connection: socket.socket) -> None:
    """Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    there = asyncio.Event()
    loop.add_reader(connection.fileno(), there.set)
    try:
        async with asyncio.timeout(GREETING_SECONDS):
            await there.wait()
    finally:
        loop.remove_reader(connection.fileno())
