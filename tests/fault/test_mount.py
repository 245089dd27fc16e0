"""What was fsynced is there after a kill -9 of the mount and of an object server, on any mount; and a file under random
use is right to the byte while the servers below it are killed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.kit.cluster import Cluster, Process, cluster, wait_until
from tests.kit.mount import Mounted, mounted, require_fuse

ROOT = Path(__file__).parents[2]
#: Acts of a program between two kills.
STEP = 40
#: A program that takes longer hangs.
PROGRAM_SECONDS = 1500.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require_fuse()
    with cluster(tmp_path_factory.mktemp("files")) as c:
        answer = httpx.put(f"{c.gateway}/v1/buckets/files", headers=bearer(c), timeout=180)
        assert answer.status_code == 201, answer.text
        yield c


def bearer(c: Cluster) -> dict[str, str]:
    return {"Authorization": f"Bearer {c.token}"}


def test_what_was_synced_survives_kills_of_the_mount_and_of_a_server(files: Cluster, tmp_path: Path) -> None:
    """A program that saw fsync return may rely on it, whatever dies after."""
    chance = random.Random(7)
    first = Mounted(files, "files", tmp_path / "one").start()
    promised: dict[str, bytes] = {}
    for number in range(30):
        name = f"file{number % 12}"
        data = chance.randbytes(chance.randrange(1, 200_000))
        with open(first.path / name, "r+b" if name in promised else "wb") as file:
            if name in promised:
                file.seek(1000)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        old = promised.get(name, b"")
        at = 1000 if name in promised else 0
        promised[name] = old.ljust(at, b"\0")[:at] + data + old[at + len(data) :]
        if number == 15:
            files.kill(files.processes("objectd")[1].name)
    unsynced = open(first.path / "unsynced", "wb")  # noqa: SIM115 - the mount dies under it
    unsynced.write(b"x" * 1_000_000)
    first.kill()
    second = Mounted(files, "files", tmp_path / "two").start()
    try:
        for name, data in promised.items():
            assert (second.path / name).read_bytes() == data
    finally:
        second.stop()
        first.detach()
        with contextlib.suppress(OSError):      # its bytes went with the mount
            unsynced.close()


class Program:
    """A file under random use on a mount, by a process of its own that stops after every STEP acts."""

    def __init__(self, path: Path, log: Path, *, seed: int, rounds: int, bytes_max: int) -> None:
        self._log = log
        self._argv = [
            sys.executable, "-m", "tests.kit.one_file", *map(str, (path, seed, rounds * STEP, bytes_max, STEP))
        ]  # fmt: skip
        with open(log, "wb") as err:
            self.process = subprocess.Popen(
                self._argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True
            )
        self._watchdog = threading.Timer(PROGRAM_SECONDS, self.process.kill)
        self._watchdog.start()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):      # what it failed with is told by the next line that is missing
            self.process.stdin.write("\n")
            self.process.stdin.flush()

    def until(self, wanted: str) -> str:
        """The rest of its next line that begins so."""
        assert self.process.stdout is not None
        last: list[str] = []
        for line in self.process.stdout:
            first, _, rest = line.strip().partition(" ")
            if first == wanted:
                return rest
            last = [*last[-4:], line.strip()]
        status = self.process.wait()
        raise AssertionError(
            f"ended with {status} after {last}; {' '.join(self._argv)}\n{self._log.read_text()[-3000:]}"
        )

    def end(self) -> None:
        self._watchdog.cancel()
        self.process.kill()
        self.process.communicate()


def wait_ready(server: Process) -> None:
    def is_ready() -> bool:
        try:
            return httpx.get(f"{server.url}/-/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    wait_until(is_ready, seconds=120, what=f"{server.name} ready")


def play(c: Cluster, at: Path, *flags: str, seed: int, rounds: int, bytes_max: int) -> None:
    """In each round but the last one a server is killed, of all in turn, and the next round begins when it is back."""
    chance = random.Random(seed)
    servers = [*c.processes("objectd")[:1], *c.processes("metadata"), *c.processes("objectd")[1:]]
    for server in servers:      # a test before may have left one on its way back
        wait_ready(server)
    name = f"random{seed}"
    # Restarts take as long as the machine likes: no act may be given up for one.
    with mounted(c, "files", at / "mount", "--patience", "10m", *flags) as mount:
        program = Program(mount.path / name, at / "program.log", seed=seed, rounds=rounds, bytes_max=bytes_max)
        try:
            for number in range(rounds):
                program.go_on()
                if number < rounds - 1:
                    server = servers[number % len(servers)]
                    program.until(str(number * STEP + chance.randrange(STEP - 1)))
                    c.kill(server.name)
                    wait_ready(server)
            digest = program.until("whole")
        finally:
            program.end()
        assert "operation broke" not in mount.log.read_text()
    body = httpx.get(f"{c.gateway}/v1/objects/files/{name}", headers=bearer(c), timeout=180)
    assert body.status_code == 200 and hashlib.sha256(body.content).hexdigest() == digest, "as REST reads it"


def test_a_file_under_random_use_is_right_while_servers_are_killed(files: Cluster, tmp_path: Path) -> None:
    """Reads, writes, cuts, maps and copies, with an object server and then metadata gone in the middle."""
    play(files, tmp_path, seed=21, rounds=3, bytes_max=1_500_000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "flags", "bytes_max"),
    [
        (31, (), 1_500_000), (32, (), 30_000_000), (33, ("--sync", "interval"), 1_500_000),
        (34, ("--cache", "0"), 9_000_000),
        (35, ("--sync", "interval"), 1_500_000), (36, ("--sync", "interval"), 1_500_000),
    ],
)
def test_a_file_under_random_use_for_long(
    files: Cluster, tmp_path: Path, seed: int, flags: tuple[str, ...], bytes_max: int
) -> None:
    """Files of several chunks too, and mounts whose closes do not wait, or that keep nothing."""
    play(files, tmp_path, *flags, seed=seed, rounds=17, bytes_max=bytes_max)
