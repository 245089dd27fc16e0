"""The same acts on the mount and on an ordinary file system of this kernel: errors, attributes and times must agree.

The areas are those of the suites that file systems are judged by (chmod, chown, truncate, open, rename, link, unlink,
rmdir, mkdir, utimensat, xattrs); the other file system says what is right, so nothing here can be wrong about POSIX.
Each case is made afresh on both sides, and done by the same user in a process of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mount.test_posix_errors import OTHER, USER, create, failure

# CI must run as root: there they fail instead
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and os.environ.get("CI") != "true", reason="acts as several users"
)
#: The quick form takes one case of so many: no divisor of the numbers of kinds, acts or users.
SAMPLE = 113
#: Cases of one part of the slow form, so that each part ends in its time on a machine that others use, too.
PART = 60
OLD_NS = 1_000_000_000_000_000_000
Act = Callable[[Path], object]


def make_socket(path: Path) -> None:
    """By its name in the directory: names of sockets are short."""
    at = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"/proc/self/fd/{at}/{path.name}")
    finally:
        os.close(at)


def make_file(path: Path) -> None:
    path.write_bytes(b"0123456789")


def make_linked(path: Path) -> None:
    make_file(path)
    os.link(path, path.with_name(f"{path.name}-too"))


def make_full(path: Path) -> None:
    path.mkdir()
    create(path / "inside")


def make_device(path: Path) -> None:
    """Nothing where this machine lets nobody make devices: on neither side, then."""
    with contextlib.suppress(PermissionError):
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


def disk_root() -> str | None:
    """Where the other file system is: one that keeps attributes and counts directories' links; None: where temporary
    files are."""
    with tempfile.TemporaryDirectory(prefix="beside-", dir="/dev/shm") as name, contextlib.suppress(OSError):
        os.setxattr(name, "user.kept", b"1")        # tmpfs keeps them since Linux 6.6
        return "/dev/shm"
    return None


KINDS: dict[str, Act] = {
    "file": make_file,
    "linked": make_linked,
    "empty": create,
    "directory": os.mkdir,
    "full": make_full,
    "fifo": os.mkfifo,
    "socket": make_socket,
    "device": make_device,
    "symlink": lambda p: os.symlink("elsewhere", p),
    "dangling": lambda p: os.symlink("nowhere", p),
    "nothing": lambda p: None,
}
WHO: dict[str, tuple[int, tuple[int, ...]]] = {
    "root": (0, ()), "owner": (USER, (USER,)), "owner-in-group": (USER, (USER, OTHER)), "other": (OTHER, (OTHER,)),
}  # fmt: skip


def chmod(mode: int) -> Act:
    return lambda path: os.chmod(path, mode)


def chown(uid: int, gid: int, *, follow: bool) -> Act:
    return lambda path: os.chown(path, uid, gid, follow_symlinks=follow)


def opened(flags: int, then: Callable[[int], object] = lambda fd: None) -> Act:
    def act(path: Path) -> None:
        fd = os.open(path, flags | os.O_NONBLOCK, 0o640)
        try:
            then(fd)
        finally:
            os.close(fd)

    return act


ACTS: dict[str, dict[str, Act]] = {
    "chmod": {f"{mode:o}": chmod(mode) for mode in (0, 0o600, 0o1755, 0o2755, 0o4711, 0o7777)},
    "chown": {
        f"{uid}:{gid}{'' if follow else ' of the link'}": chown(uid, gid, follow=follow)
        for uid, gid in ((-1, -1), (USER, -1), (-1, USER), (-1, OTHER), (OTHER, OTHER), (0, 0))
        for follow in (True, False)
    },
    "open": {
        "read": opened(os.O_RDONLY), "write": opened(os.O_WRONLY), "both": opened(os.O_RDWR),
        "cut": opened(os.O_WRONLY | os.O_TRUNC), "cut for reading": opened(os.O_RDONLY | os.O_TRUNC),
        "make": opened(os.O_CREAT | os.O_WRONLY), "make for reading": opened(os.O_CREAT | os.O_RDONLY),
        "make new": opened(os.O_CREAT | os.O_EXCL | os.O_WRONLY), "directory": opened(os.O_RDONLY | os.O_DIRECTORY),
        "no link": opened(os.O_RDONLY | os.O_NOFOLLOW), "path": opened(os.O_PATH),
        "write a byte": opened(os.O_WRONLY, lambda fd: os.pwrite(fd, b"x", 3)),
        "write behind the end": opened(os.O_WRONLY, lambda fd: os.pwrite(fd, b"x", 5000)),
        "append": opened(os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"more")),
        "write nothing": opened(os.O_WRONLY, lambda fd: os.write(fd, b"")),
        "make and write": opened(os.O_CREAT | os.O_WRONLY, lambda fd: os.write(fd, b"new")),
        "write what is open for reading": opened(os.O_RDONLY, lambda fd: os.write(fd, b"x")),
        "read what is open for writing": opened(os.O_WRONLY, lambda fd: os.read(fd, 1)),
    },
    "truncate": {
        "to nothing": lambda p: os.truncate(p, 0), "shorter": lambda p: os.truncate(p, 4),
        "same": lambda p: os.truncate(p, 10), "longer": lambda p: os.truncate(p, 100_000),
        "below nothing": lambda p: os.truncate(p, -1),
        "open, shorter": opened(os.O_WRONLY, lambda fd: os.ftruncate(fd, 3)),
        "open, same": opened(os.O_RDWR, lambda fd: os.ftruncate(fd, 10)),
        "open for reading": opened(os.O_RDONLY, lambda fd: os.ftruncate(fd, 3)),
        "room": opened(os.O_RDWR, lambda fd: os.posix_fallocate(fd, 0, 20_000)),
        "no room": opened(os.O_RDWR, lambda fd: os.posix_fallocate(fd, 0, 0)),
        "room, open for reading": opened(os.O_RDONLY, lambda fd: os.posix_fallocate(fd, 0, 100)),
    },
    "names": {
        "unlink": os.unlink, "rmdir": os.rmdir, "mkdir": os.mkdir, "mkfifo": os.mkfifo, "mknod": make_socket,
        "device": lambda p: os.mknod(p, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
        "symlink": lambda p: os.symlink("to", p), "mkdir below": lambda p: os.mkdir(p / "below"),
        "create below": lambda p: create(p / "below"), "list": os.listdir, "readlink": os.readlink,
        "link": lambda p: os.link(p, p.with_name("second"), follow_symlinks=False),
        "link to what it points at": lambda p: os.link(p, p.with_name("second"), follow_symlinks=True),
        "unlink with a slash": lambda p: os.unlink(f"{p}/"), "rmdir with a slash": lambda p: os.rmdir(f"{p}/"),
        "rmdir itself": lambda p: os.rmdir(f"{p}/."), "mkdir with a slash": lambda p: os.mkdir(f"{p}/"),
        "remove what is in it": lambda p: os.unlink(p / "inside"),
    },
    "times": {
        "now": os.utime, "given": lambda p: os.utime(p, ns=(5, 7)),
        "of the link": lambda p: os.utime(p, ns=(5, 7), follow_symlinks=False),
        "of what is open": opened(os.O_RDONLY, lambda fd: os.utime(fd, ns=(5, 7))),
        "before 1970": lambda p: os.utime(p, ns=(-5, -1_000_000_007)),
    },
    "attributes": {
        "list": os.listxattr, "get": lambda p: os.getxattr(p, "user.none"),
        "get of the link": lambda p: os.getxattr(p, "user.none", follow_symlinks=False),
        "remove": lambda p: os.removexattr(p, "user.none"),
        "trusted": lambda p: os.getxattr(p, "trusted.none"), "no class": lambda p: os.getxattr(p, "noclass"),
    },
    "rename": {
        **{f"over {kind}": lambda p: os.rename(p, p.with_name("target")) for kind in KINDS},
        "with a slash": lambda p: os.rename(f"{p}/", p.with_name("elsewhere-new")),
        "to a name with a slash": lambda p: os.rename(p, f"{p.with_name('elsewhere-new')}/"),
        "below itself": lambda p: os.rename(p, p / "below"),
    },
}  # fmt: skip


#: Of files, where an act may change them. 6744 is left out where bytes change: the mount takes the group's bit of files
#: that the group may not run from whoever writes, a disk leaves it to members of the group.
MODES: dict[str, tuple[int, ...]] = {
    "chmod": (0o644, 0o6755, 0o6744), "chown": (0o644, 0o6755, 0o6744), "open": (0o644, 0o6755),
    "truncate": (0o644, 0o6755),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    kind: str
    mode: int
    parent_mode: int
    act: str
    who: str


def is_compared(area: str, kind: str, act: str) -> bool:
    """Not where file systems differ for a reason: a mount of FUSE opens no devices (nodev), and whether a truncation
    to the size that is there changes the times is each file system's own affair."""
    if kind == "device" and area in {"open", "truncate"}:
        return False
    is_same = (kind, act) in {("file", "same"), ("linked", "same"), ("file", "open, same"), ("linked", "open, same")}
    return not is_same and (kind, act) not in {("empty", "to nothing"), ("device", "of what is open")}


