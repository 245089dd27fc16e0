"""Two sites of real processes: names and bodies arrive, both sites end equal, nothing is lost on the way."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.kit.cluster import Cluster, _argv, _descendants, _is_running, cluster, wait_until
from tests.kit.ports import free_port
from tests.kit.proxy import FaultyLink
from tierstore.sdk.near import NearStore, connect_near
from tierstore.wire import MEDIA_TYPE, decode, encode
from tierstore.wire.sites import PushAnswer

ARRIVAL_SECONDS = 30.0


@dataclass
class Site:
    """One site's gateway, as an administrator sees it."""

    name: str
    url: str
    http: httpx.Client

    def put(self, key: str, body: bytes, bucket: str = "bbb") -> httpx.Response:
        return self.http.put(f"{self.url}/v1/objects/{bucket}/{key}", content=body)

    def get(self, key: str, bucket: str = "bbb", **headers: str) -> httpx.Response:
        return self.http.get(f"{self.url}/v1/objects/{bucket}/{key}", headers=headers)

    def delete(self, key: str, bucket: str = "bbb") -> int:
        return self.http.delete(f"{self.url}/v1/objects/{bucket}/{key}").status_code

    def rules(self, bucket: str, target: str, **members: str) -> None:
        body = {"rules": [{"prefix": "", "target": target, "mode": "async", "bodies": "all", **members}]}
        assert self.http.put(f"{self.url}/v1/buckets/{bucket}/replication", json=body).status_code == 200

    def admin(self, method: str, path: str, **kwargs: Any) -> Any:
        answer = self.http.request(method, f"{self.url}/v1/admin/{path}", **kwargs)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def backlog(self) -> int:
        targets = self.admin("GET", "replication")["targets"]
        return int(sum(target["backlog_objects"] for target in targets)) if targets else -1

    def names(self, bucket: str = "bbb") -> dict[str, str]:
        page = self.http.get(f"{self.url}/v1/objects/{bucket}?limit=10000").json()
        return {entry["key"]: entry["version"] for entry in page["objects"]}

    def drained(self) -> None:
        """Everything has arrived, and hellos have confirmed it since."""
        wait_until(lambda: self.backlog() == 0, seconds=60, what=f"{self.name} has sent everything", every=0.3)

    def process(self, c: Cluster, role: str) -> dict[str, Any]:
        of_site = next(site for site in c.ready["sites"] if site["name"] == self.name)
        return next(process for process in of_site["processes"] if process["role"] == role)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Site, Site]]:
    with cluster(tmp_path_factory.mktemp("sites"), "--sites", "2", "--servers", "2") as c:
        with httpx.Client(headers={"authorization": f"Bearer {c.ready['token']}"}, timeout=180) as http:
            a, b = (Site(site["name"], site["gateway"], http) for site in c.ready["sites"])
            yield c, a, b


def _bucket(a: Site, b: Site, name: str) -> None:
    """A bucket that both sites write to."""
    assert a.http.put(f"{a.url}/v1/buckets/{name}").status_code == 201
    a.rules(name, b.name)
    wait_until(
        lambda: b.http.get(f"{b.url}/v1/buckets/{name}").status_code == 200 or a.put("first", b"1", name) is None,
        seconds=ARRIVAL_SECONDS, what="the bucket at the other site",
    )
    b.rules(name, a.name)


def test_writes_of_both_sites_arrive_with_the_same_versions(both: tuple[Cluster, Site, Site]) -> None:
    _, a, b = both
    _bucket(a, b, "bbb")
    bodies = {f"k{i:03}": os.urandom(100 + i * 37) for i in range(60)}
    for i, (key, body) in enumerate(bodies.items()):
        assert (a, b)[i % 2].put(key, body).status_code == 200
    assert a.put("empty", b"").status_code == 200
    for key in ("k000", "k001"):
        wait_until(lambda k=key: k in a.names() and k in b.names(), seconds=ARRIVAL_SECONDS, what=key)  # type: ignore[misc]
        assert b.delete(key) == 204
    a.drained()
    b.drained()
    expected = bodies.keys() - {"k000", "k001"}
    assert expected <= a.names().keys()
    assert a.names() == b.names() and not {"k000", "k001"} & a.names().keys()
    for site in (a, b):
        for key in expected:
            answer = site.get(key)
            assert answer.content == bodies[key] and answer.headers["x-tierstore-site"] == site.name


