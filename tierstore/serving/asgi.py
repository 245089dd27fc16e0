"""The ASGI adapter: the same hot handler driven from scope, receive and send.

Used when a hot route cannot be answered in the protocol class (TLS, a request that queued behind another, a test
client), and by hot routes that are declared in FastAPI (serving.declared). Slower by some 100 us; the behaviour is the
same and is held by tests/contract/test_exchange.py.

Invariant: only the coroutine that runs serve_exchange() calls ASGI's send; handlers put their answer into a queue of
one piece, which is the back-pressure.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Final

from tierstore.errors import RequestError, TierstoreError, TooLarge
from tierstore.serving import problem
from tierstore.serving.collector import Collector
from tierstore.serving.exchange import BodySink, Buffer
from tierstore.serving.heads import NO_BODY, header_lines, query_value, rest_of_path
from tierstore.serving.hot_exchange import ANSWERED, GONE, OPEN, STREAMING, read_piece
from tierstore.serving.table import Route

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

FILE_PIECE_BYTES: Final = 256 * 1024
#: Scope extension: files are read in the loop. Set by the in-process adapter, whose runs must not use threads.
INLINE_FILES: Final = "tierstore.inline_files"


class AsgiExchange:
    """See serving.exchange.Exchange."""

    def __init__(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        self.route = route
        self.method: bytes = scope["method"].encode("ascii")
        query: bytes = scope.get("query_string", b"")
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        self.target = path + b"?" + query if query else path
        self.headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        self._index: dict[bytes, bytes] = {}
        for name, value in self.headers:
            self._index.setdefault(name, value)
        length = self._index.get(b"content-length")
        self.content_length = int(length) if length is not None and length.isdigit() else None
        client = scope.get("client")
        self.peer = str(client[0]) if client else ""
        self.request_id = str(scope.get("state", {}).get("request_id", "-"))
        self.route_arg = rest_of_path(self.target, route.prefix)
        self.phase = OPEN
        self.body_ended = not self.content_length and b"transfer-encoding" not in self._index
        self._receive = receive
        self._send = send
        self._sink: BodySink | None = None
        self._owed = 0
        self._task: asyncio.Task[None] | None = None
        self._out: deque[tuple[MutableMapping[str, Any], asyncio.Future[None] | None]] = deque()
        self._file: tuple[Buffer, int, int, int, Callable[[BaseException | None], None]] | None = None
        self._reads_inline = INLINE_FILES in (scope.get("extensions") or ())
        self._wake = asyncio.Event()
        self._body_wanted = asyncio.Event()

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
        self._sink = sink
        if self.body_ended:
            self._end_of_body()         # no body: complete at once, as in the protocol class
        else:
            self._body_wanted.set()

    def pause_body(self) -> None:
        self._body_wanted.clear()

    def resume_body(self) -> None:
        self._body_wanted.set()

    async def _read_body(self) -> None:
        """Own task: feeds the sink while it wants, then waits for the client to go away."""
        while not self.body_ended:
            await self._body_wanted.wait()
            if self.phase >= ANSWERED:
                return
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone(ConnectionResetError("the client went away"))
                return
            piece = message.get("body", b"")
            if piece:
                self._give(memoryview(piece))
            if not message.get("more_body", False):
                self._end_of_body()
        while self.phase < ANSWERED:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone(ConnectionResetError("the client went away"))

    def _give(self, piece: memoryview) -> None:
        sink = self._sink
        if sink is None:
            return
        try:
            sink.data(piece)
        except Exception as error:  # any error of a handler's sink becomes the answer (seam's promise)
            self._sink = None
            self.fail(error)

    def _end_of_body(self) -> None:
        self.body_ended = True
        sink, self._sink = self._sink, None
        if sink is None or self.phase == GONE:
            return
        try:
            sink.complete()
        except Exception as error:  # as above
            self.fail(error)

    # -- answer out -------------------------------------------------------------------------------------------
    def _start(self, status: int, lines: bytes, length: int) -> None:
        if self.phase != OPEN:
            raise RuntimeError("the exchange was answered before")
        headers = header_lines(lines)
        if status not in NO_BODY:
            headers.insert(0, (b"content-length", b"%d" % length))
        self._put({"type": "http.response.start", "status": status, "headers": headers})
        self._owed = 0 if self.method == b"HEAD" or status in NO_BODY else length
        self.phase = STREAMING

    def _put(self, message: MutableMapping[str, Any], sent: asyncio.Future[None] | None = None) -> None:
        self._out.append((message, sent))
        self._wake.set()

    def reply(self, status: int, body: Buffer = b"", lines: bytes = b"") -> None:
        if self.phase == GONE:
            return
        data = bytes(body)
        self._start(status, lines, len(data))
        self._put({"type": "http.response.body", "body": data if self._owed else b""})
        self._answered()

    def reply_file(  # noqa: PLR0917 - see the seam
        self, status: int, lines: bytes, prefix: Buffer, fd: int, offset: int, count: int,
        done: Callable[[BaseException | None], None],
    ) -> None:  # fmt: skip
        if self.phase == GONE:
            done(ConnectionResetError("the client went away"))
            return
        self._start(status, lines, len(prefix) + count)
        if self._owed:
            self._file = (prefix, fd, offset, count, done)
            self._wake.set()
        else:
            self._put({"type": "http.response.body", "body": b""})
            self._answered()
            done(None)

    def begin(self, status: int, lines: bytes, length: int) -> None:
        if self.phase != GONE:
            self._start(status, lines, length)

    async def send(self, piece: Buffer) -> None:
        if self.phase == GONE:
            raise ConnectionResetError("the client went away")
        if self.phase != STREAMING:
            raise RuntimeError("send() outside begin() and end()")
        data = bytes(piece)
        if self.method == b"HEAD" or not data:
            return
        if len(data) > self._owed:
            raise RuntimeError("more bytes than announced")
        self._owed -= len(data)
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put({"type": "http.response.body", "body": data, "more_body": True}, sent)
        await sent

    def end(self) -> None:
        if self.phase == GONE:
            return
        if self.phase != STREAMING:
            raise RuntimeError("end() without begin()")
        if self._owed:
            self.abort()
            return
        self._put({"type": "http.response.body", "body": b""})
        self._answered()

    def abort(self) -> None:
        self.gone(ConnectionAbortedError("the exchange was aborted"))

    def _answered(self) -> None:
        self.phase = ANSWERED
        sink, self._sink = self._sink, None
        if sink is not None and not self.body_ended:
            sink.aborted(RequestError("answered before the body was complete", code="answered-early"))
        self._body_wanted.set()
        self._wake.set()

    # -- life -------------------------------------------------------------------------------------------------
    def spawn(self, coroutine: Coroutine[object, object, None]) -> None:
        assert self._task is None, "an exchange owns one coroutine"
        if self.phase >= ANSWERED:
            coroutine.close()
            return
        self._task = asyncio.get_running_loop().create_task(self._run(coroutine))

    async def _run(self, coroutine: Coroutine[object, object, None]) -> None:
        try:
            await coroutine
        except Exception as error:  # the seam's promise: any error becomes the answer, or the connection closes
            self.fail(error)
            return
        if self.phase == OPEN:
            self.fail(RuntimeError(f"the handler of {self.route.prefix!r} ended without an answer"))
        elif self.phase == STREAMING and self._file is None:
            self.end()

    def fail(self, error: BaseException) -> None:
        if self.phase == GONE:
            return
        if self.phase != OPEN:
            if self.phase == STREAMING:
                if not isinstance(error, TierstoreError | ConnectionError | OSError):
                    problem.document(error, self.request_id)
                self.abort()
            return
        status, body, lines = problem.render(error, self.request_id)
        self.reply(status, body, lines)

    def gone(self, error: BaseException) -> None:
        if self.phase >= ANSWERED:
            return
        self.phase = GONE
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.aborted(error)
        for _, sent in self._out:
            if sent is not None and not sent.done():
                sent.set_exception(ConnectionResetError("the client went away"))
        self._out.clear()
        self._body_wanted.set()
        self._wake.set()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    # -- the driver -------------------------------------------------------------------------------------------
    async def drive(self) -> None:
        """Send what the handler answers until the answer is complete. Raises when the answer was cut short."""
        reader = asyncio.get_running_loop().create_task(self._read_body())
        try:
            while True:
                while self._out:
                    message, sent = self._out.popleft()
                    await self._send(message)
                    if sent is not None and not sent.done():
                        sent.set_result(None)
                if self._file is not None:
                    await self._send_file()
                    continue
                if self.phase >= ANSWERED and not self._out:
                    break
                self._wake.clear()
                await self._wake.wait()
        finally:
            reader.cancel()
            self.gone(ConnectionResetError("the client went away"))
            await _settle(reader)
            if self._task is not None:
                await _settle(self._task)
        if self.phase == GONE:
            raise ConnectionAbortedError("the exchange was aborted")     # the server closes the connection

    async def _send_file(self) -> None:
        assert self._file is not None
        prefix, fd, offset, count, done = self._file
        error: BaseException | None = None
        try:
            if len(prefix):
                await self._send({"type": "http.response.body", "body": bytes(prefix), "more_body": True})
            while count and self.phase != GONE:
                size = min(count, FILE_PIECE_BYTES)
                if self._reads_inline:
                    piece = read_piece(fd, offset, size)
                else:
                    piece = await asyncio.to_thread(read_piece, fd, offset, size)
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})
                offset += len(piece)
                count -= len(piece)
        except (OSError, EOFError) as failure:
            error = failure
        finally:
            self._file = None
            if count and error is None:
                error = ConnectionResetError("the client went away")
            done(error)
        if error is not None:
            self.abort()
        else:
            self._owed = 0
            self.end()


async def _settle(task: asyncio.Task[None]) -> None:
    """Wait for an owned task that has ended or was cancelled; its error was turned into the answer already."""
    try:
        await task
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise
    except ConnectionError:
        pass        # the client went away: nobody is left to tell


async def serve_exchange(route: Route, scope: Scope, receive: Receive, send: Send) -> None:
    """Run the hot handler of a route for one ASGI request."""
    exchange = AsgiExchange(route, scope, receive, send)
    try:
        route.handler(exchange)
    except Exception as error:  # the seam's promise: an error that leaves a handler becomes the answer
        exchange.fail(error)
    await exchange.drive()


def hot_application(route: Route) -> Callable[[Any, Any, Any], Coroutine[Any, Any, None]]:
    """An ASGI application that is one hot route."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await serve_exchange(route, scope, receive, send)

    return application
