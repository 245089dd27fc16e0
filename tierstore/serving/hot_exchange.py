"""The exchange of the protocol class: one hot request and its answer, straight on the transport.

Owns the state of one request: how much of its body is still to come, where it goes, whether an answer has begun.
The connection (serving.protocol) owns everything that outlives it. Invariants: one answer; nothing is written once
`is_gone`; a body is delivered to its sink in order, exactly once, and ends in complete() or aborted(), never both.

Cost of a small GET: one object, one bytes join for the head, one write; no task, no timer, no dict of the scope.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Final

from tierstore.errors import RequestError, TierstoreError, TooLarge
from tierstore.serving import problem
from tierstore.serving.collector import Collector
from tierstore.serving.exchange import BodySink, Buffer
from tierstore.serving.heads import CLOSE_LINE, CONTINUE, NO_BODY, STATUS_LINES, query_value, rest_of_path

if TYPE_CHECKING:
    from tierstore.serving.protocol import HotProtocol
    from tierstore.serving.table import Route

#: Heads and bodies up to this are joined into one buffer; larger bodies go beside the head without a copy.
JOIN_BYTES: Final = 64 * 1024

OPEN: Final = 0        # no answer yet
STREAMING: Final = 1   # begin() was called, bytes are still owed
ANSWERED: Final = 2
GONE: Final = 3


class HotExchange:
    """See serving.exchange.Exchange. Made by the protocol class only."""

    __slots__ = (
        "_early", "_head", "_index", "_number", "_owed", "_request_id", "_sink", "_task", "body_ended", "body_left",
        "content_length", "expects_continue", "headers", "is_chunked", "keep_alive", "method", "phase", "protocol",
        "route", "target",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917 - one per request: keywords cost
        self, protocol: HotProtocol, route: Route, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]],
        index: dict[bytes, bytes], content_length: int | None, is_chunked: bool, keep_alive: bool,
        expects_continue: bool,
    ) -> None:  # fmt: skip
        self.protocol = protocol
        self.route = route
        self.method = method
        self.target = target
        self.headers = headers
        self._index = index
        self.content_length = content_length
        self.is_chunked = is_chunked
        self.body_left = content_length or 0
        self.body_ended = not is_chunked and not content_length
        self.keep_alive = keep_alive
        self.expects_continue = expects_continue
        self.phase = OPEN
        self._owed = 0
        self._head: bytes | None = None
        self._sink: BodySink | None = None
        self._early: list[bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        state = protocol.state
        self._number = state.request_number = state.request_number + 1

    # -- what came --------------------------------------------------------------------------------------------
    @property
    def peer(self) -> str:
        return self.protocol.address

    @property
    def request_id(self) -> str:
        return f"{self.protocol.state.request_prefix.decode('ascii')}{self._number:x}"

    @property
    def route_arg(self) -> bytes:
        return rest_of_path(self.target, self.route.prefix)

    def header(self, name: bytes) -> bytes | None:
        return self._index.get(name)

    def query(self, name: bytes) -> bytes | None:
        return query_value(self.target, name)

    # -- body in ----------------------------------------------------------------------------------------------
    def collect(self, limit_bytes: int, then: Callable[[bytes], None]) -> None:
        if (self.content_length or 0) > limit_bytes:
            self.fail(TooLarge(f"the body has {self.content_length} bytes, at most {limit_bytes} are taken here"))
            return
        self.receive(Collector(limit_bytes, then))

    def receive(self, sink: BodySink) -> None:
        assert self._sink is None, "the body has a sink already"
        if self.phase >= ANSWERED:
            sink.aborted(ConnectionResetError("the exchange is over"))
            return
        if self.expects_continue and not self.body_ended:
            self.expects_continue = False
            self.protocol.transport.write(CONTINUE)
        self._sink = sink
        early, self._early = self._early, None
        for piece in early or ():
            self._give(memoryview(piece))
        if self.body_ended:
            self._complete()
        elif self.phase < ANSWERED:
            self.protocol.continue_body(self)

    def take(self, piece: bytes) -> None:
        """From the parser: the next piece of the body."""
        if self.content_length is not None:
            self.body_left -= len(piece)
        if self._sink is not None:
            self._give(memoryview(piece))
        elif self.phase < ANSWERED:
            # nobody asked yet: bounded by one read, because the connection pauses after it
            if self._early is None:
                self._early = []
            self._early.append(piece)

    def take_view(self, piece: memoryview) -> None:
        """From the body receiver: a piece that is valid during the call only."""
        self.body_left -= len(piece)
        if self._sink is not None:
            self._give(piece)

    def _give(self, piece: memoryview) -> None:
        sink = self._sink
        if sink is None:
            return
        try:
            sink.data(piece)
        except Exception as error:  # any error of a handler's sink becomes the answer (seam's promise)
            self._sink = None
            self.fail(error)

    def end_of_body(self) -> None:
        """From the connection: the whole body has come."""
        self.body_ended = True
        if self._sink is not None:
            self._complete()

    def _complete(self) -> None:
        sink, self._sink = self._sink, None
        if sink is None or self.phase == GONE:
            return
        try:
            sink.complete()
        except Exception as error:  # as above
            self.fail(error)

    @property
    def wants_body(self) -> bool:
        """Whether somebody (a sink, or the discarding after an early answer) takes body bytes now."""
        return self._sink is not None or self.phase >= ANSWERED

    def pause_body(self) -> None:
        if not self.body_ended and self.phase < ANSWERED:
            self.protocol.flow.pause_reading()

    def resume_body(self) -> None:
        if not self.body_ended and self.phase < ANSWERED:
            self.protocol.note_progress()
            self.protocol.flow.resume_reading()

    # -- answer out -------------------------------------------------------------------------------------------
    def _head_bytes(self, status: int, lines: bytes, length: int) -> bytes:
        protocol = self.protocol
        state = protocol.state
        if self.body_ended:
            if state.is_draining:
                self.keep_alive = False
        else:
            self.keep_alive = self.keep_alive and protocol.may_discard(self)
        return b"%b%bx-request-id: %b%x\r\n%b%b%b\r\n" % (
            STATUS_LINES[status],
            state.date_line,
            state.request_prefix,
            self._number,
            b"" if status in NO_BODY else b"content-length: %d\r\n" % length,
            lines,
            b"" if self.keep_alive else CLOSE_LINE,
        )

    def reply(self, status: int, body: Buffer = b"", lines: bytes = b"") -> None:
        if self.phase != OPEN:
            if self.phase == GONE:
                return
            raise RuntimeError("the exchange was answered before")
        size = body.nbytes if isinstance(body, memoryview) else len(body)
        head = self._head_bytes(status, lines, size)
        transport = self.protocol.transport
        if not size or self.method == b"HEAD" or status in NO_BODY:
            transport.write(head)
        elif size <= JOIN_BYTES:
            transport.write(b"".join((head, body)))
        else:
            transport.writelines((head, body))
        self._answered()

    def reply_file(  # noqa: PLR0917 - see the seam
        self, status: int, lines: bytes, prefix: Buffer, fd: int, offset: int, count: int,
        done: Callable[[BaseException | None], None],
    ) -> None:  # fmt: skip
        if self.phase != OPEN:
            if self.phase == GONE:
                done(ConnectionResetError("the client went away"))
                return
            raise RuntimeError("the exchange was answered before")
        head = self._head_bytes(status, lines, len(prefix) + count)
        if self.method == b"HEAD":
            self.protocol.transport.write(head)
            self._answered()
            done(None)
            return
        self.phase = STREAMING
        self._owed = count

        def sent(error: BaseException | None) -> None:
            # the caller's descriptor is released before the next request may begin
            done(error)
            if self.phase != STREAMING:
                return
            if error is None:
                self._answered()
            else:
                self.abort()

        self.protocol.send_file([head, prefix], fd, offset, count, sent)

    def begin(self, status: int, lines: bytes, length: int) -> None:
        if self.phase == GONE:
            return
        if self.phase != OPEN:
            raise RuntimeError("the exchange was answered before")
        # the head waits for the first piece, so that both leave in one write
        self._head = self._head_bytes(status, lines, length)
        self._owed = 0 if self.method == b"HEAD" or status in NO_BODY else length
        self.phase = STREAMING

    async def send(self, piece: Buffer) -> None:
        if self.phase == GONE:
            raise ConnectionResetError("the client went away")
        if self.phase != STREAMING:
            raise RuntimeError("send() outside begin() and end()")
        size = piece.nbytes if isinstance(piece, memoryview) else len(piece)
        if self.method == b"HEAD" or not size:
            return
        if size > self._owed:
            raise RuntimeError("more bytes than announced")
        self._owed -= size
        protocol = self.protocol
        head, self._head = self._head, None
        if head is None:
            protocol.transport.write(piece)
        elif size <= JOIN_BYTES:
            protocol.transport.write(b"".join((head, piece)))
        else:
            protocol.transport.writelines((head, piece))
        if protocol.flow.write_paused:          # the write buffer's mark is 0: not paused means all is in the kernel
            await protocol.flow.drain()
            if self.is_gone:
                raise ConnectionResetError("the client went away")

    @property
    def is_gone(self) -> bool:
        return self.phase == GONE

    def end(self) -> None:
        if self.phase == GONE:
            return
        if self.phase != STREAMING:
            raise RuntimeError("end() without begin()")
        if self._owed:
            self.abort()                        # a short body must be seen as one
            return
        if self._head is not None:
            self.protocol.transport.write(self._head)
            self._head = None
        self._answered()

    def abort(self) -> None:
        if self.phase != GONE:
            protocol = self.protocol
            self.gone(ConnectionAbortedError("the exchange was aborted"))
            protocol.drop()

    def _answered(self) -> None:
        self.phase = ANSWERED
        sink, self._sink, self._early = self._sink, None, None
        if sink is not None and not self.body_ended:
            # an early answer: the sink's owner gets the end of the body as an abort, once
            sink.aborted(RequestError("answered before the body was complete", code="answered-early"))
        self.protocol.answered(self)

    # -- life -------------------------------------------------------------------------------------------------
    def spawn(self, coroutine: Coroutine[object, object, None]) -> None:
        assert self._task is None, "an exchange owns one coroutine"
        if self.phase >= ANSWERED:
            coroutine.close()
            return
        self._task = task = self.protocol.loop.create_task(self._run(coroutine))
        self.protocol.tasks.add(task)
        task.add_done_callback(self.protocol.tasks.discard)

    async def _run(self, coroutine: Coroutine[object, object, None]) -> None:
        try:
            await coroutine
        except Exception as error:  # the seam's promise: any error becomes the answer, or the connection closes
            self.fail(error)
            return
        if self.phase == OPEN:
            self.fail(RuntimeError(f"the handler of {self.route.prefix!r} ended without an answer"))
        elif self.phase == STREAMING and not self.protocol.is_sending_file:
            self.end()

    def fail(self, error: BaseException) -> None:
        if self.phase == GONE:
            return
        if self.phase != OPEN:
            if self.phase == STREAMING:
                if not isinstance(error, TierstoreError | ConnectionError | OSError):
                    problem.document(error, self.request_id)    # logs it: no answer can carry it any more
                self.abort()
            return
        status, body, lines = problem.render(error, self.request_id)
        self.reply(status, body, lines)

    def gone(self, error: BaseException) -> None:
        """From the connection: the client went away (or broke the protocol). Cancels what the exchange owns."""
        if self.phase >= ANSWERED:
            self.phase = GONE
            return
        self.phase = GONE
        sink, self._sink, self._early = self._sink, None, None
        if sink is not None:
            sink.aborted(error)
        task = self._task
        if task is not None and task is not _current_task():
            task.cancel()


def _current_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def read_piece(fd: int, offset: int, count: int) -> bytes:
    """count bytes of fd, for adapters without sendfile. Raises EOFError when the file is shorter."""
    data = os.pread(fd, count, offset)
    if not data:
        raise EOFError("the file is shorter than announced")
    return data
