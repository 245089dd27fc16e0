"""A network in one process: PeerTransport to servers of the same loop, with faults from a seed.

Owns links, not servers: whoever satisfies PeerServer can be registered under a url (serving.inprocess does). All
chance comes from the Random that is passed in, all time from the running loop, so a run is replayed by its seed.

Faults: delay per step, loss of a request or an answer (the caller hears nothing until its deadline), duplication (the
server gets the same whole request twice), partitions (one way or both), servers that are down (refused) or silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

from tierstore.errors import UnavailableError
from tierstore.transport.peer import Buffer, Headers, NotSent, PeerReply, PeerStream, PeerUpload

_ANSWER_BYTES_MAX: Final = 80 * 1024 * 1024


class PeerCall(Protocol):
    """One request as the client's side sees it."""

    @property
    def has_answer(self) -> bool: ...

    def feed(self, piece: bytes) -> None: ...

    def end(self) -> None: ...

    def disconnect(self) -> None: ...

    async def writable(self) -> None: ...

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]: ...

    async def read(self) -> bytes: ...


class PeerServer(Protocol):
    """A process that can be called."""

    def begin(
        self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]], *, length: int | None, peer: str
    ) -> PeerCall: ...


@dataclass(slots=True)
class Faults:
    """Changeable while the network runs. Chances are per request; delays in seconds, per step."""

    delay_min: float = 0.0
    delay_max: float = 0.0
    request_loss: float = 0.0
    answer_loss: float = 0.0
    duplication: float = 0.0


class Network:
    """Who can reach whom. Names of links are urls of servers and the `source` names of transports."""

    def __init__(self, random: Random, faults: Faults | None = None) -> None:
        self.random = random
        self.faults = faults or Faults()
        self.servers: dict[str, PeerServer] = {}
        self.silent: set[str] = set()           # urls that accept and never answer
        self._cut: set[tuple[str, str]] = set()
        self._duplicates: set[asyncio.Task[None]] = set()

    def register(self, url: str, server: PeerServer) -> None:
        self.servers[url] = server

    def remove(self, url: str) -> None:
        """The process is gone: connections are refused."""
        self.servers.pop(url, None)

    def partition(self, side: set[str], other: set[str], *, both_ways: bool = True) -> None:
        for a in sorted(side):
            for b in sorted(other):
                self._cut.add((a, b))
                if both_ways:
                    self._cut.add((b, a))

    def heal(self) -> None:
        self._cut.clear()

    def is_cut(self, source: str, to: str) -> bool:
        return (source, to) in self._cut or to in self.silent

    def transport(self, source: str) -> InProcessTransport:
        """The transport of one process, whose name on the links is `source` (its url, when it serves too)."""
        return InProcessTransport(self, source)

    async def step(self, source: str, to: str, *, loss: float = 0.0) -> None:
        """One message on the link: takes its delay; a lost one never arrives (the caller's deadline ends the wait)."""
        faults = self.faults
        if faults.delay_max > 0:
            await asyncio.sleep(self.random.uniform(faults.delay_min, faults.delay_max))
        if self.is_cut(source, to) or (loss and self.random.random() < loss):
            await asyncio.get_running_loop().create_future()

    def duplicate(  # noqa: PLR0917 - called in one place
        self, server: PeerServer, method: bytes, target: bytes, headers: Headers, body: bytes | None, peer: str
    ) -> None:
        """Deliver a copy of a request, later, whose answer nobody reads."""

        async def late() -> None:
            await asyncio.sleep(self.random.uniform(0, 4 * self.faults.delay_max))
            call = server.begin(method, target, headers, length=None if body is None else len(body), peer=peer)
            if body:
                call.feed(body)
            call.end()
            try:
                await call.head()
                while await call.read():
                    pass
            except ConnectionError:
                pass        # the copy's fate is nobody's business

        task = asyncio.get_running_loop().create_task(late())
        self._duplicates.add(task)
        task.add_done_callback(self._duplicates.discard)

    async def close(self) -> None:
        tasks = list(self._duplicates)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Exchange:
    """One request over the network: begins the call, then moves the answer back under the link's faults."""

    def __init__(self, network: Network, source: str, url: str, seconds: float) -> None:
        self.network = network
        self.source = source
        self.url = url
        self.seconds = seconds
        self.call: PeerCall | None = None

    async def begin(
        self, method: bytes, target: bytes, headers: Headers, *, length: int | None, body: bytes | None
    ) -> PeerCall:
        """Send the head (and the whole body, when it is given)."""
        network = self.network
        await network.step(self.source, self.url, loss=network.faults.request_loss)
        server = network.servers.get(self.url)
        if server is None:
            raise NotSent(f"{self.url} refused the connection", code="unreachable", url=self.url)
        is_whole = body is not None or length is None
        chance = network.faults.duplication
        if is_whole and chance and network.random.random() < chance:
            network.duplicate(server, method, target, headers, body, self.source)
        self.call = call = server.begin(method, target, headers, length=length, peer=self.source)
        if is_whole:
            if body:
                call.feed(body)
            call.end()
        return call

    async def answer_head(self, call: PeerCall) -> tuple[int, list[tuple[bytes, bytes]]]:
        network = self.network
        try:
            status, headers = await call.head()
        except ConnectionError as error:
            raise UnavailableError(f"{self.url}: {error}", code="unreachable", url=self.url) from None
        await network.step(self.url, self.source, loss=network.faults.answer_loss)
        return status, headers

    async def read(self, call: PeerCall) -> bytes:
        try:
            piece = await call.read()
        except ConnectionError as error:
            raise UnavailableError(f"{self.url}: {error}", code="broken-answer", url=self.url) from None
        if self.network.is_cut(self.url, self.source):
            await asyncio.get_running_loop().create_future()
        return piece

    def disconnect(self) -> None:
        if self.call is not None:
            self.call.disconnect()

    def late(self) -> UnavailableError:
        self.disconnect()
        return UnavailableError(f"{self.url} did not answer in time", code="deadline", url=self.url)


