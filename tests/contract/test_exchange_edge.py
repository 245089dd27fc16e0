"""The HTTP edge of the protocol class against clients that are odd, slow or hostile; raw sockets, one server each."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import socket
from contextlib import AsyncExitStack, closing
from dataclasses import replace

import pytest

from tests.contract.exchange_subjects import FILE_BYTES, QUICK, Subject, run, subject
from tests.kit.waits import until

GET = b"GET /hot/small HTTP/1.1\r\nhost: x\r\n\r\n"


class Raw:
    """A client that sends exactly what it is told."""

    def __init__(self, s: Subject) -> None:
        assert s.serving is not None
        self.port = s.serving.port

    async def __aenter__(self) -> Raw:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 26)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer, read by its Content-Length."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(lines[0].split()[1]), headers, body

    async def exchange(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        self.writer.write(data)
        return await self.answer()

    async def ends(self) -> bool:
        """Whether the server closes (after at most what it still had to say)."""
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True


POST = b"POST /hot/collect HTTP/1.1\r\nhost: x\r\n"
SMUGGLED = {
    "CL and TE": POST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE and CL": POST + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
    "two CL": POST + b"content-length: 4\r\ncontent-length: 5\r\n\r\nabcd",
    "equal CL": POST + b"content-length: 4\r\ncontent-length: 4\r\n\r\nabcd",
    "CL list": POST + b"content-length: 4, 4\r\n\r\nabcd",
    "CL signed": POST + b"content-length: +4\r\n\r\nabcd",
    "CL hex": POST + b"content-length: 0x4\r\n\r\nabcd",
    "CL huge": POST + b"content-length: 99999999999999999999999\r\n\r\nabcd",
    "TE gzip": POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "TE twice": POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE odd": POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "TE in 1.0": b"POST /hot/collect HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare LF": b"GET /hot/small HTTP/1.1\nhost: x\n\n",
    "bare LF in headers": b"GET /hot/small HTTP/1.1\r\nhost: x\nx: y\r\n\r\n",
    "no Host": b"GET /hot/small HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /hot/small HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
    "space before colon": b"GET /hot/small HTTP/1.1\r\nhost: x\r\ncontent-length : 3\r\n\r\nabc",
    "folded header": b"GET /hot/small HTTP/1.1\r\nhost: x\r\nx-a: 1\r\n content-length: 3\r\n\r\nabc",
    "NUL in a header": b"GET /hot/small HTTP/1.1\r\nhost: x\r\nx-a: 1\x002\r\n\r\n",
    "bad chunk size": POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n\r\n",
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "control in target": b"GET /hot/sm\x01all HTTP/1.1\r\nhost: x\r\n\r\n",
    "CONNECT": b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n",
    "upgrade with a body": POST + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 4\r\n\r\nabcd",
}  # fmt: skip


@pytest.mark.parametrize("case", SMUGGLED)
def test_ambiguous_and_broken_requests_are_refused_and_nothing_behind_them_is_served(case: str) -> None:
    """Request smuggling: two parsers that disagree on where a request ends."""

    async def main() -> None:
        async with subject("protocol") as s, Raw(s) as raw:
            status, headers, body = await raw.exchange(SMUGGLED[case] + GET)
            assert 400 <= status < 500, body
            assert headers["content-type"] == "application/problem+json"
            assert headers["connection"] == "close"
            assert json.loads(body)["status"] == status
            assert await raw.ends()

    run(main())


def test_an_expectation_that_nobody_knows_is_passed_over() -> None:
    """S3 answers such requests; the body is read as if none had been stated, and no 100 is sent."""

    async def main() -> None:
        async with subject("protocol") as s, Raw(s) as raw:
            asked = POST + b"expect: magic\r\ncontent-length: 4\r\n\r\nabcd"
            assert (await raw.exchange(asked))[0] == 200
            assert (await raw.exchange(GET))[0] == 200

    run(main())


def test_a_head_beyond_the_limit_is_431_in_one_piece_and_in_many() -> None:
    """100 KB of headers cost plain uvicorn 100 KB per connection."""

    async def main() -> None:
        async with subject("protocol") as s:
            huge = b"GET /hot/small HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 100_000 + b"\r\n\r\n"
            async with Raw(s) as raw:
                status, _, _ = await raw.exchange(huge)
                assert status == 431
            async with Raw(s) as raw:
                for at in range(0, 20_000, 500):
                    raw.writer.write(huge[at : at + 500])
                    await raw.writer.drain()
                status, _, _ = await raw.answer()
                assert status == 431
            async with Raw(s) as raw:
                status, _, _ = await raw.exchange(
                    b"GET /hot/small HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 15_000 + b"\r\n\r\n"
                )
                assert status == 200

    run(main())


def test_unfinished_heads_and_idle_connections_are_closed_in_time() -> None:
    """200 of 200 slow headers stayed open for ever in plain uvicorn; others must be served meanwhile."""

    async def main() -> None:
        limits = replace(QUICK, header_seconds=1, idle_seconds=1)
        async with subject("protocol", limits) as s, AsyncExitStack() as stack:
            slow = [await stack.enter_async_context(Raw(s)) for _ in range(50)]
            for raw in slow:
                raw.writer.write(b"GET /hot/small HTTP/1.1\r\nhost: ")
            idle = [await stack.enter_async_context(Raw(s)) for _ in range(50)]
            async with Raw(s) as good:
                assert (await good.exchange(GET))[0] == 200
            for raw in slow:
                assert (await raw.answer())[0] == 408
                assert await raw.ends()
            for raw in idle:
                assert await raw.ends()
            assert s.serving is not None
            await until(lambda: s.serving.state.connection_count == 0)

    run(main())


def test_a_body_that_stops_coming_is_given_up() -> None:
    """A stalled upload must not hold its space for ever."""

    async def main() -> None:
        async with subject("protocol", replace(QUICK, body_seconds=1)) as s, Raw(s) as raw:
            raw.writer.write(b"PUT /hot/count/x HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n" + b"a" * 70_000)
            status, _, body = await raw.answer()
            assert status == 408 and json.loads(body)["code"] == "body-timeout"
            assert len(s.seen.aborted) == 1
            assert await raw.ends()

    run(main())


def test_an_address_over_its_limit_loses_its_longest_idle_connection() -> None:
    """Idle connections must never lock out somebody with a request."""

    async def main() -> None:
        async with subject("protocol", replace(QUICK, connections_per_address=10)) as s, AsyncExitStack() as stack:
            idle = [await stack.enter_async_context(Raw(s)) for _ in range(10)]
            assert s.serving is not None
            await until(lambda: s.serving.state.connection_count == 10)
            for _ in range(5):
                async with Raw(s) as raw:
                    assert (await raw.exchange(GET))[0] == 200
            assert await idle[0].ends()

    run(main())


def test_a_full_server_says_503_when_nobody_is_idle() -> None:
    """Bounded means bounded."""

    async def main() -> None:
        async with subject("protocol", replace(QUICK, connections_per_address=3)) as s, AsyncExitStack() as stack:
            busy = [await stack.enter_async_context(Raw(s)) for _ in range(3)]
            for raw in busy:
                raw.writer.write(b"GET /hot/waits HTTP/1.1\r\nhost: x\r\n\r\n")
            assert s.serving is not None
            await until(lambda: s.serving.state.request_number == 3)
            async with Raw(s) as raw:
                status, _, body = await raw.answer()
                assert status == 503 and json.loads(body)["code"] == "too-many-connections"
                assert await raw.ends()

    run(main())


def test_pipelined_requests_are_answered_in_order_hot_and_cold() -> None:
    """Answers in another order are answers to other requests: one client would get another object."""

    async def main() -> None:
        async with subject("protocol") as s, Raw(s) as raw:
            raw.writer.write(
                b"GET /hot/echo/1 HTTP/1.1\r\nhost: x\r\n\r\n"
                b"GET /cold HTTP/1.1\r\nhost: x\r\n\r\n"
                b"GET /hot/echo/2 HTTP/1.1\r\nhost: x\r\n\r\n"
                b"POST /hot/collect HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"
                b"GET /hot/stream HTTP/1.1\r\nhost: x\r\n\r\n"
                b"GET /hot/file HTTP/1.1\r\nhost: x\r\n\r\n"
                b"GET /hot/echo/3 HTTP/1.1\r\nhost: x\r\n\r\n"
                b"GET /cold HTTP/1.1\r\nhost: x\r\n\r\n"
            )
            bodies = [(await raw.answer())[2] for _ in range(8)]
            assert bodies[0].startswith(b"GET|1|") and bodies[2].startswith(b"GET|2|")
            assert bodies[1] == bodies[7] == b'{"from":"fastapi"}'
            assert bodies[3] == b"cba" and len(bodies[4]) == 1_000_000
            assert len(bodies[5]) == FILE_BYTES - 1000 + 6 and bodies[6].startswith(b"GET|3|")
            assert (await raw.exchange(GET))[0] == 200

    run(main())


def test_requests_behind_a_slow_hot_one_wait_their_turn() -> None:
    """The same with the first one still under way when the next arrive."""

    async def main() -> None:
        async with subject("protocol") as s, Raw(s) as raw:
            raw.writer.write(b"GET /hot/waits HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: s.seen.open_exchange is not None)
            for number in range(3):
                raw.writer.write(b"GET /hot/echo/%d HTTP/1.1\r\nhost: x\r\n\r\n" % number)
                await raw.writer.drain()
                await asyncio.sleep(0)
            assert s.seen.open_exchange is not None
            s.seen.open_exchange.reply(200, b"first")
            assert (await raw.answer())[2] == b"first"
            for number in range(3):
                assert (await raw.answer())[2].startswith(b"GET|%d|" % number)

    run(main())


def test_a_flood_of_pipelined_requests_is_bounded() -> None:
    """A queue without a bound is somebody else's memory."""

    async def main() -> None:
        async with subject("protocol", replace(QUICK, pipelined_max=8)) as s, Raw(s) as raw:
            raw.writer.write(b"GET /cold HTTP/1.1\r\nhost: x\r\n\r\n" * 1000)
            answers = 0
            while True:
                try:
                    assert (await raw.answer())[0] == 200
                except asyncio.IncompleteReadError:
                    break
                answers += 1
            assert 8 <= answers <= 12

    run(main())


