"""A real mount of a real cluster, as a program of its own, for tests that use a file system as programs do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.kit.cluster import Cluster, wait_until

START_SECONDS = 300.0


def require_fuse() -> None:
    """Skip where nothing can be mounted; fail in CI, where it must be possible."""
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        return
    if os.environ.get("CI") == "true":
        pytest.fail("/dev/fuse is not there; CI must have it")
    pytest.skip("/dev/fuse is not there")


def drop_pages(fd: int) -> None:
    """The next read asks the mount."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass
class Mounted:
    """One mount process. path: where the bucket is. gateway: of another site than the cluster's first."""

    cluster: Cluster
    bucket: str
    path: Path
    flags: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    gateway: str = ""

    @property
    def log(self) -> Path:
        return self.path.with_suffix(".log")

    def start(self) -> Mounted:
        with contextlib.suppress(OSError):      # a mount that was killed still stands there: `mount` clears it
            self.path.mkdir(parents=True, exist_ok=True)
        endpoint = self.gateway or self.cluster.gateway
        env = {**os.environ, "TIERSTORE_ENDPOINT": endpoint, "TIERSTORE_TOKEN": self.cluster.token}
        with open(self.log, "ab") as log:
            at = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tierstore.cli.main", "mount", self.bucket, str(self.path), *self.flags],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env,
            )  # fmt: skip
        process = self.process

        def is_up() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"the mount ended with {process.returncode}:\n{self.log.read_text()}")
            return b"is mounted on" in self.log.read_bytes()[at:]

        wait_until(is_up, seconds=START_SECONDS, what=lambda: f"mounted:\n{self.log.read_text()}")
        return self

    def stop(self) -> int:
        """Unmount in order; the exit status."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(180)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        self.detach()
        return status

    def kill(self) -> None:
        """kill -9: nothing is said to the kernel or to metadata."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def detach(self) -> None:
        subprocess.run(["fusermount3", "-u", "-z", "-q", str(self.path)], check=False, timeout=120)


@contextlib.contextmanager
def mounted(cluster: Cluster, bucket: str, path: Path, *flags: str) -> Iterator[Mounted]:
    """A mounted bucket; unmounted at the end."""
    mount = Mounted(cluster, bucket, path, list(flags))
    try:
        yield mount.start()
    finally:
        mount.stop()
