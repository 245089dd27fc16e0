"""The command line against a real cluster: files in, files out, and what operators ask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.cluster import Cluster, cluster, wait_until


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cli")) as started:
        yield started


class Shell:
    """Runs `tierstore` with the exports of a cluster."""

    def __init__(self, running: Cluster) -> None:
        self.env = {**os.environ, "TIERSTORE_ENDPOINT": running.gateway, "TIERSTORE_TOKEN": running.token}

    def __call__(self, *words: str | Path, stdin: bytes = b"", code: int = 0) -> bytes:
        done = subprocess.run(
            [sys.executable, "-m", "tierstore.cli.main", *map(str, words)],
            env=self.env, input=stdin, capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr.decode()
        return done.stdout if code == 0 else done.stderr

    def json(self, *words: str | Path, stdin: bytes = b"") -> Any:
        return json.loads(self(*words, "--json", stdin=stdin))


@pytest.fixture
def tierstore(running: Cluster) -> Shell:
    return Shell(running)


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A small tree with an empty file, odd names, and one of several chunks."""
    root = tmp_path / "files"
    (root / "a/b c").mkdir(parents=True)
    (root / "empty").touch()
    (root / "a/small").write_bytes(b"small")
    (root / "a/b c/ä ö%2F?#.txt").write_bytes(b"odd name")
    (root / "big").write_bytes(os.urandom(20 << 20))
    return root


