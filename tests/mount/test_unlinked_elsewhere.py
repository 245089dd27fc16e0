"""Files that are open in one mount while another one unlinks or replaces them: two real mounts of a bucket."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kit.cluster import wait_until
from tests.kit.mount import drop_pages


@pytest.mark.parametrize("by", ["unlink", "rename"])
def test_an_open_file_works_on_after_another_mount_took_its_last_name(place: Path, there: Path, by: str) -> None:
    """Looked at, read, written, cut and changed through the open descriptor, until it is closed."""
    first, second = os.urandom(3 << 20), os.urandom(100_000)
    fd = os.open(place / "f", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, first)
        os.fsync(fd)
        number = os.fstat(fd).st_ino
        if by == "unlink":
            os.unlink(there / "f")
        else:
            (there / "g").write_bytes(b"new")
            os.rename(there / "g", there / "f")
        assert os.pwrite(fd, second, len(first)) == len(second)
        os.fsync(fd)
        os.fchmod(fd, 0o600)
        seen = os.fstat(fd)
        assert (seen.st_ino, seen.st_size, seen.st_mode & 0o777) == (number, len(first) + len(second), 0o600)
        drop_pages(fd)
        assert os.pread(fd, 4 << 20, 0) == first + second
        os.ftruncate(fd, 1000)
        drop_pages(fd)
        assert os.pread(fd, 4000, 0) == first[:1000] and os.fstat(fd).st_nlink == 0
    finally:
        os.close(fd)
    if by == "unlink":
        assert os.listdir(there) == os.listdir(place) == []
    else:
        assert (there / "f").read_bytes() == (place / "f").read_bytes() == b"new"


def test_a_reader_reads_to_the_end_what_another_mount_removed(place: Path, there: Path) -> None:
    """It asks for bytes only long after the removal, for which nothing here was told but by the feed."""
    body = os.urandom(2 << 20)
    (place / "f").write_bytes(body)
    fd = os.open(place / "f", os.O_RDONLY)
    try:
        drop_pages(fd)
        os.unlink(there / "f")
        wait_until(lambda: os.fstat(fd).st_nlink == 0, seconds=120, what="the removal is known here")
        assert os.pread(fd, 3 << 20, 0) == body
    finally:
        os.close(fd)


def test_a_file_open_in_both_mounts_outlives_the_one_that_unlinked_it(place: Path, there: Path) -> None:
    """Its last close is the other's."""
    body = os.urandom(500_000)
    (place / "f").write_bytes(body)
    here = os.open(place / "f", os.O_RDONLY)
    try:
        theirs = os.open(there / "f", os.O_RDWR)
        os.unlink(there / "f")
        os.pwrite(theirs, b"!", 0)
        os.close(theirs)
        wait_until(lambda: os.fstat(here).st_nlink == 0, seconds=120, what="the removal is known here")
        drop_pages(here)
        assert os.pread(here, 600_000, 1) == body[1:]
    finally:
        os.close(here)


def test_one_of_two_names_that_goes_elsewhere_leaves_the_file_its_other_one(place: Path, there: Path) -> None:
    (place / "f").write_bytes(b"one")
    os.link(place / "f", place / "g")
    with open(place / "f", "rb+", buffering=0) as held:
        os.unlink(there / "f")
        held.write(b"two")
        os.fsync(held.fileno())
    assert (there / "g").read_bytes() == b"two" and os.stat(there / "g").st_nlink == 1
