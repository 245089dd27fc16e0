"""What only the pooled client promises: bounds, reuse, stale connections, broken servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tests.contract.exchange_subjects import run, subject
from tests.kit.waits import until
from tierstore.errors import UnavailableError
from tierstore.transport.pool import PooledTransport, PoolLimits

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[str]:
    """A server whose every connection runs a script (reader, writer, number of the connection)."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        try:
            await script(reader, writer, count)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def test_connections_are_reused_and_bounded() -> None:
    """A connection per call would cost more than the call; one without bound more than the server has."""

    async def main() -> None:
        async with subject("protocol") as s:
            transport = PooledTransport(PoolLimits(connections_per_peer=4))
            calls = (transport.call(s.url, b"GET", b"/hot/small", seconds=60) for _ in range(200))
            assert all(r.status == 200 for r in await asyncio.gather(*calls))
            assert s.serving is not None and s.serving.state.connection_count == 4
            await transport.close()

    run(main())


def test_waiters_are_bounded_and_have_deadlines() -> None:
    """A slow server must not collect an endless queue in its clients."""

    async def main() -> None:
        async with subject("protocol") as s:
            transport = PooledTransport(PoolLimits(connections_per_peer=1, waiters_per_peer=2))
            first = asyncio.create_task(transport.call(s.url, b"GET", b"/hot/waits", seconds=600))
            await until(lambda: s.seen.open_exchange is not None)
            tasks = [asyncio.create_task(transport.call(s.url, b"GET", b"/hot/small", seconds=0.1)) for _ in range(3)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            codes = [r.code for r in results if isinstance(r, UnavailableError)]
            assert codes == ["deadline", "deadline", "overloaded"]
            first.cancel()
            await asyncio.wait({first})
            assert (await transport.call(s.url, b"GET", b"/hot/small", seconds=60)).status == 200
            await transport.close()

    run(main())


@pytest.mark.parametrize(("method", "is_retried"), [(b"GET", True), (b"PUT", True), (b"POST", False)])
def test_a_stale_connection_is_retried_once_when_repeating_is_harmless(method: bytes, is_retried: bool) -> None:
    """A restarted server closes kept connections just as they are used; a POST may have been applied."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await head(reader)
        writer.write(OK)
        await head(reader)
        if number > 1:
            writer.write(OK)
            await reader.read()

    async def main() -> None:
        async with scripted(script) as url:
            transport = PooledTransport()
            assert (await transport.call(url, b"GET", b"/", seconds=60)).body == b"ok"
            if is_retried:
                assert (await transport.call(url, method, b"/", seconds=60)).body == b"ok"
            else:
                with pytest.raises(UnavailableError) as caught:
                    await transport.call(url, method, b"/", seconds=60)
                assert caught.value.code == "unreachable"
            await transport.close()

    run(main())


def test_a_fresh_connection_that_is_closed_is_not_retried() -> None:
    """A server that dies on a request would be killed again and again."""
    seen = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        nonlocal seen
        await head(reader)
        seen += 1

    async def main() -> None:
        async with scripted(script) as url:
            transport = PooledTransport()
            with pytest.raises(UnavailableError) as caught:
                await transport.call(url, b"GET", b"/", seconds=60)
            assert caught.value.code == "unreachable"
            await transport.close()

    run(main())
    assert seen == 1


@pytest.mark.parametrize(
    "answer",
    [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort", b"HTTP/1.1 200 OK\r\ncontent-le",
     b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"],
)  # fmt: skip
def test_broken_answers_are_errors_and_their_connections_are_dropped(answer: bytes) -> None:
    """A half answer must never be taken for a whole one."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await head(reader)
        writer.write(answer)

    async def main() -> None:
        async with scripted(script) as url:
            transport = PooledTransport()
            for step in (transport.call, transport.open):
                with pytest.raises(UnavailableError) as caught:
                    stream = await step(url, b"GET", b"/", seconds=60)
                    await stream.read_into(memoryview(bytearray(10)))  # type: ignore[union-attr]
                assert caught.value.code in ("broken-answer", "unreachable")
            await until(lambda: not any(o.connections for o in transport._origins.values()))
            await transport.close()

    run(main())


@pytest.mark.parametrize(
    ("answer", "body"),
    [(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
     (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"), (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
     (b"HTTP/1.1 204 No Content\r\n\r\n", b""), (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", b"")],
)  # fmt: skip
@pytest.mark.parametrize("way", ["call", "open"])
def test_every_form_of_body_is_understood(answer: bytes, body: bytes, way: str) -> None:
    """Proxies and FastAPI answer in other forms than our hot routes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await head(reader)
        for at in range(len(answer)):
            writer.write(answer[at : at + 1])
            await writer.drain()

    async def main() -> None:
        async with scripted(script) as url:
            transport = PooledTransport()
            if way == "call":
                assert (await transport.call(url, b"GET", b"/", seconds=60)).body == body
            else:
                stream = await transport.open(url, b"GET", b"/", seconds=60)
                assert await stream.read_all(1000) == body
                stream.close()
            await transport.close()

    run(main())


def test_bytes_behind_an_answer_poison_only_their_connection() -> None:
    """Response splitting: an answer nobody asked for must not become the next call's."""
    connections: list[int] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        connections.append(number)
        while True:
            await head(reader)
            writer.write(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil" if number == 1 else OK)

    async def main() -> None:
        async with scripted(script) as url:
            transport = PooledTransport()
            for _ in range(3):
                assert (await transport.call(url, b"GET", b"/", seconds=60)).body == b"ok"
            assert connections == [1, 2]
            await transport.close()

    run(main())


def test_an_upload_waits_for_a_slow_receiver() -> None:
    """Back-pressure: the gateway's memory must not follow the speed difference."""

    async def main() -> None:
        started, goes_on = asyncio.Event(), asyncio.Event()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await head(reader)
            started.set()
            await goes_on.wait()
            await reader.readexactly(64 << 20)
            writer.write(OK)
            await reader.read()

        async with scripted(script) as url:
            transport = PooledTransport()
            upload = await transport.upload(url, b"PUT", b"/", length=64 << 20, seconds=60)
            sent = 0

            async def send() -> None:
                nonlocal sent
                for _ in range(64):
                    await upload.write(bytes(1 << 20))
                    sent += 1

            task = asyncio.create_task(send())
            await started.wait()
            await asyncio.wait([task], timeout=0.3)
            assert sent < 32          # socket buffers took some, the rest waits
            goes_on.set()
            await task
            assert (await upload.finish()).body == b"ok"
            await transport.close()

    run(main())


def test_a_peer_that_vanishes_in_an_upload_is_noticed() -> None:
    """The fan-out replaces a dead server while the others go on."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await head(reader)
        await reader.readexactly(100_000)
        writer.transport.abort()

    async def main() -> None:
        async with scripted(script) as url:
            transport = PooledTransport()
            upload = await transport.upload(url, b"PUT", b"/", length=64 << 20, seconds=60)
            with pytest.raises(UnavailableError):
                for _ in range(64):
                    await upload.write(bytes(1 << 20))
            upload.abort()
            await transport.close()

    run(main())