class InProcessTransport:
    """See transport.peer.PeerTransport."""

    def __init__(self, network: Network, source: str) -> None:
        self._network = network
        self._source = source

    async def call(
        self, url: str, method: bytes, target: bytes, *, headers: Headers = (), body: Buffer = b"", seconds: float,
    ) -> PeerReply:  # fmt: skip
        exchange = _Exchange(self._network, self._source, url, seconds)
        try:
            async with asyncio.timeout(seconds):
                call = await exchange.begin(
                    method, target, headers, length=_length(method, body), body=_whole(method, body)
                )
                status, rows = await exchange.answer_head(call)
                return PeerReply(status, rows, await _gather(exchange, call, _ANSWER_BYTES_MAX))
        except TimeoutError:
            raise exchange.late() from None
        except BaseException:
            exchange.disconnect()
            raise

    async def open(
        self, url: str, method: bytes, target: bytes, *, headers: Headers = (), body: Buffer = b"", seconds: float,
    ) -> PeerStream:  # fmt: skip
        exchange = _Exchange(self._network, self._source, url, seconds)
        try:
            async with asyncio.timeout(seconds):
                call = await exchange.begin(
                    method, target, headers, length=_length(method, body), body=_whole(method, body)
                )
                status, rows = await exchange.answer_head(call)
                length = _content_length(rows, method, status)
                if length >= 0:
                    return _Stream(exchange, call, status, rows, length, b"")
                data = await _gather(exchange, call, _ANSWER_BYTES_MAX)
                return _Stream(exchange, call, status, rows, len(data), data)
        except TimeoutError:
            raise exchange.late() from None
        except BaseException:
            exchange.disconnect()
            raise

    async def upload(
        self, url: str, method: bytes, target: bytes, *, headers: Headers = (), length: int, seconds: float,
    ) -> PeerUpload:  # fmt: skip
        exchange = _Exchange(self._network, self._source, url, seconds)
        try:
            async with asyncio.timeout(seconds):
                call = await exchange.begin(method, target, headers, length=length, body=None)
        except TimeoutError:
            raise exchange.late() from None
        return _Upload(exchange, call, length)

    async def close(self) -> None:
        """Nothing is kept between calls."""


