"""What was fsynced is there after a kill -9 of the mount and of an object server, on any mount."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import httpx

from tests.kit.cluster import cluster
from tests.kit.mount import Mounted, require_fuse


def test_what_was_synced_survives_kills_of_the_mount_and_of_a_server(tmp_path: Path) -> None:
    """A program that saw fsync return may rely on it, whatever dies after."""
    require_fuse()
    chance = random.Random(7)
    with cluster(tmp_path / "cluster") as c:
        headers = {"Authorization": f"Bearer {c.token}"}
        assert httpx.put(f"{c.gateway}/v1/buckets/files", headers=headers).status_code == 201
        first = Mounted(c, "files", tmp_path / "one").start()
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
                c.kill(c.processes("objectd")[1].name)
        unsynced = open(first.path / "unsynced", "wb")  # noqa: SIM115 - the mount dies under it
        unsynced.write(b"x" * 1_000_000)
        first.kill()
        second = Mounted(c, "files", tmp_path / "two").start()
        try:
            for name, data in promised.items():
                assert (second.path / name).read_bytes() == data
        finally:
            second.stop()
            first.detach()
            with contextlib.suppress(OSError):      # its bytes went with the mount
                unsynced.close()
