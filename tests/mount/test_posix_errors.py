"""What must fail, and with which error: every operation on names against every reason to refuse it.

The areas are those that file system test suites agree on: a component that is missing, a file, too long, a loop, not
searchable; a parent that may not be written; sticky directories; what stands in the way. Other users are other
processes: the kernel checks them by the attributes that the mount answers.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

USER, OTHER = 65533, 65532
Act = Callable[[Path], object]

# CI must run as root: there they fail instead
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and os.environ.get("CI") != "true", reason="acts as several users"
)


def failure(act: Callable[[], object], *, uid: int = 0, gids: tuple[int, ...] = (), umask: int = 0o022) -> int:
    """The errno that `act` ends with (0: none), done by a process of that user."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            os.umask(umask)
            if uid:
                os.setgroups(gids[1:])
                os.setgid(gids[0] if gids else uid)
                os.setuid(uid)
            act()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def create(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


#: Operations that make a name.
MAKERS: dict[str, Act] = {
    "create": create,
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod": lambda p: os.mknod(p, stat.S_IFREG | 0o600),
    "symlink": lambda p: os.symlink("anything", p),
}
#: Operations on something that is there.
USERS: dict[str, Act] = {
    "open": lambda p: os.close(os.open(p, os.O_RDONLY)),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "rename": lambda p: os.rename(p, p.with_name("renamed")),
    "link": lambda p: os.link(p, p.with_name("linked")),
    "truncate": lambda p: os.truncate(p, 10),
    "chmod": lambda p: os.chmod(p, 0o600),
    "chown": lambda p: os.chown(p, 1, 1),
    "utime": lambda p: os.utime(p, (1, 1)),
    "stat": os.stat,
    "statvfs": os.statvfs,
    "listxattr": os.listxattr,
    "readlink": os.readlink,
    "listdir": os.listdir,
}
ALL = MAKERS | USERS


@pytest.mark.parametrize("name", ALL)
def test_a_component_that_is_wrong(place: Path, name: str) -> None:
    """Missing, a file, too long, a loop: each has its own error, whatever is asked."""
    act = ALL[name]
    create(place / "file")
    os.symlink("loop", place / "loop")
    assert failure(lambda: act(place / "missing" / "x")) == errno.ENOENT
    assert failure(lambda: act(place / "file" / "x")) == errno.ENOTDIR
    assert failure(lambda: act(place / ("n" * 256) / "x")) == errno.ENAMETOOLONG
    assert failure(lambda: act(place / ("n" * 256))) == errno.ENAMETOOLONG
    assert failure(lambda: act(place / ("d/" * 2100) / "x")) == errno.ENAMETOOLONG
    assert failure(lambda: act(place / "loop" / "x")) == errno.ELOOP


@pytest.mark.parametrize("name", USERS)
def test_a_name_that_is_not_there(place: Path, name: str) -> None:
    assert failure(lambda: USERS[name](place / "missing")) == errno.ENOENT


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("there", ["file", "directory", "symlink", "fifo", "dangling"])
def test_a_name_that_is_taken(place: Path, name: str, there: str) -> None:
    path = place / "taken"
    {"file": create, "directory": os.mkdir, "symlink": lambda p: os.symlink(".", p), "fifo": os.mkfifo,
     "dangling": lambda p: os.symlink("nowhere", p)}[there](path)  # fmt: skip
    before = path.lstat()
    assert failure(lambda: MAKERS[name](path)) == errno.EEXIST
    create(place / "source")
    assert failure(lambda: os.link(place / "source", path)) == errno.EEXIST
    assert path.lstat().st_ino == before.st_ino


@pytest.mark.parametrize("name", ALL)
def test_a_directory_that_may_not_be_searched(place: Path, name: str) -> None:
    closed = place / "closed"
    closed.mkdir()
    create(closed / "there")
    os.chown(closed, USER, USER)
    os.chmod(closed, 0o600)
    path = closed / ("new" if name in MAKERS else "there")
    assert failure(lambda: ALL[name](path), uid=USER) == errno.EACCES


@pytest.mark.parametrize("name", [*MAKERS, "unlink", "rename", "rmdir"])
def test_a_directory_that_may_not_be_written(place: Path, name: str) -> None:
    kept = place / "kept"
    kept.mkdir()
    (kept / "there").mkdir() if name == "rmdir" else create(kept / "there")
    os.chown(kept / "there", USER, USER)
    os.chown(kept, USER, USER)
    os.chmod(kept, 0o555)
    path = kept / ("new" if name in MAKERS else "there")
    assert failure(lambda: ALL[name](path), uid=USER) == errno.EACCES
    os.chmod(kept, 0o755)
    assert failure(lambda: ALL[name](path), uid=OTHER) == errno.EACCES
    assert failure(lambda: ALL[name](path), uid=USER) == 0


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "symlink"])
def test_sticky_directories_let_only_owners_remove_and_rename(place: Path, kind: str) -> None:
    """As /tmp is: everybody may write, nobody may touch what is another's."""
    shared = place / "shared"
    shared.mkdir()
    os.chmod(shared, 0o1777)
    make = {"file": create, "directory": os.mkdir, "fifo": os.mkfifo, "symlink": lambda p: os.symlink("x", p)}[kind]
    remove = os.rmdir if kind == "directory" else os.unlink
    make(shared / "mine")
    os.chown(shared / "mine", USER, USER, follow_symlinks=False)
    assert failure(lambda: remove(shared / "mine"), uid=OTHER) in (errno.EPERM, errno.EACCES)
    assert failure(lambda: os.rename(shared / "mine", shared / "x"), uid=OTHER) in (errno.EPERM, errno.EACCES)
    make(shared / "theirs")
    os.chown(shared / "theirs", OTHER, OTHER, follow_symlinks=False)
    assert failure(lambda: os.rename(shared / "theirs", shared / "mine"), uid=OTHER) in (errno.EPERM, errno.EACCES)
    assert failure(lambda: os.rename(shared / "mine", shared / "moved"), uid=USER) == 0
    assert failure(lambda: remove(shared / "moved"), uid=USER) == 0


