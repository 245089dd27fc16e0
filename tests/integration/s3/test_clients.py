"""Stock programs against the S3 door: what they put is what they get back, by their own checks."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit.cluster import Cluster, wait_until

#: Programs from PyPI lie in a virtual environment of their own (Makefile, tools-test).
_CLIENTS = Path(sys.prefix) / "clients" / "bin"
_SECONDS = 120
Run = Callable[..., str]


def program(name: str) -> str:
    """Where a client is. A missing one fails the test in CI, and is left out elsewhere."""
    found = shutil.which(name, path=f"{_CLIENTS}:{os.environ['PATH']}")
    if found is None and not os.environ.get("CI"):
        pytest.skip(f"{name} is not installed: make tools-test")
    assert found is not None, f"{name} is not installed: make tools-test"
    return found


@pytest.fixture
def run(running: Cluster, tmp_path: Path) -> Run:
    """run(program, *arguments): its standard output; it must succeed."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "AWS_ACCESS_KEY_ID": running.ready["access_key"],
        "AWS_SECRET_ACCESS_KEY": running.ready["secret_key"], "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": running.gateway, "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip

    def work(name: str, *arguments: str, **more: str) -> str:
        done = subprocess.run(
            [program(name), *arguments], env={**environment, **more}, capture_output=True, text=True,
            timeout=_SECONDS, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, f"{name} {' '.join(arguments)}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
        return done.stdout

    return work


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A few files: empty, small, of several parts, with names that need escapes."""
    root = tmp_path / "tree"
    for name, size in (("empty", 0), ("a/small.txt", 100), ("a/b c/ü+%.bin", 70_000), ("large", 11 << 20)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    return root


def assert_same(one: Path, other: Path) -> None:
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    _, mismatch, errors = filecmp.cmpfiles(one, other, [str(name) for name in names], shallow=False)
    assert (mismatch, errors) == ([], [])


def test_rclone_copies_and_checks(run: Run, running: Cluster, bucket: str, tree: Path, tmp_path: Path) -> None:
    """copy, check --download, a second copy that moves nothing, delete."""
    remote = {
        "RCLONE_CONFIG_T_TYPE": "s3", "RCLONE_CONFIG_T_PROVIDER": "Other", "RCLONE_CONFIG_T_ENV_AUTH": "true",
        "RCLONE_CONFIG_T_ENDPOINT": running.gateway, "RCLONE_S3_UPLOAD_CUTOFF": "6M",
    }  # fmt: skip
    run("rclone", "copy", str(tree), f"t:{bucket}/tree", **remote)
    run("rclone", "check", "--download", str(tree), f"t:{bucket}/tree", **remote)
    run("rclone", "copy", f"t:{bucket}/tree", str(tmp_path / "back"), **remote)
    assert_same(tree, tmp_path / "back")
    run("rclone", "moveto", f"t:{bucket}/tree/large", f"t:{bucket}/tree/moved", **remote)
    listed = {entry["Path"] for entry in json.loads(run("rclone", "lsjson", f"t:{bucket}/tree", **remote))}
    assert listed == {"a", "empty", "moved"}
    run("rclone", "purge", f"t:{bucket}/tree", **remote)


def test_s3cmd_puts_gets_and_syncs(run: Run, running: Cluster, bucket: str, tree: Path, tmp_path: Path) -> None:
    """An old client with its own signer and its own multipart."""
    host = running.gateway.removeprefix("http://")
    flags = (
        "--no-ssl", f"--host={host}", f"--host-bucket={host}", f"--access_key={running.ready['access_key']}",
        f"--secret_key={running.ready['secret_key']}", "--multipart-chunk-size-mb=5", "--no-progress",
    )  # fmt: skip
    run("s3cmd", *flags, "put", str(tree / "large"), f"s3://{bucket}/large")
    run("s3cmd", *flags, "get", f"s3://{bucket}/large", str(tmp_path / "large"))
    assert (tmp_path / "large").read_bytes() == (tree / "large").read_bytes()
    run("s3cmd", *flags, "sync", f"{tree}/", f"s3://{bucket}/sync/")
    run("s3cmd", *flags, "sync", f"s3://{bucket}/sync/", f"{tmp_path}/back/")
    assert_same(tree, tmp_path / "back")
    assert f"s3://{bucket}/sync/a/small.txt" in run("s3cmd", *flags, "ls", "--recursive", f"s3://{bucket}")
    run("s3cmd", *flags, "del", "--recursive", "--force", f"s3://{bucket}/")


def test_restic_backs_up_checks_and_restores(
    run: Run, running: Cluster, bucket: str, tree: Path, tmp_path: Path
) -> None:
    """A backup that checks every byte of its repository."""
    repository = {"RESTIC_REPOSITORY": f"s3:{running.gateway}/{bucket}/repo", "RESTIC_PASSWORD": "x"}
    run("restic", "init", **repository)
    run("restic", "backup", "--quiet", str(tree), **repository)
    run("restic", "check", "--read-data", **repository)
    run("restic", "restore", "latest", "--target", str(tmp_path / "back"), **repository)
    assert_same(tree, tmp_path / "back" / tree.relative_to("/"))


@pytest.mark.slow
def test_awscli(run: Run, s3: Any, bucket: str, tree: Path, tmp_path: Path) -> None:
    """s3 sync both ways, s3api, presign."""
    run("aws", "s3", "sync", "--only-show-errors", str(tree), f"s3://{bucket}/tree")
    run("aws", "s3", "sync", "--only-show-errors", f"s3://{bucket}/tree", str(tmp_path / "back"))
    assert_same(tree, tmp_path / "back")
    assert run("aws", "s3", "sync", "--only-show-errors", str(tree), f"s3://{bucket}/tree") == ""
    head = json.loads(run("aws", "s3api", "head-object", "--bucket", bucket, "--key", "tree/large"))
    assert head["ContentLength"] == 11 << 20
    run("aws", "s3", "mv", "--only-show-errors", f"s3://{bucket}/tree/large", f"s3://{bucket}/moved")
    run("aws", "s3", "rm", "--only-show-errors", "--recursive", f"s3://{bucket}/tree")
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["moved"]


@pytest.mark.slow
def test_s3fs_mounts_a_bucket(run: Run, running: Cluster, s3: Any, bucket: str, tree: Path, tmp_path: Path) -> None:
    """Files through a foreign file system."""
    passwords, mounted = tmp_path / "passwd", tmp_path / "mounted"
    passwords.write_text(f"{running.ready['access_key']}:{running.ready['secret_key']}\n")
    passwords.chmod(0o600)
    mounted.mkdir()
    run("s3fs", bucket, str(mounted), "-o", f"passwd_file={passwords},url={running.gateway},use_path_request_style")
    try:
        wait_until(lambda: os.path.ismount(mounted), seconds=30, what="the mount")
        shutil.copytree(tree, mounted / "tree")
        assert_same(tree, mounted / "tree")
        (mounted / "tree" / "empty").unlink()
    finally:
        subprocess.run(["fusermount3", "-u", str(mounted)], check=False)
    keys = {entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]}
    assert "tree/large" in keys
    assert "tree/empty" not in keys
    body = s3.get_object(Bucket=bucket, Key="tree/a/small.txt")["Body"].read()
    assert body == (tree / "a" / "small.txt").read_bytes()


@pytest.mark.slow
def test_juicefs_judges_and_uses_a_bucket(
    run: Run, running: Cluster, bucket: str, tree: Path, tmp_path: Path
) -> None:
    """Its own functional test of object stores (every line must pass), then a file system on our bucket."""
    access = ("--access-key", running.ready["access_key"], "--secret-key", running.ready["secret_key"])
    place = f"{running.gateway}/{bucket}"
    report = run(
        "juicefs", "objbench", "--storage", "s3", *access, "--big-object-size", "6", "--threads", "2", place
    )
    functional = [line for line in report.splitlines() if "|" in line]
    assert functional, report
    # a range that begins behind the end is 416, as at AWS; juicefs only warns of it
    assert not [line for line in functional if "failed" in line and "offset out of r" not in line], report
    catalog, mounted = f"sqlite3://{tmp_path}/juice.db", tmp_path / "mounted"
    run("juicefs", "format", "--storage", "s3", "--bucket", place, *access, catalog, "vol")
    run("juicefs", "mount", "-d", "--no-usage-report", "--cache-dir", str(tmp_path / "cache"), catalog, str(mounted))
    try:
        shutil.copytree(tree, mounted / "tree")
        assert_same(tree, mounted / "tree")
    finally:
        run("juicefs", "umount", str(mounted))