@pytest.mark.parametrize("pace", [1, 7, 64])
def test_a_request_in_any_pieces_is_one_request(pace: int) -> None:
    """TCP cuts anywhere; the end of a body and the next head may share a read."""

    async def main() -> None:
        async with subject("protocol") as s, Raw(s) as raw:
            data = b"PUT /hot/count/x HTTP/1.1\r\nhost: x\r\ncontent-length: 30\r\n\r\n" + b"q" * 30 + GET
            for at in range(0, len(data), pace):
                raw.writer.write(data[at : at + pace])
                await raw.writer.drain()
                await asyncio.sleep(0)
            assert (await raw.answer())[2] == b"30"
            assert (await raw.answer())[2] == b"small"

    run(main())


def test_chunked_bodies_are_taken_also_with_a_request_behind() -> None:
    """Clients that do not know the length send chunks."""

    async def main() -> None:
        async with subject("protocol") as s, Raw(s) as raw:
            head = b"PUT /hot/%b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            chunks = (b"1000\r\n" + b"q" * 4096 + b"\r\n") * 50 + b"0\r\n\r\n"
            for path in (b"count/x", b"pausing", b"later"):
                raw.writer.write(head % path + chunks + GET)
                assert (await raw.answer())[2] == b"%d" % (50 * 4096)
                assert (await raw.answer())[2] == b"small"
            raw.writer.write(
                b"POST /hot/collect HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
                + b"%x\r\n" % 700_000 + b"q" * 700_000
            )
            assert (await raw.answer())[0] == 413

    run(main())


