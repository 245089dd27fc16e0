"""A head that came before is not parsed again: requests that take this way must be answered as the parser would."""

from __future__ import annotations

import random
from typing import Any

import httptools
import pytest

from tests.contract.exchange_subjects import run, subject
from tests.contract.test_exchange_edge import Raw
from tests.kit.waits import until
from tierstore.serving.known_heads import HEAD_BYTES_MAX, KnownHeads

TAIL = b"\r\nhost: x\r\nx-one: 1\r\n\r\n"
GET = b"GET /hot/echo/y?a=2 HTTP/1.1" + TAIL


def _known(data: bytes = GET, *, headers: Any = ((b"host", b"x"), (b"x-one", b"1"))) -> KnownHeads:
    heads = KnownHeads(heads_max=3)
    heads.note(data, list(headers), dict(headers), None)
    return heads


def test_a_head_is_known_by_its_bytes_and_only_by_them() -> None:
    """One other byte may mean another request: a length, a second Host, a credential."""
    heads = _known()
    found = heads.find(b"PUT /other?x HTTP/1.1" + TAIL + b"body")
    assert found is not None
    assert (found.method, found.target) == (b"PUT", b"/other?x")
    assert found.head.index == {b"host": b"x", b"x-one": b"1"}
    assert found.body_at == len(b"PUT /other?x HTTP/1.1") + len(TAIL)
    for other in (
        b"GET /a HTTP/1.1\r\nhost: x\r\nx-one: 2\r\n\r\n", b"GET /a HTTP/1.0" + TAIL,
        b"GET /a HTTP/1.1\nhost: x\r\n\r\n", b"CONNECT /a HTTP/1.1" + TAIL,
        b"GET /a b HTTP/1.1" + TAIL, b"GET /a\x01 HTTP/1.1" + TAIL, b"GET http://x/a HTTP/1.1" + TAIL, b"GET /a HTTP",
        b"get /a HTTP/1.1" + TAIL, b"GET /a\xff HTTP/1.1" + TAIL, GET[:-1], b"", b"\r\n" + GET,
    ):  # fmt: skip
        assert heads.find(other) is None, other


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (b"GET / HTTP/1.0" + TAIL, ((b"host", b"x"), (b"x-one", b"1"))),
        (GET[:-2], ((b"host", b"x"), (b"x-one", b"1"))),
        (GET, ((b"host", b"x"),)),
        (b"GET / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n\r\n", ((b"host", b"x"), (b"expect", b"100-continue"))),
        (b"GET / HTTP/1.1\r\nx-amz-date: 2\r\n\r\n", ((b"x-amz-date", b"2"),)),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n", ((b"x", b"y" * HEAD_BYTES_MAX),)),
    ],
)
def test_what_leaves_something_open_is_not_kept(data: bytes, headers: Any) -> None:
    """An expectation must be answered each time; a head in two reads was not seen whole."""
    assert len(_known(data, headers=headers)) == 0


def test_the_table_is_bounded() -> None:
    """Clients choose what they send."""
    heads = KnownHeads(heads_max=3)
    for number in range(10):
        heads.note(b"GET / HTTP/1.1\r\nx: %d\r\n\r\n" % number, [(b"x", b"%d" % number)], {b"x": b"%d" % number}, None)
        assert 1 <= len(heads) <= 3
    assert heads.find(b"GET / HTTP/1.1\r\nx: 9\r\n\r\n") is not None


def test_no_target_passes_that_the_parser_would_refuse_or_read_otherwise() -> None:
    """The request line is the one part that is read without the parser."""

    class Urls:
        def __init__(self) -> None:
            self.url = b""

        def on_url(self, url: bytes) -> None:
            self.url += url

    heads = _known()
    passed = 0
    for byte in range(256):
        target = b"/a" + bytes([byte]) + b"b?c" + bytes([byte])
        found = heads.find(b"GET " + target + b" HTTP/1.1" + TAIL)
        if found is None:
            continue
        passed += 1
        urls = Urls()
        httptools.HttpRequestParser(urls).feed_data(b"GET " + target + b" HTTP/1.1" + TAIL)
        assert urls.url == found.target == target
    assert passed > 80


