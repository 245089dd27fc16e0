"""A FUSE file system that keeps, over a power cut, only what was synced: the strictest reading of POSIX.

    written bytes, truncation        lost until fsync or fdatasync of that file
    create, rename, unlink, mkdir    lost until fsync of the directory
    torn                             of unsynced ranges, each 512-byte sector survives or not, at random

A real ext4 forgives much of it (the fsync of a file brings its name along): a missing fsync of a directory shows here.
`StrictDisk` is the test's side; `python -m tests.kit.strictfs BACKING MOUNT SEED TORN` is the process that serves.
BACKING/live is what is visible, BACKING/kept/<inode> the content that survives. SIGUSR1 is the cut.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.kit.cluster import wait_until

SECTOR_BYTES = 512
PIECE_BYTES = 1 << 20


class StrictDisk:
    """A mounted strict file system. Use as a context manager; `cut()`, then `mount()` again."""

    def __init__(self, mount_point: Path, *, seed: int = 0, torn: bool = True) -> None:
        self.path = mount_point
        self._backing = mount_point.with_suffix(".backing")
        self._seed, self._torn = seed, torn
        self._process: subprocess.Popen[bytes] | None = None
        self.said: list[str] = []
        mount_point.mkdir(parents=True, exist_ok=True)
        self.mount()

    def mount(self) -> None:
        assert self._process is None
        self._seed += 1
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.strictfs", str(self._backing), str(self.path), str(self._seed),
             str(int(self._torn))], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        wait_until(lambda: os.path.ismount(self.path), seconds=20, what="strict file system mounted")

    def cut(self) -> None:
        """The lights go out: what was not synced is gone. Processes that use it must be ended before mount()."""
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)
        output, _ = self._process.communicate(timeout=300)
        self.said.append(output.decode().strip())
        self._unmount()

    def _unmount(self) -> None:
        if self._process is not None:
            subprocess.run(["umount", "-l", str(self.path)], check=False, capture_output=True)
            if self._process.poll() is None:
                self._process.terminate()
                self._process.wait(180)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def __enter__(self) -> StrictDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._unmount()


def _tree(fuse: Any) -> type:
    """The operations, made here because the FUSE library is loaded only in the serving process."""

    class Strict(fuse.Operations):  # type: ignore[misc]
        use_ns = True

        def __init__(self, backing: str, rng: random.Random, torn: bool) -> None:
            self.root, self.rng, self.torn = os.path.realpath(backing), rng, torn
            self.live, self.kept = f"{self.root}/live", f"{self.root}/kept"
            os.makedirs(self.live, exist_ok=True)
            os.makedirs(self.kept, exist_ok=True)
            self.guard = threading.RLock()
            self.dirty: dict[int, list[tuple[int, int]]] = {}           # inode -> unsynced ranges
            self.names: dict[int, dict[str, tuple[int, bool]]] = {}     # directory inode -> durable entries
            self.is_dead = False
            for directory, inner, files in os.walk(self.live):          # what is there at the mount is durable
                entries = {name: (os.lstat(f"{directory}/{name}").st_ino, True) for name in inner}
                for name in files:
                    inode = os.lstat(f"{directory}/{name}").st_ino
                    entries[name] = (inode, False)
                    shutil.copyfile(f"{directory}/{name}", f"{self.kept}/{inode}")
                self.names[os.stat(directory).st_ino] = entries

        # -- the cut -------------------------------------------------------------------------------------------
        def power_cut(self) -> str:
            with self.guard:
                self.is_dead = True
                by_inode = {
                    os.lstat(f"{d}/{n}").st_ino: f"{d}/{n}" for d, _, files in os.walk(self.live) for n in files
                }
                after = f"{self.root}/after"
                shutil.rmtree(after, ignore_errors=True)
                self._build(os.stat(self.live).st_ino, after, by_inode)
                before_count = len(by_inode)
                shutil.rmtree(self.live)
                shutil.rmtree(self.kept)
                os.rename(after, self.live)
                after_count = sum(len(files) for _, _, files in os.walk(self.live))
                return f"{before_count} files before, {after_count} after, {len(self.dirty)} with unsynced bytes"

        def _build(self, inode: int, target: str, by_inode: dict[int, str]) -> None:
            os.mkdir(target)
            for name, (child, is_directory) in self.names.get(inode, {}).items():
                path = f"{target}/{name}"
                if is_directory:
                    self._build(child, path, by_inode)
                elif os.path.exists(f"{self.kept}/{child}"):
                    shutil.copyfile(f"{self.kept}/{child}", path)
                else:
                    open(path, "wb").close()    # the name is durable, no byte is
                if self.torn and not is_directory and child in self.dirty and child in by_inode:
                    self._tear(by_inode[child], path, self.dirty[child])

        def _tear(self, live: str, path: str, ranges: list[tuple[int, int]]) -> None:
            with open(live, "rb") as source, open(path, "r+b") as target:
                for offset, count in ranges:
                    for at in range(offset - offset % SECTOR_BYTES, offset + count, SECTOR_BYTES):
                        if self.rng.random() < 0.5:
                            low = max(at, offset)
                            source.seek(low)
                            target.seek(low)
                            target.write(source.read(min(at + SECTOR_BYTES, offset + count) - low))

        # -- what is durable -----------------------------------------------------------------------------------
        def _mark(self, inode: int, offset: int, count: int) -> None:
            with self.guard:
                self.dirty.setdefault(inode, []).append((offset, count))

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            self._alive()
            status = os.fstat(fh)
            with self.guard:
                kept = os.open(f"{self.kept}/{status.st_ino}", os.O_RDWR | os.O_CREAT)
                for offset, count in self.dirty.pop(status.st_ino, ()):
                    while count > 0 and (piece := os.pread(fh, min(count, PIECE_BYTES), offset)):
                        os.pwrite(kept, piece, offset)
                        offset, count = offset + len(piece), count - len(piece)
                os.ftruncate(kept, status.st_size)
                os.close(kept)
            return 0

        def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
            self._alive()
            with self.guard:
                self.names[os.stat(self._at(path)).st_ino] = {
                    entry.name: (entry.inode(), entry.is_dir(follow_symlinks=False))
                    for entry in os.scandir(self._at(path))
                    if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
                }
            return 0

        def _alive(self) -> None:
            if self.is_dead:
                raise fuse.FuseOSError(errno.EIO)

        def _at(self, path: str) -> str:
            return self.live + path

        # -- plain passing through -----------------------------------------------------------------------------
        def init_with_config(self, _connection: object, _config: object) -> None:
            def wait() -> None:
                signal.sigwait({signal.SIGUSR1})
                print(self.power_cut(), flush=True)
                os._exit(0)

            threading.Thread(target=wait, daemon=True).start()

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            status = os.fstat(fh) if fh else os.lstat(self._at(path))
            plain = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_ino")
            found = {name: getattr(status, name) for name in plain}
            return found | {name: getattr(status, f"{name}_ns") for name in ("st_atime", "st_mtime", "st_ctime")}

        def readdir(self, path: str, fh: int) -> Iterator[str]:
            yield from (".", "..", *os.listdir(self._at(path)))

        def statfs(self, path: str) -> dict[str, int]:
            found = os.statvfs(self.live)
            names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_namemax")
            return {name: getattr(found, name) for name in names}

        def open(self, path: str, flags: int) -> int:
            self._alive()
            fd = os.open(self._at(path), flags & os.O_TRUNC | os.O_RDWR)
            if flags & os.O_TRUNC:
                self._mark(os.fstat(fd).st_ino, 0, 0)
            return fd

        def create(self, path: str, mode: int, fi: object = None) -> int:
            self._alive()
            return os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            self._alive()
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            self._alive()
            count = os.pwrite(fh, data, offset)
            self._mark(os.fstat(fh).st_ino, offset, count)
            return count

        def truncate(self, path: str, length: int, fh: int | None = None) -> None:
            self._alive()
            os.truncate(self._at(path), length)
            self._mark(os.stat(self._at(path)).st_ino, 0, 0)

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

        def rename(self, old: str, new: str, flags: int = 0) -> None:
            self._alive()
            os.rename(self._at(old), self._at(new))

        def unlink(self, path: str) -> None:
            self._alive()
            os.unlink(self._at(path))

        def mkdir(self, path: str, mode: int) -> None:
            self._alive()
            os.mkdir(self._at(path), mode)

        def mknod(self, path: str, mode: int, device: int) -> None:
            """Sockets: they never survive a cut."""
            self._alive()
            os.mknod(self._at(path), mode, device)

        def rmdir(self, path: str) -> None:
            self._alive()
            os.rmdir(self._at(path))

        def chmod(self, path: str, mode: int) -> None:
            os.chmod(self._at(path), mode)

        def chown(self, path: str, uid: int, gid: int) -> None:
            os.chown(self._at(path), uid, gid)

        def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
            os.utime(self._at(path), ns=times) if times else os.utime(self._at(path))

        def access(self, path: str, mode: int) -> int:
            return 0

    return Strict


def _serve() -> None:
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")
    import mfusepy

    backing, mount_point, seed, torn = sys.argv[1:5]
    # blocked in every thread: one of them waits for it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    os.makedirs(backing, exist_ok=True)
    strict = _tree(mfusepy)(backing, random.Random(int(seed)), torn == "1")
    mfusepy.FUSE(strict, mount_point, foreground=True, nothreads=False)


if __name__ == "__main__":
    _serve()
