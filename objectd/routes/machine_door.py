"""A Unix socket of this server for processes on the same machine: who is connected, and what they send.

Owns the listener and its connections; what a message means is the derived door's. Invariants: the loop waits for
nobody; connections are bounded; one that breaks the form or does not take its answers is dropped.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Final

from tierstore.telemetry.log import get_logger

log = get_logger("objectd")

#: Processes of this machine, for each door; further ones use the network.
CONNECTIONS_MAX: Final = 64


class MachineDoor:
    """open() in the loop, close() at the end."""

    def __init__(self, *, message_bytes_max: int, messages_max: int, descriptors_max: int = 0) -> None:
        """messages_max: taken from one connection in a turn of the loop. descriptors_max: beside a message."""
        self._message_bytes_max = message_bytes_max
        self._messages_max = messages_max
        self._descriptors_max = descriptors_max
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()

    def received(self, connection: socket.socket, message: bytes, descriptors: list[int]) -> bool:
        """A message came; the descriptors belong to who takes it. False: drop the connection."""
        raise NotImplementedError

    def open_under(self, name: bytes, *, url: str, without: str) -> None:
        """Listen under that name. Without it everything goes by the network, so a failure is logged and no more."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            listener.setblocking(False)
            listener.bind(name)
            listener.listen(CONNECTIONS_MAX)
        except OSError as error:
            listener.close()
            log.warning(without, url=url, detail=str(error))
            return
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def shut(self) -> None:
        """Nobody new, and those that are there are let go. Harmless to repeat."""
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener.fileno())
            listener.close()
        for connection in list(self._connections):
            self.drop(connection)

    def pause(self) -> None:
        """Nobody new and no further message; answers may still be given. shut() ends it."""
        loop = asyncio.get_running_loop()
        if self._listener is not None:
            loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
        for connection in self._connections:
            loop.remove_reader(connection.fileno())

    def drop(self, connection: socket.socket) -> None:
        """Harmless to repeat."""
        if connection in self._connections:
            self._connections.remove(connection)
            asyncio.get_running_loop().remove_reader(connection.fileno())
            connection.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return                  # gone again, or no descriptor left
        if len(self._connections) >= CONNECTIONS_MAX:
            connection.close()
            return
        connection.setblocking(False)
        self._connections.add(connection)
        asyncio.get_running_loop().add_reader(connection.fileno(), self._readable, connection)

    def _readable(self, connection: socket.socket) -> None:
        for _ in range(self._messages_max):
            descriptors: list[int] = []
            try:
                if self._descriptors_max:
                    message, descriptors, flags, _ = socket.recv_fds(
                        connection, self._message_bytes_max, self._descriptors_max, socket.MSG_CMSG_CLOEXEC
                    )
                else:
                    message, flags = connection.recv(self._message_bytes_max), 0
            except BlockingIOError:
                return
            except OSError:
                message, flags = b"", 0
            if not message or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                for descriptor in descriptors:
                    os.close(descriptor)
                self.drop(connection)
                return
            if not self.received(connection, message, descriptors):
                self.drop(connection)
                return
