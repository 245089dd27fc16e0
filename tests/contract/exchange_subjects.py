"""The three exchange adapters as subjects of one suite, and the hot handlers the suite calls through them."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvloop
from fastapi import FastAPI

from tests.kit.waits import give_way, never, until
from tierstore.errors import CapacityError, NotFound
from tierstore.serving import declared, problem_handlers
from tierstore.serving.exchange import Exchange
from tierstore.serving.inprocess import InProcessServer
from tierstore.serving.limits import Limits
from tierstore.serving.run import Serving, listen
from tierstore.serving.table import Route
from tierstore.transport.inprocess import Network
from tierstore.transport.peer import PeerTransport
from tierstore.transport.pool import PooledTransport

#: How long the handler that takes its body late waits before it does.
LATER_TURNS = 5
T = TypeVar("T")
KINDS = ("protocol", "asgi", "in-process")
FILE_BYTES = 3_000_000
#: Limits with short ends, so that a test does not wait for its own clients.
QUICK = Limits(drain_idle_seconds=0, drain_seconds=1, linger_seconds=1)


def run(main: Coroutine[Any, Any, T], seconds: float = 180) -> T:
    """Run a test's coroutine on the loop that production uses, with an end."""

    async def bounded() -> T:
        async with asyncio.timeout(seconds):
            return await main

    return uvloop.run(bounded())


@dataclass
class Seen:
    """What the handlers saw, for the tests to look at."""

    aborted: list[BaseException] = field(default_factory=list)
    cancelled: int = 0
    closed_files: list[BaseException | None] = field(default_factory=list)
    bytes_taken: int = 0
    most_at_once: int = 0
    open_exchange: Exchange | None = None


class CountingSink:
    """Answers with the number and the sum of the bytes it saw."""

    def __init__(self, exchange: Exchange, seen: Seen) -> None:
        self.exchange = exchange
        self.seen = seen
        self.size = 0
        self.total = 0
        self.over = asyncio.Event()

    def data(self, piece: memoryview) -> None:
        self.size += len(piece)
        self.total = (self.total + sum(piece[:16])) % 1_000_003
        self.seen.bytes_taken += len(piece)
        self.seen.most_at_once = max(self.seen.most_at_once, len(piece))

    def complete(self) -> None:
        self.exchange.reply(200, b"%d" % self.size)
        self.over.set()

    def aborted(self, error: BaseException) -> None:
        self.seen.aborted.append(error)
        self.over.set()


class RefusingSink(CountingSink):
    """Refuses in the middle, by an exception."""

    def data(self, piece: memoryview) -> None:
        super().data(piece)
        if self.size > 100_000:
            raise CapacityError("the device is full")


class PausingSink(CountingSink):
    """Pauses after each piece and goes on a moment later: back-pressure must not lose or double a byte."""

    def data(self, piece: memoryview) -> None:
        super().data(piece)
        self.exchange.pause_body()
        asyncio.get_running_loop().call_later(0.001, self.exchange.resume_body)


