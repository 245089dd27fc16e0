"""Files that are open in one mount while another one renames or cuts them: two real mounts of a bucket."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kit.mount import drop_pages


def test_an_open_file_stays_itself_under_its_new_name(place: Path, there: Path) -> None:
    """Looked at, read, changed and written through the open descriptor; nobody looks its new name up here."""
    first, second = os.urandom(3 << 20), os.urandom(100_000)
    fd = os.open(place / "before", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, first)
        os.fsync(fd)
        number = os.fstat(fd).st_ino
        os.rename(there / "before", there / "after")
        assert os.pwrite(fd, second, len(first)) == len(second)
        os.fsync(fd)
        os.fchmod(fd, 0o600)
        seen = os.fstat(fd)
        assert (seen.st_ino, seen.st_size, seen.st_mode & 0o777) == (number, len(first) + len(second), 0o600)
        drop_pages(fd)
        assert os.pread(fd, 4 << 20, 0) == first + second
        os.ftruncate(fd, 1000)
    finally:
        os.close(fd)
    assert (there / "after").read_bytes() == first[:1000] and (there / "after").stat().st_mode & 0o777 == 0o600
    assert (place / "after").read_bytes() == first[:1000] and os.listdir(there) == ["after"]


def test_a_log_that_is_rotated_elsewhere_gets_what_its_writer_appends(place: Path, there: Path) -> None:
    """The name stands for a new file at once: what is written through the old descriptor must not land in it."""
    with open(place / "log", "ab", buffering=0) as log:
        log.write(b"one\n")
        os.fsync(log.fileno())
        for number in range(3):
            os.rename(there / "log", there / f"log.{number}")
            (there / "log").write_bytes(b"new\n")
            log.write(b"old %d\n" % number)
            os.fsync(log.fileno())
            assert (there / "log").read_bytes() == b"new\n"
            assert (there / f"log.{number}").read_bytes().endswith(b"old %d\n" % number)
            os.rename(there / f"log.{number}", there / "log")


def test_what_was_written_before_the_rename_is_committed_after_it(place: Path, there: Path) -> None:
    """Bytes in the mount's memory belong to the file, not to its name."""
    (place / "f").write_bytes(b"a" * 10)
    fd = os.open(place / "f", os.O_RDWR)
    try:
        os.pwrite(fd, b"b" * 10, 10)
        os.mkdir(there / "d")
        os.rename(there / "f", there / "d" / "g")
    finally:
        os.close(fd)
    assert (there / "d" / "g").read_bytes() == b"a" * 10 + b"b" * 10 and os.listdir(there) == ["d"]


def test_files_below_a_directory_that_is_renamed_elsewhere_stay_open(place: Path, there: Path) -> None:
    """Also those that nobody looked at since."""
    (place / "a" / "b").mkdir(parents=True)
    bodies = {f"{number}": os.urandom(200_000) for number in range(5)}
    for name, body in bodies.items():
        (place / "a" / "b" / name).write_bytes(body)
    files = {name: os.open(place / "a" / "b" / name, os.O_RDWR) for name in bodies}
    try:
        os.rename(there / "a", there / "z")
        for name, fd in files.items():
            os.pwrite(fd, b"!", 0)
            drop_pages(fd)
            assert os.pread(fd, 300_000, 0) == b"!" + bodies[name][1:]
    finally:
        for fd in files.values():
            os.close(fd)
    assert sorted(os.listdir(there / "z" / "b")) == sorted(bodies) and os.listdir(there) == ["z"]
    with pytest.raises(FileNotFoundError):
        os.stat(there / "a" / "b" / "0")


def test_a_file_that_is_cut_elsewhere_has_zeros_before_what_is_written_here(place: Path, there: Path) -> None:
    """The bytes between its new end and ours are nobody's any more."""
    (place / "f").write_bytes(b"a" * 100_000)
    fd = os.open(place / "f", os.O_RDWR)
    try:
        os.truncate(there / "f", 10)
        os.pwrite(fd, b"z" * 10, 50_000)
        os.fsync(fd)
    finally:
        os.close(fd)
    assert (there / "f").read_bytes() == b"a" * 10 + bytes(49_990) + b"z" * 10


def test_a_name_that_was_taken_away_is_not_opened(place: Path, there: Path) -> None:
    """Only who has the file open follows it."""
    (place / "f").write_bytes(b"x")
    with open(place / "f", "rb") as held:
        os.rename(there / "f", there / "g")
        assert held.read() == b"x"
        (there / "f").write_bytes(b"another")
        assert (there / "f").read_bytes() == b"another" and (there / "g").read_bytes() == b"x"
