"""The native object routes: statuses and headers exactly as published."""

from __future__ import annotations

import random

import pytest

from tests.unit.gateway.door import Door, run
from tests.unit.sdk.fake_cluster import READER_TOKEN
from tierstore.checksum import crc_of, encode_crc

URL = "/v1/objects/bkt/"
MIB = 1 << 20


@pytest.mark.parametrize("size", [0, 1, 4096, 300_000, 2 * MIB + 17])
@pytest.mark.parametrize("chunked", [False, True])
def test_put_then_get_and_head(size: int, chunked: bool) -> None:
    """The whole of a client's first minute: put, get, head, delete."""

    async def work(door: Door) -> None:
        data = random.Random(size).randbytes(size)
        body = [data[at : at + 50_000] for at in range(0, size, 50_000)] if chunked else data
        headers = [("content-type", "text/x"), ("x-tierstore-meta-a", "ä b")]
        put = await door.send("PUT", URL + "k", body, headers=headers)
        assert (put.status, put.body) == (200, b"")
        crc = encode_crc(crc_of(data))
        assert put.headers["x-tierstore-checksum-crc32c"] == crc
        got = await door.send("GET", URL + "k")
        assert (got.status, got.body == data) == (200, True)
        for answer in (got, await door.send("HEAD", URL + "k")):
            assert answer.headers["content-length"] == str(size)
            assert answer.headers["content-type"] == "text/x"
            assert answer.headers["x-tierstore-meta-a"].encode("latin-1").decode() == "ä b"
            assert answer.headers["etag"] == put.headers["etag"]
            assert answer.headers["x-tierstore-version"] == put.headers["x-tierstore-version"]
            assert answer.headers["x-tierstore-checksum-crc32c"] == crc
            assert answer.headers["x-tierstore-site"] == "site1"
            assert answer.headers.get("x-tierstore-tier", "") == ("" if not size else "ssd" if _on_ssd(door) else "hdd")
        assert (await door.send("DELETE", URL + "k")).status == 204
        assert (await door.send("GET", URL + "k")).code == "no-such-key"
        assert (await door.send("DELETE", URL + "k")).status == 404

    run(work)


def _on_ssd(door: Door) -> bool:
    """The first replica that the fake's lookup names: server 1 is the one with an ssd."""
    first = next(iter(door.cluster.metadata.objects["bkt"].values())).chunks[0].id
    return first in door.cluster.servers[0].chunks


def test_etags_are_quoted_and_never_look_like_md5() -> None:
    async def work(door: Door) -> None:
        etags = {(await door.send("PUT", URL + "k", b"same")).headers["etag"] for _ in range(3)}
        assert len(etags) == 3
        assert all(etag[:4] == '"ts-' and etag[-1] == '"' for etag in etags)

    run(work)


@pytest.mark.parametrize(("asked", "first", "last"), [
    ("bytes=0-0", 0, 0), ("bytes=10-19", 10, 19), ("bytes=990-", 990, 999), ("bytes=-10", 990, 999),
    ("bytes=0-99999", 0, 999), ("bytes=-99999", 0, 999), ("BYTES = 5 - 6", 5, 6),
])  # fmt: skip
def test_a_range_is_answered_206(asked: str, first: int, last: int) -> None:
    async def work(door: Door) -> None:
        data = random.Random(1).randbytes(1000)
        await door.send("PUT", URL + "k", data)
        got = await door.send("GET", URL + "k", headers=[("range", asked)])
        assert (got.status, got.body) == (206, data[first : last + 1])
        assert got.headers["content-range"] == f"bytes {first}-{last}/1000"

    run(work)


@pytest.mark.parametrize(("asked", "status"), [
    ("bytes=1000-", 416), ("bytes=1000-2000", 416), ("bytes=-0", 416), ("bytes=5-4", 400), ("bytes=a-b", 400),
    ("bytes=-", 400), ("bytes=" + "9" * 40 + "-", 400), ("items=0-1", 200), ("bytes=0-1,5-6", 200),
])  # fmt: skip
def test_ranges_that_cannot_be_served(asked: str, status: int) -> None:
    """Past the end is 416 with the size; nonsense is 400; what may be ignored gives the whole."""

    async def work(door: Door) -> None:
        await door.send("PUT", URL + "k", bytes(1000))
        got = await door.send("GET", URL + "k", headers=[("range", asked)])
        assert got.status == status
        if status == 416:
            assert got.headers["content-range"] == "bytes */1000"
            assert got.code == "range-not-satisfiable"

    run(work)