def test_100_continue_is_sent_when_the_body_is_wanted_and_only_then() -> None:
    """curl waits a second for it; a refused upload must not be asked for."""

    async def main() -> None:
        async with subject("protocol") as s:
            head = b"PUT /hot/%b HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
            async with Raw(s) as raw:
                raw.writer.write(head % b"count/x")
                assert await raw.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
                assert (await raw.exchange(b"hello"))[2] == b"5"
                assert (await raw.exchange(GET))[2] == b"small"
            async with Raw(s) as raw:
                status, headers, _ = await raw.exchange(head % b"early")
                assert status == 507 and headers["connection"] == "close"
                assert await raw.ends()

    run(main())


def test_http_1_0_is_answered_and_closed() -> None:
    """Health checks of old load balancers."""

    async def main() -> None:
        async with subject("protocol") as s, Raw(s) as raw:
            status, headers, body = await raw.exchange(b"GET /hot/small HTTP/1.0\r\n\r\n")
            assert (status, body, headers["connection"]) == (200, b"small", "close")
            assert await raw.ends()

    run(main())


def test_connection_close_is_honoured_and_what_follows_is_ignored() -> None:
    """The rest is nobody's request."""

    async def main() -> None:
        async with subject("protocol") as s, Raw(s) as raw:
            close = b"GET /hot/small HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            status, headers, _ = await raw.exchange(close + GET)
            assert status == 200 and headers["connection"] == "close"
            assert await raw.ends()

    run(main())


