"""What must never get in: malformed requests get a clear 4xx, never a 5xx, and nothing leaves the device directories
(S3 and S4 of the reliability figures)."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.kit.cluster import Cluster, cluster
from tests.kit.http import Client, raw

#: What two tests wait for.
SHORT = {"TIERSTORE_TIMERS__HEADER": "3s"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("malformed"), "--servers", "2", env=SHORT) as c:

        async def prepare() -> None:
            client = Client(c.gateway, token=c.token)
            assert (await client.request("PUT", "/v1/buckets/mal")).status == 201
            assert (await client.request("PUT", "/v1/objects/mal/there", b"0123456789")).status == 200
            client.close()

        asyncio.run(prepare())
        yield c


def _check_problem(status: int, headers: dict[str, str], body: bytes) -> None:
    assert 400 <= status < 500, (status, body)
    assert headers["content-type"].startswith("application/problem+json"), headers
    problem = json.loads(body)
    assert problem["code"] and problem["detail"] and problem["request_id"] and problem["status"] == status


BAD = [
    ("PUT", "/v1/objects/mal/%00", b"x", {}),
    ("PUT", "/v1/objects/mal/%ff%fe", b"x", {}),
    ("PUT", "/v1/objects/mal/" + "a" * 2000, b"x", {}),
    ("PUT", "/v1/objects/mal/", b"x", {}),
    ("PUT", "/v1/objects/MAL/key", b"x", {}),
    ("PUT", "/v1/objects/v1/key", b"x", {}),
    ("PUT", "/v1/objects/no-such-bucket/key", b"x", {}),
    ("PUT", "/v1/objects/mal/sum", b"x", {"x-tierstore-checksum-crc32c": "AAAAAA=="}),
    ("PUT", "/v1/objects/mal/sum", b"x", {"x-tierstore-checksum-crc32c": "not base64"}),
    ("PUT", "/v1/objects/mal/meta", b"x", {"x-tierstore-meta-a": "b" * 4000}),
    ("PUT", "/v1/objects/mal/there", b"x", {"if-none-match": "*"}),
    ("PUT", "/v1/objects/mal/there", b"x", {"if-match": '"nothing"'}),
    ("GET", "/v1/objects/mal/there", None, {"range": "bytes=100-"}),
    ("GET", "/v1/objects/mal/missing", None, {}),
    ("GET", "/v1/objects/mal?limit=0", None, {}),
    ("GET", "/v1/objects/mal?limit=20000", None, {}),
    ("GET", "/v1/objects/mal?limit=x", None, {}),
    ("POST", "/v1/objects/mal/there", b"{not json", {"content-type": "application/json"}),
    ("POST", "/v1/objects/mal/there", b"{}", {"content-type": "application/json"}),
    ("POST", "/v1/objects/mal/there", b'{"rename_to": 5}', {"content-type": "application/json"}),
    ("POST", "/v1/objects/mal/there", b'{"copy_to": "nobucket"}', {"content-type": "application/json"}),
    ("PUT", "/v1/buckets/A", None, {}),
    ("PUT", "/v1/buckets/-", None, {}),
    ("PUT", "/v1/buckets/v1", None, {}),
    ("PUT", "/v1/buckets/mal", None, {}),
    ("DELETE", "/v1/buckets/mal", None, {}),
    ("DELETE", "/v1/buckets/no-such-bucket", None, {}),
    ("GET", "/v1/nowhere", None, {}),
    ("PATCH", "/v1/objects/mal/there", None, {}),
    ("GET", "/v1/objects/mal/there", None, {"authorization": "Bearer wrong"}),
    ("GET", "/v1/objects/mal/there", None, {"authorization": "Bearer tst.nobody.AAAA"}),
    ("GET", "/v1/objects/mal/there", None, {"authorization": "Basic eDp5"}),
    ("GET", "/v1/admin/servers", None, {"authorization": "Bearer tst.nobody.AAAA"}),
]


@pytest.mark.parametrize(("method", "target", "body", "headers"), BAD, ids=[f"{m} {t[:40]} {h}" for m, t, _, h in BAD])
def test_a_bad_request_gets_a_clear_4xx(
    running: Cluster, method: str, target: str, body: bytes | None, headers: dict[str, str]
) -> None:
    """A person must learn from the answer what to mend."""

    async def main() -> None:
        client = Client(running.gateway, token=running.token)
        answer = await client.request(method, target, body, headers)
        _check_problem(answer.status, answer.headers, answer.body)
        client.close()

    asyncio.run(main())


BOTH_UP = b'tierstore_known_servers{role="objectd",state="up"} 2.0'
SMUGGLED = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"PUT /v1/objects/mal/a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"PUT /v1/objects/mal/a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    b"GET /v1/objects/mal/there HTTP/1.1\nHost: x\n\n",
    b"PUT /v1/objects/mal/a HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"PUT /v1/objects/mal/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"GET /v1/objects/mal/there HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /v1/objects/mal/there HTTP/1.1\r\nHost: x\r\n X: folded\r\n\r\n",
    b"GET /v1/objects/mal/there HTTP/1.1\r\nHost: x\r\nBad Name: 1\r\n\r\n",
    b"\r\n" * 1000,
]


@pytest.mark.parametrize("data", SMUGGLED, ids=range(len(SMUGGLED)))
def test_what_is_not_clean_http_is_refused_and_the_connection_closed(running: Cluster, data: bytes) -> None:
    """Two servers that read one byte stream differently are a way past the first one's checks."""
    got = asyncio.run(raw(running.gateway, data))
    assert got == b"" or got.startswith(b"HTTP/1.1 4"), got[:300]
    assert len(re.findall(rb"HTTP/1\.1 [0-9]{3} ", got)) <= 1, got[:600]


