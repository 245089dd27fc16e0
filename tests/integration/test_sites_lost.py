"""A site goes back in time, or loses everything; a third site; the way to a site is cut. Real processes."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from metadata.catalog import schema
from tests.integration.test_sites import Site
from tests.kit.cluster import Cluster, cluster, wait_until
from tests.kit.ports import free_port_base
from tierstore.names import version_text

ARRIVAL_SECONDS = 60.0


def _sites(c: Cluster, http: httpx.Client) -> list[Site]:
    return [Site(site["name"], site["gateway"], http) for site in c.ready["sites"]]


def _client(c: Cluster) -> httpx.Client:
    return httpx.Client(headers={"authorization": f"Bearer {c.token}"}, timeout=180)


def _shared(a: Site, b: Site, name: str) -> None:
    assert a.http.put(f"{a.url}/v1/buckets/{name}").status_code == 201
    a.rules(name, b.name)
    a.put("first", b"1", name)
    wait_until(
        lambda: b.http.get(f"{b.url}/v1/buckets/{name}").status_code == 200, seconds=ARRIVAL_SECONDS, what=name
    )
    b.rules(name, a.name)


def _catalog(c: Cluster, site: str) -> Path:
    data = c.data / "cluster"
    return (data if site == "site1" else data / site) / "metadata" / "catalog.db"


def _state(site: Site) -> str:
    return str(site.admin("GET", "replication")["targets"][0]["state"])


def _dump(source: Path, target: Path) -> None:
    """A copy as an operator makes one with sqlite3's own backup."""
    with sqlite3.connect(source) as here, sqlite3.connect(target) as there:
        here.backup(there)


