"""PooledTransport: requests to other processes over kept-alive connections, without a task or a timer per request.

Owns the connections per origin (scheme, host, port) and the sweep that enforces deadlines with a grain of
SWEEP_SECONDS. Invariants: at most connections_per_peer sockets and waiters_per_peer waiting calls per origin; a
connection is in `idle` or carries exactly one exchange; every exchange has a deadline.

A kept-alive connection that the peer closed before any byte of the answer is retried once, on a fresh one, when
nothing was sent or the request may be repeated (GET, HEAD, PUT, DELETE); all other retries are the caller's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from tierstore.errors import ConfigError, UnavailableError
from tierstore.transport.connection import IDLE, READ_BYTES, WAITING, Connection
from tierstore.transport.peer import Buffer, Headers, NotSent, PeerReply, PeerStream, PeerUpload

SWEEP_SECONDS: Final = 0.05             # while calls are under way
IDLE_SWEEP_SECONDS: Final = 1.0         # while there are only idle connections
_IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"PUT", b"DELETE"})
#: Bodies up to this are joined with the head into one write.
_JOIN_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class PoolLimits:
    connections_per_peer: int = 64
    waiters_per_peer: int = 1024
    answer_bytes_max: int = 80 * 1024 * 1024    # of call(); streams are bounded by their reader
    idle_seconds: float = 45.0                  # below the servers' own idle time: a reused one is rarely stale
    connect_seconds: float = 5.0


class Origin:
    """One peer process: its idle connections (last used first) and who waits for one."""

    def __init__(self, url: str, limits: PoolLimits, read_view: memoryview) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise ConfigError(f"{url!r} is not the url of a process (http://host:port)", code="bad-url")
        self.url = url
        self.host = parts.hostname
        self.is_tls = parts.scheme == "https"
        self.port = parts.port or (443 if self.is_tls else 80)
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.host_line = f" HTTP/1.1\r\nhost: {host}:{self.port}\r\n".encode("ascii")
        self.answer_bytes_max = limits.answer_bytes_max
        self.read_view = read_view
        self.connections: set[Connection] = set()
        self.idle: list[Connection] = []
        self.waiters: deque[tuple[float, asyncio.Future[Connection | None]]] = deque()
        self.connecting = 0

    def lost(self, connection: Connection) -> None:
        """From a connection that has ended."""
        self.connections.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        self.admit_waiter(None)

    def admit_waiter(self, connection: Connection | None) -> bool:
        """Hand a free connection (or, with None, a free place) to who has waited longest."""
        while self.waiters:
            _, future = self.waiters.popleft()
            if not future.done():
                future.set_result(connection)
                return True
        return False


class PooledTransport:
    """See transport.peer.PeerTransport. One per event loop; `close()` it."""

    def __init__(self, limits: PoolLimits | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self.limits = limits or PoolLimits()
        self._tls = tls
        self._origins: dict[str, Origin] = {}
        self._read_view = memoryview(bytearray(READ_BYTES))
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_swept_fast = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    # -- the seam ---------------------------------------------------------------------------------------------
    async def call(
        self, url: str, method: bytes, target: bytes, *, headers: Headers = (), body: Buffer = b"", seconds: float,
    ) -> PeerReply:  # fmt: skip
        connection = await self._exchange(url, method, target, headers, body, seconds, is_stream=False)
        reply = PeerReply(connection.status, connection.headers, connection.take_body())
        self._release(connection)
        return reply

    async def open(
        self, url: str, method: bytes, target: bytes, *, headers: Headers = (), body: Buffer = b"", seconds: float,
    ) -> PeerStream:  # fmt: skip
        connection = await self._exchange(url, method, target, headers, body, seconds, is_stream=True)
        return _Stream(self, connection, seconds)

    async def upload(
        self, url: str, method: bytes, target: bytes, *, headers: Headers = (), length: int, seconds: float,
    ) -> PeerUpload:  # fmt: skip
        loop, origin = self._ready(url)
        head = _head(origin, method, target, headers, length)
        deadline = loop.time() + seconds
        connection = await self._acquire(loop, origin, deadline)
        connection.start(is_stream=False, is_head=False, unsent=length, deadline=deadline)
        connection.transport.write(head)
        return _Upload(self, connection, seconds)

    async def close(self) -> None:
        self._is_closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for origin in self._origins.values():
            for connection in list(origin.connections):
                connection.drop()
            while origin.admit_waiter(None):
                pass
        await asyncio.sleep(0)

    # -- one exchange -----------------------------------------------------------------------------------------
    async def _exchange(  # noqa: PLR0917 - every call passes here: keywords cost
        self, url: str, method: bytes, target: bytes, headers: Headers, body: Buffer, seconds: float, *, is_stream: bool
    ) -> Connection:
        loop, origin = self._ready(url)
        size = body.nbytes if isinstance(body, memoryview) else len(body)
        head = _head(origin, method, target, headers, size if size or method not in (b"GET", b"HEAD") else None)
        if size and size <= _JOIN_BYTES:
            head, body, size = b"".join((head, body)), b"", 0
        deadline = loop.time() + seconds
        is_head = method == b"HEAD"
        connection = origin.idle.pop() if origin.idle else await self._acquire(loop, origin, deadline)
        if connection.transport.is_closing():
            connection = await self._acquire(loop, origin, deadline, is_fresh=True)
        while True:
            # the future is made and awaited here, not in a method of its own: one coroutine less per call
            waiter = connection.start(is_stream=is_stream, is_head=is_head, unsent=0, deadline=deadline)
            try:
                connection.transport.write(head)
                if size:
                    connection.transport.write(body)
                await waiter
            except UnavailableError as error:
                is_stale = connection.served > 0 and error.code == "unreachable"
                if not is_stale or method not in _IDEMPOTENT:
                    raise
                connection = await self._acquire(loop, origin, deadline, is_fresh=True)
            except BaseException:
                connection.drop()           # cancelled: the answer would come to nobody
                raise
            else:
                return connection

    def _ready(self, url: str) -> tuple[asyncio.AbstractEventLoop, Origin]:
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        if not self._is_swept_fast:
            self._sweep_fast(loop)
        origin = self._origins.get(url)
        if origin is None:
            origin = self._origins[url] = Origin(url, self.limits, self._read_view)
        return loop, origin

    async def _acquire(
        self, loop: asyncio.AbstractEventLoop, origin: Origin, deadline: float, *, is_fresh: bool = False
    ) -> Connection:
        """An idle connection, or a new one, or the next that comes free."""
        limits = self.limits
        while True:
            while origin.idle and not is_fresh:
                connection = origin.idle.pop()
                if not connection.transport.is_closing():
                    return connection
            if is_fresh and origin.idle and len(origin.connections) >= limits.connections_per_peer:
                origin.idle.pop(0).drop()
            if len(origin.connections) + origin.connecting < limits.connections_per_peer or is_fresh:
                return await self._connect(loop, origin, deadline)
            if len(origin.waiters) >= limits.waiters_per_peer:
                raise UnavailableError(f"too many calls wait for {origin.url}", code="overloaded", url=origin.url)
            future: asyncio.Future[Connection | None] = loop.create_future()
            origin.waiters.append((deadline, future))
            try:
                given = await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled() and future.exception() is None:
                    handed = future.result()
                    if handed is not None:
                        self._give_back(handed)
                    else:
                        origin.admit_waiter(None)
                raise
            if self._is_closed:
                raise UnavailableError("the transport is closed", code="closed")
            if given is not None and not given.transport.is_closing():
                return given

    async def _connect(self, loop: asyncio.AbstractEventLoop, origin: Origin, deadline: float) -> Connection:
        seconds = min(deadline - loop.time(), self.limits.connect_seconds)
        origin.connecting += 1
        try:
            async with asyncio.timeout(max(seconds, 0)):
                _, connection = await loop.create_connection(
                    lambda: Connection(origin, loop), origin.host, origin.port,
                    ssl=(self._tls or True) if origin.is_tls else None,
                )  # fmt: skip
        except TimeoutError:
            origin.admit_waiter(None)
            code = "deadline" if loop.time() >= deadline else "unreachable"
            raise NotSent(f"{origin.url} did not accept in time", code=code, url=origin.url) from None
        except OSError as error:
            origin.admit_waiter(None)
            raise NotSent(f"{origin.url}: {error}", code="unreachable", url=origin.url) from None
        finally:
            origin.connecting -= 1
        origin.connections.add(connection)
        return connection

    def _release(self, connection: Connection) -> None:
        """After an exchange: keep the connection if its answer was read wholly, else close it."""
        if connection.is_reusable and not self._is_closed:
            connection.rest()
            self._give_back(connection)
        else:
            connection.drop()

    def _give_back(self, connection: Connection) -> None:
        origin = connection.origin
        if not origin.waiters or not origin.admit_waiter(connection):
            assert self._loop is not None
            connection.idle_since = self._loop.time()
            origin.idle.append(connection)

    # -- deadlines --------------------------------------------------------------------------------------------
    def _sweep(self) -> None:
        assert self._loop is not None
        now = self._loop.time()
        is_busy = has_connections = False
        for origin in self._origins.values():
            for connection in list(origin.connections):
                if connection.deadline <= now:
                    connection.expire()
                elif connection.phase == IDLE and connection.idle_since + self.limits.idle_seconds < now:
                    connection.drop()
            while origin.waiters and (origin.waiters[0][0] <= now or origin.waiters[0][1].done()):
                _, future = origin.waiters.popleft()
                _expire_waiter(future, origin.url)
            for deadline, future in list(origin.waiters):
                if deadline <= now:
                    _expire_waiter(future, origin.url)
            is_busy = is_busy or bool(origin.waiters or origin.connecting or len(origin.idle) < len(origin.connections))
            has_connections = has_connections or bool(origin.connections)
        self._sweeper = None
        self._is_swept_fast = False
        if is_busy and not self._is_closed:
            self._sweep_fast(self._loop)
        elif has_connections and not self._is_closed:
            self._sweeper = self._loop.call_later(IDLE_SWEEP_SECONDS, self._sweep)

    def _sweep_fast(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._is_closed:
            raise UnavailableError("the transport is closed", code="closed")
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._is_swept_fast = True
        self._sweeper = loop.call_later(SWEEP_SECONDS, self._sweep)

    def arm(self, loop: asyncio.AbstractEventLoop) -> None:
        """A step of a stream or upload begins: the sweep must run at its fast pace."""
        if not self._is_swept_fast:
            self._sweep_fast(loop)


def _expire_waiter(future: asyncio.Future[Connection | None], url: str) -> None:
    if not future.done():
        future.set_exception(UnavailableError(f"no connection to {url} came free in time", code="deadline", url=url))


def _head(origin: Origin, method: bytes, target: bytes, headers: Headers, length: int | None) -> bytes:
    if not headers:
        line = b"" if length is None else b"content-length: %d\r\n" % length
        return b"%b %b%b%b\r\n" % (method, target, origin.host_line, line)
    parts = [method, b" ", target, origin.host_line]
    for name, value in headers:
        parts += (name, b": ", value, b"\r\n")
    parts.append(b"\r\n" if length is None else b"content-length: %d\r\n\r\n" % length)
    return b"".join(parts)


class _Stream:
    """See transport.peer.PeerStream."""

    def __init__(self, transport: PooledTransport, connection: Connection, seconds: float) -> None:
        self._transport = transport
        self._connection: Connection | None = connection
        self._seconds = seconds
        self.status = connection.status
        self.headers = connection.headers
        self.content_length = connection.unread if connection.content_length < 0 else connection.content_length

    def _step(self) -> Connection:
        connection = self._connection
        if connection is None:
            raise UnavailableError("the stream is closed", code="closed")
        connection.deadline = connection.loop.time() + self._seconds
        self._transport.arm(connection.loop)
        return connection

    async def read_into(self, view: memoryview) -> None:
        await self._step().read_into(view)

    async def read_all(self, limit_bytes: int) -> bytes:
        connection = self._step()
        if connection.unread > limit_bytes:
            raise UnavailableError(f"the answer has {connection.unread} bytes", code="broken-answer")
        data = bytearray(connection.unread)
        if data:
            await connection.read_into(memoryview(data))
        return bytes(data)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.settle()
            self._transport._release(connection)


class _Upload:
    """See transport.peer.PeerUpload."""

    def __init__(self, transport: PooledTransport, connection: Connection, seconds: float) -> None:
        self._transport = transport
        self._connection: Connection | None = connection
        self._seconds = seconds

    def _step(self) -> Connection:
        connection = self._connection
        if connection is None:
            raise UnavailableError("the upload is over", code="closed")
        connection.deadline = connection.loop.time() + self._seconds
        self._transport.arm(connection.loop)
        return connection

    async def write(self, piece: Buffer) -> None:
        connection = self._step()
        try:
            await connection.write_body(piece)
        except asyncio.CancelledError:
            self.abort()
            raise

    async def finish(self) -> PeerReply:
        connection = self._step()
        if connection.has_unsent and connection.phase == WAITING and connection.error is None:
            raise AssertionError("finish() before all bytes of the upload were written")
        try:
            await connection.wait()
            reply = PeerReply(connection.status, connection.headers, connection.take_body())
        except BaseException:
            self.abort()
            raise
        self._connection = None
        self._transport._release(connection)
        return reply

    def abort(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.drop()
