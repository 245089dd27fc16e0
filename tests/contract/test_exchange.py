"""One suite for the exchange seam: protocol class, ASGI adapter and in-process adapter behave the same."""

from __future__ import annotations

import json

import pytest

from tests.contract.exchange_subjects import FILE_BYTES, KINDS, run, subject
from tests.kit.waits import until
from tierstore.errors import UnavailableError

pytestmark = pytest.mark.parametrize("kind", KINDS)
SECONDS = 5.0


def test_a_small_answer_arrives_whole_with_its_headers(kind: str) -> None:
    """Every hot GET is this."""

    async def main() -> None:
        async with subject(kind) as s:
            reply = await s.transport.call(s.url, b"GET", b"/hot/small", seconds=SECONDS)
            assert (reply.status, reply.body) == (200, b"small")
            assert reply.header(b"content-length") == b"5"
            assert reply.header(b"x-a") == b"1"
            if kind != "in-process":
                assert reply.header(b"date") and reply.header(b"x-request-id")

    run(main())


def test_head_tells_the_length_and_sends_no_body(kind: str) -> None:
    """A body after HEAD would be read as the next answer."""

    async def main() -> None:
        async with subject(kind) as s:
            for target, length in ((b"/hot/small", 5), (b"/hot/file", FILE_BYTES - 1000 + 6)):
                reply = await s.transport.call(s.url, b"HEAD", target, seconds=SECONDS)
                assert (reply.status, reply.body) == (200, b"")
                assert reply.header(b"content-length") == b"%d" % length
            again = await s.transport.call(s.url, b"GET", b"/hot/small", seconds=SECONDS)
            assert again.body == b"small"
            assert s.seen.closed_files == [None]

    run(main())


def test_path_query_and_headers_reach_the_handler_raw(kind: str) -> None:
    """Keys are percent-encoded bytes: decoding belongs to the handler, once."""

    async def main() -> None:
        async with subject(kind) as s:
            reply = await s.transport.call(
                s.url, b"GET", b"/hot/echo/b%20c/d?a=%2Fx+y&b=2", headers=[(b"X-One", b"1")], seconds=SECONDS
            )
            peer = b"http://me:1" if kind == "in-process" else b"127.0.0.1"
            assert reply.body == b"GET|b%20c/d|/x y|1|" + peer

    run(main())


