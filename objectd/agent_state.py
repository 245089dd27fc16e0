"""What an object server keeps about itself between its lives: identity, secret, incarnation, ticket keys.

Owns one JSON file in the server's data directory (directory 0700, file 0600). Invariants: the file is replaced as a
whole (temporary file, fsync, rename, fsync of the directory), so it is never half written; `incarnation` is raised and
durable before the server does anything in its new life; a file that cannot be read is an error, never a fresh start
(a new identity would orphan every chunk of this server).
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from typing import Final

import msgspec

from tierstore import statefile
from tierstore.errors import ConfigError
from tierstore.wire.cluster import DeviceGrant, TicketKey

FILE_NAME: Final = "objectd.json"
LOCK_NAME: Final = "objectd.lock"
FORMAT: Final = 1
INSTANCE_BYTES: Final = 16


class AgentState(msgspec.Struct, frozen=True, kw_only=True):
    """instance: tells servers of the same name apart. server 0, secret "": not registered yet."""

    format: int = FORMAT
    name: str
    instance: bytes
    incarnation: int = 0
    server: int = 0
    secret: str = ""
    cluster_id: str = ""
    site: str = ""
    site_id: int = 0
    devices: list[DeviceGrant] = []
    ticket_keys: list[TicketKey] = []

    def __repr__(self) -> str:
        return f"AgentState({self.name}, server {self.server}, incarnation {self.incarnation})"  # no secrets in logs


@dataclass(slots=True)
class AgentStateFile:
    """The file and the lock that keeps a second process away. Blocking; used at start and when something changed."""

    directory: str
    _lock_fd: int = -1

    def open(self, *, name: str, new_instance: bytes) -> AgentState:
        """Lock the directory and begin a new life: the state as kept, with the incarnation raised and durable.

        new_instance: 16 random bytes, used the first time. Raises ConfigError when the directory cannot be used."""
        try:
            statefile.make_directory(self.directory)
            lock = os.path.join(self.directory, LOCK_NAME)
            self._lock_fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ConfigError(f"membership.data: {self.directory} is in use by another object server") from None
        except OSError as error:
            raise ConfigError(f"membership.data: {self.directory} cannot be used: {error.strerror}") from None
        state = self._read() or AgentState(name=name, instance=new_instance)
        state = msgspec.structs.replace(state, name=name, incarnation=state.incarnation + 1)
        self.save(state)
        return state

    def save(self, state: AgentState) -> None:
        """Durable when it returns. Raises OSError."""
        statefile.replace(os.path.join(self.directory, FILE_NAME), msgspec.json.encode(state))

    def close(self) -> None:
        """Give up the lock."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _read(self) -> AgentState | None:
        path = os.path.join(self.directory, FILE_NAME)
        try:
            with open(path, "rb") as file:
                text = file.read()
        except FileNotFoundError:
            return None
        try:
            state = msgspec.json.decode(text, type=AgentState)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ConfigError(
                f"{path} is damaged ({error}); restore it, or remove it to join as a new server"
            ) from None
        if state.format != FORMAT or len(state.instance) != INSTANCE_BYTES:
            raise ConfigError(f"{path} has format {state.format}, this program knows {FORMAT}")
        return state
