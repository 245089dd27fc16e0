"""The probe by which a device that failed shows that it can be written again."""

from __future__ import annotations

import os
from typing import Final

from objectd.store import files
from objectd.store.reading import read_fully
from tierstore.errors import IntegrityError
from tierstore.failpoints import hit

_PROBE_BYTES: Final = 4096


def probe(root: str) -> None:
    """Write, sync and read back a file in the directory on a descriptor of its own. Blocks. Raises OSError, and
    IntegrityError when other bytes came back."""
    path = os.path.join(root, "probe")
    content = os.urandom(_PROBE_BYTES)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        hit("store.check.before_write")
        os.pwrite(fd, content, 0)
        os.fsync(fd)
        if read_fully(fd, len(content), 0) != content:
            raise IntegrityError("the probe came back changed", code="bad-probe")
    finally:
        os.close(fd)
        files.discard(path)
