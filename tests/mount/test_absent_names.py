"""Look-ups of names that are not there, answered by the mount: while metadata stands still, and never wrongly."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.kit.cluster import wait_until
from tests.kit.mount import Mounted


def is_there(path: Path) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def answers_alone(mount: Mounted, directory: Path, names: Callable[[], str]) -> bool:
    """Whether the mount says of a name that it is not there although metadata is stopped."""
    for _ in range(40):
        assert not is_there(directory / names())
    mount.cluster.send_signal("metadata1", signal.SIGSTOP)
    try:
        return not is_there(directory / names())
    except OSError:
        return False        # it asked, and was not answered
    finally:
        mount.cluster.send_signal("metadata1", signal.SIGCONT)


def test_names_are_there_as_soon_as_anybody_says_so(
    place: Path, there: Path, mount: Mounted, other: Mounted, rest: httpx.Client
) -> None:
    """A directory that this mount has read is asked about by nobody else's leave; then REST, another mount and REST
    again, deep below, bring names to it, and each is opened in the same moment."""
    count = iter(range(1_000_000))
    names = lambda: f"none{next(count)}"
    (place / "mine").write_bytes(b"m")
    wait_until(lambda: answers_alone(mount, place, names), seconds=120, what="delegated")
    for turn in range(30):
        assert not is_there(place / f"rest{turn}")
        assert rest.put(f"/v1/objects/files/{place.name}/rest{turn}", content=b"r").status_code == 200
        assert (place / f"rest{turn}").read_bytes() == b"r"
        for _ in range(10):
            assert not is_there(place / names())
        (there / f"other{turn}").write_bytes(b"o")
        assert (place / f"other{turn}").read_bytes() == b"o"
        for _ in range(10):
            assert not is_there(place / names())
        assert rest.put(f"/v1/objects/files/{place.name}/dir{turn}/deep/x", content=b"d").status_code == 200
        assert (place / f"dir{turn}" / "deep" / "x").read_bytes() == b"d"
        os.rename(there / f"other{turn}", there / f"renamed{turn}")
        assert (place / f"renamed{turn}").read_bytes() == b"o"
    assert (place / "mine").read_bytes() == b"m"


def test_a_directory_that_moves_is_asked_about_anew(place: Path, there: Path, mount: Mounted) -> None:
    count = iter(range(1_000_000))
    names = lambda: f"none{next(count)}"
    (place / "a").mkdir()
    (place / "b").mkdir()
    (place / "b" / "x").write_bytes(b"of b")
    wait_until(lambda: answers_alone(mount, place / "a", names), seconds=120, what="delegated")
    assert not is_there(place / "a" / "x")
    os.rename(place / "a", place / "c")
    os.rename(place / "b", place / "a")
    assert (place / "a" / "x").read_bytes() == b"of b" and not is_there(place / "c" / "x")
    wait_until(lambda: answers_alone(mount, place / "c", names), seconds=120, what="delegated")
    (there / "c" / "x").write_bytes(b"new")
    assert (place / "c" / "x").read_bytes() == b"new"


def test_a_new_process_of_metadata_has_delegated_nothing(
    place: Path, mount: Mounted, rest: httpx.Client
) -> None:
    count = iter(range(1_000_000))
    names = lambda: f"none{next(count)}"
    wait_until(lambda: answers_alone(mount, place, names), seconds=120, what="delegated")
    mount.cluster.kill("metadata1")
    assert wait_until(
        lambda: rest.put(f"/v1/objects/files/{place.name}/new", content=b"n").status_code == 200,
        seconds=120, what="metadata is back",
    )  # fmt: skip
    assert wait_until(lambda: _read(place / "new"), seconds=120, what="the mount has found it") == b"n"
    wait_until(lambda: answers_alone(mount, place, names), seconds=120, what="delegated by the new process")


def _read(path: Path) -> bytes:
    """What is there; b"" while metadata cannot be asked. That it is not there would be wrong."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError:
        return b""
