"""The order of a connection's requests: one at a time, each answered before the next begins.

Derives from serving.edge; serving.protocol derives from this and reads requests. Owns uvicorn's pipeline of what waits,
the request that runs as an ASGI application, and what follows an answer: the next request, an idle connection, a close.

Invariants: a request begins only when none is under way; a hot request that came behind another one waits with all the
others and runs through the ASGI adapter; a connection whose queue is full answers what is in it and closes.
"""

from __future__ import annotations

from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from tierstore.serving.asgi import hot_application
from tierstore.serving.edge import BODY, BUSY, CLOSED, HEAD, IDLE, EdgeProtocol
from tierstore.serving.hot_exchange import HotExchange
from tierstore.serving.table import Route


class OrderedProtocol(EdgeProtocol):
    """See the module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._running: RequestResponseCycle | None = None
        self._in_head = False                           # the parser stands inside a request's head
        self._route: Route | None = None                # of the hot request that goes to ASGI just now

    # -- what waits -------------------------------------------------------------------------------------------
    def _to_asgi(self, route: Route | None, headers: list[tuple[bytes, bytes]]) -> None:
        url, expect = self.url, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expect
        self.scope["headers"] = headers
        state = self.state
        state.request_number += 1
        self.scope["state"]["request_id"] = f"{state.request_prefix.decode('ascii')}{state.request_number:x}"
        self._route = route
        super().on_headers_complete()
        self._route = None
        if self._no_more:
            self.cycle.keep_alive = False
        pipeline = self.pipeline
        if pipeline and pipeline[0][0] is self.cycle:
            if route is not None:
                pipeline[0] = (self.cycle, hot_application(route))
            if len(pipeline) >= state.limits.pipelined_max:
                self._no_more = True        # those in the queue are answered, then the connection closes
                self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if self.exchange is not None:
            # behind a hot request: uvicorn's pipeline is the one queue, and its order is the order of arrival
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
            return
        if cycle is self.cycle and self._route is not None:
            app, self._route = hot_application(self._route), None
        self._running = cycle
        if self.state.is_draining:
            cycle.keep_alive = False
        request_id = str(cycle.scope["state"].get("request_id", "-")).encode("ascii")
        cycle.default_headers = [
            (b"date", self.state.date_line[6:-2]), (b"x-request-id", request_id), *cycle.default_headers,
        ]  # fmt: skip
        super()._start_asgi_task(cycle, app)

    # -- what follows an answer -------------------------------------------------------------------------------
    def _next(self, exchange: HotExchange) -> None:
        """The exchange is over: close, or go on with what queued behind it."""
        if self.exchange is not exchange:
            return
        self.exchange = None
        if self.transport.is_closing():
            return
        if not exchange.keep_alive:
            self._no_more = True
            if exchange.body_ended:
                self.close_idle()
            else:
                self._linger()
            return
        self.since = self.state.tick
        if self.pipeline:
            self.flow.resume_reading()
            self._phase = BUSY
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        self._phase = HEAD if self._in_head else IDLE
        self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """From uvicorn's cycle: an ASGI answer is complete. Replaces its keep-alive timer by the sweep."""
        self.server_state.total_requests += 1
        running, self._running = self._running, None
        self.since = self.state.tick
        if self.transport.is_closing():
            self._phase = CLOSED
            self._moved_mark = -1
            return
        if self.pipeline:
            self.flow.resume_reading()
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        if running is not None and running.more_body:
            # answered before the body came: the rest is read away by the parser (bounded by the sweep)
            self._phase = BODY
            self._linger_left = self.state.limits.linger_bytes_max
        else:
            self._phase = HEAD if self._in_head else IDLE
        self.flow.resume_reading()