def test_a_range_over_chunks_and_a_suffix_of_a_large_object() -> None:
    async def work(door: Door) -> None:
        data = random.Random(1).randbytes(3 * MIB + 100)
        await door.send("PUT", URL + "k", data)
        got = await door.send("GET", URL + "k", headers=[("range", f"bytes={MIB - 5}-{2 * MIB + 5}")])
        assert got.body == data[MIB - 5 : 2 * MIB + 6]
        got = await door.send("GET", URL + "k", headers=[("range", "bytes=-200")])
        assert got.body == data[-200:]

    run(work)


def test_conditions_on_reads_and_writes() -> None:
    """Optimistic concurrency of clients rests on these."""

    async def work(door: Door) -> None:
        etag = (await door.send("PUT", URL + "k", b"one")).headers["etag"]

        async def status(method: str, name: str, value: str, body: bytes | None = None) -> int:
            return (await door.send(method, URL + "k", body, headers=[(name, value)])).status

        for method in ("GET", "HEAD"):
            assert await status(method, "if-none-match", etag) == 304
            assert await status(method, "if-none-match", f'"x", W/{etag}') == 304
            assert await status(method, "if-none-match", "*") == 304
            assert await status(method, "if-none-match", '"x"') == 200
            assert await status(method, "if-match", etag) == 200
            assert await status(method, "if-match", f"W/{etag}") == 412
            assert await status(method, "if-match", '"x"') == 412
            assert await status(method, "if-match", "nonsense") == 400
        assert await status("PUT", "if-none-match", "*", b"two") == 412
        assert await status("PUT", "if-match", '"x"', b"two") == 412
        assert await status("PUT", "if-match", etag, b"two") == 200
        assert await status("DELETE", "if-match", etag) == 412
        assert (await door.send("GET", URL + "k")).body == b"two"

    run(work)


def test_only_plain_reads_of_whole_objects_are_begun_before_metadata_has_answered() -> None:
    """Of a HEAD, a range or a conditional read the body may not be wanted at all."""

    async def work(door: Door) -> None:
        for server in door.cluster.servers:
            server.tier = "ssd"
        made = await door.send("PUT", "/v1/objects/bkt/k", b"x" * 5000)
        early = door.gateway.store.early
        for _ in range(3):
            assert (await door.send("GET", "/v1/objects/bkt/k")).body == b"x" * 5000
        assert early.begun_total == 2
        await door.send("HEAD", "/v1/objects/bkt/k")
        await door.send("GET", "/v1/objects/bkt/k", headers=[("range", "bytes=0-9")])
        await door.send("GET", "/v1/objects/bkt/k", headers=[("if-none-match", made.headers["etag"])])
        await door.send("GET", f"/v1/objects/bkt/k?version={made.headers['x-tierstore-version']}")
        assert early.begun_total == 2

    run(work)


def test_if_range_with_an_old_etag_gives_the_whole() -> None:
    async def work(door: Door) -> None:
        old = (await door.send("PUT", URL + "k", b"0123456789")).headers["etag"]
        new = (await door.send("PUT", URL + "k", b"abcdefghij")).headers["etag"]
        got = await door.send("GET", URL + "k", headers=[("range", "bytes=5-"), ("if-range", old)])
        assert (got.status, got.body) == (200, b"abcdefghij")
        got = await door.send("GET", URL + "k", headers=[("range", "bytes=5-"), ("if-range", new)])
        assert (got.status, got.body) == (206, b"fghij")

    run(work)