def test_the_last_writer_wins_everywhere(both: tuple[Cluster, Site, Site]) -> None:
    _, a, b = both
    _bucket(a, b, "conflicts")
    a.drained()
    for site, other in ((a, b), (b, a)):
        site.admin("POST", f"sites/{other.name}/pause")
    wait_until(
        lambda: all(s.admin("GET", "replication")["targets"][0]["state"] == "paused" for s in (a, b)),
        seconds=20, what="both sites are paused",
    )
    for i in range(20):
        a.put(f"c{i}", b"from a", "conflicts")
        b.put(f"c{i}", b"from b, later", "conflicts")
    for i in range(5):
        b.delete(f"c{i}", "conflicts")
        a.put(f"c{i}", b"from a, last", "conflicts")
    assert a.backlog() > 0 and b.backlog() > 0
    for site, other in ((a, b), (b, a)):
        site.admin("POST", f"sites/{other.name}/resume")
    a.drained()
    b.drained()
    assert a.names("conflicts") == b.names("conflicts")
    for site in (a, b):
        assert [site.get(f"c{i}", "conflicts").content for i in range(20)] == [b"from a, last"] * 5 + [
            b"from b, later"
        ] * 15


def test_a_body_that_has_not_come_is_fetched_once_for_all_readers(both: tuple[Cluster, Site, Site]) -> None:
    _, a, b = both
    assert a.http.put(f"{a.url}/v1/buckets/on-demand").status_code == 201
    a.rules("on-demand", b.name, bodies="on-demand")
    body = os.urandom(20 << 20)
    a.put("big", body, "on-demand")
    wait_until(
        lambda: b.http.head(f"{b.url}/v1/objects/on-demand/big").status_code == 200,
        seconds=ARRIVAL_SECONDS, what="the name",
    )
    assert b.names("on-demand") == a.names("on-demand")

    def whereabouts() -> Any:
        return b.http.get(f"{b.url}/v1/explain/on-demand/big").json()["remote"]

    assert whereabouts() == {"site": a.name, "bytes_here": 0}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: b.get("big", "on-demand"), range(16)))
    assert all(answer.status_code == 200 and answer.content == body for answer in answers)
    assert any(answer.headers["x-tierstore-site"] == a.name for answer in answers)
    part = b.get("big", "on-demand", range="bytes=9000000-9000099")
    assert part.status_code == 206 and part.content == body[9_000_000:9_000_100]

    def is_kept() -> bool:
        answer = b.get("big", "on-demand")
        return answer.content == body and answer.headers["x-tierstore-site"] == b.name

    wait_until(is_kept, seconds=ARRIVAL_SECONDS, what="the body kept at the site that fetched it")
    assert whereabouts() == {"site": a.name, "bytes_here": len(body)}


def test_what_exists_is_backfilled_and_a_killed_process_loses_nothing(both: tuple[Cluster, Site, Site]) -> None:
    c, a, b = both
    assert a.http.put(f"{a.url}/v1/buckets/old").status_code == 201
    bodies = {f"o{i:03}": os.urandom(20_000) for i in range(80)}
    bodies["large"] = os.urandom(30 << 20)
    with ThreadPoolExecutor(8) as pool:
        assert {r.status_code for r in pool.map(lambda kv: a.put(kv[0], kv[1], "old"), bodies.items())} == {200}
    a.rules("old", b.name)
    for site, role in ((b, "gateway"), (a, "metadata")):
        _kill(c, site, role)
        wait_until(lambda s=site: _is_ready(s), seconds=30, what=f"{role} of {site.name} is back")  # type: ignore[misc]
    wait_until(lambda: len(_names(b, "old")) == len(bodies), seconds=60, what="all names", every=0.3)
    wait_until(lambda: _backlog(a) == 0, seconds=60, what="the queue drains", every=0.3)
    assert b.names("old") == a.names("old")
    for key, body in bodies.items():
        assert b.get(key, "old").content == body


def _kill(c: Cluster, site: Site, role: str) -> None:
    """kill -9 of the process that runs now in that role; `up` starts it again."""
    assert c.up is not None
    argv = site.process(c, role)["argv"]
    pid = wait_until(
        lambda: next((p for p in _descendants(c.up.pid) if _argv(p) == argv), 0), seconds=20, what=f"{role} runs"  # type: ignore[union-attr]
    )
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not _is_running(pid), seconds=20, what=f"{role} is gone")


