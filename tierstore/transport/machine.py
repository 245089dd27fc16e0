"""A Unix socket to a server on the same machine: looked for, asked, dropped when it fails.

Whether a server is on this machine is found by trying: its socket's name follows from its address. Owns the connection
and the questions under way on it. Invariants: only a process of this user or of root is spoken to (SO_PEERCRED), so
that nobody who takes the name collects tickets; it is a shortcut and never a condition: whoever asks hears None when it
does not work, and goes by the network; questions are bounded and in time.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from tierstore.errors import RequestError

#: After a server was not found, or failed, before it is looked for again.
RETRY_SECONDS: Final = 5.0
#: Answers taken in one turn of the loop.
_TURN_ANSWERS: Final = 16
_NUMBERS: Final = 1 << 32
_CREDENTIALS: Final = struct.Struct("iII")      # struct ucred: pid, uid, gid (unix(7))

Given = TypeVar("Given")


class MachineLink(Generic[Given]):
    """The connection to one server, while there is one. Event loop only."""

    def __init__(self, name: bytes, *, retry_seconds: float, questions_max: int, answer_bytes_max: int) -> None:
        self._name = name
        self._retry_seconds = retry_seconds
        self._questions_max = questions_max
        self._answer_bytes_max = answer_bytes_max
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._retry_at = 0.0
        self._number = 0
        self._asked: dict[int, asyncio.Future[Given | None]] = {}

    def read(self, message: bytes, descriptors: list[int]) -> tuple[int, Given | None]:
        """The number of an answer and what it gives, which owns the descriptors from then on. Raises RequestError for
        one that makes no sense."""
        raise NotImplementedError

    def refuse(self, given: Given) -> None:
        """Nobody wants that answer any more."""

    def is_found(self) -> bool:
        """Whether the server is on this machine and ours; looks for it when it is time to."""
        if self._socket is not None:
            return True
        if self._loop.time() < self._retry_at:
            return False
        self._retry_at = self._loop.time() + self._retry_seconds
        self._socket = connected(self._name)
        if self._socket is None:
            return False
        self._loop.add_reader(self._socket.fileno(), self._readable)
        return True

    async def question(
        self, pack: Callable[[int], bytes], seconds: float, *, descriptors: Sequence[int] = ()
    ) -> Given | None:
        """What the answer gives; None when there is none to be had. pack: makes the message with that number. Raises
        TimeoutError; the connection is dropped then, so that not each question waits for a server that hangs."""
        if self._socket is None or len(self._asked) >= self._questions_max:
            return None
        self._number = number = (self._number + 1) % _NUMBERS
        try:
            if descriptors:
                socket.send_fds(self._socket, [pack(number)], descriptors)
            else:
                self._socket.send(pack(number))
        except BlockingIOError:
            return None
        except OSError:
            self.leave()
            return None
        self._asked[number] = answered = self._loop.create_future()
        try:
            async with asyncio.timeout(seconds):
                given: Given | None = await answered
                return given
        except TimeoutError:
            self._refuse_given(answered)
            self.leave()
            raise
        except BaseException:   # cancelled: nobody will take what came in this moment
            self._refuse_given(answered)
            raise
        finally:
            self._asked.pop(number, None)

    def _refuse_given(self, answered: asyncio.Future[Given | None]) -> None:
        if answered.done() and not answered.cancelled():
            given = answered.result()
            if given is not None:
                self.refuse(given)

    def leave(self) -> None:
        """Drop the connection; who waits goes by the network."""
        connection, self._socket = self._socket, None
        if connection is not None:
            self._loop.remove_reader(connection.fileno())
            connection.close()
            self._retry_at = self._loop.time() + self._retry_seconds
        for answered in self._asked.values():
            if not answered.done():
                answered.set_result(None)

    def _readable(self) -> None:
        for _ in range(_TURN_ANSWERS):
            if self._socket is None:
                return
            try:
                message, descriptors, flags, _ = socket.recv_fds(
                    self._socket, self._answer_bytes_max, 1, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                message, descriptors, flags = b"", [], 0
            if not message or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or not self._take(message, descriptors):
                for descriptor in descriptors:
                    os.close(descriptor)
                self.leave()
                return

    def _take(self, message: bytes, descriptors: list[int]) -> bool:
        """Give an answer to who asked; False for one that makes no sense (its descriptors are still open)."""
        try:
            number, given = self.read(message, descriptors)
        except RequestError:
            return False
        answered = self._asked.get(number)
        if answered is not None and not answered.done():
            answered.set_result(given)
        elif given is not None:
            self.refuse(given)      # who asked has gone
        return True


def connected(name: bytes) -> socket.socket | None:
    """To the server of that name, if it runs here and as this user or root. Does not wait."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.setblocking(False)
        connection.connect(name)
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(raw)
        if uid in (0, os.geteuid()):
            return connection
    except OSError:
        pass                    # none here (the usual case), or its queue of connections is full
    connection.close()
    return None