@pytest.mark.parametrize(
    ("mode", "flags", "expected"),
    [
        (0o200, os.O_RDONLY, errno.EACCES), (0o400, os.O_WRONLY, errno.EACCES), (0o400, os.O_RDWR, errno.EACCES),
        (0o400, os.O_RDONLY | os.O_TRUNC, errno.EACCES), (0o600, os.O_RDWR, 0), (0o400, os.O_RDONLY, 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shift", [6, 3, 0])
def test_who_may_open_is_decided_by_the_mode(place: Path, mode: int, flags: int, expected: int, shift: int) -> None:
    """For the owner, the group and all others."""
    path = place / "file"
    create(path)
    os.chown(path, USER if shift == 6 else OTHER, USER if shift == 3 else OTHER)
    os.chmod(path, mode >> (6 - shift))
    assert failure(lambda: os.close(os.open(path, flags)), uid=USER, gids=(USER,)) == expected


def test_only_the_owner_and_root_change_attributes(place: Path) -> None:
    path = place / "file"
    create(path)
    os.chown(path, USER, USER)
    assert failure(lambda: os.chmod(path, 0o777), uid=OTHER) == errno.EPERM
    assert failure(lambda: os.utime(path, (1, 1)), uid=OTHER) == errno.EPERM
    assert failure(lambda: os.utime(path), uid=OTHER) == errno.EACCES
    assert failure(lambda: os.chown(path, OTHER, -1), uid=OTHER) == errno.EPERM
    assert failure(lambda: os.chown(path, OTHER, -1), uid=USER) == errno.EPERM
    assert failure(lambda: os.chown(path, -1, OTHER), uid=USER) == errno.EPERM
    assert failure(lambda: os.chown(path, -1, OTHER), uid=USER, gids=(USER, OTHER)) == 0
    assert failure(lambda: os.chmod(path, 0o640), uid=USER) == 0
    assert failure(lambda: os.utime(path, ns=(5, 7)), uid=USER) == 0
    found = path.stat()
    assert (found.st_mode & 0o7777, found.st_gid, found.st_mtime_ns) == (0o640, OTHER, 7)
    os.chmod(path, 0o666)
    assert failure(lambda: os.utime(path), uid=OTHER) == 0, "who may write may set the times to now"


def test_what_removal_and_renaming_refuse(place: Path) -> None:
    (place / "full").mkdir()
    create(place / "full" / "x")
    (place / "empty").mkdir()
    create(place / "file")
    os.symlink("empty", place / "link")
    assert failure(lambda: os.rmdir(place / "full")) == errno.ENOTEMPTY
    assert failure(lambda: os.rmdir(place / "file")) == errno.ENOTDIR
    assert failure(lambda: os.rmdir(place / "link")) == errno.ENOTDIR
    assert failure(lambda: os.rmdir(f"{place}/empty/.")) == errno.EINVAL
    assert failure(lambda: os.rmdir(f"{place}/empty/..")) == errno.ENOTEMPTY
    assert failure(lambda: os.unlink(place / "empty")) in (errno.EISDIR, errno.EPERM)
    assert failure(lambda: os.rename(place / "file", place / "empty")) == errno.EISDIR
    assert failure(lambda: os.rename(place / "empty", place / "file")) == errno.ENOTDIR
    assert failure(lambda: os.rename(place / "empty", place / "full")) == errno.ENOTEMPTY
    assert failure(lambda: os.rename(place / "empty", place / "empty" / "inside")) == errno.EINVAL
    assert failure(lambda: os.rename(f"{place}/empty/.", place / "x")) in (errno.EINVAL, errno.EBUSY)
    assert failure(lambda: os.rename(place / "file", "/dev/shm/elsewhere")) == errno.EXDEV
    assert failure(lambda: os.link(place / "empty", place / "hard")) == errno.EPERM
    assert failure(lambda: os.truncate(place / "empty", 0)) == errno.EISDIR
    assert failure(lambda: os.truncate(place / "file", -1)) == errno.EINVAL
    assert failure(lambda: os.truncate(place / "file", 1 << 62)) in (errno.EFBIG, errno.EINVAL)
    assert failure(lambda: os.open(place / "empty", os.O_WRONLY)) == errno.EISDIR
    assert failure(lambda: os.open(place / "link", os.O_RDONLY | os.O_NOFOLLOW)) == errno.ELOOP
    assert failure(lambda: os.open(place / "file", os.O_RDONLY | os.O_DIRECTORY)) == errno.ENOTDIR
    assert failure(lambda: os.symlink("t" * 4096, place / "long")) == errno.ENAMETOOLONG
    assert failure(lambda: os.symlink("", place / "nothing")) == errno.ENOENT
    assert sorted(os.listdir(place)) == ["empty", "file", "full", "link"]


def test_a_hole_that_is_too_long_is_refused_and_leaves_the_file_as_it_was(place: Path) -> None:
    """One act makes 512 GiB of zeros at most. The size stayed where it could not be, and every later close failed."""
    path = place / "image"
    with open(path, "w+b", buffering=0) as file:
        assert failure(lambda: file.truncate(1 << 40)) == errno.EFBIG
        assert os.fstat(file.fileno()).st_size == 0
        file.write(b"data")
        file.truncate(1 << 38)
    assert path.stat().st_size == 1 << 38
    path.unlink()


def test_a_program_that_runs_is_not_written(place: Path) -> None:
    path = place / "program"
    path.write_bytes(Path("/bin/sleep").read_bytes())
    path.chmod(0o755)
    pid = os.posix_spawn(path, [str(path), "60"], {})
    try:
        assert failure(lambda: os.open(path, os.O_WRONLY)) == errno.ETXTBSY
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_a_fifo_without_a_reader_is_not_opened_for_writing(place: Path) -> None:
    os.mkfifo(place / "fifo")
    assert failure(lambda: os.open(place / "fifo", os.O_WRONLY | os.O_NONBLOCK)) == errno.ENXIO