@pytest.mark.parametrize("key", [
    "a b", "..", "../../etc/passwd", "a//b", "/", "//x", "a/", "ä/ö", "%2F", "x?y", "#", "+", ".", "./a", "\x01",
    "k" * 1024,
])  # fmt: skip
def test_ordinary_and_strange_keys_round_trip(key: str) -> None:
    """A key is bytes with a name, not a path: nothing is normalised."""
    from urllib.parse import quote

    async def work(door: Door) -> None:
        assert (await door.send("PUT", URL + quote(key, safe="/"), key.encode())).status == 200
        got = await door.send("GET", URL + quote(key, safe=""))
        assert (got.status, got.body) == (200, key.encode())
        page = (await door.send("GET", "/v1/objects/bkt")).json
        assert [entry["key"] for entry in page["objects"]] == [key]

    run(work)


@pytest.mark.parametrize("target", [
    URL, URL + "%00", URL + "a%00b", URL + "%ff%fe", URL + "%ed%a0%80", URL + "%zz", URL + "%", URL + "k" * 1025,
    "/v1/objects/B/k", "/v1/objects/v1/k", "/v1/objects/-/k", "/v1/objects//k", "/v1/objects/%00/k",
    "/v1/objects/a..b/k",
])  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "POST"])
def test_bad_names_are_refused_with_a_reason(method: str, target: str) -> None:
    """4xx with a problem that names what is wrong; never 5xx, never a stored object."""

    async def work(door: Door) -> None:
        got = await door.send(method, target, b'{"copy_to":"bkt/x"}' if method in ("PUT", "POST") else None)
        assert 400 <= got.status < 500
        if method != "HEAD":
            assert got.code in ("bad-key", "bad-bucket-name", "bad-bucket", "no-such-route")
        assert door.cluster.metadata.objects["bkt"] == {}

    run(work)


@pytest.mark.parametrize("headers", [
    [("x-tierstore-meta-a", b"\xff")], [("x-tierstore-meta-a", b"a\x01b")], [("x-tierstore-meta-", "x")],
    [("x-tierstore-meta-a", "x" * 2049)], [("content-type", "x" * 300)], [("content-type", b"\xff")],
    [("x-tierstore-checksum-crc32c", "AAAA")], [("x-tierstore-checksum-crc32c", b"\xff\xfe")],
    [("if-match", "")], [("if-none-match", '"a" "b"')],
])  # fmt: skip
def test_bad_headers_of_an_upload_are_refused(headers: list[tuple[str, str]]) -> None:
    async def work(door: Door) -> None:
        for body in (b"x", bytes(300_000)):
            got = await door.send("PUT", URL + "k", body, headers=headers)
            assert got.status == 400, got
        assert door.cluster.metadata.objects["bkt"] == {}
        assert door.gateway.store.budget.held_bytes == 0

    run(work)


def test_a_wrong_checksum_is_refused_and_a_right_one_taken() -> None:
    async def work(door: Door) -> None:
        for body in (b"x" * 10, bytes(2 * MIB)):
            right = [("x-tierstore-checksum-crc32c", encode_crc(crc_of(body)))]
            wrong = [("x-tierstore-checksum-crc32c", encode_crc(crc_of(body) ^ 1))]
            got = await door.send("PUT", URL + "k", body, headers=wrong)
            assert (got.status, got.code) == (400, "checksum-mismatch")
            assert (await door.send("GET", URL + "k")).status == 404
            assert (await door.send("PUT", URL + "k", body, headers=right)).status == 200
            await door.send("DELETE", URL + "k")

    run(work)


@pytest.mark.parametrize("token", [None, "", "nonsense", "tst.root.wrong", "tsd.1.secret", "tst..x"])
def test_nobody_gets_in_without_a_key(token: str | None) -> None:
    """The default is closed: 401 on every route."""

    async def work(door: Door) -> None:
        for method, target, body in (
            ("GET", URL + "k", None), ("HEAD", URL + "k", None), ("PUT", URL + "k", b"x"),
            ("PUT", URL + "k", bytes(MIB)),
            ("DELETE", URL + "k", None), ("GET", "/v1/objects/bkt", None), ("POST", URL + "k", b'{"rename_to":"x"}'),
            ("GET", "/v1/buckets", None), ("GET", "/v1/admin/servers", None), ("GET", "/v1/route", None),
            ("GET", "/v1/cluster", None), ("GET", "/v1/explain/bkt/k", None),
        ):  # fmt: skip
            got = await door.send(method, target, body, token=token)
            assert got.status == 401, (method, target, got)
            assert got.headers["www-authenticate"] == "Bearer"
        assert door.cluster.metadata.objects["bkt"] == {}
        assert not any(server.chunks for server in door.cluster.servers)

    run(work)