class Handlers:
    """Hot handlers of every shape. One instance per subject."""

    def __init__(self) -> None:
        self.seen = Seen()
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by subject()
        self.content = os.urandom(FILE_BYTES)
        self.file.write(self.content)
        self.file.flush()

    def routes(self) -> list[Route]:
        return [
            Route(b"GET", b"/hot/small", lambda e: e.reply(200, b"small", b"content-type: text/plain\r\nx-a: 1\r\n")),
            Route(b"HEAD", b"/hot/small", lambda e: e.reply(200, b"small", b"content-type: text/plain\r\n")),
            Route(b"GET", b"/hot/echo/", self.describe),
            Route(b"POST", b"/hot/collect", lambda e: e.collect(600_000, lambda body: e.reply(200, body[::-1]))),
            Route(b"PUT", b"/hot/count/", lambda e: e.receive(CountingSink(e, self.seen))),
            Route(b"PUT", b"/hot/pausing", lambda e: e.receive(PausingSink(e, self.seen))),
            Route(b"PUT", b"/hot/refusing", lambda e: e.receive(RefusingSink(e, self.seen))),
            Route(b"PUT", b"/hot/early", lambda e: e.fail(CapacityError("the device is full", code="device-full"))),
            Route(b"PUT", b"/hot/later", lambda e: e.spawn(self.later(e))),
            Route(b"GET", b"/hot/file", self.send_file),
            Route(b"HEAD", b"/hot/file", self.send_file),
            Route(b"GET", b"/hot/stream", lambda e: e.spawn(self.stream(e, 1_000_000))),
            Route(b"GET", b"/hot/short", lambda e: e.spawn(self.short(e))),
            Route(b"GET", b"/hot/break", lambda e: e.spawn(self.break_off(e))),
            Route(b"GET", b"/hot/raise", self.raise_bug),
            Route(b"GET", b"/hot/missing", self.raise_missing),
            Route(b"GET", b"/hot/spawn-raise", lambda e: e.spawn(self.spawn_raise())),
            Route(b"GET", b"/hot/forgets", lambda e: e.spawn(self.forgets())),
            Route(b"GET", b"/hot/waits", lambda e: e.spawn(self.waits(e))),
            Route(b"GET", b"/hot/none", lambda e: e.reply(204)),
        ]

    def describe(self, exchange: Exchange) -> None:
        text = b"|".join((
            exchange.method, exchange.route_arg, exchange.query(b"a") or b"-", exchange.header(b"x-one") or b"-",
            exchange.peer.encode(),
        ))  # fmt: skip
        exchange.reply(200, text)

    def send_file(self, exchange: Exchange) -> None:
        exchange.reply_file(
            200, b"x-kind: file\r\n", b"prefix", self.file.fileno(), 1000, FILE_BYTES - 1000,
            self.seen.closed_files.append,
        )  # fmt: skip

    async def later(self, exchange: Exchange) -> None:
        for _ in range(LATER_TURNS):
            await give_way()            # the body comes meanwhile
        sink = CountingSink(exchange, self.seen)
        exchange.receive(sink)
        await sink.over.wait()          # the sink answers; this coroutine outlives it

    async def stream(self, exchange: Exchange, size: int) -> None:
        exchange.begin(200, b"", size)
        buffer = bytearray(100_000)
        for number in range(size // len(buffer)):
            buffer[:] = bytes([number % 251]) * len(buffer)     # the same memory each time
            await exchange.send(memoryview(buffer))
        exchange.end()

    async def short(self, exchange: Exchange) -> None:
        exchange.begin(200, b"", 1000)
        await exchange.send(b"x" * 10)
        exchange.end()

    async def break_off(self, exchange: Exchange) -> None:
        exchange.begin(200, b"", 1000)
        await exchange.send(b"x" * 10)
        raise NotFound("gone in the middle")

    def raise_bug(self, exchange: Exchange) -> None:
        raise ZeroDivisionError("a secret of the inside")

    def raise_missing(self, exchange: Exchange) -> None:
        raise NotFound("no chunk 7", code="no-such-chunk", chunk="07")

    async def spawn_raise(self) -> None:
        await give_way()
        raise NotFound("no chunk 8", code="no-such-chunk")

    async def forgets(self) -> None:
        await give_way()

    async def waits(self, exchange: Exchange) -> None:
        self.seen.open_exchange = exchange
        try:
            await never()
        except asyncio.CancelledError:
            self.seen.cancelled += 1
            raise


@dataclass
class Subject:
    kind: str
    transport: PeerTransport
    url: str
    handlers: Handlers
    serving: Serving | None

    @property
    def seen(self) -> Seen:
        return self.handlers.seen


def application(routes: list[Route], *, declares: bool) -> FastAPI:
    app = FastAPI()
    problem_handlers.install(app)
    if declares:
        for number, route in enumerate(routes):
            path = route.prefix.decode()
            path = path + "{rest:path}" if path.endswith("/") else path
            declared.declare(app, route, path, summary="test", operation_id=f"test{number}")

    @app.get("/cold")
    async def cold() -> dict[str, str]:
        return {"from": "fastapi"}

    @app.post("/cold")
    async def cold_post(body: dict[str, int]) -> dict[str, int]:
        return body

    return app


@asynccontextmanager
async def subject(kind: str, limits: Limits | None = None, *, more: Sequence[Route] = ()) -> AsyncIterator[Subject]:
    """A running server with the handlers and `more` of them, behind one adapter, and a client of it."""
    handlers = Handlers()
    routes = [*handlers.routes(), *more]
    if kind == "in-process":
        server = InProcessServer(routes, application(routes, declares=False))
        network = Network(random.Random(7))
        network.register("http://peer:1", server)
        try:
            yield Subject(kind, network.transport("http://me:1"), "http://peer:1", handlers, None)
        finally:
            await server.close()
            handlers.file.close()
        return
    is_hot = kind == "protocol"
    app = application(routes, declares=not is_hot)
    limits = limits or QUICK
    serving = Serving(app, routes if is_hot else (), sock=listen("127.0.0.1", 0), limits=limits)
    task = asyncio.create_task(serving.run())
    transport = PooledTransport()
    try:
        await until(lambda: serving.is_started)
        yield Subject(kind, transport, f"http://127.0.0.1:{serving.port}", handlers, serving)
    finally:
        await transport.close()
        serving.stop()
        await task
        handlers.file.close()