CASES = {
    "get": (b"GET /hot/echo/y?a=2 HTTP/1.1\r\nhost: x\r\nx-one: 1\r\n\r\n", b""),
    "file": (b"GET /hot/file HTTP/1.1\r\nhost: x\r\n\r\n", b""),
    "cold": (b"GET /cold HTTP/1.1\r\nhost: x\r\n\r\n", b""),
    "missing": (b"GET /hot/missing HTTP/1.1\r\nhost: x\r\n\r\n", b""),
    "collect": (b"POST /hot/collect HTTP/1.1\r\nhost: x\r\ncontent-length: 26\r\n\r\n", b"abcdefghijklmnopqrstuvwxyz"),
    "no bytes": (b"POST /hot/collect HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", b""),
    "count": (b"PUT /hot/count/x HTTP/1.1\r\nhost: x\r\ncontent-length: 300000\r\n\r\n", b"q" * 300_000),
    "pausing": (b"PUT /hot/pausing HTTP/1.1\r\nhost: x\r\ncontent-length: 300000\r\n\r\n", b"q" * 300_000),
    "later": (b"PUT /hot/later HTTP/1.1\r\nhost: x\r\ncontent-length: 300000\r\n\r\n", b"q" * 300_000),
    "later, small": (b"PUT /hot/later HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n", b"qqq"),
    "refused early": (b"PUT /hot/early HTTP/1.1\r\nhost: x\r\ncontent-length: 3000\r\n\r\n", b"q" * 3000),
    "json": (
        b"POST /cold HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 7\r\n\r\n", b'{"a":1}',
    ),
}  # fmt: skip


def _plain(answer: tuple[int, dict[str, str], bytes]) -> tuple[Any, ...]:
    status, headers, body = answer
    own = {"date", "x-request-id"}
    if headers.get("content-type") == "application/problem+json":
        body = body.partition(b"request_id")[0]
        own.add("content-length")           # the request's number is in the document, and grows
    return status, {name: value for name, value in headers.items() if name not in own}, body


def test_the_second_request_is_answered_like_the_first_in_any_pieces() -> None:
    """First by the parser, then without it: whole, cut anywhere, and with the next request in the same read."""
    random_ = random.Random(20091117)

    async def main() -> None:
        async with subject("protocol") as s, Raw(s) as raw:
            assert s.serving is not None
            first = {name: _plain(await raw.exchange(head + body)) for name, (head, body) in CASES.items()}
            for _ in range(60):
                names = random_.choices(list(CASES), k=random_.choice((1, 1, 2, 4)))
                data = b"".join(b"".join(CASES[name]) for name in names)
                at = 0
                while at < len(data):
                    size = random_.choice((20, 60, 100, 5_000, 70_000, len(data)))
                    raw.writer.write(data[at : at + size])
                    await raw.writer.drain()
                    at += size
                for name in names:
                    assert _plain(await raw.answer()) == first[name], name

    run(main())


def test_a_known_head_opens_no_way_around_the_checks_of_the_next() -> None:
    """A request that is refused by the parser is refused also after a thousand good ones."""

    async def main() -> None:
        async with subject("protocol") as s:
            for bad in (
                b"GET /hot/small HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n",
                b"GET /hot/small HTTP/1.1\r\n\r\n",
                b"POST /hot/collect HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\nabcd",
                b"GET /hot/sm\x01all HTTP/1.1\r\nhost: x\r\n\r\n",
                b"GET /hot/small HTTP/1.1\nhost: x\r\n\r\n",
            ):
                async with Raw(s) as raw:
                    for _ in range(3):
                        assert (await raw.exchange(b"GET /hot/small HTTP/1.1\r\nhost: x\r\n\r\n"))[0] == 200
                    assert (await raw.exchange(bad))[0] == 400
                    assert await raw.ends()

    run(main())


def test_a_client_that_goes_away_in_the_middle_of_a_known_body_is_told_to_the_sink() -> None:
    """Else bytes in flight and half a file would stay for ever."""
    head, body = CASES["count"]

    async def main() -> None:
        async with subject("protocol") as s:
            async with Raw(s) as raw:
                await raw.exchange(head + body)
            async with Raw(s) as raw:
                raw.writer.write(head + body[:1000])
                await raw.writer.drain()
                await until(lambda: s.seen.bytes_taken == len(body) + 1000)
            await until(lambda: len(s.seen.aborted) == 1)

    run(main())
