"""A bucket's quota, as programs on a mount meet it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.kit.cluster import wait_until

QUOTA = "/v1/buckets/files/quota"
ROOM = 1 << 20


@pytest.fixture
def room(rest: httpx.Client, place: Path) -> Iterator[None]:
    """The bucket may hold ROOM more bytes."""
    held = rest.put(QUOTA, json={"bytes": 1 << 60}).json()["used_bytes"]
    assert rest.put(QUOTA, json={"bytes": held + ROOM}).status_code == 200
    yield
    assert rest.put(QUOTA, json={"bytes": 0, "objects": 0}).status_code == 200


@pytest.mark.usefixtures("room")
def test_who_writes_past_the_quota_is_told(place: Path) -> None:
    """By fsync or close, with the errno of quotas; what was committed stays, and what is deleted makes room at once."""
    (place / "first").write_bytes(b"a" * (ROOM // 2))
    with pytest.raises(OSError) as caught, open(place / "second", "wb", buffering=0) as second:
        second.write(b"b" * ROOM)
        os.fsync(second.fileno())
    assert caught.value.errno == errno.EDQUOT
    assert os.listdir(place) == ["first"]
    with pytest.raises(OSError) as caught, open(place / "first", "ab", buffering=0) as first:
        first.write(b"c" * ROOM)
    assert caught.value.errno == errno.EDQUOT
    assert (place / "first").read_bytes() == b"a" * (ROOM // 2)
    os.rename(place / "first", place / "moved")
    os.truncate(place / "moved", 10)
    (place / "second").write_bytes(b"b" * (ROOM - 10))
    os.unlink(place / "second")
    (place / "third").write_bytes(b"d" * (ROOM - 10))
    assert sorted(os.listdir(place)) == ["moved", "third"]


@pytest.mark.usefixtures("room")
def test_a_file_that_may_not_grow_is_as_long_as_before(place: Path) -> None:
    """ftruncate past the quota fails and changes nothing: the size stayed, and so did every later fsync's error."""
    with open(place / "file", "w+b", buffering=0) as file:
        file.write(b"first")
        with pytest.raises(OSError) as caught:
            file.truncate(2 * ROOM)
        assert caught.value.errno == errno.EDQUOT
        assert os.fstat(file.fileno()).st_size == 5
        os.fsync(file.fileno())
        file.write(b" and second")
        os.fsync(file.fileno())
    assert (place / "file").read_bytes() == b"first and second"


@pytest.mark.usefixtures("room")
def test_the_size_of_the_file_system_is_the_quotas(place: Path, rest: httpx.Client) -> None:
    """`df` shows what may be written, not what the devices have. What it shows may be a few seconds old."""
    quota = rest.get(QUOTA).json()["bytes"]

    def seen() -> bool:
        shown = os.statvfs(place)
        return shown.f_blocks * shown.f_frsize == quota // shown.f_frsize * shown.f_frsize

    wait_until(seen, seconds=60, what=lambda: f"quota {quota}, shown {os.statvfs(place)}")
    shown = os.statvfs(place)
    assert 0 < shown.f_bavail * shown.f_frsize <= ROOM
