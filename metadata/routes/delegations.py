"""The page of delegations (wire/delegations) and the Unix socket over which mounts of this machine get it.

Owns the memory and the connections, which stay open for as long as the process lives: their end is how a mount learns
at once that nobody keeps the page true any more. Whoever connects gets the page; it holds numbers and nothing else, and
the kernel lets nobody else write to it (F_SEAL_FUTURE_WRITE) or cut it. Bounds: CONNECTIONS_MAX.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import socket
from collections.abc import Callable
from typing import Final

from metadata.services.files.delegations import Delegations
from metadata.services.files.service import FilesService
from tierstore.telemetry.log import get_logger
from tierstore.wire.delegations import GREETING, PAGE_BYTES, socket_name

log = get_logger("metadata")

#: Mounts of this machine; further ones ask about every name.
CONNECTIONS_MAX: Final = 64
_F_SEAL_FUTURE_WRITE: Final = 0x10      # linux/fcntl.h, since 5.1; Python names it from 3.13 on


class DelegationDoor:
    """Open for as long as the process lives. Event loop only. Raises OSError where the kernel has not what it takes."""

    def __init__(self, place: str) -> None:
        self._connections: set[socket.socket] = set()
        self._fd = os.memfd_create("tierstore-delegations", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            os.ftruncate(self._fd, PAGE_BYTES)
            self.words = memoryview(mmap.mmap(self._fd, PAGE_BYTES)).cast("Q")
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, seals)
            self._listener.setblocking(False)
            self._listener.bind(socket_name(place))
            self._listener.listen(CONNECTIONS_MAX)
        except BaseException:   # whatever it was: nobody else knows what is open here
            self._listener.close()
            os.close(self._fd)
            raise
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return                  # gone again, or no descriptor left
        connection.setblocking(False)
        try:
            if len(self._connections) >= CONNECTIONS_MAX:
                raise OSError("too many mounts of this machine")
            socket.send_fds(connection, [GREETING], [self._fd])
        except OSError:
            connection.close()
            return
        self._connections.add(connection)
        asyncio.get_running_loop().add_reader(connection.fileno(), self._drop, connection)

    def _drop(self, connection: socket.socket) -> None:
        """It has gone, or says something, which it should not."""
        self._connections.discard(connection)
        asyncio.get_running_loop().remove_reader(connection.fileno())
        connection.close()

    def close(self) -> None:
        """Every mount asks from now on. Harmless to repeat."""
        if self._fd < 0:
            return
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()
        for connection in list(self._connections):
            self._drop(connection)
        os.close(self._fd)
        self._fd = -1


def delegate(files: FilesService, *, random_bytes: Callable[[int], bytes]) -> DelegationDoor | None:
    """Have mounts of this machine answer for names that are not there; None where that cannot be."""
    place = random_bytes(16).hex()
    try:
        door = DelegationDoor(place)
    except OSError as error:
        log.warning("mounts of this machine ask about every name", detail=str(error))
        return None
    first = int.from_bytes(random_bytes(6), "little")
    if files.delegate(Delegations(door.words, first=first, place=place)):
        return door
    door.close()
    return None