def _length(method: bytes, body: Buffer) -> int | None:
    return len(body) if len(body) or method not in (b"GET", b"HEAD") else None


def _whole(method: bytes, body: Buffer) -> bytes | None:
    return bytes(body) if _length(method, body) is not None else None


def _content_length(headers: list[tuple[bytes, bytes]], method: bytes, status: int) -> int:
    if method == b"HEAD" or status in (204, 304):
        return 0
    for name, value in headers:
        if name == b"content-length":
            return int(value)
    return -1


async def _gather(exchange: _Exchange, call: PeerCall, limit_bytes: int) -> bytes:
    pieces = []
    size = 0
    while piece := await exchange.read(call):
        size += len(piece)
        if size > limit_bytes:
            raise UnavailableError("the answer is larger than allowed", code="broken-answer", url=exchange.url)
        pieces.append(piece)
    return b"".join(pieces)


class _Stream:
    """See transport.peer.PeerStream."""

    def __init__(  # noqa: PLR0917 - made in one place
        self, exchange: _Exchange, call: PeerCall, status: int, headers: list[tuple[bytes, bytes]], length: int,
        data: bytes,
    ) -> None:  # fmt: skip
        self.status = status
        self.headers = headers
        self.content_length = length
        self._exchange = exchange
        self._call = call
        self._pending = memoryview(data)
        self._left = length

    async def read_into(self, view: memoryview) -> None:
        at = 0
        try:
            async with asyncio.timeout(self._exchange.seconds):
                while at < len(view):
                    if not self._pending:
                        piece = await self._exchange.read(self._call)
                        if not piece:
                            raise UnavailableError("the answer's body is shorter than expected", code="broken-answer")
                        self._pending = memoryview(piece)
                    take = min(len(self._pending), len(view) - at)
                    view[at : at + take] = self._pending[:take]
                    self._pending = self._pending[take:]
                    at += take
                    self._left -= take
        except TimeoutError:
            raise self._exchange.late() from None

    async def read_all(self, limit_bytes: int) -> bytes:
        if self._left > limit_bytes:
            raise UnavailableError(f"the answer has {self._left} bytes", code="broken-answer")
        data = bytearray(self._left)
        await self.read_into(memoryview(data))
        return bytes(data)

    def close(self) -> None:
        self._exchange.disconnect()


class _Upload:
    """See transport.peer.PeerUpload."""

    def __init__(self, exchange: _Exchange, call: PeerCall, length: int) -> None:
        self._exchange = exchange
        self._call = call
        self._left = length
        self._is_over = False

    async def write(self, piece: Buffer) -> None:
        self._check_open()
        exchange, call = self._exchange, self._call
        is_answered = call.has_answer
        if is_answered:
            raise self._early()
        data = bytes(piece)
        assert len(data) <= self._left, "more bytes than the upload's length"
        self._left -= len(data)
        try:
            async with asyncio.timeout(exchange.seconds):
                await exchange.network.step(exchange.source, exchange.url)
                call.feed(data)
                if not self._left:
                    call.end()
                await call.writable()
        except TimeoutError:
            raise exchange.late() from None
        if call.has_answer and self._left:
            raise self._early()

    def _early(self) -> UnavailableError:
        url = self._exchange.url
        return UnavailableError(f"{url} answered before the body was sent", code="answered-early", url=url)

    def _check_open(self) -> None:
        if self._is_over:
            raise UnavailableError("the upload is over", code="closed")

    async def finish(self) -> PeerReply:
        self._check_open()
        exchange, call = self._exchange, self._call
        if self._left and not call.has_answer:
            raise AssertionError("finish() before all bytes of the upload were written")
        try:
            async with asyncio.timeout(exchange.seconds):
                status, headers = await exchange.answer_head(call)
                reply = PeerReply(status, headers, await _gather(exchange, call, _ANSWER_BYTES_MAX))
        except TimeoutError:
            raise exchange.late() from None
        finally:
            self.abort()
        return reply

    def abort(self) -> None:
        self._is_over = True
        self._exchange.disconnect()
