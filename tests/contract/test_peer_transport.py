"""One suite for the peer seam: the pooled client over sockets and the in-process network behave the same."""

from __future__ import annotations

import asyncio

import pytest

from tests.contract.exchange_subjects import FILE_BYTES, run, subject
from tierstore.errors import ConfigError, UnavailableError
from tierstore.transport.peer import PeerTransport
from tierstore.transport.pool import PooledTransport

pytestmark = pytest.mark.parametrize("kind", ["protocol", "in-process"])
SECONDS = 5.0


async def get_small(transport: PeerTransport, url: str) -> bytes:
    return (await transport.call(url, b"GET", b"/hot/small", seconds=SECONDS)).body


def test_many_calls_at_once_all_get_their_own_answer(kind: str) -> None:
    """A pool that mixes up answers gives one client another's object."""

    async def main() -> None:
        async with subject(kind) as s:

            async def one(number: int) -> None:
                reply = await s.transport.call(s.url, b"GET", b"/hot/echo/%d" % number, seconds=SECONDS)
                assert reply.body.startswith(b"GET|%d|" % number)

            await asyncio.gather(*(one(number) for number in range(500)))

    run(main())


@pytest.mark.parametrize("piece", [1, 1000, 65_536, 262_144, FILE_BYTES])
def test_a_stream_fills_views_of_any_size(kind: str, piece: int) -> None:
    """The first view takes what came with the head, later ones come straight from the socket."""

    async def main() -> None:
        async with subject(kind) as s:
            for _ in range(2):
                stream = await s.transport.open(s.url, b"GET", b"/hot/file", seconds=SECONDS)
                assert (stream.status, stream.content_length) == (200, FILE_BYTES - 1000 + 6)
                data = bytearray(stream.content_length if piece > 1 else 2000)
                view = memoryview(data)
                for at in range(0, len(data), piece):
                    await stream.read_into(view[at : at + piece])
                stream.close()
                whole = b"prefix" + s.handlers.content[1000:]
                assert data == whole[: len(data)]
            assert await get_small(s.transport, s.url) == b"small"

    run(main())


def test_more_than_the_body_cannot_be_read(kind: str) -> None:
    """A reader that waits for bytes that will not come would hang until its deadline."""

    async def main() -> None:
        async with subject(kind) as s:
            stream = await s.transport.open(s.url, b"GET", b"/hot/small", seconds=SECONDS)
            with pytest.raises(UnavailableError):
                await stream.read_into(memoryview(bytearray(6)))
            stream.close()

    run(main())


def test_an_error_answer_of_a_stream_can_be_read(kind: str) -> None:
    """The reason of a refusal stands in its body."""

    async def main() -> None:
        async with subject(kind) as s:
            stream = await s.transport.open(s.url, b"GET", b"/hot/missing", seconds=SECONDS)
            assert stream.status == 404
            assert b"no-such-chunk" in await stream.read_all(10_000)
            stream.close()

    run(main())


def test_an_unknown_port_is_unreachable_at_once(kind: str) -> None:
    """A dead server must cost microseconds, not the deadline."""

    async def main() -> None:
        async with subject(kind) as s:
            for step in (s.transport.call, s.transport.open):
                with pytest.raises(UnavailableError) as caught:
                    await step("http://127.0.0.1:9", b"GET", b"/x", seconds=SECONDS)
                assert caught.value.code == "unreachable"

    run(main())


def test_every_step_has_its_deadline(kind: str) -> None:
    """A hung server still accepts connections."""

    async def main() -> None:
        async with subject(kind) as s:
            for step in (s.transport.call, s.transport.open):
                with pytest.raises(UnavailableError) as caught:
                    await step(s.url, b"GET", b"/hot/waits", seconds=0.15)
                assert caught.value.code == "deadline"
            with pytest.raises(UnavailableError):   # at the last of them, or before on a machine that stands still
                upload = await s.transport.upload(s.url, b"PUT", b"/hot/count/x", length=10, seconds=0.15)
                await upload.write(b"12345")
                await upload.write(b"67890")
                await (await s.transport.upload(s.url, b"GET", b"/hot/waits", length=0, seconds=0.15)).finish()
            assert await get_small(s.transport, s.url) == b"small"

    run(main())


def test_a_cancelled_call_harms_no_other(kind: str) -> None:
    """Hedged reads cancel the loser: its late answer must not be taken for the next call's."""

    async def main() -> None:
        async with subject(kind) as s:
            tasks = [asyncio.create_task(get_small(s.transport, s.url)) for _ in range(50)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(r == b"small" for r in results[1::2])
            stream = await s.transport.open(s.url, b"GET", b"/hot/file", seconds=SECONDS)
            reading = asyncio.create_task(stream.read_into(memoryview(bytearray(FILE_BYTES - 2000))))
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            stream.close()
            assert await get_small(s.transport, s.url) == b"small"

    run(main())


def test_a_url_with_a_path_is_a_mistake_that_is_named(kind: str) -> None:
    """Configuration errors must not look like outages."""

    async def main() -> None:
        transport = PooledTransport()
        with pytest.raises(ConfigError):
            await transport.call("ftp://x/y", b"GET", b"/", seconds=1)
        await transport.close()

    run(main())
