"""The edge of a connection: the limits it keeps, the files it sends, and the ways in which it ends.

Derives from uvicorn's HttpToolsProtocol; serving.order derives from this and keeps requests in order. Here stands what
does not depend on whose request is answered: admission, the phase and its time limits (judged by the second's sweep),
refusals without an exchange, lingering, draining.

Invariants: the write buffer's mark is 0, so "not paused" means that every byte written is in the kernel; a file is sent
only then; a connection that was not admitted never becomes a request.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tierstore.errors import RequestError, TierstoreError
from tierstore.serving import problem
from tierstore.serving.file_sender import Buffer, Done, FileSender
from tierstore.serving.heads import CLOSE_LINE, STATUS_LINES
from tierstore.serving.hot_exchange import OPEN, HotExchange
from tierstore.serving.problem import EdgeError
from tierstore.serving.state import ServingState

IDLE: Final = 0      # nothing received of the next request
HEAD: Final = 1      # a head has begun
BODY: Final = 2      # a body is coming
BUSY: Final = 3      # request complete, answer under way
LINGER: Final = 4    # answered early, reading the rest away before the close
CLOSED: Final = 5


class EdgeProtocol(HttpToolsProtocol):
    """See the module. `state` is set by HotProtocol.bound()."""

    state: ClassVar[ServingState]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.address = ""
        self.exchange: HotExchange | None = None        # the hot request under way
        self._phase = IDLE
        self.since = 0                                  # tick at which the phase began, or of the last progress
        self._no_more = False                           # no request after the one under way is read
        self._moved_mark = -1
        self._linger_left = 0
        self._sender: FileSender | None = None
        self._file: tuple[list[Buffer], int, int, int, Done] | None = None
        self._is_admitted = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # 0: "not paused" means that every byte written is in the kernel; sendfile and reused buffers rely on it
        # (uvloop's TLS pauses at size >= mark, so 0 would pause for ever there; TLS copies, 1 is as good)
        transport.set_write_buffer_limits(high=1 if self.scheme == "https" else 0)
        self.address = self.client[0] if self.client else ""
        state = self.state
        self.since = state.tick
        self._is_admitted = state.admit(self, self.address, self.loop)
        if not self._is_admitted:
            self._refuse(EdgeError(503, "too many connections", code="too-many-connections"))

    def drop(self) -> None:
        """Close at once, without flushing: a cut answer must look cut."""
        self._phase = CLOSED
        self.transport.abort()

    def eof_received(self) -> None:
        return None                         # a half-closed client counts as gone

    def note_progress(self) -> None:
        self.since = self.state.tick

    # -- files ------------------------------------------------------------------------------------------------
    @property
    def is_sending_file(self) -> bool:
        return self._file is not None or (self._sender is not None and self._sender.is_busy)

    def send_file(self, front: list[Buffer], fd: int, offset: int, count: int, done: Done) -> None:
        """Front buffers, then count bytes of fd; waits while the transport still has bytes of an earlier answer."""
        self.since = self.state.tick
        if self.flow.write_paused:
            self._file = (front, fd, offset, count, done)
            return
        if self._sender is None:
            try:
                self._sender = FileSender(self.loop, self.transport.get_extra_info("socket").fileno())
            except OSError as error:        # no descriptor left: nothing was sent, the connection cannot go on
                done(error)
                return
        self._sender.start(front, fd, offset, count, done)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.since = self.state.tick
        self._moved_mark = -1
        if self._file is not None:
            job, self._file = self._file, None
            self.send_file(*job)

    # -- refusals ---------------------------------------------------------------------------------------------
    def _refuse(self, error: TierstoreError) -> None:
        """A problem answer without an exchange, then a lingering close."""
        if self.transport.is_closing():
            return
        state = self.state
        state.request_number += 1
        request_id = f"{state.request_prefix.decode('ascii')}{state.request_number:x}"
        status, body, lines = problem.render(error, request_id)
        self.transport.write(
            b"%b%bcontent-length: %d\r\nx-request-id: %b\r\n%b%b\r\n%b"
            % (STATUS_LINES[status], state.date_line, len(body), request_id.encode("ascii"), lines, CLOSE_LINE, body)
        )
        self._linger()
    # -- end --------------------------------------------------------------------------------------------------
    def _linger(self) -> None:
        """Half-close and read away for a moment: a close with unread bytes would reset the answer on its way."""
        self._phase = LINGER
        self._no_more = True
        self.since = self.state.tick
        self._linger_left = self.state.limits.linger_bytes_max
        self.transport.set_protocol(self)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        if not self._is_admitted:
            self._phase = CLOSED            # no room to linger for those who were never let in
            self.transport.close()

    def _discard(self, size: int) -> None:
        self._linger_left -= size
        if self._linger_left < 0:
            self.drop()

    def is_idle(self) -> bool:
        return self._phase == IDLE and not self.transport.is_closing()

    def close_idle(self) -> None:
        """Close after what is still in the write buffer; the sweep watches that the client takes it."""
        self._phase = CLOSED
        self.since = self.state.tick
        self._moved_mark = -1
        self.transport.close()

    def shutdown(self) -> None:
        """From the drain: close when idle, else after the answer under way."""
        if self._phase == IDLE:
            self.close_idle()
        elif self.exchange is not None:
            self.exchange.keep_alive = False
        elif self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def sweep(self, tick: int) -> None:
        """Once a second: is the client within its limits?"""
        phase = self._phase
        age = tick - self.since
        limits = self.state.limits
        if phase == IDLE:
            if age > limits.idle_seconds:
                self.close_idle()
        elif phase == HEAD:
            if age > limits.header_seconds:
                self._refuse(EdgeError(408, f"the request's head took over {limits.header_seconds} s"))
        elif phase == LINGER:
            if age > limits.linger_seconds:
                self.drop()
        elif phase in (BODY, BUSY):
            self._sweep_busy(phase, tick, age)
        elif phase == CLOSED and self._is_stalled(tick, age):
            self.drop()                     # closing, but the client does not take the rest

    def _is_stalled(self, tick: int, age: int) -> bool:
        """Whether the client took no byte of what is ready for it in send_seconds."""
        moved = self.transport.get_write_buffer_size()
        if self._sender is not None:
            moved += self._sender.moved << 32
        if moved != self._moved_mark:
            self._moved_mark = moved
            self.since = tick
            return False
        return age > self.state.limits.send_seconds

    def _sweep_busy(self, phase: int, tick: int, age: int) -> None:
        if self.is_sending_file or self.flow.write_paused:
            if self._is_stalled(tick, age):
                self.drop()
        elif phase == BODY and not self.flow.read_paused and age > self.state.limits.body_seconds:
            exchange = self.exchange
            if exchange is not None and exchange.phase == OPEN:
                self.exchange = None
                late = RequestError("the body stopped coming", code="body-timeout")
                exchange.gone(late)
                self._refuse(EdgeError(408, "the body stopped coming", code="body-timeout"))
            else:
                self.drop()