def test_unfinished_heads_are_closed_while_others_are_served(running: Cluster) -> None:
    """200 slow headers at once (slowloris): each is closed within the header time, and a normal client is served."""

    async def main() -> None:
        port = int(running.gateway.rsplit(":", 1)[1])
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
        for _, writer in idle:
            writer.write(b"GET /v1/objects/mal/there HTTP/1.1\r\nHost: x\r\n")
        client = Client(running.gateway, token=running.token)
        for _ in range(50):
            assert (await client.request("GET", "/v1/objects/mal/there")).status == 200
        async with asyncio.timeout(180):
            for reader, writer in idle:
                got = await reader.read()
                assert got == b"" or got.startswith(b"HTTP/1.1 4")
                writer.close()
        client.close()

    asyncio.run(main())


def _keys(count: int) -> list[str]:
    rng = random.Random(4)
    alphabet = [
        "..",
        ".",
        "/",
        "//",
        "a",
        "%",
        "%2e",
        "\\",
        "\r",
        "\n",
        "\t",
        " ",
        "é",
        "日本",
        "\x7f",
        "~",
        "?",
        "#",
        "&",
    ]
    fixed = [
        "../../../etc/passwd",
        "/etc/passwd",
        "..",
        ".",
        "/",
        "a/../b",
        "con",
        "a" * 1024,
        "\x01",
        "%00",
        "a\r\nb: c",
    ]
    made = {"".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 30))) for _ in range(count)}
    return fixed + sorted(made)


def test_odd_keys_and_values_round_trip_exactly_or_are_refused(running: Cluster) -> None:
    """S4: 500 keys of dots, slashes, control characters and percent signs: exact, or 400; no file of that name."""

    async def main() -> tuple[int, int]:
        client = Client(running.gateway, token=running.token)
        kept, refused = set(), 0
        for number, key in enumerate(_keys(500)):
            path = f"/v1/objects/mal/odd/{quote(key, safe='')}"
            answer = await client.request(
                "PUT", path, b"%d" % number, {"x-tierstore-meta-k": quote(key, safe="")[:500]}
            )
            if answer.status != 200:
                assert answer.status == 400, (key, answer)
                refused += 1
                continue
            kept.add(f"odd/{key}")
            answer = await client.request("GET", path)
            assert answer.status == 200 and answer.body == b"%d" % number, (key, answer)
            assert answer.headers["x-tierstore-meta-k"] == quote(key, safe="")[:500]
        listed: set[str] = set()
        after = ""
        while True:
            target = f"/v1/objects/mal?prefix=odd/&limit=100&start_after={quote(after, safe='')}"
            page = json.loads((await client.request("GET", target)).body)
            listed |= {entry["key"] for entry in page["objects"]}
            if page["next_start_after"] is None:
                break
            after = page["next_start_after"]
        assert listed == kept
        client.close()
        return len(kept), refused

    kept, refused = asyncio.run(main())
    print(f"{kept} keys kept exactly, {refused} refused")
    assert kept >= 400
    for root, directories, files in os.walk(running.data):
        for name in [*directories, *files]:
            assert "passwd" not in name and "odd" not in name, os.path.join(root, name)


def test_nobody_gets_in_without_a_key(running: Cluster) -> None:
    """The default is closed, on every process, also for internal routes."""

    async def main() -> None:
        for process in running.processes():
            client = Client(process.url)
            for method, target in (
                ("GET", "/v1/objects/mal/there"), ("GET", "/v1/buckets"), ("GET", "/v1/admin/servers"),
                ("POST", "/v1/internal/lookup"), ("POST", "/v1/internal/commit"), ("POST", "/v1/internal/heartbeat"),
                ("POST", "/v1/internal/register"), ("GET", "/v1/chunks/AAAA"), ("PUT", "/v1/chunks/AAAA"),
                ("GET", "/v1/cluster"), ("GET", "/-/metrics"),
            ):  # fmt: skip
                answer = await client.request(method, target, b"" if method != "GET" else None)
                assert answer.status in (400, 401, 403, 404, 405), (process.name, method, target, answer)
            assert (await client.request("GET", "/-/healthz")).status == 200
            client.close()

    asyncio.run(main())
    assert Path(running.data).exists()


def test_the_metrics_token_opens_the_metrics_of_every_process_and_nothing_else_does(running: Cluster) -> None:
    """A scraper needs one secret for all daemons; a wrong one, or a user's without rights, shows nothing."""

    async def main() -> None:
        for process in running.processes():
            for token, expected in ((running.token, 200), (running.token[:-1], 401), ("tst.nobody.AAAA", 401)):
                client = Client(process.url, token=token)
                answer = await client.request("GET", "/-/metrics")
                deadline = time.monotonic() + 300
                while expected == 200 and process.role == "metadata" and BOTH_UP not in answer.body:
                    assert time.monotonic() < deadline, answer      # a server that a busy machine holds up is suspect
                    await asyncio.sleep(0.1)
                    answer = await client.request("GET", "/-/metrics")
                assert answer.status == expected, (process.name, answer)
                assert (b"tierstore_" in answer.body) == (expected == 200), process.name
                if expected == 200 and process.role == "metadata":
                    for name in (
                        b'tierstore_duty_steps_total{kind="liveness"}', b"tierstore_commit_items_total",
                        b"tierstore_deletions_barred 0.0",
                    ):  # fmt: skip
                        assert name in answer.body, name
                client.close()

    asyncio.run(main())