def test_an_upgrade_is_declined_by_a_plain_answer() -> None:
    """curl --http2 asks so; HTTP lets the server go on with HTTP/1.1."""

    async def main() -> None:
        async with subject("protocol") as s, Raw(s) as raw:
            ask = b"GET /hot/small HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
            status, headers, body = await raw.exchange(ask)
            assert (status, body, headers["connection"]) == (200, b"small", "close")

    run(main())


@pytest.mark.parametrize("path", [b"/hot/stream", b"/hot/file"])
def test_a_client_gone_in_the_middle_of_an_answer_frees_everything(path: bytes) -> None:
    """Descriptors and tasks would leak with every impatient client."""

    async def main() -> None:
        async with subject("protocol") as s:
            assert s.serving is not None
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(20):
                sock = socket.create_connection(("127.0.0.1", s.serving.port))
                with closing(sock):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    sock.sendall(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path)
                    await asyncio.sleep(0)
            await until(lambda: s.serving.state.connection_count == 0)
            await until(lambda: not s.serving._server.server_state.tasks)
            await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 1)
            if path == b"/hot/file":
                await until(lambda: len(s.seen.closed_files) == 20)

    run(main())


def test_a_reader_that_stops_reading_is_given_up_and_costs_no_memory() -> None:
    """Back-pressure: what is not taken stays in the file, not in the process."""

    async def main() -> None:
        async with subject("protocol", replace(QUICK, send_seconds=1)) as s:
            assert s.serving is not None
            sock = socket.create_connection(("127.0.0.1", s.serving.port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with closing(sock):
                sock.sendall((b"GET /hot/stream HTTP/1.1\r\nhost: x\r\n\r\n" + GET) * 8)
                rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                await until(lambda: s.serving.state.connection_count == 1)
                await until(lambda: s.serving.state.connection_count == 0)
                assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rss < 32 * 1024

    run(main())


def test_a_slow_but_steady_reader_gets_the_whole_last_answer() -> None:
    """Limits are about progress: a long request, then a close, must not cut an answer that is being taken."""

    async def main() -> None:
        async with subject("protocol", replace(QUICK, send_seconds=1)) as s:
            assert s.serving is not None
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            sock.connect(("127.0.0.1", s.serving.port))
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            with closing(sock):
                await loop.sock_sendall(sock, b"GET /hot/waits HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                await until(lambda: s.serving.state.tick >= 2)
                assert s.seen.open_exchange is not None
                size = 12_000_000
                s.seen.open_exchange.reply(200, bytes(size))
                got = 0
                tick = s.serving.state.tick
                while piece := await loop.sock_recv(sock, 64 * 1024):
                    got += len(piece)
                    if got < size // 2 and s.serving.state.tick < tick + 3:
                        await asyncio.sleep(0.02)      # the reader's pace is the subject here
                assert got > size and s.serving.state.tick >= tick + 2

    run(main())


def test_two_thousand_odd_heads_never_cost_a_500_or_the_server() -> None:
    """A short fuzz of request heads by mutation; the long one is S1's."""

    async def main() -> None:
        rng = random.Random(20)
        seeds = [*SMUGGLED.values(), GET, b"HEAD /hot/file HTTP/1.1\r\nhost: x\r\n\r\n"]
        async with subject("protocol", replace(QUICK, header_seconds=2)) as s:
            for _ in range(2000 // 20):
                async with asyncio.TaskGroup() as group:
                    for _ in range(20):
                        data = bytearray(rng.choice(seeds))
                        for _ in range(rng.randrange(1, 6)):
                            at = rng.randrange(len(data))
                            match rng.randrange(3):
                                case 0:
                                    data[at] = rng.randrange(256)
                                case 1:
                                    del data[at : at + rng.randrange(1, 9)]
                                case _:
                                    data[at:at] = rng.choice([b"\r\n", b"\n", b"\x00", b": ", b"%00", b" ", b"\xff"])
                            if not data:
                                data += b"x"
                        group.create_task(_fuzz_one(s, bytes(data)))
            async with Raw(s) as raw:
                assert (await raw.exchange(GET))[0] == 200

    run(main())


async def _fuzz_one(s: Subject, data: bytes) -> None:
    async with Raw(s) as raw:
        raw.writer.write(data)
        raw.writer.write_eof()
        try:
            answer = await raw.reader.read()
        except ConnectionError:
            return
        for line in answer.split(b"HTTP/1.1 ")[1:]:
            assert not line.startswith(b"5"), (data, line)