def cases(area: str) -> Iterator[Case]:
    for kind, act in itertools.product(KINDS, ACTS[area]):
        if not is_compared(area, kind, act):
            continue
        for mode, who in itertools.product(MODES.get(area, (0o755,)) if kind == "file" else (0o755,), WHO):
            yield Case(kind, mode, 0o777, act, who)
            if area in {"names", "rename"} and who in {"owner", "other"}:
                yield Case(kind, mode, 0o1777, act, who)
                yield Case(kind, mode, 0o755, act, who)


def outcome(side: Path, number: int, area: str, case: Case) -> tuple[object, ...]:
    """What the act did in a fresh directory of that side."""
    place = side / str(number)
    place.mkdir()
    path = place / "it"
    make_file(place / "elsewhere")
    KINDS[case.kind](path)
    if area == "rename" and case.act.startswith("over "):
        KINDS[case.act.removeprefix("over ")](place / "target")
    for entry in place.iterdir():
        os.chown(entry, USER, USER, follow_symlinks=False)
        if not entry.is_symlink():
            os.chmod(entry, case.mode)
        os.utime(entry, ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    os.chmod(place, case.parent_mode)
    os.utime(place, ns=(OLD_NS, OLD_NS))
    uid, gids = WHO[case.who]
    act = ACTS[area][case.act]
    code = failure(lambda: act(path), uid=uid, gids=gids)
    return code, *(_look(place, name) for name in ["", *sorted(os.listdir(place))])


def _look(place: Path, name: str) -> tuple[object, ...]:
    found = (place / name).lstat()
    is_directory = stat.S_ISDIR(found.st_mode)
    content: object = None
    if stat.S_ISREG(found.st_mode):
        content = (place / name).read_bytes()
    elif stat.S_ISLNK(found.st_mode):
        content = os.readlink(place / name)
    elif is_directory and name:
        content = sorted(os.listdir(place / name))
    times = found.st_mtime_ns if found.st_mtime_ns <= OLD_NS else "now"
    size = None if is_directory else found.st_size
    return name, f"{found.st_mode:o}", found.st_uid, found.st_gid, found.st_nlink, size, found.st_rdev, times, content


def shares() -> Iterator[object]:
    """(area, first case, step): a sample of each area; and, slow, all its cases in parts."""
    for area in ACTS:
        yield pytest.param(area, 0, SAMPLE, id=f"{area}-sample")
        parts = -(-sum(1 for _ in cases(area)) // PART)
        for first in range(parts):
            yield pytest.param(area, first, parts, id=f"{area}-{first + 1}-of-{parts}", marks=pytest.mark.slow)


@pytest.mark.parametrize(("area", "first", "step"), list(shares()))
def test_the_mount_does_what_a_disk_does(place: Path, area: str, first: int, step: int) -> None:
    """Programs are written against disks: each difference is a program that breaks on the mount."""
    with tempfile.TemporaryDirectory(prefix="beside-", dir=disk_root()) as name:
        disk = Path(name)
        disk.chmod(0o755)
        different = []
        for number, case in enumerate(itertools.islice(cases(area), first, None, step)):
            right, ours = outcome(disk, number, area, case), outcome(place, number, area, case)
            if right != ours:
                different.append(f"{case}:\n  disk  {right}\n  mount {ours}")
    assert not different, f"{len(different)} cases:\n" + "\n".join(different[:20])
