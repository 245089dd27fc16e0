"""A mount that was told not to wait for commits at a close (`--sync interval`): nothing else may differ."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.kit.cluster import wait_until
from tests.kit.mount import Mounted

PATIENCE_SECONDS = 120.0


@pytest.fixture
def lazy(mount: Mounted, tmp_path: Path) -> Iterator[Mounted]:
    """A second mount of the bucket."""
    other = Mounted(mount.cluster, mount.bucket, tmp_path / "lazy", ["--sync", "interval"]).start()
    try:
        yield other
    finally:
        other.stop()
        other.detach()


@pytest.fixture
def nook(lazy: Mounted, request: pytest.FixtureRequest) -> Path:
    path = lazy.path / request.node.name
    path.mkdir()
    return path


def by_rest(rest: httpx.Client, path: Path) -> bytes | None:
    answer = rest.get(f"/v1/objects/files/{path.parent.name}/{path.name}")
    return answer.content if answer.status_code == 200 else None


def test_closed_files_reach_everybody_without_a_sync(nook: Path, rest: httpx.Client) -> None:
    """Three hundred files, closed and left alone: soon they are there, byte for byte, for REST too."""
    chance = random.Random(1)
    bodies = {f"file{number}": chance.randbytes(chance.randrange(0, 3000)) for number in range(300)}
    for name, body in bodies.items():
        (nook / name).write_bytes(body)
    assert {path.name: path.read_bytes() for path in nook.iterdir()} == bodies
    for name, body in bodies.items():
        wait_until(lambda n=name, b=body: by_rest(rest, nook / n) == b, seconds=PATIENCE_SECONDS, what=name)  # type: ignore[misc]


def test_what_is_done_to_a_file_that_waits_for_its_commit(nook: Path, lazy: Mounted, mount: Mounted) -> None:
    """Renamed, linked, appended to, cut, changed and removed right after the close: as on any disk, and as seen by
    another mount after it."""
    for number in range(40):
        path = nook / f"f{number}"
        path.write_bytes(b"x" * number)
        assert path.stat().st_size == number
        if number % 8 == 0:
            path.rename(nook / f"renamed{number}")
        elif number % 8 == 1:
            os.link(path, nook / f"linked{number}")
        elif number % 8 == 2:
            with open(path, "ab") as file:
                file.write(b"more")
        elif number % 8 == 3:
            os.truncate(path, 2)
        elif number % 8 == 4:
            path.chmod(0o600)
        elif number % 8 == 5:
            path.unlink()
        elif number % 8 == 6:
            path.write_bytes(b"again")
        else:
            os.replace(path, nook / "replaced")
    assert lazy.stop() == 0, "an unmount commits what waits"
    other = mount.path / nook.name
    expected = {}
    for number in range(40):
        body = b"x" * number
        kind = number % 8
        if kind in (0, 7):
            expected[f"renamed{number}" if kind == 0 else "replaced"] = body
        elif kind == 1:
            expected[f"f{number}"] = expected[f"linked{number}"] = body
        elif kind != 5:
            expected[f"f{number}"] = {2: body + b"more", 3: body[:2], 4: body, 6: b"again"}[kind]
    assert {path.name: path.read_bytes() for path in other.iterdir()} == expected
    assert (other / "f4").stat().st_mode & 0o777 == 0o600


def test_what_was_synced_is_there_after_a_kill_and_the_rest_is_whole_or_absent(
    nook: Path, lazy: Mounted, mount: Mounted
) -> None:
    """fsync keeps its promise; a file that was only closed may be lost in a crash, never torn."""
    chance = random.Random(2)
    synced, closed = {}, {}
    for number in range(60):
        body = chance.randbytes(chance.randrange(1, 5000))
        with open(nook / f"f{number}", "wb") as file:
            file.write(body)
            if number % 3 == 0:
                file.flush()
                os.fsync(file.fileno())
        (synced if number % 3 == 0 else closed)[f"f{number}"] = body
    lazy.kill()
    found = {path.name: path.read_bytes() for path in (mount.path / nook.name).iterdir()}
    assert {name: found.get(name) for name in synced} == synced
    for name, body in found.items():
        assert body == (synced.get(name) or closed[name])
