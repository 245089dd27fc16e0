"""Calls on open files and directories, and odd corners of names, on the mount and on an ordinary file system.

Each case tells what a program saw, step by step; both file systems must have shown the same. Errors of names by kind of
file and user: test_posix_beside_a_disk.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.test_posix_beside_a_disk import disk_root

# CI must run as root: there they fail instead
pytestmark = pytest.mark.skipif(os.geteuid() != 0 and os.environ.get("CI") != "true", reason="makes devices, owners")

LIBC = ctypes.CDLL(None, use_errno=True)
OMIT, NOW = (1 << 30) - 2, (1 << 30) - 1
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
LONG_AGO_NS = 5
CASES: dict[str, Callable[[Path], object]] = {}


def case(work: Callable[[Path], object]) -> Callable[[Path], object]:
    CASES[work.__name__] = work
    return work


def opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    return os.open(path, flags, 0o644)


def tried(*acts: Callable[[], object]) -> list[str]:
    """The name of the error that each ends with, "" for none."""
    seen = []
    for act in acts:
        try:
            act()
            seen.append("")
        except OSError as error:
            seen.append(errno.errorcode[error.errno or 0])
    return seen


def rename(source: Path, target: Path, flags: int) -> None:
    if LIBC.renameat2(-100, os.fsencode(source), -100, os.fsencode(target), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def set_times(path: Path, *parts: int) -> None:
    if LIBC.utimensat(-100, os.fsencode(path), (ctypes.c_long * 4)(*parts), 0):
        raise OSError(ctypes.get_errno(), "utimensat")


@case
def posix_fallocate(place: Path) -> object:
    fd = opened(place / "a")
    os.posix_fallocate(fd, 0, 100_000)
    os.pwrite(fd, b"z" * 10, 5)
    os.posix_fallocate(fd, 10, 50)
    sizes = [os.fstat(fd).st_size]
    os.posix_fallocate(fd, 0, 200_000)
    reader = opened(place / "a", os.O_RDONLY)
    return (
        sizes, os.fstat(fd).st_size, os.pread(fd, 20, 0),
        tried(*(lambda a=a: os.posix_fallocate(fd, *a) for a in ((-1, 5), (0, 0), (0, -5))),
              lambda: os.posix_fallocate(reader, 0, 10)),
    )  # fmt: skip


@case
def seeking_data_and_holes(place: Path) -> object:
    fd = opened(place / "a")
    os.pwrite(fd, b"x", 1 << 20)
    return os.lseek(fd, 1 << 20, os.SEEK_DATA), tried(
        lambda: os.lseek(fd, 2 << 20, os.SEEK_DATA), lambda: os.lseek(fd, 2 << 20, os.SEEK_HOLE),
        lambda: os.lseek(fd, -1, os.SEEK_SET),
    )  # fmt: skip


@case
def copies_inside_the_kernel(place: Path) -> object:
    source, target = opened(place / "a"), opened(place / "b")
    os.write(source, b"abc" * 50_000)
    copied = 0
    while count := os.copy_file_range(source, target, 1 << 20, copied, copied):
        copied += count
    os.lseek(target, 0, os.SEEK_END)
    return copied, os.sendfile(target, source, 3, 3000), os.pread(target, 3010, 149_995)


@case
def flags_of_rename(place: Path) -> object:
    (place / "a").write_text("1")
    (place / "b").write_text("2")
    return tried(
        lambda: rename(place / "a", place / "b", RENAME_NOREPLACE),
        lambda: rename(place / "a", place / "c", RENAME_NOREPLACE),
        lambda: rename(place / "c", place / "b", RENAME_NOREPLACE | RENAME_EXCHANGE),
    ), sorted(os.listdir(place))  # fmt: skip


@case
def times_that_are_left_and_odd_ones(place: Path) -> object:
    path, seen = place / "a", []
    path.write_text("1")
    os.utime(path, ns=(5, 7))
    for parts in ((0, OMIT, 9, 11), (3, 4, 0, OMIT), (-5, 0, -3, 7), (1 << 33, 0, 1 << 33, 1)):
        set_times(path, *parts)
        found = path.stat()
        seen.append((found.st_atime_ns, found.st_mtime_ns))
    refused = tried(lambda: set_times(path, 0, 10**9, 0, 0))
    set_times(path, 0, NOW, 0, NOW)
    return seen, refused, abs(path.stat().st_mtime - time.time()) < 300


@case
def times_of_a_symlink(place: Path) -> object:
    (place / "l").symlink_to("anything")
    os.utime(place / "l", ns=(5, 7), follow_symlinks=False)
    found = (place / "l").lstat()
    return found.st_atime_ns, found.st_mtime_ns, found.st_size, found.st_mode


@case
def everything_on_a_file_without_a_name(place: Path) -> object:
    fd = opened(place / "a")
    os.write(fd, b"12345")
    (place / "a").unlink()
    os.fchmod(fd, 0o600)
    os.fchown(fd, 5, 6)
    os.ftruncate(fd, 3)
    os.pwrite(fd, b"z", 10)
    os.utime(fd, ns=(5, 7))
    os.fsync(fd)
    os.setxattr(fd, "user.x", b"1")
    found = os.fstat(fd)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    seen = (
        found.st_nlink, found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_atime_ns, found.st_mtime_ns,
        os.pread(fd, 20, 0), os.read(again, 20), os.getxattr(fd, "user.x"),
        tried(lambda: os.link(f"/proc/self/fd/{fd}", place / "back", follow_symlinks=True)),
    )  # fmt: skip
    os.close(again)
    os.close(fd)
    return seen, os.listdir(place)


@case
def a_descriptor_of_the_wrong_kind(place: Path) -> object:
    (place / "a").write_text("123")
    reader, writer = opened(place / "a", os.O_RDONLY), opened(place / "a", os.O_WRONLY)
    directory = opened(place, os.O_RDONLY)
    return tried(
        lambda: os.ftruncate(reader, 1), lambda: os.write(reader, b"x"), lambda: os.pwrite(reader, b"x", 0),
        lambda: os.read(writer, 1), lambda: os.pread(reader, 1, -1), lambda: os.ftruncate(writer, -1),
        lambda: os.read(directory, 1), lambda: os.write(directory, b"x"), lambda: os.ftruncate(directory, 0),
    )  # fmt: skip


@case
def extended_attributes(place: Path) -> object:
    path = place / "a"
    path.write_text("1")
    sets = (
        ("user.a", b"1", 0), ("user.a", b"2", os.XATTR_CREATE), ("user.b", b"2", os.XATTR_REPLACE), ("user.e", b"", 0),
        ("user." + "n" * 250, b"1", 0), ("user." + "n" * 251, b"1", 0), ("user.big", b"x" * 60_000, 0),
        ("nonsense", b"1", 0), ("other.class", b"1", 0), ("trusted.t", b"1", 0), ("user.", b"1", 0),
    )  # fmt: skip
    seen = tried(*(lambda s=s: os.setxattr(path, *s) for s in sets))
    (place / "l").symlink_to("a")
    os.mkfifo(place / "f")
    return seen, sorted(os.listxattr(path)), os.getxattr(path, "user.e"), tried(
        lambda: os.removexattr(path, "user.none"), lambda: os.removexattr(path, "user.a"),
        lambda: os.getxattr(path, "user.a"), lambda: os.setxattr(place / "f", "user.x", b"1"),
        lambda: os.setxattr(place / "l", "user.x", b"1", follow_symlinks=False),
    )  # fmt: skip


@case
def around_the_page_cache(place: Path) -> object:
    fd = opened(place / "a", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    block, back = mmap.mmap(-1, 8192), mmap.mmap(-1, 8192)
    block.write(b"q" * 8192)
    return os.writev(fd, [block]), os.preadv(fd, [back], 0), back[:4], os.fstat(fd).st_size


@case
def appending_wins_over_a_position(place: Path) -> object:
    fd = opened(place / "a", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"123")
    os.pwrite(fd, b"x", 0)
    return os.fstat(fd).st_size, os.pread(fd, 9, 0)


@case
def a_directory_that_moves_while_it_is_open(place: Path) -> object:
    (place / "x").mkdir()
    (place / "x" / "f").write_text("1")
    directory = opened(place / "x", os.O_RDONLY)
    (place / "x").rename(place / "y")
    inner = os.open("f", os.O_RDONLY, dir_fd=directory)
    os.close(os.open("g", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
    return os.read(inner, 3), sorted(os.listdir(place / "y"))


@case
def a_directory_that_is_gone_while_it_is_open(place: Path) -> object:
    (place / "x").mkdir()
    directory = opened(place / "x", os.O_RDONLY)
    (place / "x").rmdir()
    return os.fstat(directory).st_nlink, os.listdir(directory), tried(
        lambda: os.close(os.open("g", os.O_CREAT | os.O_WRONLY, dir_fd=directory)),
        lambda: os.mkdir("m", dir_fd=directory), lambda: os.stat("g", dir_fd=directory),
    )  # fmt: skip


@case
def what_changes_the_times_of_a_directory(place: Path) -> object:
    x, seen = place / "x", []
    x.mkdir()
    for act in (
        lambda: (x / "a").write_text("1"), lambda: (x / "a").write_text("12"), lambda: (x / "a").rename(x / "b"),
        lambda: os.link(x / "b", x / "c"), lambda: (x / "c").unlink(), lambda: (x / "b").chmod(0o600),
        lambda: (x / "s").symlink_to("q"), lambda: (x / "m").mkdir(), lambda: (x / "m").rmdir(),
        lambda: (x / "b").rename(place / "z"), lambda: (place / "z").rename(x / "z"), lambda: os.listdir(x),
    ):  # fmt: skip
        os.utime(x, ns=(LONG_AGO_NS, LONG_AGO_NS))
        act()
        seen.append(x.stat().st_mtime_ns != LONG_AGO_NS)
    return seen


@case
def what_changes_the_times_of_a_file(place: Path) -> object:
    path, seen = place / "a", []
    path.write_text("123")
    for act in (
        lambda: path.chmod(0o600), lambda: os.chown(path, 1, 1), lambda: os.chown(path, -1, -1),
        lambda: os.link(path, place / "l"), lambda: (place / "l").unlink(), lambda: os.truncate(path, 1),
        lambda: os.truncate(path, 9), lambda: os.setxattr(path, "user.a", b"1"), lambda: path.read_bytes(),
        lambda: os.removexattr(path, "user.a"), lambda: path.write_bytes(b"1"), lambda: path.open("w").close(),
    ):  # fmt: skip
        os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
        act()
        seen.append(path.stat().st_mtime_ns != LONG_AGO_NS)
    return seen


@case
def groups_of_a_setgid_directory(place: Path) -> object:
    x = place / "x"
    x.mkdir()
    os.chown(x, 0, 77)
    x.chmod(0o2775)
    (x / "f").write_text("")
    (x / "s").mkdir()
    (x / "l").symlink_to("q")
    return [((x / name).lstat().st_gid, (x / name).lstat().st_mode) for name in "fsl"]


@case
def links_of_directories(place: Path) -> object:
    x, seen = place / "x", []
    for act in (
        x.mkdir, (x / "a").mkdir, (x / "b").mkdir, (x / "f").touch, lambda: (x / "a").rename(place / "a"),
        lambda: (place / "a").rename(x / "b"), (x / "b").rmdir,
    ):  # fmt: skip
        act()
        seen.append((x.stat().st_nlink, place.stat().st_nlink))
    return seen


@case
def two_names_of_one_file_renamed_to_each_other(place: Path) -> object:
    (place / "a").write_text("1")
    os.link(place / "a", place / "b")
    (place / "a").rename(place / "b")
    return sorted(os.listdir(place)), (place / "a").stat().st_nlink


@case
def memory_that_is_a_file(place: Path) -> object:
    fd = opened(place / "a")
    os.ftruncate(fd, 10_000)
    memory = mmap.mmap(fd, 10_000)
    memory[5000:5003] = b"abc"
    memory.flush()
    seen = os.pread(fd, 3, 5000)
    memory[9000:9002] = b"zz"
    memory.close()
    os.close(fd)
    return seen, (place / "a").read_bytes()


@case
def a_device(place: Path) -> object:
    refused = tried(lambda: os.mknod(place / "c", stat.S_IFCHR | 0o600, os.makedev(1, 3)))
    return refused, [] if refused[0] else [(place / "c").stat().st_mode, (place / "c").stat().st_rdev]


@case
def names_of_255_bytes(place: Path) -> object:
    name = "\u00e9" * 127 + "x"
    (place / name).write_text("1")
    return os.listdir(place) == [name], tried(
        lambda: (place / ("\u00e9" * 128)).write_text("1"), lambda: (place / name).rename(place / ("y" * 256)),
        lambda: os.link(place / name, place / ("y" * 256)), lambda: (place / name).rename(place / ("y" * 255)),
    )  # fmt: skip


@case
def a_directory_emptied_while_it_is_read(place: Path) -> object:
    for number in range(120):
        (place / f"{number}").touch()
    with os.scandir(place) as entries:
        for entry in entries:
            os.unlink(entry.path)
    return os.listdir(place)


@case
def a_write_at_the_border_of_pieces(place: Path) -> object:
    fd = opened(place / "a")
    first, second = bytearray(6000), bytearray(6000)
    written = os.writev(fd, [b"a" * 5000, b"b" * 5000, b""])
    return written, os.preadv(fd, [first, second], 0), first, second, os.pread(fd, 10, 20_000), os.write(fd, b"")


@case
def slashes_and_dots_at_the_end(place: Path) -> object:
    (place / "a").write_text("1")
    (place / "x").mkdir()
    return tried(
        lambda: os.stat(f"{place}/a/"), lambda: os.unlink(f"{place}/x/"),
        lambda: os.rename(f"{place}/a", f"{place}/b/"), lambda: os.rename(f"{place}/x/", f"{place}/y/"),
        lambda: os.mkdir(f"{place}/m/"), lambda: os.symlink("q", f"{place}/l/"),
        lambda: os.close(os.open(f"{place}/n/", os.O_CREAT | os.O_WRONLY)),
        lambda: os.link(f"{place}/a", f"{place}/k/"), lambda: os.close(os.open(f"{place}/y", os.O_CREAT)),
        lambda: os.close(os.open(f"{place}/a", os.O_CREAT | os.O_EXCL)), lambda: os.mkdir(f"{place}/y/."),
        lambda: os.rmdir(f"{place}/y/.."), lambda: os.unlink(f"{place}/."),
        lambda: os.rename(f"{place}/y/..", f"{place}/t"),
    ), sorted(os.listdir(place))  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_both_show_the_same(place: Path, name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="beside-", dir=disk_root()) as disk:
        right = CASES[name](Path(disk))
    assert CASES[name](place) == right