def _is_ready(site: Site) -> bool:
    try:
        return site.http.get(f"{site.url}/v1/buckets").status_code == 200
    except httpx.HTTPError:
        return False


def _names(site: Site, bucket: str) -> dict[str, str]:
    try:
        return site.names(bucket)
    except (httpx.HTTPError, KeyError, ValueError):
        return {}


def _backlog(site: Site) -> int:
    try:
        return site.backlog()
    except (httpx.HTTPError, AssertionError):
        return -1


def test_sync_waits_for_the_other_site_or_says_so(both: tuple[Cluster, Site, Site]) -> None:
    _, a, b = both
    assert a.http.put(f"{a.url}/v1/buckets/together").status_code == 201
    a.rules("together", b.name, mode="sync", on_failure="fail")
    assert a.put("k", b"at both", "together").status_code == 200
    answer = b.get("k", "together")
    assert answer.content == b"at both" and answer.headers["x-tierstore-site"] == b.name
    assert a.delete("k", "together") == 204
    assert b.get("k", "together").status_code == 404

    async def cut_off() -> None:
        async with FaultyLink(int(b.url.rsplit(":", 1)[1])) as link:
            link.set(refuse=True)
            await asyncio.to_thread(
                a.admin, "PATCH", f"sites/{b.name}", json={"gateways": [f"http://127.0.0.1:{link.port}"]}
            )
            refused = await asyncio.to_thread(a.put, "cut", b"later", "together")
            assert refused.status_code == 503 and refused.json()["code"] == "outcome-unknown"
            await asyncio.to_thread(a.rules, "together", b.name, mode="sync", on_failure="degrade")
            degraded = await asyncio.to_thread(a.put, "cut2", b"later", "together")
            assert degraded.status_code == 200
            sync = (await asyncio.to_thread(a.admin, "GET", "replication"))["sync"]
            assert sync["failed"] >= 1 and sync["degraded"] >= 1
            assert (await asyncio.to_thread(b.get, "cut", "together")).status_code == 404
            link.set(refuse=False)
            await asyncio.to_thread(a.drained)

    asyncio.run(cut_off())
    a.admin("PATCH", f"sites/{b.name}", json={"gateways": [b.url]})
    assert b.get("cut", "together").content == b"later" and b.get("cut2", "together").content == b"later"


def _rotate(here: Site, there: Site) -> None:
    """New keys; asked again when the other site did not answer in time, which leaves the old ones as they were."""
    url = f"{here.url}/v1/admin/sites/{there.name}/rotate"
    wait_until(lambda: here.http.post(url).status_code == 200, seconds=120, what=f"keys of {there.name}", every=0.5)


def test_keys_are_rotated_and_strangers_kept_out(both: tuple[Cluster, Site, Site]) -> None:
    _, a, b = both
    _bucket(a, b, "rotated")
    _rotate(a, b)
    _rotate(b, a)
    assert a.put("after-rotation", b"x", "rotated").status_code == 200
    wait_until(lambda: "after-rotation" in b.names("rotated"), seconds=ARRIVAL_SECONDS, what="the new keys work")
    answer = a.http.post(f"{a.url}/v1/sites/hello", content=b"")
    assert answer.status_code == 403        # an administrator is no site
    refused = a.http.delete(f"{a.url}/v1/admin/sites/nowhere")
    assert refused.status_code == 404
    # a gateway asks for what is known of the other sites every few seconds, and the test before moved b's gateway
    route = wait_until(
        lambda: (r := a.http.get(f"{a.url}/v1/route").json()) and b.url in r["gateways"] and r,
        seconds=ARRIVAL_SECONDS, what="b's gateway in the route",
    )
    assert route["site"] == a.name and route["gateways"][0] == a.url
    a.admin("PATCH", f"sites/{b.name}", json={"networks": ["127.0.0.0/8"]})
    wait_until(
        lambda: a.http.get(f"{a.url}/v1/route").json()["site"] == b.name, seconds=120, what="the network's site is near"
    )