@pytest.mark.slow
def test_an_old_backup_of_a_site_brings_nothing_back_and_a_lost_site_is_rebuilt(tmp_path: Path) -> None:
    """The two disasters of a site, one after the other on the same cluster."""
    with cluster(tmp_path, "--sites", "2", "--servers", "2") as c, _client(c) as http:
        a, b = _sites(c, http)
        _shared(a, b, "bbb")
        _shared(a, b, "versioned")
        assert a.http.patch(f"{a.url}/v1/buckets/versioned", json={"versioning": "enabled"}).status_code == 200
        a.admin("POST", f"sites/{b.name}/pause")
        wait_until(lambda: _state(a) == "paused", seconds=ARRIVAL_SECONDS, what="a is paused")
        removed, *_ = [
            a.put("k", body, "versioned").headers["x-tierstore-version"] for body in (b"removed", b"older", b"latest")
        ]
        for key in ("kept", "deleted-here", "deleted-there"):
            assert a.put(key, key.encode()).status_code == 200

        # -- an old backup of a, whose own queue has yet to say what will be removed
        backup = tmp_path / "old.db"
        _dump(_catalog(c, a.name), backup)
        a.admin("POST", f"sites/{b.name}/resume")
        a.drained()
        wait_until(lambda: len(b.names()) == 4, seconds=ARRIVAL_SECONDS, what="everything at b")
        for_good = b.http.delete(f"{b.url}/v1/objects/versioned/k?version={removed}")
        assert for_good.status_code == 204
        assert a.delete("deleted-here") == 204 and b.delete("deleted-there") == 204
        assert a.put("kept", b"newer").status_code == 200 and a.put("later", b"after the backup").status_code == 200
        a.drained()
        b.drained()
        _heard_of(c, b, a)
        c.stop()
        for path in _catalog(c, a.name).parent.glob("catalog.db*"):
            path.unlink()
        shutil.copy(backup, _catalog(c, a.name))
        c.start()
        a.admin("POST", f"sites/{b.name}/resume")
        wait_until(
            lambda: a.names() == b.names() and _is_open(a), seconds=ARRIVAL_SECONDS, what="a has heard of everything"
        )
        assert a.names().keys() == {"first", "kept", "later"}
        assert a.get("deleted-here").status_code == 404 and b.get("deleted-there").status_code == 404
        assert a.get("kept").content == b"newer"
        wait_until(
            lambda: _versions(c, a) == _versions(c, b), seconds=ARRIVAL_SECONDS, what="the same versions at both sites"
        )
        versions = _versions(c, a)
        assert removed not in {version for _, version in versions} and len(versions) == 3      # with "first"
        assert a.put("again", b"writes are taken").status_code == 200
        a.drained()
        wait_until(lambda: "again" in b.names(), seconds=ARRIVAL_SECONDS, what="and go out")

        # -- b loses all its disks
        expected = a.names()
        c.stop()
        shutil.rmtree(c.data / "cluster" / b.name)
        c.start()
        done = subprocess.run(
            [sys.executable, "-m", "tierstore.cli.main", "admin", "sites", "rebuild", a.name, "--gateway", a.url,
             "--own-gateway", b.url, "--endpoint", b.url],
            env={**os.environ, "TIERSTORE_TOKEN": c.token, "TIERSTORE_SITE_TOKEN": c.token},
            capture_output=True, timeout=120, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "bodies: " in done.stdout
        assert b.names() == expected and _is_open(b)
        wait_until(lambda: _versions(c, b) == versions, seconds=ARRIVAL_SECONDS, what="the older versions too")
        a.admin("POST", f"sites/{b.name}/pause")        # what is read now is here
        assert b.get("later").headers["x-tierstore-site"] == b.name
        assert b.get("later").content == b"after the backup"
        # its own writes go out again
        assert b.put("from-the-new-one", b"x").status_code == 200
        wait_until(lambda: "from-the-new-one" in a.names(), seconds=ARRIVAL_SECONDS, what="b's rule is back")


def _versions(c: Cluster, site: Site) -> set[tuple[str, str]]:
    """All versions in "versioned" with the bytes here, by key and id as clients see it."""
    with sqlite3.connect(_catalog(c, site.name)) as catalog:
        rows = catalog.execute(
            "select v.key, v.version, v.kind from (select bucket_id, key, version, kind from objects union all "
            "select bucket_id, key, version, kind from versions) v join buckets b on b.id = v.bucket_id "
            "where b.name = 'versioned'"
        ).fetchall()
    return {(key, version_text(version)) for key, version, kind in rows if kind != schema.KIND_REMOTE}


def _heard_of(c: Cluster, b: Site, a: Site) -> None:
    """b has written down how new a's catalog is."""
    with sqlite3.connect(_catalog(c, a.name)) as catalog:
        head = catalog.execute("select sequence from feed_head").fetchone()[0]

    def has_heard() -> bool:
        with sqlite3.connect(_catalog(c, b.name)) as catalog:
            row = catalog.execute("select value from settings where name = ?", (f"site-heard.{a.name}",)).fetchone()
        return row is not None and json.loads(row[0])[1] >= head

    wait_until(has_heard, seconds=30, what="b has heard of a's last change", every=0.2)


def _is_open(site: Site) -> bool:
    answer = site.admin("GET", "replication")
    return not answer["refusal"] and bool(answer["targets"]) and answer["targets"][0]["state"] == "ok"


@pytest.mark.slow
def test_three_sites_each_with_a_rule_for_the_others_end_equal(tmp_path: Path) -> None:
    """A star of rules: names are passed on by nobody, so none may be lost, doubled or sent in circles."""
    running = Cluster(tmp_path, ["--sites", "3", "--servers", "2"], {}, free_port_base(3)).start()
    try:
        with _client(running) as http:
            sites = _sites(running, http)
            assert http.put(f"{sites[0].url}/v1/buckets/bbb").status_code == 201
            for here in sites:
                rules = [{"prefix": "", "target": other.name} for other in sites if other is not here]
                wait_until(
                    lambda s=here, r=rules: http.put(  # type: ignore[misc]
                        f"{s.url}/v1/buckets/bbb/replication", json={"rules": r}
                    ).status_code == 200 or s.put("seed", b"") is None,
                    seconds=ARRIVAL_SECONDS, what=f"the bucket at {here.name}",
                )  # fmt: skip
                here.put(f"seed-{here.name}", b"x")
            bodies = {f"k{i}": os.urandom(500 + i) for i in range(30)}
            for i, (key, body) in enumerate(bodies.items()):
                assert sites[i % 3].put(key, body).status_code == 200
            for i in range(3):
                sites[i].put("contested", sites[i].name.encode())
            wait_until(lambda: "k0" in sites[1].names(), seconds=ARRIVAL_SECONDS, what="k0 at the second site")
            assert sites[1].delete("k0") == 204
            for site in sites:
                site.drained()
            wait_until(
                lambda: sites[0].names() == sites[1].names() == sites[2].names(), seconds=ARRIVAL_SECONDS,
                what="all three are equal",
            )
            assert sites[2].names().keys() >= bodies.keys() - {"k0"} and "k0" not in sites[0].names()
            assert len({site.get("contested").content for site in sites}) == 1
            for key in ("k7", "k8", "k9"):
                assert all(site.get(key).content == bodies[key] for site in sites)
    finally:
        running.stop()


@pytest.mark.slow
def test_a_ring_of_one_way_rules_brings_every_write_everywhere(tmp_path: Path) -> None:
    """site1 -> site2 -> site3 -> site1: names are passed on, bodies follow, deletes too; the queues come to rest."""
    running = Cluster(tmp_path, ["--sites", "3", "--servers", "2"], {}, free_port_base(3)).start()
    try:
        with _client(running) as http:
            sites = _sites(running, http)
            for site in sites:
                assert http.put(f"{site.url}/v1/buckets/ring").status_code == 201
            for here, there in zip(sites, [*sites[1:], sites[0]], strict=True):
                here.rules("ring", there.name)
            bodies = {f"k{i}": os.urandom(500 + i) for i in range(12)}
            for i, (key, body) in enumerate(bodies.items()):
                assert sites[i % 3].put(key, body, "ring").status_code == 200
            wait_until(
                lambda: all(site.names("ring").keys() == bodies.keys() for site in sites), seconds=ARRIVAL_SECONDS * 2,
                what="every name everywhere", every=0.5,
            )
            assert sites[1].delete("k0", "ring") == 204
            wait_until(
                lambda: not any("k0" in site.names("ring") for site in sites), seconds=ARRIVAL_SECONDS * 2,
                what="the delete everywhere", every=0.5,
            )
            wait_until(
                lambda: all(site.backlog() == 0 for site in sites), seconds=ARRIVAL_SECONDS * 3, what="empty queues",
                every=0.5,
            )
            assert sites[0].names("ring") == sites[1].names("ring") == sites[2].names("ring")
            for here in sites:      # what is read now is here
                for other in sites:
                    if other is not here:
                        here.admin("POST", f"sites/{other.name}/pause")
            for site in sites:
                for key in ("k3", "k4", "k5"):
                    answer = site.get(key, "ring")
                    assert answer.content == bodies[key] and answer.headers["x-tierstore-site"] == site.name
    finally:
        running.stop()
