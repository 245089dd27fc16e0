"""One keep-alive connection of the pooled transport: httptools' response parser on a BufferedProtocol.

Owns one request and its answer at a time. Small answers pass the parser; the body of a large one goes from the socket
straight into the caller's memory, without the parser and without a copy: at once what the kernel has already, the rest
as it comes (get_buffer hands out the caller's view).

Invariants: a connection is reusable only when the request was sent wholly and the answer was read wholly, with no
byte behind it; the write buffer's mark is 0, so "not paused" means that every byte written is in the kernel and the
caller may reuse its buffer; while nobody reads a streamed body, reading is paused, so memory is bounded by one read.

Cost of a small exchange: one write, one read, about 6 parser callbacks, one future; no task, no timer (deadlines are
swept by the pool).
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Final

import httptools

from tierstore.errors import UnavailableError
from tierstore.transport.peer import Buffer

if TYPE_CHECKING:
    from tierstore.transport.pool import Origin

READ_BYTES: Final = 256 * 1024
#: Of a streamed answer's head: what comes with it is copied by the parser, the rest goes straight to the reader.
HEAD_READ_BYTES: Final = 4 * 1024
#: Read without a turn of the loop at most: a fast peer must not keep the others waiting (about 0.5 ms).
TURN_BYTES: Final = 2 * 1024 * 1024

IDLE: Final = 0
WAITING: Final = 1      # request sent or being sent, no byte of the answer yet
HEAD: Final = 2         # the answer has begun
BODY: Final = 3         # head complete, body coming
COMPLETE: Final = 4     # answer complete, not yet released
CLOSED: Final = 5

NEVER: Final = float("inf")


class Connection(asyncio.BufferedProtocol):
    """See the module. Used by transport.pool only."""

    def __init__(self, origin: Origin, loop: asyncio.AbstractEventLoop) -> None:
        self.origin = origin
        self.loop = loop
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set in connection_made
        self.parser = httptools.HttpResponseParser(self)
        self.phase = IDLE
        self.deadline = NEVER
        self.idle_since = 0.0
        self.served = 0                     # answers completed: 0 means a fresh connection
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.content_length = -1            # -1: chunked, or until the connection ends
        self.error: UnavailableError | None = None
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._waiter: asyncio.Future[None] | None = None        # for the head (stream) or the whole answer
        self._drain: asyncio.Future[None] | None = None         # for the write buffer to empty
        self._is_stream = False
        self._is_head_request = False
        self._keep_alive = False
        self._body_left = 0                 # bytes of a direct body not yet read from the socket
        self._is_direct = False             # the parser is out of the way
        self._target: memoryview | None = None
        self._filled = 0
        self._write_paused = False
        self._read_paused = False
        self._unsent = 0                    # body bytes of an upload that were not written yet
        self._read_view = origin.read_view
        self._head_view = origin.read_view[:HEAD_READ_BYTES]
        self._turn_bytes = 0                # read without a turn of the loop since the last one
        self._direct_socket: socket.socket | None = None        # a dup, to read what is there at once
        self._limit = origin.answer_bytes_max

    # -- asyncio ----------------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        # uvloop's TLS pauses at size >= mark, so 0 would pause for ever there; TLS copies, 1 is as good
        transport.set_write_buffer_limits(high=1 if self.origin.is_tls else 0)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.phase in (HEAD, BODY) and not self._is_direct and self.content_length < 0 and exc is None:
            chunked = any(name == b"transfer-encoding" for name, _ in self.headers)
            if self.phase == BODY and not chunked:
                self._complete()            # a body without a length ends with the connection
        code = "unreachable" if self.phase <= WAITING else "broken-answer"
        if self.phase < COMPLETE:
            self._fail(UnavailableError(f"{self.origin.url} closed the connection", code=code, url=self.origin.url))
        self.phase = CLOSED
        if self._direct_socket is not None:
            self._direct_socket.close()
            self._direct_socket = None
        self.origin.lost(self)

    def eof_received(self) -> None:
        return None

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._is_direct and self._target is not None:
            return self._target[self._filled :]
        return self._head_view if self._is_stream else self._read_view

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_direct and self._target is not None:
            self._filled += nbytes
            self._body_left -= nbytes
            if self._filled == len(self._target):
                self._target = None
                self._pause_reading()       # nobody reads until the next read_into
                self._wake()
            return
        if self.phase in (IDLE, COMPLETE, CLOSED):
            self.drop()                     # bytes nobody asked for: the connection cannot be trusted
            return
        try:
            self.parser.feed_data(self._read_view[:nbytes])
        except httptools.HttpParserUpgrade:
            self._fail(UnavailableError("the peer speaks another protocol", code="broken-answer"))
        except httptools.HttpParserError as error:
            cause = error.__context__ if isinstance(error.__context__, UnavailableError) else None
            self._fail(cause or UnavailableError(f"not an HTTP answer: {error}", code="broken-answer"))
        else:
            if self.phase == BODY and self._is_stream:
                self._head_is_here()

    # -- parser callbacks -------------------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        if self.phase != WAITING:
            raise UnavailableError("bytes behind the answer", code="broken-answer")
        self.phase = HEAD
        self.headers = []
        self.content_length = -1

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-length":
            self.content_length = int(value)
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self.parser
        self.status = status = parser.get_status_code()
        if status < 200:
            return                          # 100 Continue: the answer is still to come
        self._keep_alive = parser.should_keep_alive()
        if self._is_head_request or status in (204, 304):
            self.content_length = 0
            self.parser = httptools.HttpResponseParser(self)    # the old one waits for a body that will not come
            self._complete()
            return
        if self.content_length > self._limit and not self._is_stream:
            raise UnavailableError(f"the answer has {self.content_length} bytes", code="broken-answer")
        self.phase = BODY
        self._body_left = max(self.content_length, 0)

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._pieces_bytes += len(piece)
        self._body_left -= len(piece)
        if self.content_length < 0 and self._pieces_bytes > self._limit:
            raise UnavailableError("the answer is larger than allowed", code="broken-answer")

    def on_message_complete(self) -> None:
        if self.phase == HEAD and self.status < 200:
            self.phase = WAITING
        elif self.phase in (HEAD, BODY):
            self._complete()

    def _complete(self) -> None:
        self.phase = COMPLETE
        self._wake()
        if self._unsent:
            self._stop_sending()

    def _head_is_here(self) -> None:
        """A streamed answer: hold the socket until somebody reads, and take the parser out of the way."""
        if self.content_length < 0:
            return                          # chunked: gathered whole (bounded), the stream begins when it is complete
        if not self._is_direct:
            self._is_direct = True
            self.parser = httptools.HttpResponseParser(self)
        self._pause_reading()
        self._wake()
        if self._unsent:
            self._stop_sending()

    # -- one request ------------------------------------------------------------------------------------------
    def start(self, *, is_stream: bool, is_head: bool, unsent: int, deadline: float) -> asyncio.Future[None]:
        """Begin a request on an idle connection. The future ends with the answer (of a stream: with its head)."""
        self.phase = WAITING
        self.deadline = deadline
        self._is_stream = is_stream
        self._is_head_request = is_head
        self._is_direct = False
        self._unsent = unsent
        if self._pieces:
            self._pieces = []
        self._pieces_bytes = 0
        self.error = None
        self._waiter = waiter = self.loop.create_future()
        return waiter

    async def write_body(self, piece: Buffer) -> None:
        """A piece of an upload's body. Returns when it is in the kernel. Raises when the peer answered or is gone."""
        if self.error is not None:
            raise self.error
        if self.phase != WAITING:
            raise _answered_early(self.origin.url)
        size = piece.nbytes if isinstance(piece, memoryview) else len(piece)
        assert size <= self._unsent, "more bytes than the upload's length"
        self._unsent -= size
        self.transport.write(piece)
        if self._write_paused:
            await self.drained()

    async def drained(self) -> None:
        """Until the write buffer is empty. Raises when the peer answered early or is gone."""
        self._drain = self.loop.create_future()
        try:
            await self._drain
        finally:
            self._drain = None

    def _stop_sending(self) -> None:
        if self._drain is not None and not self._drain.done():
            self._drain.set_exception(_answered_early(self.origin.url))

    @property
    def is_write_paused(self) -> bool:
        return self._write_paused

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    async def wait(self) -> None:
        """Until the answer is complete (or, for a stream, its head). Raises what broke it."""
        if self.error is not None:
            raise self.error
        if self.phase >= COMPLETE or (self.phase == BODY and self._is_direct):
            return
        if self._waiter is None or self._waiter.done():
            self._waiter = self.loop.create_future()
        await self._waiter

    def take_body(self) -> bytes:
        pieces = self._pieces
        if not pieces:
            return b""
        self._pieces = []
        self._pieces_bytes = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # -- streamed body ----------------------------------------------------------------------------------------
    @property
    def unread(self) -> int:
        """Bytes of the body that the caller has not taken yet."""
        return self._pieces_bytes + (self._body_left if self._is_direct else 0)

    async def read_into(self, view: memoryview) -> None:
        """Fill the view: first from what came with the head, the rest straight from the socket."""
        if self.error is not None:
            raise self.error
        at = 0
        while self._pieces and at < len(view):
            piece = self._pieces[0]
            take = min(len(piece), len(view) - at)
            view[at : at + take] = piece[:take] if take < len(piece) else piece
            if take < len(piece):
                self._pieces[0] = piece[take:]
            else:
                del self._pieces[0]
            self._pieces_bytes -= take
            at += take
        if at == len(view):
            self._end_if_read()
            return
        if len(view) - at > self._body_left or self.phase != BODY:
            raise UnavailableError("the answer's body is shorter than expected", code="broken-answer")
        at = self._read_now(view, at)
        if at == len(view):
            self._end_if_read()
            return
        self._turn_bytes = 0
        self._target = view[at:]
        self._filled = 0
        self._waiter = waiter = self.loop.create_future()
        self._resume_reading()
        try:
            await waiter
        finally:
            self._waiter = None
            if self._target is not None:    # cancelled in the middle: the caller's memory must not be written again
                self._target = None
                self.drop()
        self._end_if_read()

    def _read_now(self, view: memoryview, at: int) -> int:
        """Take what the kernel has already; how far the view is filled then. Only while the transport does not read."""
        if not self._read_paused or self.origin.is_tls or self.transport.is_closing() or self._turn_bytes >= TURN_BYTES:
            return at
        if self._direct_socket is None:
            try:
                self._direct_socket = socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno()))
            except OSError:
                return at                   # no descriptor left: the transport reads it
            self._direct_socket.setblocking(False)
        try:
            count = self._direct_socket.recv_into(view[at:])
        except OSError:
            return at                       # nothing there yet, or broken: the transport will tell
        self._body_left -= count
        self._turn_bytes += count
        return at + count

    def _end_if_read(self) -> None:
        if self.phase == BODY and self._is_direct and not self._body_left and not self._pieces:
            self.phase = COMPLETE

    def settle(self) -> None:
        """The reader is done: complete if the body was read to its end (an empty one needs no read)."""
        if self.phase == COMPLETE and self._pieces:
            self._keep_alive = False        # a gathered body that nobody read: rare, not worth keeping
        self._end_if_read()

    # -- state ------------------------------------------------------------------------------------------------
    def _pause_reading(self) -> None:
        if not self._read_paused and not self.transport.is_closing():
            self._read_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._read_paused and not self.transport.is_closing():
            self._read_paused = False
            self.transport.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: UnavailableError) -> None:
        """The exchange is broken: whoever waits hears it, the connection is dropped."""
        if self.error is None:
            self.error = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
            self._waiter.exception()        # an upload may end without awaiting it: not worth a warning
        if self._drain is not None and not self._drain.done():
            self._drain.set_exception(error)
        self.drop()

    def expire(self) -> None:
        """The deadline has passed."""
        self._fail(UnavailableError(f"{self.origin.url} did not answer in time", code="deadline", url=self.origin.url))

    def drop(self) -> None:
        """Close at once: the peer must not take what was sent for a whole request."""
        if self.phase != CLOSED:
            self.phase = CLOSED if self.phase in (IDLE, COMPLETE) else self.phase
            self.transport.abort()

    @property
    def is_reusable(self) -> bool:
        return self.phase == COMPLETE and self._keep_alive and not self._unsent and not self.transport.is_closing()

    def rest(self) -> None:
        """Back to idle: keep listening, so that the peer's close is seen."""
        self.phase = IDLE
        self.deadline = NEVER
        self.served += 1
        self._is_direct = False
        self._resume_reading()


def _answered_early(url: str) -> UnavailableError:
    return UnavailableError(f"{url} answered before the body was sent", code="answered-early", url=url)
