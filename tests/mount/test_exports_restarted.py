"""Exports beside others: two mounts of one bucket behind two NFS servers, and daemons that are killed and come back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import nfs_rs
import pytest

from tests.kit.cluster import Cluster, wait_until
from tests.kit.exports import Daemon, exported
from tests.kit.mount import Mounted, mounted

pytestmark = pytest.mark.slow       # daemons that come back wait for their clients first (ganesha's grace period)

OPERATION_SECONDS = 120


def connect(daemon: Daemon) -> nfs_rs.Client:
    url = f"nfs://127.0.0.1/?version=4.1&noresvport=true&nfsport={daemon.port}"
    return nfs_rs.Client.connect(url, connect_timeout=60, operation_timeout=OPERATION_SECONDS)


def put(client: nfs_rs.Client, path: str, data: bytes) -> None:
    with client.open(path, "wb") as file:
        file.write(data)


def get(client: nfs_rs.Client, path: str) -> bytes:
    with client.open(path, "rb") as file:
        return bytes(file.read())


def names(client: nfs_rs.Client, path: str) -> list[str]:
    return sorted(entry.name for entry in client.scandir(path))


def test_two_nfs_servers_of_one_bucket_see_each_others_changes(
    files_cluster: Cluster, rest: httpx.Client, mount: Mounted, tmp_path: Path
) -> None:
    """What one changes is seen through the other soon: a server that kept names of its own answered listings with
    "stale file handle" once the other one had renamed something."""
    with (
        mounted(files_cluster, "files", tmp_path / "other") as second,
        exported("nfs", mount, tmp_path / "nfs1") as near, exported("nfs", second, tmp_path / "nfs2") as far,
        connect(near) as a, connect(far) as b,
    ):  # fmt: skip
        here, there = f"{mount.path.name}/two", f"{second.path.name}/two"
        a.mkdir(here)
        put(a, f"{here}/x", b"one")
        assert get(b, f"{there}/x") == b"one"
        put(a, f"{here}/x", b"another, and longer")
        wait_until(lambda: get(b, f"{there}/x") == b"another, and longer", seconds=60, what="the new bytes seen")
        assert names(b, there) == ["x"]
        put(a, f"{here}/y", b"new")
        wait_until(lambda: names(b, there) == ["x", "y"], seconds=60, what="the new name listed")
        a.rename(f"{here}/x", f"{here}/z")
        wait_until(lambda: names(b, there) == ["y", "z"], seconds=60, what="the other name listed")
        assert get(b, f"{there}/z") == b"another, and longer"
        a.unlink(f"{here}/y")
        wait_until(lambda: names(b, there) == ["z"], seconds=60, what="what is gone not listed")
        for number in range(300):
            (mount.path / "two" / f"many{number}").touch()
        wait_until(lambda: len(names(b, there)) == 301, seconds=60, what="more than one answer's names listed")


def test_nfs_goes_on_when_the_server_was_killed(mount: Mounted, tmp_path: Path) -> None:
    """What a client has closed is there when it connects again, and it writes on."""
    place = f"{mount.path.name}/nfs-killed"
    with exported("nfs", mount, tmp_path / "nfs") as daemon:
        with connect(daemon) as client:
            client.mkdir(place)
            put(client, f"{place}/before", bytes(range(256)) * 1000)
            daemon.kill()
            daemon.start()
        with connect(daemon) as again:
            assert get(again, f"{place}/before") == bytes(range(256)) * 1000
            put(again, f"{place}/after", b"written on")
            assert names(again, place) == ["after", "before"]
    assert (mount.path / "nfs-killed" / "after").read_bytes() == b"written on"


def test_smb_goes_on_when_the_server_was_killed(mount: Mounted, tmp_path: Path) -> None:
    """The same with smbd."""
    (tmp_path / "up").write_bytes(b"by smb" * 1000)
    (mount.path / "smb-killed").mkdir()

    def smb(daemon: Daemon, commands: str) -> None:
        done = subprocess.run(
            ["smbclient", f"//127.0.0.1/{mount.path.name}", "-p", str(daemon.port), "-N", "-c", commands],
            check=False, timeout=600, cwd=tmp_path, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    with exported("smb", mount, tmp_path / "smb") as daemon:
        smb(daemon, "put up smb-killed\\before")
        daemon.kill()
        daemon.start()
        smb(daemon, "get smb-killed\\before down; put up smb-killed\\after")
    assert (tmp_path / "down").read_bytes() == b"by smb" * 1000
    assert (mount.path / "smb-killed" / "after").read_bytes() == b"by smb" * 1000
