"""HotProtocol: uvicorn's HTTP/1.1 protocol class with hot routes answered in the protocol.

Derives from uvicorn's HttpToolsProtocol (pinned to a minor; tests/unit/serving holds the hooks it relies on) by way of
serving.order, which answers one request after the other, and serving.edge, which has the limits. Owns what comes in on
one connection: it parses heads, decides hot or FastAPI, and receives large bodies through a BufferedProtocol put in
place for their duration.

Invariants: at most one request is under way; a hot request is only taken when none is, all others queue in uvicorn's
pipeline (a hot route among them is served by the ASGI adapter); answers leave in the order of the requests; the body
receiver never asks for more bytes than the body still lacks, so no byte of the next request passes it.

Cost of a small GET: parser callbacks and the head about 6 us, one read, one write. No ASGI scope, no task, no timer.
"""

from __future__ import annotations

from typing import Any, Final

import httptools

from tierstore.errors import TierstoreError
from tierstore.serving import problem
from tierstore.serving.body_receiver import BodyReceiver
from tierstore.serving.edge import BODY, BUSY, CLOSED, HEAD, IDLE, LINGER
from tierstore.serving.framing import check_framing, check_size, expects_continue, first_values
from tierstore.serving.hot_exchange import OPEN, STREAMING, HotExchange
from tierstore.serving.known_heads import KnownRequest
from tierstore.serving.order import OrderedProtocol
from tierstore.serving.problem import EdgeError
from tierstore.serving.state import ServingState

#: What came of a body together with its head is not copied out of that read when it is more than this.
VIEW_BYTES_MIN: Final = 32 << 10


class _AfterClose(Exception):
    """Bytes behind the last request of a connection: stop parsing, they are nobody's."""