@pytest.mark.parametrize("size", [0, 1, 1000, 500_000, 600_000])
def test_collect_gives_the_whole_body_once(kind: str, size: int) -> None:
    """Messages of any size up to the limit, in one read or many."""

    async def main() -> None:
        async with subject(kind) as s:
            body = bytes(range(256)) * (size // 256) + b"z" * (size % 256)
            for _ in range(2):
                reply = await s.transport.call(s.url, b"POST", b"/hot/collect", body=body, seconds=SECONDS)
                assert reply.status == 200 and reply.body == body[::-1]

    run(main())


def test_collect_answers_413_beyond_its_limit(kind: str) -> None:
    """An unbounded message would be unbounded memory."""

    async def main() -> None:
        async with subject(kind) as s:
            reply = await s.transport.call(s.url, b"POST", b"/hot/collect", body=b"x" * 600_001, seconds=SECONDS)
            assert reply.status == 413
            assert json.loads(reply.body)["code"] == "too-large"
            again = await s.transport.call(s.url, b"GET", b"/hot/small", seconds=SECONDS)
            assert again.body == b"small"

    run(main())


@pytest.mark.parametrize("path", [b"/hot/count/x", b"/hot/pausing", b"/hot/later"])
@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_a_sink_sees_every_byte_of_an_upload_once(kind: str, path: bytes, size: int) -> None:
    """Large bodies change the receiving protocol in the middle, pause, or wait for their sink: no byte may be lost."""

    async def main() -> None:
        async with subject(kind) as s:
            for _ in range(2):
                upload = await s.transport.upload(s.url, b"PUT", path, length=size, seconds=SECONDS)
                left = size
                while left:
                    piece = min(left, 99_999)
                    await upload.write(b"q" * piece)
                    left -= piece
                reply = await upload.finish()
                assert (reply.status, reply.body) == (200, b"%d" % size)
                s.seen.bytes_taken = 0
            assert not s.seen.aborted

    run(main())


@pytest.mark.parametrize("path", [b"/hot/early", b"/hot/refusing"])
def test_an_early_refusal_reaches_the_sender(kind: str, path: bytes) -> None:
    """A full device must not make the gateway send 64 MiB for nothing, nor hide the reason."""

    async def main() -> None:
        async with subject(kind) as s:
            size = 20_000_000
            upload = await s.transport.upload(s.url, b"PUT", path, length=size, seconds=SECONDS)
            with pytest.raises(UnavailableError) as caught:
                for _ in range(size // 100_000):
                    await upload.write(b"q" * 100_000)
            assert caught.value.code == "answered-early"
            reply = await upload.finish()
            assert reply.status == 507
            assert json.loads(reply.body)["code"] == "device-full"
            again = await s.transport.call(s.url, b"GET", b"/hot/small", seconds=SECONDS)
            assert again.body == b"small"

    run(main())


def test_a_sink_hears_of_a_client_that_goes_away(kind: str) -> None:
    """What was received must be thrown away, not stored as if whole."""

    async def main() -> None:
        async with subject(kind) as s:
            upload = await s.transport.upload(s.url, b"PUT", b"/hot/count/x", length=1_000_000, seconds=SECONDS)
            await upload.write(b"q" * 300_000)
            await until(lambda: s.seen.bytes_taken == 300_000)
            upload.abort()
            await until(lambda: len(s.seen.aborted) == 1)

    run(main())


def test_a_file_is_sent_with_its_prefix_and_given_back(kind: str) -> None:
    """sendfile or not: the same bytes, and the descriptor is released exactly once."""

    async def main() -> None:
        async with subject(kind) as s:
            for number in range(1, 4):
                reply = await s.transport.call(s.url, b"GET", b"/hot/file", seconds=SECONDS)
                assert reply.body == b"prefix" + s.handlers.content[1000:]
                assert reply.header(b"x-kind") == b"file"
                await until(lambda n=number: len(s.seen.closed_files) == n)
            assert s.seen.closed_files == [None, None, None]

    run(main())


def test_a_streamed_answer_may_reuse_its_buffer(kind: str) -> None:
    """send() returns only when the bytes are out of the caller's hands."""

    async def main() -> None:
        async with subject(kind) as s:
            stream = await s.transport.open(s.url, b"GET", b"/hot/stream", seconds=SECONDS)
            assert stream.content_length == 1_000_000
            data = await stream.read_all(1_000_000)
            stream.close()
            assert data == b"".join(bytes([n]) * 100_000 for n in range(10))

    run(main())


@pytest.mark.parametrize("path", [b"/hot/short", b"/hot/break"])
def test_a_body_cut_short_is_seen_as_such(kind: str, path: bytes) -> None:
    """A truncated object must never look whole."""

    async def main() -> None:
        async with subject(kind) as s:
            with pytest.raises(UnavailableError) as caught:
                await s.transport.call(s.url, b"GET", path, seconds=SECONDS)
            assert caught.value.code == "broken-answer"
            again = await s.transport.call(s.url, b"GET", b"/hot/small", seconds=SECONDS)
            assert again.body == b"small"

    run(main())


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [(b"/hot/missing", 404, "no-such-chunk"), (b"/hot/spawn-raise", 404, "no-such-chunk"),
     (b"/hot/raise", 500, "internal"), (b"/hot/forgets", 500, "internal")],
)  # fmt: skip
def test_errors_become_problem_documents(kind: str, path: bytes, status: int, code: str) -> None:
    """Clients act on `code`; insides stay inside."""

    async def main() -> None:
        async with subject(kind) as s:
            reply = await s.transport.call(s.url, b"GET", path, seconds=SECONDS)
            members = json.loads(reply.body)
            assert (reply.status, members["code"], members["status"]) == (status, code, status)
            assert reply.header(b"content-type") == b"application/problem+json"
            assert members["request_id"] not in ("", "-")
            assert b"secret" not in reply.body
            if path == b"/hot/missing":
                assert members["chunk"] == "07"

    run(main())


def test_a_client_that_goes_away_cancels_what_it_asked_for(kind: str) -> None:
    """Work for nobody is load without use."""

    async def main() -> None:
        async with subject(kind) as s:
            with pytest.raises(UnavailableError) as caught:
                await s.transport.call(s.url, b"GET", b"/hot/waits", seconds=0.2)
            assert caught.value.code == "deadline"
            await until(lambda: s.seen.cancelled == 1)
            assert s.seen.open_exchange is not None
            s.seen.open_exchange.reply(200, b"too late")     # must do nothing

    run(main())


def test_204_has_no_body_and_no_length(kind: str) -> None:
    """A Content-Length in a 204 confuses keep-alive clients."""

    async def main() -> None:
        async with subject(kind) as s:
            reply = await s.transport.call(s.url, b"GET", b"/hot/none", seconds=SECONDS)
            assert (reply.status, reply.body, reply.header(b"content-length")) == (204, b"", None)
            assert (await s.transport.call(s.url, b"GET", b"/hot/small", seconds=SECONDS)).body == b"small"

    run(main())


def test_everything_else_is_fastapis(kind: str) -> None:
    """One port, one table: what has no hot row is served by the application."""

    async def main() -> None:
        async with subject(kind) as s:
            cold = await s.transport.call(s.url, b"GET", b"/cold", seconds=SECONDS)
            assert json.loads(cold.body) == {"from": "fastapi"}
            missing = await s.transport.call(s.url, b"GET", b"/nothing", seconds=SECONDS)
            assert missing.status == 404 and json.loads(missing.body)["code"] == "no-such-route"
            wrong = await s.transport.call(s.url, b"DELETE", b"/cold", seconds=SECONDS)
            assert wrong.status == 405 and json.loads(wrong.body)["code"] == "method-not-allowed"

    run(main())
