"""Real programs on a mount: what they store is what they find."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*argv: str | Path, cwd: Path | None = None, seconds: float = 300) -> str:
    done = subprocess.run([str(part) for part in argv], cwd=cwd, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{argv}: {done.stdout[-1000:]}{done.stderr[-1000:]}"
    return done.stdout


def test_git_keeps_a_repository(place: Path, tmp_path: Path) -> None:
    """Clone, check, commit, collect: git renames, links, maps and locks files."""
    source = tmp_path / "source"
    source.mkdir()
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main")
    run("git", "init", "-q", source)
    for number in range(30):
        (source / f"file{number}.txt").write_text(f"{number}\n" * (number + 1) * 20)
    run("git", *identity, "add", ".", cwd=source)
    run("git", *identity, "commit", "-q", "-m", "first", cwd=source)
    clone = place / "clone"
    run("git", "clone", "-q", f"file://{source}", clone)
    (clone / "file1.txt").write_text("changed\n")
    run("git", *identity, "commit", "-q", "-a", "-m", "second", cwd=clone)
    run("git", "gc", "-q", cwd=clone)
    run("git", "fsck", "--full", "--strict", cwd=clone)
    assert run("git", "status", "--short", cwd=clone) == ""
    assert run("git", "log", "--format=%s", cwd=clone).split() == ["second", "first"]


def test_tar_and_rsync_bring_a_tree_as_it_is(place: Path) -> None:
    """`rsync -aHX` finds nothing to do the second time: modes, owners, times, links and attributes were kept."""
    tree = ROOT / "tierstore" / "policy"
    archive = place / "tree.tar"
    run("tar", "cf", archive, "-C", tree.parent, tree.name)
    run("tar", "xf", archive, "-C", place)
    run("diff", "-r", "-x", "__pycache__", tree, place / tree.name)
    if shutil.which("rsync") is None:
        pytest.fail("rsync is not installed (see TEST_TOOLS in the Makefile)")
    run("rsync", "-aHX", "--exclude=__pycache__", f"{tree}/", f"{place}/copy/")
    assert run("rsync", "-aHXni", "--exclude=__pycache__", f"{tree}/", f"{place}/copy/") == ""


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_sqlite_keeps_a_database(place: Path, mode: str) -> None:
    """Random page writes, syncs, locks, and in WAL mode shared memory."""
    script = (
        f"PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB);"
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x<2000)"
        " INSERT INTO t SELECT x, randomblob(200) FROM c;"
        "UPDATE t SET b=randomblob(300) WHERE a%7=0; DELETE FROM t WHERE a%5=0; PRAGMA integrity_check;"
    )
    assert run("sqlite3", place / "db", script).split() == [mode, "ok"]
    assert run("sqlite3", place / "db", "PRAGMA integrity_check; SELECT count(*) FROM t").split() == ["ok", "1600"]


def test_fio_verifies_every_block(place: Path) -> None:
    run(
        "fio", "--name=verify", f"--filename={place}/fio", "--rw=randwrite", "--bs=4k", "--size=4m", "--fsync=128",
        "--verify=crc32c", "--verify_state_save=0", "--ioengine=psync", "--minimal",
    )  # fmt: skip
