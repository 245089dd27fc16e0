"""Handles, as NFS servers keep them for their clients: they lead to the same file after the mount was restarted."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.kit.cluster import Cluster
from tests.kit.mount import Mounted, mounted

#: Handles of FUSE have 12 or 24 bytes; the kernel's own limit.
HANDLE_BYTES_MAX = 128
AT_FDCWD = -100

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and os.environ.get("CI") != "true", reason="only root opens files by handle"
)


class _Handle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * HANDLE_BYTES_MAX))


@dataclass(frozen=True)
class Handle:
    """What name_to_handle_at gave."""

    type: int
    data: bytes

    @classmethod
    def of(cls, path: Path) -> Handle:
        raw, mount_id = _Handle(HANDLE_BYTES_MAX), ctypes.c_int()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), ctypes.byref(raw), ctypes.byref(mount_id), 0):
            raise OSError(ctypes.get_errno(), "name_to_handle_at", str(path))
        return cls(raw.type, bytes(raw.data[: raw.bytes]))

    def open(self, root: Path) -> int:
        """A descriptor of what the handle means on the file system that root is of."""
        raw = _Handle(len(self.data), self.type)
        ctypes.memmove(raw.data, self.data, len(self.data))
        libc = ctypes.CDLL(None, use_errno=True)
        at = os.open(root, os.O_RDONLY)
        try:
            fd = libc.open_by_handle_at(at, ctypes.byref(raw), os.O_RDONLY)
            if fd < 0:
                raise OSError(ctypes.get_errno(), "open_by_handle_at")
            return int(fd)
        finally:
            os.close(at)

    def read(self, root: Path) -> bytes:
        fd = self.open(root)
        try:
            return os.read(fd, 1000)
        finally:
            os.close(fd)


@pytest.fixture
def second(files_cluster: Cluster, rest: httpx.Client, tmp_path: Path) -> Iterator[Mounted]:
    with mounted(files_cluster, "files", tmp_path / "second") as running:
        yield running


def test_handles_outlive_the_mount(second: Mounted, rest: httpx.Client, request: pytest.FixtureRequest) -> None:
    """A restart must not cost NFS clients their open files: what has a number keeps it, and is found by it, also after
    it was renamed meanwhile; what is gone is stale."""
    root, name = second.path, request.node.name
    place = root / name
    (place / "deep" / "er").mkdir(parents=True)
    (place / "deep" / "er" / "file").write_bytes(b"made here")
    (place / "gone").write_bytes(b"soon gone")
    (place / "linked").write_bytes(b"two names")
    os.link(place / "linked", place / "deep" / "other")
    assert rest.put(f"/v1/objects/files/{name}/by-rest/a/object", content=b"no mount touched it").status_code == 200
    names = ["deep/er/file", "gone", "linked", "deep/er", "by-rest/a/object", "by-rest/a", "."]
    handles = {path: Handle.of(place / path) for path in names}
    numbers = {path: (place / path).stat().st_ino for path in names}
    assert second.stop() == 0
    (root.parent / "third").mkdir()
    with mounted(second.cluster, "files", root.parent / "third") as other:
        (other.path / name / "gone").unlink()
        (other.path / name / "deep").rename(other.path / name / "deeper")
        (other.path / name / "linked").unlink()
    second.start()
    assert handles["deep/er/file"].read(root) == b"made here"
    assert handles["linked"].read(root) == b"two names"
    assert handles["by-rest/a/object"].read(root) == b"no mount touched it"
    for path in ("deep/er", "by-rest/a", ".", "linked"):
        fd = handles[path].open(root)
        try:
            assert os.fstat(fd).st_ino == numbers[path]
        finally:
            os.close(fd)
    fd = handles["deep/er"].open(root)
    try:
        assert os.listdir(fd) == ["file"]
        assert Path(os.readlink(f"/proc/self/fd/{fd}")).name == "er", "the kernel finds the way up to the root"
    finally:
        os.close(fd)
    with pytest.raises(OSError, match="open_by_handle_at") as caught:
        handles["gone"].open(root)
    assert caught.value.errno == errno.ESTALE
    assert (place / "deeper" / "er" / "file").read_bytes() == b"made here"