def test_a_site_that_is_added_under_a_wrong_name_is_refused_before_anything_is_kept(
    both: tuple[Cluster, Site, Site]
) -> None:
    """Once the other site has noted who asks, the right command is refused, too: known already."""
    c, one, two = both
    wish = {"name": "lyon", "gateway": two.url, "token": c.token, "own_gateways": [one.url]}
    wrong = one.http.post(f"{one.url}/v1/admin/sites", json=wish)
    assert (wrong.status_code, wrong.json()["code"]) == (409, "bad-site"), wrong.text
    assert f"is called '{two.name}', not 'lyon'" in wrong.json()["detail"]
    assert [site["name"] for site in one.admin("GET", "sites")["sites"]] == [one.name, two.name]
    # the way it asks: the other site would take a name it does not know yet, were it not asked for another one
    join = {"name": "paris", "number": 77, "gateways": [one.url], "token": "tst.x", "called": "lyon"}
    answer = two.http.post(f"{two.url}/v1/admin/sites/join", json=join)
    assert (answer.status_code, answer.json()["code"]) == (409, "bad-site"), answer.text
    known = two.http.post(f"{two.url}/v1/admin/sites/join", json={**join, "name": one.name, "called": two.name})
    assert (known.status_code, known.json()["code"]) == (409, "site-exists"), known.text
    assert f"sites remove {one.name}" in known.json()["detail"]
    assert sorted(site["name"] for site in two.admin("GET", "sites")["sites"]) == sorted([one.name, two.name])


def test_a_revoked_key_stops_a_site_and_a_rotation_lets_it_go_on_while_data_flows(
    both: tuple[Cluster, Site, Site],
) -> None:
    """Keys are replaced in use, and ended when they leaked: nothing written meanwhile may be lost."""
    _, a, b = both
    assert a.http.put(f"{a.url}/v1/buckets/keys").status_code == 201
    a.rules("keys", b.name)
    written: list[str] = []
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.02):
            if a.put(f"k{len(written)}", b"x" * 2000, "keys").status_code == 200:
                written.append(f"k{len(written)}")

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            for _ in range(3):
                seen = len(written)
                _rotate(a, b)
                _rotate(b, a)
                wait_until(lambda s=seen: len(written) >= s + 5, seconds=60, what="writes go on")  # type: ignore[misc]
            ours = [k["access_key"] for k in b.admin("GET", "keys")["keys"] if k["user"] == f"site:{a.name}"]
            assert ours
            for access in ours:
                assert b.http.delete(f"{b.url}/v1/admin/keys/{access}").status_code == 204
            target = wait_until(
                lambda: (t := a.admin("GET", "replication")["targets"][0])["state"] == "unreachable" and t, seconds=60,
                what="b takes nothing from a",
            )
            assert target["error"]
            seen = len(written)
            wait_until(lambda: len(written) >= seen + 5, seconds=60, what="writes at a go on")
            _rotate(b, a)
        finally:
            stop.set()
            writing.result()
    a.drained()
    assert b.names("keys") == a.names("keys") and set(written) <= b.names("keys").keys()


def test_a_site_is_reached_through_the_next_of_its_gateways(both: tuple[Cluster, Site, Site]) -> None:
    """One of its gateways is gone, and then the other: names, bodies and readers go on."""
    _, a, b = both
    _bucket(a, b, "several")
    assert a.http.put(f"{a.url}/v1/buckets/several-far").status_code == 201
    a.rules("several-far", b.name, bodies="on-demand")

    async def walk() -> None:
        async with FaultyLink(int(b.url.rsplit(":", 1)[1])) as to_b, FaultyLink(int(a.url.rsplit(":", 1)[1])) as to_a:
            to_b.set(refuse=True)
            to_a.set(refuse=True)
            for here, there, link in ((a, b, to_b), (b, a, to_a)):
                urls = [f"http://127.0.0.1:{link.port}", there.url]
                await asyncio.to_thread(here.admin, "PATCH", f"sites/{there.name}", json={"gateways": urls})
            for i in range(5):
                assert (await asyncio.to_thread(a.put, f"k{i}", b"x" * 50_000, "several")).status_code == 200
                assert (await asyncio.to_thread(a.put, f"far{i}", b"far", "several-far")).status_code == 200
            await asyncio.to_thread(a.drained)
            far = await asyncio.to_thread(b.get, "far0", "several-far")
            assert far.status_code == 200 and far.content == b"far"
            # the second one is none any more: all goes by the first
            for here, there, link in ((a, b, to_b), (b, a, to_a)):
                link.set(refuse=False)
                urls = [f"http://127.0.0.1:{link.port}", f"http://127.0.0.1:{free_port()}"]
                await asyncio.to_thread(here.admin, "PATCH", f"sites/{there.name}", json={"gateways": urls})
            assert (await asyncio.to_thread(a.put, "last", b"x", "several")).status_code == 200
            await asyncio.to_thread(a.drained)
            assert to_b.bytes_passed

    try:
        asyncio.run(walk())
    finally:
        for here, there in ((a, b), (b, a)):
            here.admin("PATCH", f"sites/{there.name}", json={"gateways": [there.url]})
    assert b.names("several") == a.names("several") and b.get("last", "several").content == b"x"


