"""The Peer seam: how one process sends requests to another. Typed calls are built on it; nothing else opens sockets.

Implementations: the pooled protocol client (transport.pool; httptools, keep-alive, no task per request) and the
in-process one (simulation). Both pass tests/contract/test_peer_transport.py.

Every call has a deadline in seconds from now that covers connecting, sending, waiting and reading; when it passes,
UnavailableError(code="deadline") is raised and the connection is dropped. Connection failures before the first byte
of an answer raise UnavailableError(code="unreachable"), of the kind NotSent when no connection came about; a broken
answer UnavailableError(code="broken-answer").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tierstore.errors import UnavailableError

Buffer = bytes | bytearray | memoryview
Headers = Sequence[tuple[bytes, bytes]]


class NotSent(UnavailableError):
    """The peer was not reached: it has seen nothing of the request, which may be sent again whatever it is."""


@dataclass(frozen=True, slots=True)
class PeerReply:
    """A whole answer. Header names are in lower case. Statuses are not judged here."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        for key, value in self.headers:
            if key == name:
                return value
        return None


class PeerStream(Protocol):
    """An answer whose body is still to come."""

    status: int
    headers: list[tuple[bytes, bytes]]
    content_length: int

    async def read_into(self, view: memoryview) -> None:
        """Fill the view wholly with the next bytes (no copy in between). Raises UnavailableError on a short body."""
        ...

    async def read_all(self, limit_bytes: int) -> bytes:
        """The rest of the body (error answers)."""
        ...

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else drop it. Always call it."""
        ...


class PeerUpload(Protocol):
    """A request whose body is still to be sent."""

    async def write(self, piece: Buffer) -> None:
        """Send the next piece; returns when the peer keeps up. The piece may be reused when it returns.
        Raises UnavailableError when the peer answered early or went away (finish() then has the answer, if any)."""
        ...

    async def finish(self) -> PeerReply:
        """All Content-Length bytes are written: wait for the answer."""
        ...

    def abort(self) -> None:
        """Drop the connection: the peer must see an unfinished body."""
        ...


class PeerTransport(Protocol):
    """Requests to other processes. `url` is "http://host:port" (https with the configured CA)."""

    async def call(
        self, url: str, method: bytes, target: bytes, *, headers: Headers = (), body: Buffer = b"", seconds: float,
    ) -> PeerReply:  # fmt: skip
        """One small request and its whole answer. Not retried here."""
        ...

    async def open(
        self, url: str, method: bytes, target: bytes, *, headers: Headers = (), body: Buffer = b"", seconds: float,
    ) -> PeerStream:  # fmt: skip
        """Send a request and return when the head of the answer is here; `seconds` bounds each later read too."""
        ...

    async def upload(
        self, url: str, method: bytes, target: bytes, *, headers: Headers = (), length: int, seconds: float,
    ) -> PeerUpload:  # fmt: skip
        """Begin a request with a body of exactly `length` bytes; `seconds` bounds each step."""
        ...

    async def close(self) -> None: ...
