"""Power cut of a real ext4: a loop mount and the file system's shutdown ioctl without a log flush.

All dirty pages and the unflushed journal are gone, and every call after the cut fails with EIO, so nothing can be
acknowledged any more. About 0.6 s a cycle. Needs root, mkfs.ext4 and loop devices.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN = _IOR('X', 125, u32)
_NO_LOG_FLUSH = 2
UNMOUNT_SECONDS = 120.0


class Volume:
    """One small ext4 in an image file beside its mount point. Use as a context manager."""

    def __init__(self, mount_point: Path, *, size_mib: int = 400) -> None:
        self.path = mount_point
        self._image = mount_point.with_suffix(".img")
        mount_point.mkdir(parents=True, exist_ok=True)
        with open(self._image, "wb") as image:
            image.truncate(size_mib << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self._image)], check=True)
        self._is_mounted = False
        self.mount()

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self._image), str(self.path)], check=True)
        self._is_mounted = True

    def unmount(self) -> None:
        """Waits for the last threads of killed processes: a process is a zombie while one of them still ends in the
        kernel and holds its files."""
        deadline = time.monotonic() + UNMOUNT_SECONDS
        while self._is_mounted:
            done = subprocess.run(["umount", str(self.path)], check=False, capture_output=True, text=True)
            self._is_mounted = done.returncode != 0
            if self._is_mounted:
                assert "busy" in done.stderr and time.monotonic() < deadline, done.stderr
                time.sleep(0.05)    # polling with a deadline

    def cut(self) -> None:
        """The lights go out. Processes that have files open here must be ended before unmount()."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def __enter__(self) -> Volume:
        return self

    def __exit__(self, *_: object) -> None:
        self.unmount()
        self._image.unlink(missing_ok=True)