def test_bandwidth_is_that_of_the_hour(both: tuple[Cluster, Site, Site]) -> None:
    """At its base rate nothing of this would arrive today; its schedule's holds all the same."""
    _, a, b = both
    assert a.http.put(f"{a.url}/v1/buckets/slowly").status_code == 201
    a.rules("slowly", b.name)
    size, per_second = 6 << 20, 4 << 20
    spans = [{"from": f, "to": t, "rate": "4MiB/s"} for f, t in (("00:00", "12:00"), ("12:00", "00:00"))]
    a.admin("PATCH", f"sites/{b.name}", json={"rate": "1KiB/s", "schedule": spans})
    # the worker follows within a second
    wait_until(
        lambda: all(len(s.get("schedule", [])) == 2 for s in a.admin("GET", "sites")["sites"] if not s["is_local"]),
        seconds=60, what="the schedule is shown",
    )
    try:
        began = time.monotonic()
        for i in range(3):
            assert a.put(f"k{i}", os.urandom(size), "slowly").status_code == 200
        a.drained()
        # three parcels of one body each: the first goes at once, the others wait for their turn, however quick the way
        assert time.monotonic() - began >= 2 * size / per_second * 0.95
    finally:
        a.admin("PATCH", f"sites/{b.name}", json={"rate": "", "schedule": []})
    assert all(len(b.get(f"k{i}", "slowly").content) == size for i in range(3))


def test_a_client_that_asks_is_sent_to_the_near_gateway(both: tuple[Cluster, Site, Site]) -> None:
    """307, method and body kept; nobody who did not ask is sent anywhere."""
    _, a, b = both
    assert a.http.put(f"{a.url}/v1/buckets/sent").status_code == 201
    a.rules("sent", b.name)
    assert a.put("k", b"at both", "sent").status_code == 200
    a.drained()
    a.admin("PATCH", f"sites/{b.name}", json={"networks": ["127.0.0.0/8"]})
    url, asks = f"{a.url}/v1/objects/sent/k", {"x-tierstore-near": "redirect"}
    try:
        # a gateway asks for what is known of the other sites every few seconds, and a test before moved b's gateway
        answer = wait_until(
            lambda: (r := a.http.get(url, headers=asks)).status_code == 307
            and r.headers["location"] == f"{b.url}/v1/objects/sent/k" and r,
            seconds=60, what="b is near, at its own gateway",
        )
        assert not answer.content
        assert a.http.get(url).headers["x-tierstore-site"] == a.name
        # clients leave the key behind when another origin is named: they show it again themselves
        assert a.http.get(url, headers=asks, follow_redirects=True).status_code == 401
        followed = a.http.get(answer.headers["location"], headers=asks)
        assert followed.content == b"at both" and followed.headers["x-tierstore-site"] == b.name
        put = a.http.put(f"{a.url}/v1/objects/sent/new", content=b"of b", headers=asks)
        assert put.status_code == 307 and a.get("new", "sent").status_code == 404
        put = a.http.put(put.headers["location"], content=b"of b", headers=asks)
        assert put.status_code == 200 and b.get("new", "sent").content == b"of b"
    finally:
        a.admin("PATCH", f"sites/{b.name}", json={"networks": []})


