"""The real daemons that export a mount further, with the configuration that `tierstore export` writes."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.cluster import wait_until
from tests.kit.mount import Mounted
from tests.kit.ports import free_port


def accepts(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Daemon:
    """One daemon on one port; `argv` starts it."""

    argv: list[str]
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # A session of its own: smbd ends by killing its group.
        self.process = subprocess.Popen(
            self.argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        wait_until(lambda: accepts(self.port), seconds=60, what=f"{self.argv[0]} listening")

    def kill(self) -> None:
        """kill -9, with the processes that it started: its clients hear nothing."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        wait_until(lambda: not accepts(self.port), seconds=60, what=f"{self.argv[0]} gone")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(180)
            self.process = None


@contextlib.contextmanager
def exported(kind: str, mount: Mounted, state: Path) -> Iterator[Daemon]:
    """The mount, exported by the daemon of that kind ("nfs", "smb")."""
    program = "ganesha.nfsd" if kind == "nfs" else "smbd"
    if shutil.which(program) is None:
        pytest.fail(f"{program} is not installed (see TEST_TOOLS in the Makefile)")
    port = free_port()
    told = subprocess.run(
        [sys.executable, "-m", "tierstore.cli.main", "export", kind, str(mount.path), "--state", str(state),
         "--port", str(port)],
        check=True, timeout=180, capture_output=True, text=True,
    )  # fmt: skip
    command = next(line for line in told.stdout.splitlines() if line.startswith(program))
    daemon = Daemon(shlex.split(command), port)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()
