"""Open descriptors of segments and chunk files, kept in a bounded order of last use, with what was parsed of them.

Invariant: a descriptor is closed exactly once: when it has left the table and its last reader has closed. Used by the
loop alone; threads get a Handle that somebody acquired for them.
"""

from __future__ import annotations

import os
from collections import OrderedDict


class Handle:
    """A descriptor with a count of its readers. sums and chunk_bytes: of a chunk file; a segment has none."""

    __slots__ = ("_is_kept", "_readers", "chunk_bytes", "fd", "sums")

    def __init__(self, fd: int, *, chunk_bytes: int = 0, sums: bytes = b"") -> None:
        self.fd = fd
        self.chunk_bytes = chunk_bytes
        self.sums = sums
        self._readers = 0
        self._is_kept = True

    def acquire(self) -> None:
        self._readers += 1

    def release(self) -> None:
        self._readers -= 1
        self._close_if_last()

    def leave(self) -> None:
        """The table has let go of it."""
        self._is_kept = False
        self._close_if_last()

    def _close_if_last(self) -> None:
        if self._readers == 0 and not self._is_kept and self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


class OpenFiles:
    def __init__(self, open_max: int) -> None:
        self._open_max = open_max
        self._handles: OrderedDict[int | bytes, Handle] = OrderedDict()

    def __len__(self) -> int:
        return len(self._handles)

    def get(self, key: int | bytes) -> Handle | None:
        handle = self._handles.get(key)
        if handle is not None:
            self._handles.move_to_end(key)
        return handle

    def add(self, key: int | bytes, handle: Handle) -> Handle:
        """Keep the handle; if the key has one already, that one is kept and returned and the new one is closed."""
        known = self.get(key)
        if known is not None:
            handle.leave()
            return known
        self._handles[key] = handle
        while len(self._handles) > self._open_max:
            _, oldest = self._handles.popitem(last=False)
            oldest.leave()
        return handle

    def drop(self, key: int | bytes) -> None:
        handle = self._handles.pop(key, None)
        if handle is not None:
            handle.leave()

    def close(self) -> None:
        while self._handles:
            _, handle = self._handles.popitem()
            handle.leave()
