"""What programs have open: files, and directories that are read page by page. Numbers are given once per mount."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from pyfuse3 import FUSEError

from tierstore.files.node import Node
from tierstore.wire.files import Entry


@dataclass(slots=True)
class Handle:
    node: Node
    flags: int
    uid: int            # who opened it
    is_written: bool = False


@dataclass(slots=True)
class DirectoryHandle:
    """Entries fetched so far; `next` None: there are no more."""

    node: Node
    entries: list[Entry] = field(default_factory=list)
    next: str | None = ""


class Handles:
    """One per mount. Event loop only. Raises FUSEError(EBADF) for a number that is none of the kind asked for."""

    def __init__(self) -> None:
        self._open: dict[int, Handle | DirectoryHandle] = {}
        self._last = 0

    def add(self, handle: Handle | DirectoryHandle) -> int:
        self._last += 1
        self._open[self._last] = handle
        return self._last

    def file(self, fh: int) -> Handle:
        handle = self._open.get(fh)
        if not isinstance(handle, Handle):
            raise FUSEError(errno.EBADF)
        return handle

    def directory(self, fh: int) -> DirectoryHandle:
        handle = self._open.get(fh)
        if not isinstance(handle, DirectoryHandle):
            raise FUSEError(errno.EBADF)
        return handle

    def pop(self, fh: int) -> Handle | DirectoryHandle | None:
        """Forget it; None when it is not there."""
        return self._open.pop(fh, None)
