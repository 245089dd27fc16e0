"""The written configurations work: the real daemon serves the mount, a real client reads and writes through it."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nfs_rs
import pytest

from tests.kit.cluster import wait_until
from tests.kit.mount import Mounted
from tests.kit.ports import free_port


def accepts(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_ganesha_serves_the_mount_by_nfs(mount: Mounted, tmp_path: Path) -> None:
    """nfs-ganesha with our configuration, driven by a client in this process: NFSv4.1, no kernel client."""
    if shutil.which("ganesha.nfsd") is None:
        pytest.fail("nfs-ganesha and nfs-ganesha-vfs are not installed (see TEST_TOOLS in the Makefile)")
    state, port, share = tmp_path / "nfs", free_port(), mount.path.name
    told = subprocess.run(
        [sys.executable, "-m", "tierstore.cli.main", "export", "nfs", str(mount.path), "--state", str(state),
         "--port", str(port)],
        check=True, timeout=180, capture_output=True, text=True,
    )  # fmt: skip
    command = next(line for line in told.stdout.splitlines() if line.startswith("ganesha.nfsd"))
    daemon = subprocess.Popen(shlex.split(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (mount.path / "nfs-before").write_bytes(b"by the mount")
    data = bytes(range(256)) * 4096
    try:
        wait_until(lambda: accepts(port), seconds=20, what="ganesha listening")
        # The root of all exports: a LOOKUP of "." is an error in NFSv4, and this client asks it for its own root.
        url = f"nfs://127.0.0.1/?version=4.1&noresvport=true&nfsport={port}"
        with nfs_rs.Client.connect(url, connect_timeout=60, operation_timeout=120) as client:
            assert "nfs-before" in {entry.name for entry in client.scandir(share)}
            with client.open(f"{share}/nfs-before", "rb") as file:
                assert file.read() == b"by the mount"
            client.mkdir(f"{share}/by-nfs")
            with client.open(f"{share}/by-nfs/x", "wb") as file:
                file.write(data)
            assert (mount.path / "by-nfs" / "x").read_bytes() == data
            client.rename(f"{share}/by-nfs/x", f"{share}/by-nfs/y")
            with client.open(f"{share}/by-nfs/y", "ab") as file:
                file.write(b"more")
            client.symlink("y", f"{share}/by-nfs/link")
            assert os.readlink(mount.path / "by-nfs" / "link") == "y"
            assert sorted(entry.name for entry in client.scandir(f"{share}/by-nfs")) == ["link", "y"]
            seen = client.stat(f"{share}/by-nfs/y")
            there = (mount.path / "by-nfs" / "y").stat()
            assert (seen.size, seen.fileid) == (len(data) + 4, there.st_ino) == (there.st_size, there.st_ino)
            assert (mount.path / "by-nfs" / "y").read_bytes() == data + b"more"
            client.unlink(f"{share}/by-nfs/link")
            assert os.listdir(mount.path / "by-nfs") == ["y"]
    finally:
        daemon.terminate()
        daemon.wait(180)


def test_samba_serves_the_mount(mount: Mounted, tmp_path: Path) -> None:
    """smbd with our configuration, driven by smbclient: put, rename, get."""
    if shutil.which("smbd") is None or shutil.which("smbclient") is None:
        pytest.fail("samba and smbclient are not installed (see TEST_TOOLS in the Makefile)")
    state, port = tmp_path / "smb", free_port()
    subprocess.run(
        [sys.executable, "-m", "tierstore.cli.main", "export", "smb", str(mount.path), "--state", str(state),
         "--port", str(port)],
        check=True, timeout=180, capture_output=True,
    )  # fmt: skip
    daemon = subprocess.Popen(
        ["smbd", "--foreground", "--no-process-group", "--configfile", str(state / "smb.conf")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,  # it ends by killing its group
    )  # fmt: skip
    try:
        wait_until(lambda: accepts(port), seconds=20, what="smbd listening")
        (tmp_path / "up").write_bytes(b"by smb" * 1000)
        commands = "mkdir by-smb; put up by-smb\\x; rename by-smb\\x by-smb\\y; get by-smb\\y down"
        client = subprocess.run(
            ["smbclient", f"//127.0.0.1/{mount.path.name}", "-p", str(port), "-N", "-c", commands],
            check=False, timeout=600, cwd=tmp_path, capture_output=True,
        )  # fmt: skip
        assert client.returncode == 0, client.stdout + client.stderr
        assert (tmp_path / "down").read_bytes() == b"by smb" * 1000
        assert (mount.path / "by-smb" / "y").read_bytes() == b"by smb" * 1000
    finally:
        daemon.terminate()
        daemon.wait(180)
