"""What a mount promises about time and memory: caches as long as the feed runs, errors instead of hangs, one budget."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.kit.cluster import cluster, wait_until
from tests.kit.mount import Mounted, require_fuse
from tierstore.files.remote import FilesRemote
from tierstore.sdk.connect import connect
from tierstore.wire.files import Extents

MIB = 1 << 20
#: The deadline of one question, of the retries in it, and some for a busy machine.
LOST_SECONDS = 45.0


def stat_elsewhere(path: Path, seconds: float) -> int:
    """The size that another process sees, or minus the errno that it got. Fails when there is no answer in time."""
    script = "import os, sys\ntry: print(os.stat(sys.argv[1]).st_size)\nexcept OSError as e: print(-e.errno)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=seconds, check=True
    )
    return int(done.stdout)


@pytest.mark.slow
def test_caches_hold_while_the_feed_runs_and_no_longer(tmp_path: Path) -> None:
    """While metadata's changes are heard, names and attributes are answered by the kernel; once they are not, what
    was promised is taken back, a lost cluster is an error after its deadline, and what changed meanwhile is seen."""
    require_fuse()
    with cluster(tmp_path / "cluster") as c:
        with httpx.Client(base_url=c.gateway, headers={"Authorization": f"Bearer {c.token}"}, timeout=180) as rest:
            assert rest.put("/v1/buckets/files").status_code == 201
            assert rest.put("/v1/objects/files/a/b", content=b"12345").status_code == 200
            mount = Mounted(c, "files", tmp_path / "one").start()
            try:
                path = mount.path / "a" / "b"
                assert stat_elsewhere(path, 10) == 5
                assert rest.put("/v1/objects/files/a/b", content=b"1234567").status_code == 200
                wait_until(lambda: stat_elsewhere(path, 10) == 7, seconds=5, what="the change seen by way of the feed")
                c.send_signal("metadata1", signal.SIGSTOP)
                assert stat_elsewhere(path, 3) == 7, "answered by the kernel: metadata does not run"
                wait_until(lambda: b"change feed is lost" in mount.log.read_bytes(), seconds=20, what="loss noticed")
                assert stat_elsewhere(path, LOST_SECONDS) == -errno.EIO, "asked again, and given up in time"
                c.send_signal("metadata1", signal.SIGCONT)
                wait_until(
                    lambda: rest.put("/v1/objects/files/a/b", content=b"1").status_code == 200, seconds=30, what="a put"
                )
                wait_until(lambda: stat_elsewhere(path, LOST_SECONDS) == 1, seconds=30, what="the new size seen")
            finally:
                c.send_signal("metadata1", signal.SIGCONT)
                mount.stop()


def test_writers_and_readers_keep_within_one_budget(mount: Mounted, tmp_path: Path) -> None:
    """Eight programs that write faster than the servers take it, then read it all: memory stays bounded, because
    writes wait; nothing is lost."""
    budget = 64 * MIB
    other = Mounted(mount.cluster, mount.bucket, tmp_path / "small", ["--memory", "64MiB"]).start()
    assert other.process is not None
    status = Path(f"/proc/{other.process.pid}/status")

    def peak_bytes() -> int:
        return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])

    block = os.urandom(MIB)
    failures: list[str] = []

    def work(number: int) -> None:
        path = other.path / f"budget{number}"
        with open(path, "wb", buffering=0) as file:
            for _ in range(24):
                file.write(block)
        with open(path, "rb", buffering=0) as file:
            while data := file.read(MIB):
                if data != block:
                    failures.append(f"{path} differs")

    try:
        start = peak_bytes()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(600)
        assert not any(thread.is_alive() for thread in threads)
        assert failures == []
        # Beyond the budget: a buffer per request of the kernel's and per connection, and what the allocator keeps.
        assert peak_bytes() - start < 1.5 * budget
    finally:
        other.stop()


def test_locks_are_within_one_mount(mount: Mounted, place: Path, tmp_path: Path) -> None:
    """flock and fcntl exclude programs of the same mount; another mount does not know of them, as the docs say."""
    path = place / "locked"
    path.write_bytes(b"x" * 100)
    script = (
        "import fcntl, sys\nf = open(sys.argv[1], 'r+b')\ntry:\n"
        " (fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB) if sys.argv[2] == 'flock'\n"
        "  else fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, int(sys.argv[2])))\n print('taken')\n"
        "except BlockingIOError: print('held')\n"
    )

    def tried(where: Path, how: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, str(where), how], capture_output=True, text=True, timeout=180, check=True
        )
        return done.stdout.strip()

    other = Mounted(mount.cluster, mount.bucket, tmp_path / "other").start()
    try:
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert tried(path, "flock") == "held"
            assert tried(other.path / place.name / "locked", "flock") == "taken"
            fcntl.flock(file, fcntl.LOCK_UN)
            fcntl.lockf(file, fcntl.LOCK_EX, 10, 20)
            assert (tried(path, "25"), tried(path, "30")) == ("held", "taken")
            assert tried(other.path / place.name / "locked", "25") == "taken"
    finally:
        other.stop()


def test_a_mount_with_caching_off_always_asks(mount: Mounted, rest: httpx.Client, tmp_path: Path) -> None:
    """`--cache 0`: what REST changed is seen by the very next stat, not only by the next open."""
    other = Mounted(mount.cluster, mount.bucket, tmp_path / "uncached", ["--cache", "0"]).start()
    try:
        for size in range(1, 12):
            assert rest.put("/v1/objects/files/uncached", content=b"x" * size).status_code == 200
            assert os.stat(other.path / "uncached").st_size == size
    finally:
        other.stop()


@pytest.mark.slow
def test_a_mount_ends_in_time_also_without_its_cluster(tmp_path: Path) -> None:
    """Ctrl-C while the cluster is gone: what cannot be committed is logged, the directory is free again."""
    require_fuse()
    with cluster(tmp_path / "cluster") as c:
        with httpx.Client(base_url=c.gateway, headers={"Authorization": f"Bearer {c.token}"}, timeout=180) as rest:
            assert rest.put("/v1/buckets/files").status_code == 201
        mount = Mounted(c, "files", tmp_path / "one").start()
        file = open(mount.path / "unsynced", "wb")  # noqa: SIM115 - the cluster goes under it
        file.write(b"x" * 100_000)
        file.flush()
        c.kill_everything()
    started = time.monotonic()
    assert mount.stop() == 0
    assert time.monotonic() - started < 150, "it ends, whatever the cluster does"
    with pytest.raises(OSError, match=r"not connected|Input/output|aborted"):
        file.close()
    wait_until(lambda: not os.path.ismount(mount.path), seconds=10, what="unmounted")
    assert os.listdir(mount.path) == []


def test_a_file_in_many_pieces_is_put_together(mount: Mounted, place: Path) -> None:
    """Random small writes leave hundreds of extents; after the close they are few again, and nothing else changed."""
    chance = random.Random(5)
    path = place / "pieces"
    model = bytearray(chance.randbytes(2 * MIB))
    path.write_bytes(model)
    with open(path, "r+b", buffering=0) as file:
        for first in range(1000, len(model) - 1000, 9000):
            data = chance.randbytes(200)
            os.pwrite(file.fileno(), data, first)
            model[first : first + 200] = data
        os.fsync(file.fileno())
        before = path.stat()

    async def pieces() -> int:
        store = await connect(mount.cluster.gateway, mount.cluster.token)
        remote = FilesRemote(store.client, "files")
        try:
            found = await remote.ask(Extents("files", f"{place.name}/pieces", 0, len(model)))
            return len(found.chunks)
        finally:
            await remote.close()
            await store.close()

    wait_until(lambda: asyncio.run(pieces()) <= 2, seconds=20, what="few pieces", every=0.3)
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino, after.st_size) == (before.st_mtime_ns, before.st_ino, before.st_size)
    assert path.read_bytes() == model
