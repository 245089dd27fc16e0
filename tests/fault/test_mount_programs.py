"""Real programs on a mount while the object servers below it are killed one after the other: none of them notices."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import pytest

from tests.kit.cluster import Cluster, cluster, wait_until
from tests.kit.mount import Mounted, mounted, require_fuse

ROOT = Path(__file__).parents[2]
PROGRAM_SECONDS = 300.0
SQL = (
    "PRAGMA journal_mode=wal; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB);"
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x<3000)"
    " INSERT INTO t SELECT x, randomblob(300) FROM c;"
    "UPDATE t SET b=randomblob(400) WHERE a%3=0; DELETE FROM t WHERE a%5=0; PRAGMA integrity_check;"
)


def ended(process: subprocess.Popen[bytes]) -> bytes:
    """What it wrote; it must have ended well."""
    try:
        out, err = process.communicate(timeout=PROGRAM_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{process.args!r} hangs: {out[-500:]!r} {err[-2000:]!r}") from None
    assert process.returncode == 0, f"{process.args!r}: {out[-500:]!r} {err[-2000:]!r}"
    return out


def run(*argv: str | Path, cwd: Path | None = None) -> bytes:
    return ended(start(*argv, cwd=cwd))


def start(*argv: str | Path, cwd: Path | None = None) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen([str(part) for part in argv], cwd=cwd, stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL)


class Killer:
    """Kills object servers in turn, each when the one before is back."""

    def __init__(self, running: Cluster) -> None:
        self._cluster = running
        self._names = [process.name for process in running.processes("objectd")]
        self._urls = {process.name: process.url for process in running.processes("objectd")}
        self.kills = 0

    def strike(self, begun: Path) -> None:
        """Once the program has begun to write there."""
        wait_until(lambda: begun.exists() and (begun.is_file() or any(begun.iterdir())), seconds=120, what=str(begun))
        for name in self._names:
            wait_until(lambda n=name: self._is_ready(n), seconds=120, what=f"{name} back")  # type: ignore[misc]
        self._cluster.kill(self._names[self.kills % len(self._names)])
        self.kills += 1

    def _is_ready(self, name: str) -> bool:
        try:
            return httpx.get(f"{self._urls[name]}/-/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


@pytest.mark.slow
def test_programs_go_on_while_object_servers_die(tmp_path: Path) -> None:
    """git, rsync, SQLite and fio, each with a server less in the middle: no error, and every byte is right."""
    require_fuse()
    source = tmp_path / "source"
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main")
    run("git", "init", "-q", source)
    for number in range(200):
        (source / f"file{number}.txt").write_text(f"{number}\n" * (number + 1) * 20)
    run("git", *identity, "add", ".", cwd=source)
    run("git", *identity, "commit", "-q", "-m", "first", cwd=source)
    with cluster(tmp_path / "cluster") as c:
        headers = {"Authorization": f"Bearer {c.token}"}
        assert httpx.put(f"{c.gateway}/v1/buckets/files", headers=headers, timeout=180).status_code == 201
        with mounted(c, "files", tmp_path / "one") as mount:
            with_kills(mount, Killer(c), source)
        with mounted(c, "files", tmp_path / "two") as again:
            run("git", "fsck", "--full", "--strict", cwd=again.path / "clone")
            assert run("sqlite3", again.path / "db", "PRAGMA integrity_check; SELECT count(*) FROM t").split() == [
                b"ok", b"2400",
            ]  # fmt: skip


def with_kills(mount: Mounted, killer: Killer, source: Path) -> None:
    place = mount.path
    clone = start("git", "clone", "-q", f"file://{source}", place / "clone")
    killer.strike(place / "clone" / ".git")
    ended(clone)
    run("git", "fsck", "--full", "--strict", cwd=place / "clone")
    assert run("git", "status", "--short", cwd=place / "clone") == b""

    tree = ROOT / "metadata"
    copy = start("rsync", "-aHX", "--exclude=__pycache__", f"{tree}/", f"{place}/copy/")
    killer.strike(place / "copy")
    ended(copy)
    assert run("rsync", "-aHXnic", "--exclude=__pycache__", f"{tree}/", f"{place}/copy/") == b""

    base = start("sqlite3", place / "db", SQL)
    killer.strike(place / "db")
    assert ended(base).split() == [b"wal", b"ok"]

    fio = start(
        "fio", "--name=verify", f"--filename={place}/fio", "--rw=randwrite", "--bs=8k", "--size=16m", "--fsync=64",
        "--verify=crc32c", "--verify_state_save=0", "--ioengine=psync", "--minimal",
    )  # fmt: skip
    killer.strike(place / "fio")
    ended(fio)
    assert killer.kills == 4