def test_malformed_messages_of_a_site_get_a_clear_4xx(both: tuple[Cluster, Site, Site]) -> None:
    """Under a genuine key: whoever has one is another release at best, and broken or hostile at worst."""
    c, a, b = both
    _bucket(a, b, "odd")
    with sqlite3.connect(c.data / "cluster" / "metadata" / "catalog.db") as catalog:
        link = catalog.execute("select value from settings where name = ?", (f"site-link.{b.name}",)).fetchone()[0]
    bearer = {"authorization": f"Bearer {json.loads(link)['token']}", "content-type": MEDIA_TYPE}
    record = ["odd", "k", 1, 5, 10, "e", 1, True, None]
    bad: list[tuple[str, Any]] = [
        ("names", ["x", [[*record[:3], 1 << 63, *record[4:]]], {"odd": ""}]),
        ("names", ["x", [[*record[:3], -1, *record[4:]]], {"odd": ""}]),
        ("names", ["x", [["odd", "a\x00b", *record[2:]]], {"odd": ""}]),
        ("names", ["x", [record], {"UPPER": ""}]), ("names", ["x", [record], {"odd": "sometimes"}]),
        ("names", ["x", [record] * 600, {"odd": ""}]), ("names", 7),
        ("hello", ["x", 1, "", -1, 0]), ("hello", ["x", 1, "", 1 << 63, 0]), ("hello", []),
        ("compare", ["x", "one"]), ("rotate", ["tst.x\r\nx: y"]), ("rotate", [""]),
        ("holds", [[["odd", "k", 0]]]), ("holds", [[["odd", "k", 1]] * 65]),
        ("fetch", [[["odd", "k", 0, 0, 1]]]), ("fetch", [[["odd", "k", 5, -(8 << 20), 1]]]),
        ("fetch", [[["odd", "k", 5, 1, 1]]]), ("fetch", [[["odd", "k", 5, 0, 9 << 20]]]),
        ("fetch", [[["odd", "k", 5, 0, 1]] * 65]),
        ("push", ["x", record, "", -(8 << 20), 0, b"x"]), ("push", ["x", record, "", 0, 0, b""]),
        ("push", ["x", record, "often", 0, 0, b"x"]), ("push", ["x", record[:2], "", 0, 0, b"x"]),
    ]  # fmt: skip
    for path, message in bad:
        answer = b.http.post(f"{b.url}/v1/sites/{path}", headers=bearer, content=encode(message))
        assert 400 <= answer.status_code < 500 and answer.json()["code"], (path, message, answer.text)
    for path in ("names", "hello", "compare", "rotate", "holds", "fetch", "push"):
        for content in (b"", b"\xc1", os.urandom(50), encode(record)[:-3], b"\x91" * 5000):
            answer = b.http.post(f"{b.url}/v1/sites/{path}", headers=bearer, content=content)
            assert 400 <= answer.status_code < 500, (path, content, answer.text)
    for query in ("", "version=x", f"version={'f' * 16}&first=0&length=1", "version=" + "0" * 16 + "&first=-1&length=1",
                  "version=" + "0" * 16 + "&first=0&length=" + "9" * 30):  # fmt: skip
        answer = b.http.get(f"{b.url}/v1/bodies/odd/k?{query}", headers=bearer)
        assert 400 <= answer.status_code < 500, (query, answer.text)
    # what fits nowhere in a body is told in the message, and changes nothing
    pushed = b.http.post(
        f"{b.url}/v1/sites/push", headers=bearer, content=encode(["x", record, "", 0, 1, b"not that sum"])
    )
    assert decode(pushed.content, PushAnswer).code == "checksum-mismatch"
    assert "k" not in b.names("odd")
    assert a.put("after", b"x", "odd").status_code == 200
    a.drained()
    assert b.get("after", "odd").content == b"x"


def test_a_client_reads_from_the_near_site_and_from_the_next_while_it_is_gone(both: tuple[Cluster, Site, Site]) -> None:
    c, a, b = both
    assert c.up is not None
    assert a.http.put(f"{a.url}/v1/buckets/near").status_code == 201
    a.rules("near", b.name)
    a.put("k", b"everywhere", "near")
    wait_until(lambda: b.get("k", "near").status_code == 200, seconds=ARRIVAL_SECONDS, what="the object at both")
    a.admin("PATCH", f"sites/{b.name}", json={"networks": ["127.0.0.0/8"]})
    wait_until(lambda: a.http.get(f"{a.url}/v1/route").json()["site"] == b.name, seconds=120, what="b is near")
    argvs = [b.process(c, role)["argv"] for role in ("gateway", "metadata")]
    pids = [pid for pid in _descendants(c.up.pid) if _argv(pid) in argvs]

    async def read(store: NearStore) -> bytes:
        async with await store.get("near", "k") as reader:
            return await reader.read()

    async def client() -> None:
        async with await connect_near([a.url, b.url], c.token) as store:
            assert await read(store) == b"everywhere" and store.site == b.name
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                began = time.monotonic()
                assert await read(store) == b"everywhere" and store.site == a.name
                print(f"from the next site after {time.monotonic() - began:.2f} s")     # 2 s on an idle machine
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            until = time.monotonic() + 120
            while store.site != b.name and time.monotonic() < until:
                await asyncio.sleep(0.1)
            assert store.site == b.name and await read(store) == b"everywhere"

    asyncio.run(client())
