"""The native REST door and the SDK against real processes: one cluster for all tests of this module."""

from __future__ import annotations

import http.client
import json
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.kit.cluster import Cluster, cluster, wait_until
from tierstore.checksum import crc_of, encode_crc
from tierstore.errors import ConflictError, NotFound, PreconditionFailed
from tierstore.sdk import Condition, SyncStore

MIB = 1 << 20


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("rest")) as started:
        with SyncStore(started.gateway, started.token) as store:
            store.create_bucket("bkt")
        yield started


@pytest.fixture
def store(running: Cluster) -> Iterator[SyncStore]:
    with SyncStore(running.gateway, running.token) as opened:
        yield opened


class Http:
    """http.client with the token; a judge that is not ours."""

    def __init__(self, running: Cluster) -> None:
        self._connection = http.client.HTTPConnection(running.gateway.removeprefix("http://"), timeout=180)
        self._token = running.token

    def send(self, method: str, target: str, body: Any = None, **headers: str) -> http.client.HTTPResponse:
        lines = {name.replace("_", "-"): value for name, value in headers.items()}
        chunked = body is not None and not isinstance(body, bytes)
        self._connection.request(
            method, target, body, {"authorization": f"Bearer {self._token}", **lines}, encode_chunked=chunked
        )
        return self._connection.getresponse()

    def __call__(self, method: str, target: str, body: Any = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        answer = self.send(method, target, body, **headers)
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def rest(running: Cluster) -> Iterator[Http]:
    client = Http(running)
    yield client
    client.close()


@pytest.mark.parametrize("size", [0, 1, 4096, 262_144, 262_145, 8 * MIB, 20 * MIB + 3])
@pytest.mark.parametrize("chunked", [False, True])
def test_put_get_head_delete(rest: Http, size: int, chunked: bool) -> None:
    """One walk over all processes for each way a body is stored."""
    data = random.Random(size).randbytes(size)
    crc = encode_crc(crc_of(data))
    target = f"/v1/objects/bkt/walk/{size}"
    body: Any = iter([data[at : at + 100_000] for at in range(0, size, 100_000)]) if chunked else data
    extra = {"transfer_encoding": "chunked"} if chunked else {}
    status, _, put = rest("PUT", target, body, x_tierstore_checksum_crc32c=crc, x_tierstore_meta_who="me", **extra)
    assert status == 200
    status, got, headers = rest("GET", target)
    assert (status, got == data) == (200, True)
    assert (headers["etag"], headers["x-tierstore-version"]) == (put["etag"], put["x-tierstore-version"])
    assert (headers["x-tierstore-meta-who"], headers["x-tierstore-site"]) == ("me", "site1")
    assert headers["x-tierstore-checksum-crc32c"] == crc
    status, nothing, headers = rest("HEAD", target)
    assert (status, nothing, headers["content-length"]) == (200, b"", str(size))
    if size:
        assert headers["x-tierstore-tier"] in ("ssd", "hdd")
        status, got, headers = rest("GET", target, range=f"bytes={size // 2}-")
        assert (status, got == data[size // 2 :]) == (206, True)
    assert rest("GET", target, range=f"bytes={size}-")[0] == 416
    assert rest("DELETE", target)[0] == 204
    assert rest("GET", target)[0] == 404


def test_conditional_writes_have_one_winner(running: Cluster) -> None:
    """16 clients create the same key with If-None-Match: exactly one is told that it did."""

    def create(number: int) -> int:
        client = Http(running)
        status = client("PUT", "/v1/objects/bkt/once", b"%d" % number, if_none_match="*")[0]
        client.close()
        return status

    with ThreadPoolExecutor(16) as threads:
        statuses = sorted(threads.map(create, range(16)))
    assert statuses == [200] + [412] * 15


def test_rename_copy_list(rest: Http) -> None:
    for key in ("l/a", "l/b/1", "l/b/2", "l/c"):
        assert rest("PUT", f"/v1/objects/bkt/{key}", key.encode())[0] == 200
    assert rest("POST", "/v1/objects/bkt/l/a", b'{"rename_to":"l/d"}', content_type="application/json")[0] == 200
    assert rest("POST", "/v1/objects/bkt/l/c", b'{"copy_to":"bkt/l/e"}', content_type="application/json")[0] == 200
    page = json.loads(rest("GET", "/v1/objects/bkt?prefix=l/&delimiter=/")[1])
    assert ([entry["key"] for entry in page["objects"]], page["prefixes"]) == (["l/c", "l/d", "l/e"], ["l/b/"])
    assert rest("GET", "/v1/objects/bkt/l/d")[1] == b"l/a"
    assert rest("GET", "/v1/objects/bkt/l/e")[1] == b"l/c"
    assert rest("DELETE", "/v1/objects/bkt/l/c")[0] == 204
    assert rest("GET", "/v1/objects/bkt/l/e")[1] == b"l/c"


def test_buckets_are_passed_on(rest: Http) -> None:
    assert rest("PUT", "/v1/buckets/other")[0] == 201
    assert rest("PUT", "/v1/buckets/other")[0] == 409
    assert json.loads(rest("GET", "/v1/buckets/other")[1])["name"] == "other"
    assert "other" in [bucket["name"] for bucket in json.loads(rest("GET", "/v1/buckets")[1])["buckets"]]
    rest("PUT", "/v1/objects/other/k", b"x")
    assert rest("DELETE", "/v1/buckets/other")[0] == 409
    rest("DELETE", "/v1/objects/other/k")
    assert rest("DELETE", "/v1/buckets/other")[0] == 204
    assert rest("GET", "/v1/buckets/other")[0] == 404
    assert json.loads(rest("GET", "/v1/route")[1])["site"] == "site1"


def test_a_user_cannot_name_another_by_header(running: Cluster, rest: Http) -> None:
    """`x-tierstore-access` is the gateway's word to metadata; from outside it must mean nothing."""
    stranger = http.client.HTTPConnection(running.gateway.removeprefix("http://"), timeout=180)
    access = running.ready["access_key"]
    for target in ("/v1/buckets", "/v1/objects/bkt", "/v1/objects/bkt/once"):
        stranger.request("GET", target, headers={"x-tierstore-access": access, "authorization": "Bearer tst.x.y"})
        answer = stranger.getresponse()
        answer.read()
        assert answer.status == 401
    stranger.close()


def test_the_sdk_in_a_plain_program(store: SyncStore, tmp_path: Path) -> None:
    """SyncStore over the real cluster: bytes, files, ranges, conditions, errors."""
    data = random.Random(1).randbytes(9 * MIB)
    path = tmp_path / "file"
    path.write_bytes(data)
    with path.open("rb") as file:
        made = store.put("bkt", "sdk/file", file, content_type="a/b", user_meta={"x": "1"})
    assert made.crc32c == crc_of(data)
    info = store.head("bkt", "sdk/file")
    assert (info.size, info.content_type, info.user_meta) == (len(data), "a/b", {"x": "1"})
    assert store.get("bkt", "sdk/file", first=8 * MIB - 10, length=20) == data[8 * MIB - 10 : 8 * MIB + 10]
    with store.open("bkt", "sdk/file") as reader:
        assert b"".join(reader) == data
    with pytest.raises(PreconditionFailed):
        store.put("bkt", "sdk/file", b"", condition=Condition(if_none_match=["*"]))
    with pytest.raises(NotFound):
        store.get("bkt", "sdk/none")
    with pytest.raises(ConflictError):
        store.create_bucket("bkt")
    assert [entry.key for entry in store.list("bkt", prefix="sdk/")] == ["sdk/file"]
    store.rename("bkt", "sdk/file", "sdk/moved")
    assert store.delete("bkt", "sdk/moved").existed
    assert "bkt" in [bucket["name"] for bucket in store.buckets()]


def test_a_large_object_passes_in_bounded_memory(running: Cluster, rest: Http) -> None:
    """The gateway holds a few chunks, whatever the object's size."""
    piece = random.Random(9).randbytes(MIB)
    count = 192
    pid = running.pid("gateway1")
    rest("PUT", "/v1/objects/bkt/warm", iter([piece] * 32), transfer_encoding="chunked")
    rest("GET", "/v1/objects/bkt/warm")
    before = _rss_bytes(pid)
    status = rest("PUT", "/v1/objects/bkt/big", iter([piece] * count), content_length=str(count * MIB))[0]
    assert status == 200
    answer = rest.send("GET", "/v1/objects/bkt/big")
    for _ in range(count):
        assert answer.read(MIB) == piece
    assert answer.read() == b""
    assert _rss_bytes(pid) - before < 64 * MIB


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_a_read_goes_on_when_its_object_server_is_killed(running: Cluster, rest: Http) -> None:
    """The body under way, and every read and write after it, while one of three servers is gone."""
    data = random.Random(2).randbytes(64 * MIB)
    for number in range(6):
        assert rest("PUT", f"/v1/objects/bkt/fail/{number}", data[: 16 * MIB])[0] == 200
    assert rest("PUT", "/v1/objects/bkt/fail/large", data)[0] == 200
    answer = rest.send("GET", "/v1/objects/bkt/fail/large")
    got = bytearray(answer.read(MIB))
    running.send_signal("objectd1", signal.SIGKILL)
    while piece := answer.read(MIB):
        got += piece
    assert got == data
    for number in range(6):
        assert rest("GET", f"/v1/objects/bkt/fail/{number}")[1] == data[: 16 * MIB]
        assert rest("PUT", f"/v1/objects/bkt/fail/new{number}", data[:5000])[0] == 200
        assert rest("GET", f"/v1/objects/bkt/fail/new{number}")[1] == data[:5000]


def test_requests_are_held_while_metadata_restarts(running: Cluster, rest: Http) -> None:
    """A restart of metadata fails no request: reads, writes, names."""
    rest("PUT", "/v1/objects/bkt/held", b"x")
    running.kill("metadata1")
    assert rest("GET", "/v1/objects/bkt/held")[:2] == (200, b"x")
    assert rest("PUT", "/v1/objects/bkt/held", b"y")[0] == 200
    running.kill("metadata1")
    assert rest("GET", "/v1/buckets/bkt")[0] == 200
    wait_until(lambda: rest("GET", "/-/readyz")[0] == 200, seconds=10, what="gateway ready")
    assert rest("GET", "/v1/objects/bkt/held")[1] == b"y"