def test_a_tree_goes_in_and_comes_out_the_same(tierstore: Shell, files: Path, tmp_path: Path) -> None:
    """The first thing that anybody does."""
    tierstore("mb", "ts://tree-bucket")
    done = tierstore.json("cp", "-r", files, "ts://tree-bucket/x")
    assert done["files"] == 4 and done["bytes"] == sum(map(len, tree(files).values())) and done["failures"] == []
    listed = [json.loads(line) for line in tierstore("ls", "-r", "ts://tree-bucket/x/", "--json").splitlines()]
    assert {row["key"]: row["size"] for row in listed} == {f"x/{name}": len(body) for name, body in tree(files).items()}
    tierstore("cp", "-r", "ts://tree-bucket/x", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(files)
    assert b"a/" in tierstore("ls", "ts://tree-bucket/x/"), "prefixes are shown as directories"


def test_single_objects_through_pipes_and_names(tierstore: Shell, tmp_path: Path) -> None:
    """cp from standard input, cat, stat, mv, cp within the store, rm."""
    tierstore("mb", "ts://pipe-bucket")
    tierstore("cp", "-", "ts://pipe-bucket/in", stdin=b"from a pipe")
    assert tierstore("cat", "ts://pipe-bucket/in") == b"from a pipe"
    assert tierstore("cp", "ts://pipe-bucket/in", "-") == b"from a pipe"
    assert tierstore.json("stat", "ts://pipe-bucket/in")["size"] == 11
    tierstore("mv", "ts://pipe-bucket/in", "ts://pipe-bucket/dir/")
    assert b"no" in tierstore("stat", "ts://pipe-bucket/in", code=3)
    tierstore("cp", "ts://pipe-bucket/dir/in", "ts://pipe-bucket/copy")
    tierstore("cp", "ts://pipe-bucket/copy", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"from a pipe"
    assert tierstore.json("rm", "ts://pipe-bucket/copy") == {"deleted": 1}
    tierstore("rm", "ts://pipe-bucket/copy", code=3)
    assert b"--force" in tierstore("rb", "ts://pipe-bucket", code=5)
    assert tierstore.json("rb", "ts://pipe-bucket", "--force") == {"bucket": "pipe-bucket", "deleted": 1}
    assert "pipe-bucket" not in [bucket["name"] for bucket in tierstore.json("ls")]


def test_sync_moves_only_what_changed_both_ways(tierstore: Shell, files: Path, tmp_path: Path) -> None:
    """A nightly sync of a million files must not send a million files, nor delete unasked."""
    tierstore("mb", "ts://sync-bucket")
    first = tierstore.json("sync", files, "ts://sync-bucket/p")
    assert (first["files"], first["skipped"]) == (4, 0)
    again = tierstore.json("sync", files, "ts://sync-bucket/p")
    assert (again["files"], again["skipped"]) == (0, 4)
    (files / "a/small").write_bytes(b"SMALL")
    os.utime(files / "a/small", (2e9, 2e9))
    (files / "empty").unlink()
    dry = tierstore("sync", files, "ts://sync-bucket/p", "--delete", "--dry-run")
    assert b"would copy" in dry and b"would delete" in dry
    changed = tierstore.json("sync", files, "ts://sync-bucket/p", "--delete")
    assert (changed["files"], changed["skipped"], changed["deleted"]) == (1, 2, 1)
    out = tmp_path / "out"
    assert tierstore.json("sync", "ts://sync-bucket/p", out)["files"] == 3
    assert tree(out) == tree(files)
    (out / "extra").touch()
    down = tierstore.json("sync", "ts://sync-bucket/p", out)
    assert (down["files"], down["skipped"], down["deleted"]) == (0, 3, 0) and (out / "extra").exists()
    (out / "a/small").write_bytes(b"smalL")
    assert tierstore.json("sync", "ts://sync-bucket/p", out, "--checksum", "--delete")["deleted"] == 1
    assert tree(out) == tree(files)


def test_errors_name_the_way_out_and_have_their_exit_codes(tierstore: Shell, tmp_path: Path) -> None:
    """Scripts branch on the code; people read the line."""
    assert b"bucket" in tierstore("ls", "ts://missing-bucket", code=3)
    assert b"bucket" in tierstore("cp", "-", "ts://missing-bucket/x", stdin=b"x", code=3)
    tierstore("mb", "ts://errors-bucket")
    tierstore("mb", "ts://errors-bucket", code=5)
    assert b"-r" in tierstore("cp", tmp_path, "ts://errors-bucket/x", code=2)
    wrong = Shell.__new__(Shell)
    wrong.env = {**tierstore.env, "TIERSTORE_TOKEN": "tst.NOBODY.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}
    assert wrong("ls", "ts://errors-bucket", code=4)


def test_operators_see_servers_tiers_and_jobs(tierstore: Shell) -> None:
    """`admin status` is what one looks at at night."""

    def calm() -> Any:
        """The status once all three are up: one that a busy machine holds up is a suspect for a moment."""
        status = tierstore.json("admin", "status")
        stores = [server for server in status["servers"] if server.get("role", "objectd") == "objectd"]
        return [server["state"] for server in stores] == ["up"] * 3 and not status["warnings"] and status

    assert wait_until(calm, seconds=120, what=lambda: f"no warning: {tierstore.json('admin', 'status')}")["copies"] == 2
    wait_until(lambda: b"3 of 3 object servers up" in tierstore("admin", "status"), seconds=120, what="it as text")
    for words in (
        ["servers"],
        ["tiers"],
        ["jobs"],
        ["scrub"],
        ["repair"],
        ["collect"],
        ["compare"],
        ["compare", "start", "--wait"],
        ["policy", "show"],
        ["keys", "list"],
    ):
        assert tierstore("admin", *words)
        tierstore.json("admin", *words)


def test_keys_give_exactly_the_rights_that_were_granted(tierstore: Shell) -> None:
    """A backup job must not read the others' buckets."""
    tierstore("mb", "ts://own-bucket")
    tierstore("mb", "ts://foreign-bucket")
    key = tierstore.json("admin", "keys", "create", "job", "--grant", "own-bucket=readwrite")
    job = Shell.__new__(Shell)
    job.env = {**tierstore.env, "TIERSTORE_TOKEN": key["token"]}
    job("cp", "-", "ts://own-bucket/x", stdin=b"mine")
    assert job("cat", "ts://own-bucket/x") == b"mine"
    job("cp", "-", "ts://foreign-bucket/x", stdin=b"no", code=4)
    job("admin", "keys", "list", code=4)
    tierstore("admin", "keys", "delete", key["access_key"])
    wait_until(lambda: _is_refused(job), seconds=30, what="the deleted key is refused")


def _is_refused(job: Shell) -> bool:
    done = subprocess.run(
        [sys.executable, "-m", "tierstore.cli.main", "cat", "ts://own-bucket/x"],
        env=job.env, capture_output=True, timeout=180, check=False,
    )  # fmt: skip
    return done.returncode == 4


def test_config_show_and_check_speak_for_the_daemons(tierstore: Shell, running: Cluster, tmp_path: Path) -> None:
    """What `show` prints is what the daemon runs with; a typo is told before a restart."""
    for daemon, name in (("metadata", "metadata1"), ("objectd", "objectd1"), ("gateway", "gateway1")):
        config = running.data / f"cluster/config/{name}.toml"
        shown = tierstore("config", "show", daemon, "--config", config)
        assert b"[listen]" in shown and running.token.encode() not in shown
        assert b"no errors" in tierstore("config", "check", daemon, "--config", config)
    (tmp_path / "bad.toml").write_text("[listen]\nprot = 1\n")
    assert b"did you mean 'port'" in tierstore("config", "check", "objectd", "--config", tmp_path / "bad.toml", code=2)


def test_bench_measures_and_leaves_nothing_behind(tierstore: Shell) -> None:
    """A quick look at a cluster must not fill it."""
    result = tierstore.json("bench", "--seconds", "0.5", "--connections", "4")
    assert [phase["phase"] for phase in result["phases"]] == ["put", "get", "stat", "delete"]
    assert all(phase["requests"] > 0 for phase in result["phases"])
    assert tierstore("ls", "-r", "ts://bench") == b""
