"""What must happen beside the act itself: times, owners, link counts, bits that go."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.test_posix_errors import OTHER, USER, create, failure

MAKERS: dict[str, Callable[[Path], object]] = {
    "file": create,
    "directory": os.mkdir,
    "fifo": os.mkfifo,
    "symlink": lambda p: os.symlink("target", p),
    "node": lambda p: os.mknod(p, stat.S_IFREG | 0o644),
}

# CI must run as root: there they fail instead
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and os.environ.get("CI") != "true", reason="acts as several users"
)


def changed(path: Path, act: Callable[[], object], *, follow: bool = False) -> set[str]:
    """Which times of a path the act moved forward."""
    before = path.stat() if follow else path.lstat()
    act()
    after = path.stat() if follow else path.lstat()
    names = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")
    assert all(getattr(after, name) >= getattr(before, name) for name in names[1:])
    return {name[3:8] for name in names[1:] if getattr(after, name) > getattr(before, name)}


@pytest.mark.parametrize("kind", MAKERS)
def test_something_new_belongs_to_its_maker_and_changes_its_directory(place: Path, kind: str) -> None:
    os.chmod(place, 0o777)
    path = place / "new"
    assert changed(place, lambda: failure(lambda: MAKERS[kind](path), uid=USER, gids=(OTHER,))) == {"mtime", "ctime"}
    made = path.lstat()
    assert (made.st_uid, made.st_gid) == (USER, OTHER)
    parent = place.stat()
    assert made.st_mtime_ns == made.st_ctime_ns
    assert abs(made.st_mtime_ns - parent.st_mtime_ns) < 1_000_000_000
    assert parent.st_nlink == (3 if kind == "directory" else 2)


@pytest.mark.parametrize(
    ("umask", "asked", "got"), [(0o022, 0o755, 0o755), (0o077, 0o777, 0o700), (0o501, 0o345, 0o244)]
)
@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "node"])
def test_the_mask_takes_bits_off(place: Path, kind: str, umask: int, asked: int, got: int) -> None:
    path = place / "new"
    make: dict[str, Callable[[], object]] = {
        "file": lambda: os.open(path, os.O_CREAT | os.O_WRONLY, asked), "directory": lambda: os.mkdir(path, asked),
        "fifo": lambda: os.mkfifo(path, asked), "node": lambda: os.mknod(path, stat.S_IFREG | asked),
    }  # fmt: skip
    assert failure(make[kind], umask=umask) == 0
    assert stat.S_IMODE(path.stat().st_mode) == got


def test_directories_with_the_group_bit_pass_their_group_on(place: Path) -> None:
    os.chown(place, 0, OTHER)
    os.chmod(place, 0o2777)
    create(place / "file")
    (place / "sub").mkdir()
    assert (place / "file").stat().st_gid == OTHER
    assert (place / "sub").stat().st_gid == OTHER
    assert (place / "sub").stat().st_mode & stat.S_ISGID


@pytest.mark.parametrize("kind", MAKERS)
def test_attributes_links_and_names_change_the_ctime(place: Path, kind: str) -> None:
    path = place / "there"
    MAKERS[kind](path)
    if kind != "symlink":
        assert changed(path, lambda: os.chmod(path, 0o611)) == {"ctime"}
        assert stat.S_IMODE(path.stat().st_mode) == 0o611
    assert changed(path, lambda: os.chown(path, 7, 8, follow_symlinks=False)) == {"ctime"}
    assert (path.lstat().st_uid, path.lstat().st_gid) == (7, 8)
    if kind != "directory":
        assert changed(path, lambda: os.link(path, place / "second", follow_symlinks=False)) == {"ctime"}
        assert path.lstat().st_nlink == 2
        assert (place / "second").lstat().st_ino == path.lstat().st_ino
        assert changed(path, lambda: os.unlink(place / "second")) == {"ctime"}
        assert path.lstat().st_nlink == 1
    before = path.lstat()
    assert changed(place, lambda: os.rename(path, place / "moved")) == {"mtime", "ctime"}
    after = (place / "moved").lstat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)


def test_times_are_set_as_asked(place: Path) -> None:
    path = place / "file"
    create(path)
    os.utime(path, ns=(1_000_000_001, -5_000_000_000))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (1_000_000_001, -5_000_000_000)
    os.utime(path, ns=(4_102_444_800_000_000_001, 2**33 * 1_000_000_000 + 7))
    assert path.stat().st_mtime_ns == 2**33 * 1_000_000_000 + 7
    os.symlink("file", place / "link")
    os.utime(place / "link", ns=(3, 4), follow_symlinks=False)
    assert (place / "link").lstat().st_mtime_ns == 4
    assert path.stat().st_mtime_ns != 4


def test_writing_truncating_and_opening_change_what_they_should(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"x" * 100)
    assert changed(path, lambda: os.truncate(path, 50)) == {"mtime", "ctime"}
    assert changed(path, lambda: os.truncate(path, 150)) == {"mtime", "ctime"}
    assert changed(path, lambda: os.close(os.open(path, os.O_WRONLY))) == set()
    assert changed(path, lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))) == {"mtime", "ctime"}
    assert path.stat().st_size == 0

    def write() -> None:
        with open(path, "r+b") as file:
            file.write(b"more")

    assert changed(path, write) == {"mtime", "ctime"}
    assert changed(place, write) == set()


@pytest.mark.parametrize("how", ["write", "truncate", "chown"])
def test_the_right_to_run_as_the_owner_goes_when_others_change_the_file(place: Path, how: str) -> None:
    path = place / "program"
    path.write_bytes(b"x" * 10)
    os.chown(path, USER, USER)
    os.chmod(path, 0o6777)

    def write() -> None:
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"changed")
        os.close(fd)

    acts: dict[str, tuple[Callable[[], object], int]] = {
        "write": (write, OTHER), "truncate": (lambda: os.truncate(path, 3), OTHER),
        "chown": (lambda: os.chown(path, -1, USER), USER),
    }  # fmt: skip
    act, uid = acts[how]
    assert failure(act, uid=uid) == 0
    assert path.stat().st_mode & 0o6000 == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


def test_a_group_bit_that_its_setter_has_no_right_to_is_dropped(place: Path) -> None:
    path = place / "file"
    create(path)
    os.chown(path, USER, OTHER)
    assert failure(lambda: os.chmod(path, 0o2755), uid=USER) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert failure(lambda: os.chmod(path, 0o2755), uid=USER, gids=(USER, OTHER)) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o2755


def test_renames_over_something_let_go_of_it(place: Path) -> None:
    create(place / "a")
    create(place / "b")
    os.link(place / "b", place / "b2")
    assert changed(place / "b2", lambda: os.rename(place / "a", place / "b")) == {"ctime"}
    assert (place / "b2").stat().st_nlink == 1
    os.link(place / "b2", place / "same")
    os.rename(place / "b2", place / "same")     # two names of one file: nothing happens
    assert sorted(os.listdir(place)) == ["b", "b2", "same"]
    (place / "d").mkdir()
    (place / "e").mkdir()
    links = place.stat().st_nlink
    os.rename(place / "d", place / "e")
    assert place.stat().st_nlink == links - 1
    (place / "e" / "sub").mkdir()
    (place / "f").mkdir()
    os.rename(place / "e" / "sub", place / "f" / "sub")
    assert ((place / "e").stat().st_nlink, (place / "f").stat().st_nlink) == (2, 3)


def test_what_is_open_stays_whatever_becomes_of_its_name(place: Path) -> None:
    """Removed, replaced, and its directory too."""
    (place / "sub").mkdir()
    with open(place / "sub" / "file", "w+b", buffering=0) as file:
        file.write(b"kept")
        os.unlink(place / "sub" / "file")
        os.rmdir(place / "sub")
        assert os.fstat(file.fileno()).st_nlink == 0
        os.ftruncate(file.fileno(), 2)
        file.seek(0)
        assert file.read() == b"ke"
        os.fchmod(file.fileno(), 0o600)
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
    with pytest.raises(FileNotFoundError):
        (place / "sub").stat()


def test_space_is_taken_and_given_back(place: Path) -> None:
    """posix_fallocate makes room that reads as zeros; statfs tells capacity after copies."""
    with open(place / "file", "w+b", buffering=0) as file:
        file.write(b"abc")
        os.posix_fallocate(file.fileno(), 0, 100_000)
        assert os.fstat(file.fileno()).st_size == 100_000
        assert os.pread(file.fileno(), 10, 0) == b"abc" + bytes(7)
    room = os.statvfs(place)
    assert 0 < room.f_bavail <= room.f_blocks
