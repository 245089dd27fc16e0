"""A mount is a file system: the POSIX matrix, on a real mount of a real cluster."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.cluster import wait_until
from tests.kit.mount import Mounted

_libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
RENAME_NOREPLACE = 1


def test_appends_all_stay(place: Path) -> None:
    """A log is opened, appended to and closed again and again."""
    for number in range(10):
        with open(place / "log", "ab") as file:
            file.write(b"%d\n" % number)
    assert (place / "log").read_bytes() == b"".join(b"%d\n" % number for number in range(10))


def test_four_processes_append_and_no_line_is_lost(place: Path) -> None:
    """Several workers share one log by O_APPEND."""
    script = (
        "import os, sys\nfor i in range(25):\n"
        " f = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        " os.write(f, sys.argv[2].encode() * 9 + b'\\n')\n os.close(f)\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", script, str(place / "log"), str(n)]) for n in range(4)]
    assert [worker.wait(240) for worker in workers] == [0] * 4
    assert sorted((place / "log").read_bytes().split()) == sorted(b"%d" % n * 9 for n in range(4) for _ in range(25))


def test_what_was_never_written_is_zeros(place: Path) -> None:
    """A sparse file reads as zeros where nothing was written."""
    with open(place / "sparse", "wb") as file:
        file.seek(3_000_000)
        file.write(b"end")
    assert (place / "sparse").read_bytes() == bytes(3_000_000) + b"end"


def test_truncate_cuts_and_extends(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"a" * 100_000)
    os.truncate(path, 10)
    assert path.read_bytes() == b"a" * 10
    os.truncate(path, 1000)
    assert path.read_bytes() == b"a" * 10 + bytes(990)
    os.truncate(path, 0)
    os.truncate(path, 5_000_000)
    assert path.read_bytes() == bytes(5_000_000)
    with open(path, "wb") as file:      # O_TRUNC in open
        file.write(b"short")
    assert path.read_bytes() == b"short"


def test_an_open_file_without_a_name_lives_until_it_is_closed(place: Path) -> None:
    """Temporary files are unlinked right after they are made."""
    with open(place / "temporary", "w+b", buffering=0) as file:
        file.write(b"x" * 5000)
        os.unlink(place / "temporary")
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b"more")
        os.fsync(file.fileno())
        file.seek(0)
        assert file.read() == b"x" * 5000 + b"more"
        assert not (place / "temporary").exists()


def test_a_file_that_is_replaced_while_open_keeps_its_bytes(place: Path) -> None:
    """The way configuration is replaced: write beside, rename over."""
    (place / "file").write_bytes(b"old")
    (place / "new").write_bytes(b"new")
    with open(place / "file", "rb") as file:
        os.rename(place / "new", place / "file")
        assert file.read() == b"old"
    assert (place / "file").read_bytes() == b"new"


def test_rename_without_replacing(place: Path) -> None:
    (place / "a").write_bytes(b"a")
    (place / "b").write_bytes(b"b")
    a, b, c = (str(place / name).encode() for name in "abc")
    assert _libc.renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_NOREPLACE) == -1
    assert ctypes.get_errno() == errno.EEXIST
    assert _libc.renameat2(AT_FDCWD, a, AT_FDCWD, c, RENAME_NOREPLACE) == 0
    assert (place / "c").read_bytes() == b"a"


def test_directories_are_renamed_with_all_that_is_below(place: Path) -> None:
    (place / "a/sub/deep").mkdir(parents=True)
    (place / "a/file").write_bytes(b"f")
    (place / "a/sub/file").write_bytes(b"g")
    number = (place / "a/sub/file").stat().st_ino
    os.rename(place / "a", place / "b")
    assert (place / "b/sub/file").read_bytes() == b"g"
    assert (place / "b/sub/file").stat().st_ino == number
    assert not (place / "a").exists()
    (place / "full").mkdir()
    (place / "full/file").touch()
    with pytest.raises(OSError, match="not empty") as raised:
        os.rename(place / "b", place / "full")
    assert raised.value.errno == errno.ENOTEMPTY
    with pytest.raises(OSError, match="Invalid"):
        os.rename(place / "b", place / "b/sub/inside")


def test_hard_links_are_one_file(place: Path) -> None:
    (place / "a").write_bytes(b"1")
    os.link(place / "a", place / "b")
    assert (place / "a").stat().st_ino == (place / "b").stat().st_ino
    assert (place / "a").stat().st_nlink == 2
    (place / "b").write_bytes(b"22")
    assert (place / "a").read_bytes() == b"22"
    with open(place / "a", "ab") as file:
        file.write(b"x" * 300_000)
    assert (place / "b").read_bytes() == b"22" + b"x" * 300_000
    (place / "a").chmod(0o600)
    assert stat.S_IMODE((place / "b").stat().st_mode) == 0o600
    (place / "a").unlink()
    assert (place / "b").stat().st_nlink == 1
    assert len((place / "b").read_bytes()) == 300_002


def test_symbolic_links_fifos_and_devices(place: Path) -> None:
    (place / "link").symlink_to("some/where")
    assert os.readlink(place / "link") == "some/where"
    assert (place / "link").lstat().st_size == len("some/where")
    os.mkfifo(place / "fifo")
    assert stat.S_ISFIFO((place / "fifo").stat().st_mode)


def test_extended_attributes(place: Path) -> None:
    path = place / "file"
    path.touch()
    os.setxattr(path, "user.a", b"1")
    os.setxattr(path, "user.b", b"2" * 1000)
    assert os.getxattr(path, "user.a") == b"1"
    assert sorted(os.listxattr(path)) == ["user.a", "user.b"]
    os.removexattr(path, "user.a")
    with pytest.raises(OSError, match="No data"):
        os.getxattr(path, "user.a")
    with pytest.raises(FileExistsError):
        os.setxattr(path, "user.b", b"", os.XATTR_CREATE)
    with pytest.raises(OSError, match="No data"):
        os.setxattr(path, "user.c", b"", os.XATTR_REPLACE)


@pytest.mark.skipif(os.geteuid() != 0 and os.environ.get("CI") != "true", reason="only root gives files away")
def test_mode_owner_and_times_to_the_nanosecond(place: Path) -> None:
    path = place / "file"
    with open(path, "wb", buffering=0) as file:
        file.write(b"data")
        os.utime(path, ns=(1_000_000_001, 2_000_000_003))
    path.chmod(0o751)
    os.chown(path, 1, 2)
    found = path.stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_001, 2_000_000_003)
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o751, 1, 2)
    path.chmod(0o4755)
    os.chown(path, 3, 3)
    assert not path.stat().st_mode & stat.S_ISUID, "a new owner does not inherit the right to run as the old one"


def test_a_directory_changes_with_its_entries(place: Path) -> None:
    times = [place.stat().st_mtime_ns]
    (place / "file").touch()
    times.append(place.stat().st_mtime_ns)
    (place / "sub").mkdir()
    assert place.stat().st_nlink == 3
    times.append(place.stat().st_mtime_ns)
    (place / "file").unlink()
    times.append(place.stat().st_mtime_ns)
    assert times == sorted(set(times))
    with pytest.raises(OSError, match="not empty"):
        place.rmdir()


def test_memory_maps_write_through(place: Path) -> None:
    (place / "file").write_bytes(bytes(8192))
    with open(place / "file", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[4096:4099] = b"abc"
    assert (place / "file").read_bytes()[4096:4099] == b"abc"


def test_locks_hold_within_one_mount(place: Path) -> None:
    with open(place / "lock", "w") as first, open(place / "lock") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(first, fcntl.LOCK_UN)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_names_have_their_bound_and_exclusive_creation_is(place: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        (place / ("n" * 256)).touch()
    (place / ("n" * 255)).touch()
    os.close(os.open(place / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    with pytest.raises(FileExistsError):
        os.open(place / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    assert os.statvfs(place).f_namemax == 255


def test_a_large_file_is_read_and_edited_in_the_middle(place: Path) -> None:
    data = bytearray(random.Random(1).randbytes(20_000_000))
    (place / "large").write_bytes(data)
    with open(place / "large", "r+b") as file:
        file.seek(9_000_000)
        file.write(b"Z" * 100)
    data[9_000_000:9_000_100] = b"Z" * 100
    assert (place / "large").read_bytes() == data
    with open(place / "large", "rb", buffering=0) as file:
        for first in (0, 19_999_990, 8_388_600, 9_000_050):
            file.seek(first)
            assert file.read(50) == data[first : first + 50]


@pytest.mark.parametrize("seed", [1, 2])
def test_random_reads_writes_and_truncates_agree_with_memory(place: Path, seed: int) -> None:
    """What fsx does: any mixture of them leaves the bytes that memory would hold."""
    chance, model = random.Random(seed), bytearray()
    file = open(place / "file", "w+b", buffering=0)  # noqa: SIM115 - closed and opened again on the way
    for _ in range(250):
        act, first = chance.random(), chance.randrange(600_000)
        if act < 0.5:
            data = chance.randbytes(chance.randrange(1, 70_000))
            model.extend(bytes(max(0, first - len(model))))
            model[first : first + len(data)] = data
            file.seek(first)
            file.write(data)
        elif act < 0.6:
            size = chance.randrange(700_000)
            file.truncate(size)
            model = model[:size] + bytes(max(0, size - len(model)))
        elif act < 0.65:
            os.fsync(file.fileno())
        elif act < 0.7:
            file.close()
            file = open(place / "file", "r+b", buffering=0)  # noqa: SIM115
        else:
            count = chance.randrange(1, 90_000)
            assert os.pread(file.fileno(), count, first) == bytes(model[first : first + count])
    file.close()
    assert (place / "file").read_bytes() == model


def test_a_long_listing_is_complete(place: Path) -> None:
    """More entries than one page."""
    for number in range(30):
        (place / f"directory{number}").mkdir()
    for number in range(120):
        (place / f"file{number}").touch()
    assert len(os.listdir(place)) == 150
    assert sum(entry.is_dir() for entry in os.scandir(place)) == 30


def test_unmounting_leaves_nothing_stale(mount: Mounted, tmp_path: Path) -> None:
    """Ctrl-C and a kill: the directory can be used and mounted again."""
    other = Mounted(mount.cluster, mount.bucket, tmp_path / "other").start()
    (other.path / "written").write_bytes(b"before")
    assert other.stop() == 0
    assert os.listdir(other.path) == []
    other.start()
    other.kill()
    with pytest.raises(OSError, match="not connected"):
        os.listdir(other.path)
    other.start()
    assert (other.path / "written").read_bytes() == b"before"
    other.stop()
    wait_until(lambda: not os.path.ismount(other.path), seconds=10, what="unmounted")
