"""The seam between HTTP and a hot route: one request and its answer, seen the same way by every adapter.

A hot handler is a plain function `handler(exchange)`, called when the head of a request is complete. It must return
at once: it either answers there and then, or asks for the body (`collect`, `receive`), or hands a coroutine to
`spawn`. Three adapters drive it and pass one conformance suite: the protocol class (uvicorn's port, no ASGI task),
the ASGI one (TLS, pipelining, odd requests, OpenAPI), and the in-process one (simulation, no sockets).

Invariants: exactly one answer per exchange; after `disconnected` nothing is written; an exception that leaves a
handler, a sink or a spawned coroutine becomes a problem+json answer if none has begun, else the connection is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Protocol

Buffer = bytes | bytearray | memoryview
#: Extra header lines of an answer, each b"name: value\r\n", ready to be sent. Never from unchecked input.
HeaderLines = bytes


class BodySink(Protocol):
    """Where a request body goes, piece by piece, in order, in the event loop."""

    def data(self, piece: memoryview) -> None:
        """The piece is only valid during the call: copy or consume it."""
        ...

    def complete(self) -> None:
        """Content-Length bytes (or the last chunk) have come."""
        ...

    def aborted(self, error: BaseException) -> None:
        """The client went away or broke the protocol; no answer can be sent."""
        ...


class Exchange(Protocol):
    """One request and its answer. Not thread-safe: event loop only."""

    method: bytes                           # b"GET"
    target: bytes                           # raw path with query, as received
    headers: list[tuple[bytes, bytes]]      # names in lower case
    content_length: int | None              # None: chunked or no body

    @property
    def peer(self) -> str:
        """Address of the client, for limits and logs."""
        ...

    @property
    def request_id(self) -> str: ...

    @property
    def route_arg(self) -> bytes:
        """The rest of the path behind the route's prefix, without query, not decoded."""
        ...

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, or None."""
        ...

    def query(self, name: bytes) -> bytes | None:
        """The first value of a query parameter, percent-decoded, or None."""
        ...

    # -- body in --------------------------------------------------------------------------------------------
    def collect(self, limit_bytes: int, then: Callable[[bytes], None]) -> None:
        """Call `then` with the whole body; larger ones are answered 413 before they are read."""
        ...

    def receive(self, sink: BodySink) -> None:
        """Stream the body into a sink (100 Continue is sent if the client waits for it)."""
        ...

    def pause_body(self) -> None:
        """Back-pressure: no more data() until resume_body(). A piece under way may still come."""
        ...

    def resume_body(self) -> None: ...

    # -- answer out -----------------------------------------------------------------------------------------
    def reply(self, status: int, body: Buffer = b"", lines: HeaderLines = b"") -> None:
        """The whole answer in one write. Content-Length, Date and x-request-id are added. HEAD: body not sent."""
        ...

    def reply_file(  # noqa: PLR0917 - one call per large answer, on the hot path
        self, status: int, lines: HeaderLines, prefix: Buffer, fd: int, offset: int, count: int,
        done: Callable[[BaseException | None], None],
    ) -> None:  # fmt: skip
        """Head, `prefix`, then `count` bytes of fd from offset (sendfile where the adapter can).

        The caller keeps fd open until `done` is called, once, with None or the error."""
        ...

    def begin(self, status: int, lines: HeaderLines, length: int) -> None:
        """Start a streamed answer of exactly `length` bytes."""
        ...

    async def send(self, piece: Buffer) -> None:
        """The next piece; returns when the write buffer is low again (back-pressure). Raises ConnectionError when the
        client is gone. The piece may be reused by the caller when send returns."""
        ...

    def end(self) -> None:
        """All `length` bytes were sent. Anything else closes the connection, so a short body is seen as such."""
        ...

    def abort(self) -> None:
        """Close the connection without a (further) answer."""
        ...

    # -- life -----------------------------------------------------------------------------------------------
    def spawn(self, coroutine: Coroutine[object, object, None]) -> None:
        """Run a coroutine that owns the rest of this exchange; it is cancelled when the client goes away."""
        ...

    def fail(self, error: BaseException) -> None:
        """Answer with the problem+json of an error (one place builds it: serving.problem)."""
        ...


Handler = Callable[[Exchange], None]
