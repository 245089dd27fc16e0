"""The written configurations work: the real daemon serves the mount, a real client reads and writes through it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.cluster import wait_until
from tests.kit.mount import Mounted


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def accepts(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_samba_serves_the_mount(mount: Mounted, tmp_path: Path) -> None:
    """smbd with our configuration, driven by smbclient: put, rename, get."""
    if shutil.which("smbd") is None or shutil.which("smbclient") is None:
        pytest.fail("samba and smbclient are not installed (see TEST_TOOLS in the Makefile)")
    state, port = tmp_path / "smb", free_port()
    subprocess.run(
        [sys.executable, "-m", "tierstore.cli.main", "export", "smb", str(mount.path), "--state", str(state),
         "--port", str(port)],
        check=True, timeout=30, capture_output=True,
    )  # fmt: skip
    daemon = subprocess.Popen(
        ["smbd", "--foreground", "--no-process-group", "--configfile", str(state / "smb.conf")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,  # it ends by killing its group
    )  # fmt: skip
    try:
        wait_until(lambda: accepts(port), seconds=20, what="smbd listening")
        (tmp_path / "up").write_bytes(b"by smb" * 1000)
        commands = "mkdir by-smb; put up by-smb\\x; rename by-smb\\x by-smb\\y; get by-smb\\y down"
        subprocess.run(
            ["smbclient", f"//127.0.0.1/{mount.path.name}", "-p", str(port), "-N", "-c", commands],
            check=True, timeout=60, cwd=tmp_path, capture_output=True,
        )  # fmt: skip
        assert (tmp_path / "down").read_bytes() == b"by smb" * 1000
        assert (mount.path / "by-smb" / "y").read_bytes() == b"by smb" * 1000
    finally:
        daemon.terminate()
        daemon.wait(20)