def test_a_reader_may_read_and_not_write() -> None:
    async def work(door: Door) -> None:
        await door.send("PUT", URL + "k", b"x")
        assert (await door.send("GET", URL + "k", token=READER_TOKEN)).status == 200
        for method, body in (("PUT", b"y"), ("DELETE", None), ("POST", b'{"rename_to":"z"}')):
            assert (await door.send(method, URL + "k", body, token=READER_TOKEN)).code == "access-denied"
        assert (await door.send("GET", URL + "k")).body == b"x"

    run(work)


def test_a_revoked_key_is_refused_after_the_next_answer_of_metadata() -> None:
    """Revoking a key must not wait for a cache to age."""

    async def work(door: Door) -> None:
        assert (await door.send("PUT", URL + "k", b"x")).status == 200
        metadata = door.cluster.metadata
        asked = metadata.credential_lookups
        assert (await door.send("GET", URL + "k")).status == 200
        assert metadata.credential_lookups == asked
        metadata.credentials.clear()
        metadata.auth_revision += 1
        await door.send("GET", URL + "k")
        assert (await door.send("GET", URL + "k")).status == 401

    run(work)


def test_rename_and_copy() -> None:
    async def work(door: Door) -> None:
        await door.send("PUT", URL + "a", b"x")
        made = await door.send("POST", URL + "a", b'{"copy_to":"bkt/c/d"}')
        assert (made.status, made.json["key"], made.json["size"]) == (200, "c/d", 1)
        assert (await door.send("POST", URL + "a", b'{"rename_to":"e"}')).status == 200
        assert [(await door.send("GET", URL + key)).status for key in ("a", "c/d", "e")] == [404, 200, 200]
        for body in (
            b"", b"{", b"[]", b"{}", b'{"rename_to":1}', b'{"rename_to":"a","copy_to":"b/c"}', b'{"x":1}', b"\xff",
            b'{"rename_to":""}', b'{"copy_to":"bkt"}', b'{"copy_to":"B/k"}', b'{"rename_to":"\\ud800"}',
        ):  # fmt: skip
            got = await door.send("POST", URL + "e", body)
            assert got.status == 400, (body, got)

    run(work)


def test_listing_pages() -> None:
    async def work(door: Door) -> None:
        for key in ("a/1", "a/2", "b", "c/1"):
            await door.send("PUT", URL + key, b"x")
        page = (await door.send("GET", "/v1/objects/bkt?delimiter=%2F&limit=2")).json
        assert (page["prefixes"], [entry["key"] for entry in page["objects"]]) == (["a/"], ["b"])
        rest = (await door.send("GET", f"/v1/objects/bkt?delimiter=/&start_after={page['next_start_after']}")).json
        assert (rest["prefixes"], rest["objects"], rest["next_start_after"]) == (["c/"], [], None)
        entry = (await door.send("GET", "/v1/objects/bkt?prefix=a/")).json["objects"][0]
        assert list(entry) == ["key", "size", "etag", "version", "modified_at", "tier", "heat_per_hour"]
        for query in ("limit=0", "limit=10001", "limit=x", "limit=-1", "prefix=%ff", "prefix=%00", "limit=" + "1" * 50):
            assert (await door.send("GET", "/v1/objects/bkt?" + query)).code == "bad-query"
        assert (await door.send("GET", "/v1/objects/none")).code == "no-such-bucket"

    run(work)


def test_a_gateway_that_has_not_joined_answers_503() -> None:
    """Health pages answer while metadata is away; requests are told to come back."""

    async def work(door: Door) -> None:
        other = Door(door.cluster)
        assert (await other.send("GET", URL + "k")).code == "not-ready"
        assert (await other.send("PUT", URL + "k", b"x")).code == "not-ready"
        assert (await other.send("GET", "/-/readyz")).status == 503
        assert (await other.send("GET", "/-/healthz")).status == 200
        assert (await door.send("GET", "/-/readyz")).status == 200
        await other.gateway.stop()
        await other.server.close()

    run(work)
