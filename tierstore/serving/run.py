"""Running one listening process: uvloop, uvicorn with our protocol class, signals, drain.

Owns the server object and the order of start and stop. Invariant: a listening socket that was inherited is only
closed as this process's descriptor; the supervisor's stays open, so connections made meanwhile wait for the successor
instead of being refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterable
from types import FrameType
from typing import Any, Final, cast

import uvicorn
import uvloop
from uvicorn.config import Config

from tierstore.errors import ConfigError
from tierstore.serving.drain import Drain, Drainable, drain_connections
from tierstore.serving.heap import given_back
from tierstore.serving.limits import Limits
from tierstore.serving.protocol import HotProtocol
from tierstore.serving.state import ServingState
from tierstore.serving.table import Route, RouteTable
from tierstore.telemetry.log import get_logger

log = get_logger("serving")
BACKLOG: Final = 2048
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket (not yet accepting). port 0: the system chooses. Raises ConfigError when taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}", code="cannot-listen") from None
    sock.setblocking(False)
    return sock


def inherited(fd: int) -> socket.socket:
    """The bound socket behind an inherited descriptor, as a duplicate of our own. Whoever serves makes it listen, if it
    does not yet: until then it may refuse (tierstore/up/child)."""
    try:
        sock = socket.socket(fileno=os.dup(fd))
        is_bound = sock.type == socket.SOCK_STREAM and sock.family in _FAMILIES and sock.getsockname()[1] != 0
    except OSError as error:
        raise ConfigError(f"descriptor {fd} is no socket: {error.strerror or error}", code="cannot-listen") from None
    if not is_bound:
        sock.close()
        raise ConfigError(f"descriptor {fd} is not a socket bound to a port", code="cannot-listen")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setblocking(False)
    return sock


class _Server(uvicorn.Server):
    """uvicorn's server with our end: drain instead of its shutdown, and no signal raised again after it."""

    def __init__(self, config: Config, state: ServingState, drain: Drain) -> None:
        super().__init__(config)
        self._state = state
        self._drain = drain

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: another process may serve here next. SIGINT: nobody does. A second SIGINT ends the drain."""
        if sig == signal.SIGINT:
            self._drain.is_final = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        began_at = time.monotonic()
        self._drain.announce()
        self._drain.is_stopping = True
        # connections that the kernel already accepted for us are taken in before the listener goes
        await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        for sock in sockets or ():
            sock.close()
        connections = cast("set[Drainable]", self.server_state.connections)
        await drain_connections(
            self._state, connections, self.server_state.tasks, is_forced=lambda: self.force_exit,
            is_final=self._drain.is_final,
        )  # fmt: skip
        self._state.stop()
        await self.lifespan.shutdown()
        log.info("drained", seconds=round(time.monotonic() - began_at, 3))


class Serving:
    """One listening process. `run()` serves until `stop()` (or SIGTERM, SIGINT), then drains and returns."""

    def __init__(
        self, app: Any, routes: Iterable[Route] = (), *, sock: socket.socket, limits: Limits | None = None,
        drain: Drain | None = None, tls_certificate: str | None = None, tls_key: str | None = None,
    ) -> None:  # fmt: skip
        self.sock = sock
        self.port: int = sock.getsockname()[1]
        self.drain = drain or Drain()
        self.state = ServingState(RouteTable(routes), limits or Limits())
        config = Config(
            app,
            http=HotProtocol.bound(self.state),
            ws="none",
            loop="none",
            lifespan="auto",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            ssl_certfile=tls_certificate,
            ssl_keyfile=tls_key,
        )
        self._server = _Server(config, self.state, self.drain)

    @property
    def is_started(self) -> bool:
        """Accepting connections."""
        return self._server.started

    def stop(self) -> None:
        """Ask for the drain; run() returns when it is over. Safe to repeat and from a signal handler."""
        self._server.should_exit = True

    async def run(self) -> None:
        async with given_back():
            await self._server.serve(sockets=[self.sock])


def serve(
    app: Any, hot_routes: Iterable[Route] = (), *, host: str = "127.0.0.1", port: int = 0, fd: int | None = None,
    limits: Limits | None = None, drain: Drain | None = None, tls_certificate: str | None = None,
    tls_key: str | None = None, on_start: Callable[[Serving], Awaitable[None]] | None = None,
    on_stop: Callable[[], Awaitable[None]] | None = None,
) -> None:  # fmt: skip
    """Serve on host:port, or on an inherited descriptor, until SIGTERM or SIGINT; blocks.

    on_start runs in the loop before the first connection is accepted, on_stop after the last one has ended."""

    async def main() -> None:
        sock = inherited(fd) if fd is not None else listen(host, port)
        serving = Serving(
            app, hot_routes, sock=sock, limits=limits, drain=drain, tls_certificate=tls_certificate, tls_key=tls_key
        )
        try:
            if on_start is not None:
                await on_start(serving)
            await serving.run()
        finally:
            if on_stop is not None:
                await on_stop()

    uvloop.run(main())