class HotProtocol(OrderedProtocol):
    """Use `HotProtocol.bound(state)` as uvicorn's `Config(http=...)`."""

    @classmethod
    def bound(cls, state: ServingState) -> type[HotProtocol]:
        """The class with the state of one server."""
        return type("BoundHotProtocol", (cls,), {"state": state})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._parsing: HotExchange | None = None        # the hot request whose body the parser is in
        self._head_bytes = 0
        self._first = b""                               # what was read at the beginning of a request, till it is parsed
        self._is_suspect = False                        # the head may be larger than the limit: count it
        self._receiver: BodyReceiver | None = None

    # -- connection -------------------------------------------------------------------------------------------
    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = CLOSED
        if self._is_admitted:
            self.state.forget(self, self.address)
        exchange, self.exchange, self._parsing = self.exchange, None, None
        if exchange is not None:
            exchange.gone(exc or ConnectionResetError("the client went away"))
        if self._file is not None:
            done, self._file = self._file[4], None
            done(ConnectionResetError("the client went away"))
        if self._sender is not None:
            self._sender.close()
        running, self._running = self._running, None
        if running is not None and not running.response_complete:
            running.disconnected = True     # with pipelining, uvicorn would only tell the newest cycle
            running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        phase = self._phase
        if phase == IDLE:
            self.since = self.state.tick
            known = self.state.heads.find(data)
            if known is not None and self._take_known(known, data):
                return
            self._phase = HEAD
            self._first = data
            self._is_suspect = len(data) > self.state.limits.header_bytes_max
        elif phase == LINGER:
            self._discard(len(data))
            return
        elif phase == CLOSED:
            return
        else:
            if phase == BODY:
                self.since = self.state.tick
            self._first = b""
            self._is_suspect = True
        was_in_head = self._in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._no_more = True            # the upgrade is not taken; what follows would not be HTTP
            return
        except httptools.HttpParserError as error:
            self._broken(error)
            return
        if self._in_head:
            if self._phase == IDLE:
                self._phase = HEAD
                self.since = self.state.tick
            self._head_bytes = self._head_bytes + len(data) if was_in_head or phase == IDLE else 0
            if self._head_bytes > self.state.limits.header_bytes_max:
                self._broken(EdgeError(431, "the request line and headers are too large"))
            return
        exchange = self._parsing
        if exchange is not None and exchange is self.exchange and not exchange.body_ended:
            self._body_goes_on(exchange)

    def _take_known(self, known: KnownRequest, data: bytes) -> bool:
        """Begin a hot request without the parser. False: it is the parser's after all."""
        method, target, head, at = known
        length = head.content_length or 0
        came = len(data) - at
        route = self.state.table.match(method, target)
        if (
            route is None or came > length or self._no_more or self.exchange is not None or self.pipeline
            or not (self.cycle is None or self.cycle.response_complete) or self.scheme == "https"
        ):  # fmt: skip
            return False
        exchange = HotExchange(
            self, route, method, target, head.headers, head.index, head.content_length, False, True, False
        )
        self.exchange = self._parsing = exchange
        if not length:
            self._phase = BUSY
            self._invoke(exchange)
            return True
        self._phase = BODY
        self._invoke(exchange)
        if came > VIEW_BYTES_MIN and exchange.wants_body:
            exchange.take_view(memoryview(data)[at:])
        elif came:
            exchange.take(data[at:])
        if self._phase in (LINGER, CLOSED):
            return True
        if came == length:
            self._phase = BUSY
            self.body_complete(exchange)
        elif exchange is self.exchange:
            self._body_goes_on(exchange)
        return True

    # -- parser callbacks -------------------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        if self._no_more:
            raise _AfterClose
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._in_head = True
        self._head_bytes = 0
        self._parsing = None

    def on_url(self, url: bytes) -> None:
        self.url = self.url + url if self.url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        first, self._first = self._first, b""
        headers = self.headers
        index = dict(headers)
        if self._is_suspect:
            check_size(self.url, headers, self.state.limits.header_bytes_max)
        if len(index) != len(headers):
            index = first_values(headers)
        parser = self.parser
        length, is_chunked = check_framing(index, parser)
        if b"expect" in index:
            self.expect_100_continue = expects_continue(index[b"expect"])
        keep_alive = parser.should_keep_alive()
        if parser.should_upgrade():
            if length or is_chunked or parser.get_method() == b"CONNECT":
                raise EdgeError(400, "no protocol but HTTP/1.1 is spoken here", code="no-upgrade")
            keep_alive = False
        if not keep_alive:
            self._no_more = True
        method = parser.get_method()
        self._route = None
        route = self.state.table.match(method, self.url)
        if (
            route is None
            or self.exchange is not None
            or self.pipeline
            or not (self.cycle is None or self.cycle.response_complete)
            or self.scheme == "https"
        ):
            self._phase = BODY
            self._to_asgi(route, headers)
            return
        exchange = HotExchange(
            self, route, method, self.url, headers, index, length, is_chunked, keep_alive, self.expect_100_continue
        )
        if first and keep_alive:
            self.state.heads.note(first, headers, index, length)
        self.exchange = self._parsing = exchange
        if not exchange.body_ended:
            self._phase = BODY
            self._invoke(exchange)

    def on_body(self, body: bytes) -> None:
        exchange = self._parsing
        if exchange is None:
            if self.cycle.response_complete:
                self._discard(len(body))    # answered early: the rest is read away, within a bound
            super().on_body(body)
        else:
            exchange.take(body)

    def on_message_complete(self) -> None:
        if self._phase in (LINGER, CLOSED):
            return
        exchange = self._parsing
        self._phase = BUSY
        if exchange is None:
            if self.cycle.response_complete and self.exchange is None and not self.pipeline:
                self._phase = IDLE
            super().on_message_complete()
            return
        if exchange.body_ended:             # there was no body: the handler was not called yet
            self._invoke(exchange)
        else:
            self.body_complete(exchange)

    def _invoke(self, exchange: HotExchange) -> None:
        try:
            exchange.route.handler(exchange)
        except Exception as error:  # the seam's promise: an error that leaves a handler becomes the answer
            exchange.fail(error)

    # -- what is broken --------------------------------------------------------------------------------------
    def _broken(self, error: Exception) -> None:
        """The bytes are no request that we take: answer 4xx if it is the turn of an answer, then close."""
        cause: BaseException = error
        if isinstance(error, httptools.HttpParserCallbackError) and error.__context__ is not None:
            cause = error.__context__
        self._no_more = True
        self._parsing = None
        if isinstance(cause, _AfterClose):
            return
        if not isinstance(cause, TierstoreError):
            if not isinstance(cause, httptools.HttpParserError | UnicodeDecodeError | AssertionError):
                problem.document(cause, "-")        # logs a bug of ours; the client sees a broken request
            cause = EdgeError(400, f"not a valid HTTP/1.1 request ({error})"[:200])
        exchange, cycle = self.exchange, self.cycle
        if exchange is not None:
            if not exchange.body_ended:             # its own body is what is broken
                self.exchange = None
                answered_before = exchange.phase != OPEN
                exchange.gone(cause)
                if answered_before:
                    self.drop()
                    return
                self._refuse(cause)
            else:
                exchange.keep_alive = False         # what follows it is broken: it is answered, then closed
            return
        if cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False
            if cycle.more_body and not cycle.response_started:
                cycle.disconnected = True
                cycle.message_event.set()
                self._refuse(cause)
            elif cycle.more_body:
                self.drop()
            return
        self._refuse(cause)

    # -- body -------------------------------------------------------------------------------------------------
    def _body_goes_on(self, exchange: HotExchange) -> None:
        """After a read that ended inside a body: who takes the rest?"""
        if not exchange.wants_body:
            self.flow.pause_reading()
        elif exchange.content_length is not None:
            self._swap_in()

    def continue_body(self, exchange: HotExchange) -> None:
        """From receive(): the sink is there. Also called inside a parser callback, where the swap comes later."""
        self.since = self.state.tick
        if self.flow.read_paused:
            if exchange.content_length is not None:
                self._swap_in()
            self.flow.resume_reading()

    def _swap_in(self) -> None:
        # the parser stands inside this body and will never see its end: the next request gets a new one
        self.parser = httptools.HttpRequestParser(self)
        if self._receiver is None:
            self._receiver = BodyReceiver(self)
        self.transport.set_protocol(self._receiver)

    def swap_out(self) -> None:
        self.transport.set_protocol(self)

    def body_complete(self, exchange: HotExchange) -> None:
        """The last byte of the body has come."""
        if self._phase == BODY:
            self._phase = BUSY
        was_answered = exchange.phase not in (OPEN, STREAMING)
        exchange.end_of_body()
        if was_answered:
            self._next(exchange)

    def may_discard(self, exchange: HotExchange) -> bool:
        """Whether what an early answer leaves unread is little enough to be read away on a kept connection."""
        return (
            not exchange.is_chunked
            and not exchange.expects_continue
            and exchange.body_left <= self.state.limits.discard_bytes_max
        )

    def answered(self, exchange: HotExchange) -> None:
        """From the exchange: its answer is written (or handed to the kernel) wholly."""
        self.server_state.total_requests += 1
        if exchange.body_ended:
            self._next(exchange)
        elif not exchange.keep_alive:
            self._next(exchange)            # the rest of the body is read away while lingering
        elif self.flow.read_paused:
            self.continue_body(exchange)    # discarded; the next request begins when it has come
